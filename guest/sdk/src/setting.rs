//! Settings: of the message, else of the actor's birth. They come as text and are read here once.
#![forbid(unsafe_code)]

use alloc::{
    format,
    string::{String, ToString},
};

use crate::{Code, Error, Result, host, message::utf8};

/// A type that a setting's text can be read as.
pub trait Setting: Sized {
    /// Reads the text; nothing if it does not say such a value.
    fn read(text: &str) -> Option<Self>;
}

impl Setting for String {
    fn read(text: &str) -> Option<Self> {
        Some(text.to_string())
    }
}

impl Setting for u32 {
    fn read(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }
}

impl Setting for u64 {
    fn read(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }
}

impl Setting for f32 {
    /// Reads decimal notation of at most 15 digits. (The library's own reader brings 10 KB of tables into each module.)
    fn read(text: &str) -> Option<Self> {
        let (negative, digits) = match text.trim().strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.trim()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let count = whole.len() + fraction.len();
        if count == 0 || count > 15 {
            return None;
        }
        let mut number = 0u64;
        for byte in whole.bytes().chain(fraction.bytes()) {
            let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
            number = number * 10 + u64::from(digit);
        }
        let magnitude = number as f64 / 10u64.pow(fraction.len() as u32) as f64;
        Some(if negative { -magnitude } else { magnitude } as f32)
    }
}

/// A setting by name, if it is set. The well-known names stand in `driftwood.h`.
///
/// # Errors
/// If the setting's text can't be read as `T`.
pub fn setting<T: Setting>(name: &str) -> Result<Option<T>> {
    let text = match host::setting(name) {
        Ok(bytes) => utf8("setting", bytes)?,
        Err(error) if error.is(Code::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    match T::read(&text) {
        Some(value) => Ok(Some(value)),
        None => Err(Error::Failed(format!("the setting {name} can't be \"{text}\"; give it another value"))),
    }
}

/// A setting by name, or the value that it has where it is not set.
///
/// # Errors
/// If the setting's text can't be read as `T`.
pub fn setting_or<T: Setting>(name: &str, default: T) -> Result<T> {
    Ok(setting(name)?.unwrap_or(default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_as_the_library_reads_them() {
        for text in ["0", "1", "0.7", "-1.5", "0.95", ".5", "2.", "123456.789", "1.1", " 0.05 ", "999999999999999", "0.00000000000001"] {
            assert_eq!(f32::read(text), text.trim().parse().ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_decimal_is_refused() {
        for text in ["", ".", "-", "1e3", "nan", "inf", "1.2.3", "0x1", "1,5", "--1", "1234567890123456", "٣"] {
            assert_eq!(f32::read(text), None, "{text}");
        }
    }
}
