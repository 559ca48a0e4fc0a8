//! Byte-level BPE, as GPT-2 has it: every byte is a piece, and merges join neighbours in the order of their rank.
//!
//! Vocabularies write bytes as printable characters ([`byte_to_char`]); merges are kept as numbers of pieces. Own code and not the
//! `tokenizers` crate, which keeps every piece several times as a `String` and cuts words with a backtracking engine that fails on long texts.

use super::hash::Secret;
use super::merge::{Merger, NONE};
use super::pre::Pre;
use super::vocab::Vocab;
use crate::error::Error;
use crate::gguf::{GgufFile, printable};
use crate::limits::MERGES_MAX;
use std::collections::HashMap;

/// Merges, and the pieces of single bytes.
#[derive(Debug)]
pub(super) struct Bpe {
    pre: &'static Pre,
    merges: HashMap<u64, Merge, Secret>,
    bytes: [u32; 256], // NONE where the vocabulary lacks the byte
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    token: u32,
}

impl Bpe {
    /// Reads `tokenizer.ggml.merges` and `tokenizer.ggml.pre`.
    pub(super) fn from_gguf(file: &GgufFile, vocab: &Vocab) -> Result<Bpe, Error> {
        let pre = Pre::named(file.optional_string("tokenizer.ggml.pre")?.unwrap_or("default"))?;
        Self::new(pre, vocab, file.strings("tokenizer.ggml.merges")?.map(|text| halves(text).ok_or(text)))
    }

    /// Merges in the order of their rank: the two pieces that each joins, or a text that is no merge.
    pub(super) fn new<'a>(
        pre: &'static Pre,
        vocab: &Vocab,
        merges: impl ExactSizeIterator<Item = Result<(&'a str, &'a str), &'a str>>,
    ) -> Result<Bpe, Error> {
        let mut text = [0; 4];
        let bytes = std::array::from_fn(|byte| vocab.find(byte_to_char(byte as u8).encode_utf8(&mut text).as_bytes()).unwrap_or(NONE));
        Ok(Bpe { pre, merges: index(merges, vocab)?, bytes })
    }

    /// The pre-tokenizer.
    pub(super) fn pre(&self) -> &'static Pre {
        self.pre
    }

    /// Appends the tokens of `text`. A byte that the vocabulary lacks is passed over, as llama.cpp does.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, merger: &mut Merger, tokens: &mut Vec<u32>) {
        self.pre.words(text, |word| {
            if let Some(token) = self.whole_word(vocab, word) {
                tokens.push(token);
                return;
            }
            merger.clear();
            for byte in word.bytes() {
                merger.push(1, self.bytes[usize::from(byte)]);
            }
            merger.merge(|left, right| self.merges.get(&pair(left.token, right.token)).map(|m| (u32::MAX - m.rank, m.token)));
            tokens.extend(merger.symbols().map(|s| s.token).filter(|&t| t != NONE));
        });
    }

    fn whole_word(&self, vocab: &Vocab, word: &str) -> Option<u32> {
        if !self.pre.whole_words || word.len() > vocab.longest_bytes() {
            return None;
        }
        vocab.find(word.bytes().map(byte_to_char).collect::<String>().as_bytes())
    }
}

fn index<'a>(
    pairs: impl ExactSizeIterator<Item = Result<(&'a str, &'a str), &'a str>>,
    vocab: &Vocab,
) -> Result<HashMap<u64, Merge, Secret>, Error> {
    if pairs.len() > MERGES_MAX {
        return Err(Error::Tokenizer { why: format!("it has {} merges; at most {MERGES_MAX} are possible", pairs.len()) });
    }
    let mut merges = HashMap::with_capacity_and_hasher(pairs.len(), Secret::random());
    let mut joined = Vec::new();
    for (rank, halves) in pairs.enumerate() {
        let bad =
            |text: &str| Error::Tokenizer { why: format!("merge {rank}, `{}`, does not join two pieces to a third", printable(text)) };
        let (left, right) = halves.map_err(bad)?;
        joined.clear();
        joined.extend_from_slice(left.as_bytes());
        joined.extend_from_slice(right.as_bytes());
        let find = |text: &[u8]| vocab.find(text).ok_or_else(|| bad(&format!("{left} {right}")));
        let token = find(&joined)?;
        merges.entry(pair(find(left.as_bytes())?, find(right.as_bytes())?)).or_insert(Merge { rank: rank as u32, token });
    }
    Ok(merges)
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A merge is written `left right`; the separating space is never its first character.
pub(super) fn halves(text: &str) -> Option<(&str, &str)> {
    let first_bytes = text.chars().next()?.len_utf8();
    let at = first_bytes + text[first_bytes..].find(' ')?;
    Some((&text[..at], &text[at + 1..]))
}

/// The character that stands for a byte: itself where it is printable, else the next free one from U+0100.
pub(super) fn byte_to_char(byte: u8) -> char {
    let offset = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
        0x00..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        0xad => 0x43,
    };
    char::from_u32(0x100 + offset).expect("no surrogate")
}

/// The byte that a character stands for, if it stands for one.
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_are_one_to_one() {
        let chars: std::collections::BTreeSet<_> = (0..=255).map(byte_to_char).collect();
        assert_eq!(chars.len(), 256);
        assert!((0..=255).all(|byte| char_to_byte(byte_to_char(byte)) == Some(byte)));
        assert_eq!((byte_to_char(b' '), byte_to_char(b'\n'), char_to_byte('▁')), ('Ġ', 'Ċ', None));
    }

    #[test]
    fn merges_split_at_the_first_space_that_is_not_first() {
        assert_eq!(halves("a b"), Some(("a", "b")));
        assert_eq!(halves("  b"), Some((" ", "b")));
        assert_eq!(halves("Ġ t"), Some(("Ġ", "t")));
        assert_eq!((halves(""), halves(" "), halves("ab")), (None, None, None));
    }
}
