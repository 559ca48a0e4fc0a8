//! Special pieces within a text: structure and user-defined text, found before anything is merged.
//!
//! As in llama.cpp, longer pieces are found first in the whole text, then shorter ones in what lies between them. Pieces are grouped by
//! length; a group is passed over a text once, and a byte that begins (or ends) no piece of the group costs one bit test.

use super::vocab::{Kind, Vocab};
use crate::error::Error;
use crate::limits::SPECIAL_BYTES_MAX;
use std::collections::BTreeMap;

/// Part of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fragment<'a> {
    /// Text between special pieces, never empty.
    Text(&'a str),
    /// A special piece.
    Token(u32),
}

/// The special pieces of some kinds.
#[derive(Debug)]
pub(super) struct Specials {
    groups: Vec<Group>, // longest first
    kinds: &'static [Kind],
}

#[derive(Debug)]
struct Group {
    len_bytes: usize,
    first: ByteSet,
    last: ByteSet,
}

#[derive(Clone, Copy, Default, Debug)]
struct ByteSet([u64; 4]);

impl ByteSet {
    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    fn contains(self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }
}

impl Specials {
    /// Groups the pieces of `kinds`.
    pub(super) fn new(vocab: &Vocab, kinds: &'static [Kind]) -> Result<Specials, Error> {
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        for token in (0..vocab.len() as u32).filter(|&t| kinds.contains(&vocab.kind(t))) {
            let text = vocab.bytes(token);
            let (Some(first), Some(last)) = (text.first(), text.last()) else { continue };
            if text.len() > SPECIAL_BYTES_MAX {
                let why = format!("special piece {token} has {} bytes; at most {SPECIAL_BYTES_MAX} are possible", text.len());
                return Err(Error::Tokenizer { why });
            }
            let len_bytes = text.len();
            let group = groups.entry(len_bytes).or_insert(Group { len_bytes, first: ByteSet::default(), last: ByteSet::default() });
            group.first.insert(*first);
            group.last.insert(*last);
        }
        Ok(Specials { groups: groups.into_values().rev().collect(), kinds })
    }

    /// Calls `emit` for each fragment of `text`, from left to right.
    pub(super) fn split<'a>(&self, vocab: &Vocab, text: &'a str, emit: &mut impl FnMut(Fragment<'a>)) {
        self.split_by(0, vocab, text, emit);
    }

    /// Recursion goes as deep as there are lengths, which `SPECIAL_BYTES_MAX` bounds.
    fn split_by<'a>(&self, group_index: usize, vocab: &Vocab, text: &'a str, emit: &mut impl FnMut(Fragment<'a>)) {
        let Some(group) = self.groups.get(group_index) else {
            if !text.is_empty() {
                emit(Fragment::Text(text));
            }
            return;
        };
        let (mut start, mut at) = (0, 0);
        while let Some(window) = text.as_bytes().get(at..at + group.len_bytes) {
            if let Some(token) = self.matching(group, vocab, window) {
                self.split_by(group_index + 1, vocab, &text[start..at], emit);
                emit(Fragment::Token(token));
                at += group.len_bytes;
                start = at;
            } else {
                at += 1;
            }
        }
        self.split_by(group_index + 1, vocab, &text[start..], emit);
    }

    fn matching(&self, group: &Group, vocab: &Vocab, window: &[u8]) -> Option<u32> {
        if !group.first.contains(window[0]) || !group.last.contains(window[window.len() - 1]) {
            return None;
        }
        vocab.find(window).filter(|&token| self.kinds.contains(&vocab.kind(token)))
    }
}
