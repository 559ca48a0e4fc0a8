//! BPE over characters, as `tokenizer.json` has what was made from SentencePiece's models: a character that is no piece becomes bytes, and
//! merges join neighbours in the order of their rank. Spaces are written `▁`, and a text may be given one before its first word.

use super::merge::{Merger, NONE};
use super::ranks::Ranks;
use super::spm::SPACE;
use super::vocab::Vocab;
use crate::error::Error;
use std::borrow::Cow;

/// How a pre-tokenizer of the kind `Metaspace` treats spaces. A model without one has them written by its normaliser.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Metaspace {
    pub(super) prefix: Prefix,
    /// Words are cut before each `▁`, and nothing merges across.
    pub(super) cuts: bool,
}

/// Which fragments begin with a `▁` if they have none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Prefix {
    Never,
    /// The text's first.
    AtStart,
    /// Each that lies between special pieces.
    Always,
}

/// Merges, and the pieces of single bytes.
#[derive(Debug)]
pub(super) struct CharBpe {
    ranks: Ranks,
    bytes: [u32; 256],
    spaces: Option<Metaspace>,
    whole_words: bool, // a word that is a piece by itself is not merged
}

impl CharBpe {
    /// Looks up the pieces `<0x00>` to `<0xFF>`.
    ///
    /// # Errors
    /// If one of them is missing.
    pub(super) fn new(vocab: &Vocab, ranks: Ranks, spaces: Option<Metaspace>, whole_words: bool) -> Result<CharBpe, Error> {
        let mut bytes = [NONE; 256];
        for (byte, token) in bytes.iter_mut().enumerate() {
            let text = format!("<0x{byte:02X}>");
            *token =
                vocab.find(text.as_bytes()).ok_or_else(|| Error::Tokenizer { why: format!("its byte_fallback lacks the piece {text}") })?;
        }
        Ok(CharBpe { ranks, bytes, spaces, whole_words })
    }

    /// Appends the tokens of a normalised fragment; `at_start` says that it begins the whole text.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, at_start: bool, merger: &mut Merger, tokens: &mut Vec<u32>) {
        let Some(spaces) = self.spaces else { return self.word(vocab, text, merger, tokens) };
        let text = with_prefix(text, spaces.prefix == Prefix::Always || spaces.prefix == Prefix::AtStart && at_start);
        let mut rest = text.as_ref();
        while spaces.cuts
            && let Some(at) = rest.char_indices().skip(1).find(|(_, c)| *c == SPACE).map(|(at, _)| at)
        {
            self.word(vocab, &rest[..at], merger, tokens);
            rest = &rest[at..];
        }
        self.word(vocab, rest, merger, tokens);
    }

    fn word(&self, vocab: &Vocab, word: &str, merger: &mut Merger, tokens: &mut Vec<u32>) {
        if let Some(token) = if self.whole_words { vocab.find(word.as_bytes()) } else { None } {
            tokens.push(token);
            return;
        }
        merger.clear();
        for (at, c) in word.char_indices() {
            let text = &word[at..at + c.len_utf8()];
            match vocab.find(text.as_bytes()) {
                Some(token) => merger.push(text.len(), token),
                None => text.bytes().for_each(|byte| merger.push(1, self.bytes[usize::from(byte)])),
            }
        }
        merger.merge(|left, right| self.ranks.join(left, right));
        tokens.extend(merger.symbols().map(|symbol| symbol.token));
    }
}

/// Spaces as `▁`, and one before the first word if it is asked for and not there.
fn with_prefix(text: &str, prefix: bool) -> Cow<'_, str> {
    let missing = prefix && !text.starts_with([' ', SPACE]);
    if !missing && !text.contains(' ') {
        return Cow::Borrowed(text);
    }
    let spaces = text.chars().map(|c| if c == ' ' { SPACE } else { c });
    Cow::Owned(missing.then_some(SPACE).into_iter().chain(spaces).collect())
}
