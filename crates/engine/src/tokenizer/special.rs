//! Special pieces within a text: structure and user-defined text, found before anything is merged.
//!
//! Where pieces overlap, the two origins of files differ ([`Order`]). Pieces are grouped by length, and a byte that begins (or ends) no
//! piece of a group costs one bit test. A piece may take the spaces beside it as well ([`Strip`]).

use super::hash::Secret;
use crate::error::Error;
use crate::limits::SPECIAL_BYTES_MAX;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Part of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fragment<'a> {
    /// Text between special pieces, never empty, and where it begins in the whole.
    Text(&'a str, usize),
    /// A special piece.
    Token(u32),
}

/// Who is given the fragments.
type Emit<'e, 'a> = &'e mut dyn FnMut(Fragment<'a>);

/// Which of two overlapping pieces is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// The longer one, wherever in the text: llama.cpp.
    Longest,
    /// The one that begins first, and of those the longest: Hugging Face's tokenizers.
    Leftmost,
}

/// Whether a piece takes the spaces before and after it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Strip {
    pub(super) left: bool,
    pub(super) right: bool,
}

/// Special pieces by their texts.
#[derive(Debug)]
pub(super) struct Specials {
    order: Order,
    first: ByteSet,
    groups: Vec<Group>, // longest first
    tokens: HashMap<Box<[u8]>, (u32, Strip), Secret>,
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
    /// Finds only the pieces whose tokens are accepted from now on.
    pub(super) fn retain(&mut self, accepts: impl Fn(u32) -> bool) {
        self.tokens.retain(|_, (token, _)| accepts(*token));
    }

    /// Groups pieces, given by text and token; empty ones are never found. Of equal texts the last counts.
    ///
    /// # Errors
    /// If one is too long.
    pub(super) fn new<'a>(order: Order, pieces: impl Iterator<Item = (&'a str, u32, Strip)>) -> Result<Specials, Error> {
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        let mut tokens = HashMap::with_hasher(Secret::random());
        let mut all_first = ByteSet::default();
        for (text, token, strip) in pieces {
            let text = text.as_bytes();
            let (Some(first), Some(last)) = (text.first(), text.last()) else { continue };
            if text.len() > SPECIAL_BYTES_MAX {
                let why = format!("special piece {token} has {} bytes; at most {SPECIAL_BYTES_MAX} are possible", text.len());
                return Err(Error::Tokenizer { why });
            }
            let len_bytes = text.len();
            let group = groups.entry(len_bytes).or_insert(Group { len_bytes, first: ByteSet::default(), last: ByteSet::default() });
            all_first.insert(*first);
            group.first.insert(*first);
            group.last.insert(*last);
            tokens.insert(text.into(), (token, strip));
        }
        Ok(Specials { order, first: all_first, groups: groups.into_values().rev().collect(), tokens })
    }

    /// Calls `emit` for each fragment of `text`, from left to right.
    pub(super) fn split<'a>(&self, text: &'a str, emit: Emit<'_, 'a>) {
        match self.order {
            Order::Longest => self.split_by(&self.groups, text, 0..text.len(), emit),
            Order::Leftmost => self.split_among(&self.groups, text, 0..text.len(), emit, &|range, emit| emit(between(text, range))),
        }
    }

    /// Finds the pieces of the greatest length, then the shorter ones in what lies between. Recursion goes as deep as there are lengths,
    /// which `SPECIAL_BYTES_MAX` bounds.
    fn split_by<'a>(&self, groups: &[Group], text: &'a str, range: Range<usize>, emit: Emit<'_, 'a>) {
        match groups.split_first() {
            Some((longest, shorter)) => {
                let longest = std::slice::from_ref(longest);
                self.split_among(longest, text, range, emit, &|range, emit| self.split_by(shorter, text, range, emit));
            }
            None if range.is_empty() => {}
            None => emit(between(text, range)),
        }
    }

    /// Finds the pieces of `groups` in a range of the text, from the left, and hands what lies between to `rest`.
    ///
    /// Like in the original, spaces that one piece took can still be part of the next.
    fn split_among<'a>(
        &self,
        groups: &[Group],
        text: &'a str,
        range: Range<usize>,
        emit: Emit<'_, 'a>,
        rest: &dyn Fn(Range<usize>, Emit<'_, 'a>),
    ) {
        let (mut at, mut done, mut spaces_end) = (range.start, range.start, range.start);
        while at < range.end {
            let Some((token, strip, len_bytes)) = self.matching(groups, &text.as_bytes()[at..range.end]) else {
                at += 1;
                continue;
            };
            let start = if strip.left && done < at { done + text[done..at].trim_end().len() } else { done.max(at) };
            if done < start {
                rest(done..start, emit);
            }
            emit(Fragment::Token(token));
            at += len_bytes;
            if strip.right && spaces_end < at {
                spaces_end = range.end - text[at..range.end].trim_start().len();
            }
            done = if strip.right { spaces_end.max(at) } else { at };
        }
        if done < range.end {
            rest(done..range.end, emit);
        }
    }

    /// The piece that `rest` begins with, the longest if there are several, and its length.
    fn matching(&self, groups: &[Group], rest: &[u8]) -> Option<(u32, Strip, usize)> {
        if !self.first.contains(rest[0]) {
            return None;
        }
        groups.iter().find_map(|group| {
            let window = rest.get(..group.len_bytes)?;
            if !group.first.contains(window[0]) || !group.last.contains(window[window.len() - 1]) {
                return None;
            }
            self.tokens.get(window).map(|&(token, strip)| (token, strip, group.len_bytes))
        })
    }
}

fn between(text: &str, range: Range<usize>) -> Fragment<'_> {
    Fragment::Text(&text[range.clone()], range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(order: Order, pieces: &[(&str, bool, bool)], text: &str) -> Vec<String> {
        let pieces = pieces.iter().enumerate().map(|(i, &(text, left, right))| (text, i as u32, Strip { left, right }));
        let mut parts = Vec::new();
        Specials::new(order, pieces).unwrap().split(text, &mut |fragment| {
            parts.push(match fragment {
                Fragment::Text(text, _) => text.to_owned(),
                Fragment::Token(token) => format!("#{token}"),
            });
        });
        parts
    }

    #[test]
    fn pieces_are_found_in_their_order_and_take_spaces() {
        let plain = [("ab", false, false), ("bcd", false, false), ("abc", false, false)];
        let strips = [("<l>", true, false), ("<r>", false, true), ("\n", false, false), ("<b>", true, true)];
        for (order, pieces, text, expected) in [
            (Order::Longest, &plain[..2], "abcd", &["a", "#1"][..]),
            (Order::Leftmost, &plain[..2], "abcd", &["#0", "cd"]),
            (Order::Leftmost, &plain, "abcdab", &["#2", "d", "#0"]),
            (Order::Longest, &plain, "abcdab", &["#2", "d", "#0"]),
            (Order::Leftmost, &strips, "a  <l>  b <r> \t c", &["a", "#0", "  b ", "#1", "c"]),
            (Order::Leftmost, &strips, "<r> <l>x<b>  <b> ", &["#1", "#0", "x", "#3", "#3"]),
            (Order::Leftmost, &strips, "<r>\n \nx", &["#1", "#2", " ", "#2", "x"]),
            (Order::Longest, &strips, " <r>  <l>", &[" ", "#1", "#0"]),
            (Order::Leftmost, &strips, "", &[]),
        ] {
            let found = split(order, pieces, text);
            assert_eq!(found, expected, "{order:?} {text:?}");
        }
    }
}
