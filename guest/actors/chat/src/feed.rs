//! What to feed a session so that it stands for a new rendering of the transcript.

use alloc::{string::String, vec::Vec};

use driftwood_guest::{Token, common_prefix};

/// The text that a session stands for.
pub struct Fed {
    /// The rendering that was fed and the reply to it, without the text of the end token.
    pub text: String,
    /// The end token, where the reply came to its end: the session's last token.
    pub end: Option<Token>,
}

/// A way from the session's tokens to those of a rendering.
#[derive(Debug, PartialEq)]
pub struct Feed {
    /// How many of the session's tokens stay.
    pub kept: u32,
    /// What is appended to them.
    pub tokens: Vec<Token>,
    /// The rendering that the session then stands for.
    pub rendering: String,
}

impl Fed {
    /// What of a rendering is new; nothing if it does not begin with the text fed (a template may trim replies, for one).
    pub fn rest_of<'a>(&self, rendering: &'a str) -> Option<&'a str> {
        rendering.strip_prefix(self.text.as_str()).filter(|rest| !rest.is_empty())
    }

    /// The way on from a session of `length` tokens, by the tokens of the rest.
    ///
    /// The rest begins with the mark that ends a turn. Where the model has set that mark itself it is not fed twice, and where it has
    /// ended by another token, that token makes place for the template's.
    pub fn continued(&self, length: u32, mut tokens: Vec<Token>, rendering: String) -> Feed {
        let Some(end) = self.end else { return Feed { kept: length, tokens, rendering } };
        if tokens.first() != Some(&end) {
            return Feed { kept: length.saturating_sub(1), tokens, rendering };
        }
        tokens.remove(0);
        Feed { kept: length, tokens, rendering }
    }
}

impl Feed {
    /// The way from the tokens that a session holds to all tokens of a rendering.
    pub fn compared(held: &[Token], mut tokens: Vec<Token>, rendering: String) -> Feed {
        let kept = common_prefix(held, &tokens);
        tokens.drain(..kept);
        Feed { kept: kept as u32, tokens, rendering }
    }

    /// How many tokens the session will hold.
    pub fn length(&self) -> u32 {
        self.kept.saturating_add(self.tokens.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Token = 2;

    fn feed(kept: u32, tokens: &[Token]) -> Feed {
        Feed { kept, tokens: tokens.to_vec(), rendering: "r".into() }
    }

    #[test]
    fn only_what_is_new_is_fed() {
        let fed = Fed { text: "<u>hi<e><a>hello".into(), end: Some(END) };
        assert_eq!(fed.rest_of("<u>hi<e><a>hello<e><u>more<e><a>"), Some("<e><u>more<e><a>"));
        assert_eq!(fed.rest_of("<u>hi<e><a>hell<e>"), None);
        assert_eq!(fed.rest_of("<u>hi<e><a>hello"), None);
    }

    #[test]
    fn the_end_of_a_turn_stands_once() {
        let ended = Fed { text: String::new(), end: Some(END) };
        assert_eq!(ended.continued(10, vec![END, 7, 8], "r".into()), feed(10, &[7, 8]));
        let ended_otherwise = Fed { text: String::new(), end: Some(0) };
        assert_eq!(ended_otherwise.continued(10, vec![END, 7, 8], "r".into()), feed(9, &[END, 7, 8]));
        let cut_short = Fed { text: String::new(), end: None };
        assert_eq!(cut_short.continued(10, vec![END, 7, 8], "r".into()), feed(10, &[END, 7, 8]));
    }

    #[test]
    fn tokens_in_common_stay() {
        assert_eq!(Feed::compared(&[1, 2, 3, 4], vec![1, 2, 9], "r".into()), feed(2, &[9]));
        assert_eq!(Feed::compared(&[], vec![1, 2], "r".into()), feed(0, &[1, 2]));
        assert_eq!(Feed::compared(&[5], vec![1, 2], "r".into()), feed(0, &[1, 2]));
        assert_eq!(Feed::compared(&[1, 2, 3], vec![1, 2], "r".into()).length(), 2);
    }
}
