//! Normalisers of `tokenizer.json`: what is done to a text between special pieces before it is cut or merged.

use super::spm::SPACE;
use std::borrow::Cow;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// One step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Canonical composition, by the tables of the crate `unicode-normalization` (Unicode 16 or later).
    Nfc,
    /// A `▁` before the text.
    Prepend,
    /// Spaces are written `▁`.
    Spaces,
}

/// The steps of a tokenizer, in their order.
#[derive(Default, Debug)]
pub(super) struct Normal(pub(super) Vec<Step>);

impl Normal {
    /// The text after all steps; an empty one stays empty.
    pub(super) fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.0.iter().fold(Cow::Borrowed(text), |text, step| match step {
            _ if text.is_empty() => text,
            Step::Nfc if is_nfc_quick(text.chars()) == IsNormalized::Yes => text,
            Step::Nfc => Cow::Owned(text.nfc().collect()),
            Step::Prepend => Cow::Owned([SPACE.encode_utf8(&mut [0; 4]), text.as_ref()].concat()),
            Step::Spaces if !text.contains(' ') => text,
            Step::Spaces => Cow::Owned(text.chars().map(|c| if c == ' ' { SPACE } else { c }).collect()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_apply_in_their_order() {
        for (steps, text, expected) in [
            (&[][..], " e\u{301}", " e\u{301}"),
            (&[Step::Nfc], " e\u{301}", " é"),
            (&[Step::Prepend, Step::Spaces], " a b", "▁▁a▁b"),
            (&[Step::Spaces, Step::Prepend], "", ""),
        ] {
            assert_eq!(Normal(steps.to_vec()).apply(text), expected, "{steps:?}");
        }
    }
}
