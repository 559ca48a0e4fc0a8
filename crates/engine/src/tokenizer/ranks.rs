//! Merges by rank: which two pieces join to which third, the first of the list before the second.
//!
//! Merges are kept as numbers of pieces, twelve bytes each, in their order; a hash table holds their places. It is filled when all are there,
//! so that its slots are fetched beside each other and not one after the other.

use super::hash::Secret;
use super::merge::Symbol;
use super::vocab::Vocab;
use crate::error::Error;
use crate::gguf::printable;
use crate::limits::MERGES_MAX;
use std::hash::BuildHasher;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(super) struct Ranks {
    merges: Box<[Merge]>, // by rank
    table: Box<[u32]>,    // open addressing; rank + 1, 0 is free; at most two thirds full
    secret: Secret,
}

/// Merges while they are read.
#[derive(Default, Debug)]
pub(super) struct MergeList(Vec<Merge>);

#[derive(Clone, Copy, Debug)]
struct Merge {
    left: u32,
    right: u32,
    joined: u32,
}

/// Which of two merges of the same pieces counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repeated {
    /// The first: llama.cpp.
    First,
    /// The last: Hugging Face's tokenizers.
    Last,
}

impl MergeList {
    /// Adds the next merge.
    ///
    /// # Errors
    /// If one of the two or what they join to is no piece, or if there are too many.
    pub(super) fn push(&mut self, vocab: &Vocab, left: &str, right: &str) -> Result<(), Error> {
        if self.0.len() == MERGES_MAX {
            return Err(Error::Tokenizer { why: format!("it has more than {MERGES_MAX} merges") });
        }
        let bad = || no_merge(self.0.len(), &format!("{left} {right}"));
        let find = |text: &str| vocab.find(text.as_bytes()).ok_or_else(bad);
        let merge = Merge { left: find(left)?, right: find(right)?, joined: self.joined(vocab, left, right).ok_or_else(bad)? };
        self.0.push(merge);
        Ok(())
    }

    /// The same for a merge that is written `left right`.
    ///
    /// # Errors
    /// As [`MergeList::push`].
    pub(super) fn push_text(&mut self, vocab: &Vocab, text: &str) -> Result<(), Error> {
        let (left, right) = halves(text).ok_or_else(|| no_merge(self.0.len(), text))?;
        self.push(vocab, left, right)
    }

    /// The piece that two pieces join to. Lists mostly go from piece to piece, which saves the search.
    fn joined(&self, vocab: &Vocab, left: &str, right: &str) -> Option<u32> {
        let last = self.0.last().map_or(0, |merge| merge.joined);
        let is_joined = |token: u32| vocab.bytes(token).strip_prefix(left.as_bytes()) == Some(right.as_bytes());
        let near = [last, last + 1].into_iter().find(|&token| (token as usize) < vocab.len() && is_joined(token));
        near.or_else(|| vocab.find(&[left.as_bytes(), right.as_bytes()].concat()))
    }
}

impl Ranks {
    /// Indexes a list.
    pub(super) fn new(list: MergeList, repeated: Repeated) -> Ranks {
        let merges = list.0.into_boxed_slice();
        let table = vec![0; (merges.len() + merges.len() / 2 + 1).next_power_of_two()].into();
        let mut ranks = Ranks { merges, table, secret: Secret::random() };
        for rank in 0..ranks.merges.len() {
            let Merge { left, right, .. } = ranks.merges[rank];
            let slot = ranks.slot(left, right);
            if ranks.table[slot] == 0 || repeated == Repeated::Last {
                ranks.table[slot] = rank as u32 + 1;
            }
        }
        ranks
    }

    /// What two neighbours join to, for `Merger::merge`.
    pub(super) fn join(&self, left: &Symbol, right: &Symbol) -> Option<(u32, u32)> {
        let rank = self.table[self.slot(left.token, right.token)].checked_sub(1)?;
        Some((u32::MAX - rank, self.merges[rank as usize].joined))
    }

    /// Where two pieces' merge stands in the table, or the free slot where it would.
    fn slot(&self, left: u32, right: u32) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = self.secret.hash_one(u64::from(left) << 32 | u64::from(right)) as usize & mask;
        while let Some(rank) = self.table[slot].checked_sub(1) {
            let merge = self.merges[rank as usize];
            if (merge.left, merge.right) == (left, right) {
                break;
            }
            slot = (slot + 1) & mask;
        }
        slot
    }
}

fn no_merge(rank: usize, text: &str) -> Error {
    Error::Tokenizer { why: format!("merge {rank}, `{}`, does not join two pieces to a third", printable(text)) }
}

/// The two pieces of `left right`; the separating space is never the first character.
fn halves(text: &str) -> Option<(&str, &str)> {
    let first_bytes = text.chars().next()?.len_utf8();
    let at = first_bytes + text[first_bytes..].find(' ')?;
    Some((&text[..at], &text[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_split_at_the_first_space_that_is_not_first() {
        assert_eq!(halves("a b"), Some(("a", "b")));
        assert_eq!(halves("  b"), Some((" ", "b")));
        assert_eq!(halves("Ġ t"), Some(("Ġ", "t")));
        assert_eq!((halves(""), halves(" "), halves("ab")), (None, None, None));
    }
}
