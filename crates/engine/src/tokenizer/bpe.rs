//! Byte-level BPE, as GPT-2 has it: every byte is a piece, and merges join neighbours in the order of their rank.
//!
//! Vocabularies write bytes as printable characters ([`byte_to_char`]); merges stand in `ranks.rs`. Own code and not the
//! `tokenizers` crate, which keeps every piece several times as a `String` and cuts words with a backtracking engine that fails on long texts.

use super::merge::{Merger, NONE};
use super::pre::Pre;
use super::ranks::{MergeList, Ranks, Repeated};
use super::vocab::Vocab;
use crate::error::Error;
use crate::gguf::GgufFile;

/// Merges, and the pieces of single bytes.
#[derive(Debug)]
pub(super) struct Bpe {
    pre: &'static Pre,
    whole_words: bool, // a word that is a piece by itself is not merged
    ranks: Ranks,
    bytes: [u32; 256], // NONE where the vocabulary lacks the byte
}

impl Bpe {
    /// Reads `tokenizer.ggml.merges` and `tokenizer.ggml.pre`.
    pub(super) fn from_gguf(file: &GgufFile, vocab: &Vocab) -> Result<Bpe, Error> {
        let pre = Pre::named(file.optional_string("tokenizer.ggml.pre")?.unwrap_or("default"))?;
        let mut merges = MergeList::default();
        for text in file.strings("tokenizer.ggml.merges")? {
            merges.push_text(vocab, text)?;
        }
        Ok(Self::new(pre, pre.whole_words, vocab, Ranks::new(merges, Repeated::First)))
    }

    /// Cuts words with `pre`; `whole_words` says that a word which is a piece by itself is not merged.
    pub(super) fn new(pre: &'static Pre, whole_words: bool, vocab: &Vocab, ranks: Ranks) -> Bpe {
        let mut text = [0; 4];
        let bytes = std::array::from_fn(|byte| vocab.find(byte_to_char(byte as u8).encode_utf8(&mut text).as_bytes()).unwrap_or(NONE));
        Bpe { pre, whole_words, ranks, bytes }
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
            merger.merge(|left, right| self.ranks.join(left, right));
            tokens.extend(merger.symbols().map(|s| s.token).filter(|&t| t != NONE));
        });
    }

    fn whole_word(&self, vocab: &Vocab, word: &str) -> Option<u32> {
        if !self.whole_words || word.len() > vocab.longest_bytes() {
            return None;
        }
        vocab.find(word.bytes().map(byte_to_char).collect::<String>().as_bytes())
    }
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
}
