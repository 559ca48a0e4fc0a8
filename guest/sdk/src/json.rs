//! Writing JSON: messages for the chat template, and small objects to reply with.
#![forbid(unsafe_code)]

use alloc::{format, string::String};

use crate::Message;

/// Appends `text` as a JSON string, quotes included.
pub fn push_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => push_control(out, control),
            other => out.push(other),
        }
    }
    out.push('"');
}

fn push_control(out: &mut String, control: char) {
    let code = control as u32;
    out.push_str("\\u00");
    out.extend([code >> 4, code & 15].into_iter().filter_map(|digit| char::from_digit(digit, 16)));
}

/// Messages as the chat template takes them: an array of `{"role","content"}`.
pub fn messages(messages: &[Message]) -> String {
    let mut out = String::from("[");
    for (index, message) in messages.iter().enumerate() {
        out.push_str(if index == 0 { "{\"role\":" } else { ",{\"role\":" });
        push_text(&mut out, message.role.name());
        out.push_str(",\"content\":");
        push_text(&mut out, &message.content);
        out.push('}');
    }
    out.push(']');
    out
}

/// A JSON object written member by member.
///
/// ```
/// use driftwood_guest::json::Object;
/// assert_eq!(Object::new().text("answer", "yes").decimal("p", 0.25, 2).finish(), r#"{"answer":"yes","p":0.25}"#);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Object {
    members: String,
}

impl Object {
    /// An object without members.
    pub fn new() -> Object {
        Object::default()
    }

    /// Adds a string.
    pub fn text(mut self, key: &str, value: &str) -> Object {
        self.push_key(key);
        push_text(&mut self.members, value);
        self
    }

    /// Adds a whole number.
    pub fn integer(mut self, key: &str, value: i64) -> Object {
        self.push_key(key);
        self.members.push_str(&format!("{value}"));
        self
    }

    /// Adds a number rounded to `places` (at most 15) after the point; null where that can't be written.
    pub fn decimal(mut self, key: &str, value: f64, places: u32) -> Object {
        self.push_key(key);
        self.members.push_str(&decimal(value, places.min(15)));
        self
    }

    /// The object's text.
    pub fn finish(self) -> String {
        format!("{{{}}}", self.members)
    }

    fn push_key(&mut self, key: &str) {
        if !self.members.is_empty() {
            self.members.push(',');
        }
        push_text(&mut self.members, key);
        self.members.push(':');
    }
}

/// By whole numbers: the library's own writer of floats is larger than most actors.
fn decimal(value: f64, places: u32) -> String {
    let one = 10u64.pow(places);
    let scaled = value * one as f64;
    if !(scaled > -9.0e15 && scaled < 9.0e15) {
        return "null".into();
    }
    let rounded = (if scaled < 0.0 { 0.5 - scaled } else { scaled + 0.5 }) as u64;
    let sign = if value < 0.0 && rounded > 0 { "-" } else { "" };
    if places == 0 {
        return format!("{sign}{rounded}");
    }
    format!("{sign}{}.{:0width$}", rounded / one, rounded % one, width = places as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        let cases = [
            ("", r#""""#),
            ("plain", r#""plain""#),
            ("a \"b\" \\ c", r#""a \"b\" \\ c""#),
            ("line\nline\r\ttab", r#""line\nline\r\ttab""#),
            ("\u{0}\u{1f}\u{7f}", "\"\\u0000\\u001f\u{7f}\""),
            ("häß 漢 🦀 \u{2028}", "\"häß 漢 🦀 \u{2028}\""),
        ];
        for (text, expected) in cases {
            let mut out = String::new();
            push_text(&mut out, text);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn messages_are_an_array() {
        assert_eq!(messages(&[]), "[]");
        let two = [Message::system("be \"brief\""), Message::user("hi")];
        assert_eq!(messages(&two), r#"[{"role":"system","content":"be \"brief\""},{"role":"user","content":"hi"}]"#);
    }

    #[test]
    fn decimals_are_rounded() {
        let cases = [
            (0.0, 4, "0.0000"),
            (0.87, 2, "0.87"),
            (0.999951, 4, "1.0000"),
            (-1.5, 1, "-1.5"),
            (-0.0001, 2, "0.00"),
            (12.05, 3, "12.050"),
            (3.7, 0, "4"),
            (f64::NAN, 2, "null"),
            (1.0e300, 2, "null"),
            (f64::NEG_INFINITY, 2, "null"),
        ];
        for (value, places, expected) in cases {
            assert_eq!(decimal(value, places), expected, "{value} {places}");
        }
    }
}
