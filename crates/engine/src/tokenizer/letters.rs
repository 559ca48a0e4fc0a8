//! Which characters are letters and marks to the pre-tokenizers: general categories L and M, as Unicode 16 has them.
//!
//! `char::is_alphabetic` also accepts marks and letter-like numbers, which `\p{L}` in the tokenizers' patterns does not. For every
//! character the patterns of Hugging Face's tokenizers say the same.

use unicode_general_category::GeneralCategory::{self, *};
use unicode_general_category::get_general_category;

/// Whether `c` matches `\p{L}`.
pub(super) fn is_letter(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphabetic() } else { is_letter_of(get_general_category(c)) }
}

/// Whether `c` matches `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`: a letter that is not lower case, or a mark.
pub(super) fn begins_word(c: char) -> bool {
    let category = get_general_category(c);
    category != LowercaseLetter && is_letter_of(category) || is_mark(category)
}

/// Whether `c` matches `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: a letter that is neither upper nor title case, or a mark.
pub(super) fn continues_word(c: char) -> bool {
    let category = get_general_category(c);
    !matches!(category, UppercaseLetter | TitlecaseLetter) && is_letter_of(category) || is_mark(category)
}

fn is_letter_of(category: GeneralCategory) -> bool {
    matches!(category, UppercaseLetter | LowercaseLetter | TitlecaseLetter | ModifierLetter | OtherLetter)
}

fn is_mark(category: GeneralCategory) -> bool {
    matches!(category, NonspacingMark | SpacingMark | EnclosingMark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_alphabetic_and_marks_are_not() {
        for c in ['a', 'Z', 'é', 'ß', 'ж', '中', 'ª', 'ʰ', '𝒜', '가', 'ー'] {
            assert!(is_letter(c), "{c:?}");
        }
        for c in ['1', ' ', '_', '½', 'Ⅷ', '\u{301}', 'ⓐ', '。', '\u{1f600}', '\u{10ffff}'] {
            assert!(!is_letter(c), "{c:?}");
        }
    }

    #[test]
    fn words_begin_in_upper_and_continue_in_lower_case() {
        for (c, begins, continues) in [
            ('A', true, false),
            ('a', false, true),
            ('É', true, false),
            ('é', false, true),
            ('ǅ', true, false),
            ('中', true, true),
            ('ª', true, true),
            ('ʰ', true, true),
            ('ʕ', false, true), // a letter of another kind in Unicode 17
            ('\u{301}', true, true),
            ('1', false, false),
            ('½', false, false),
            ('Ⅷ', false, false),
            ('_', false, false),
        ] {
            assert_eq!((begins_word(c), continues_word(c)), (begins, continues), "{c:?}");
        }
    }
}
