//! Joining neighbours, best pair first: what byte-level BPE and SentencePiece's BPE have in common.
//!
//! Symbols are a doubly linked list in an array, candidates a heap. A candidate is stale once one of its two symbols has grown or gone,
//! which the sum of their lengths tells. Each join removes a symbol and adds at most two candidates, so n symbols take O(n log n).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No symbol, and no token.
pub(super) const NONE: u32 = u32::MAX;

/// A stretch of text that is one piece so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// Its first byte.
    pub(super) start: u32,
    /// Its bytes; 0 once it has been joined to its left neighbour.
    pub(super) len: u32,
    /// Its token, or [`NONE`].
    pub(super) token: u32,
    prev: u32,
    next: u32,
}

/// Greater ones are joined first: by rank, then from the left.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: Reverse<u32>,
    right: u32,
    len: u32,
    token: u32,
}

/// The buffers of one encoding, used again for each word.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

impl Merger {
    /// Begins a new word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Adds a symbol of `len` bytes at the word's end.
    pub(super) fn push(&mut self, len: usize, token: u32) {
        let index = self.symbols.len() as u32;
        let start = self.symbols.last().map_or(0, |s| s.start + s.len);
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        self.symbols.push(Symbol { start, len: len as u32, token, prev: index.wrapping_sub(1), next: NONE });
    }

    /// Joins until no pair is left that `pair` knows; it gives a pair's rank (greater is earlier) and what it joins to.
    pub(super) fn merge(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.propose(right - 1, right, &pair);
        }
        while let Some(best) = self.heap.pop() {
            let (left, right) = (self.symbols[best.left.0 as usize], self.symbols[best.right as usize]);
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            self.join(best.left.0, &best);
            self.propose(left.prev, best.left.0, &pair);
            self.propose(best.left.0, right.next, &pair);
        }
    }

    /// What is left, from the left.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|s| s.len > 0)
    }

    fn join(&mut self, left: u32, best: &Candidate) {
        let gone = &mut self.symbols[best.right as usize];
        gone.len = 0;
        let next = gone.next;
        if next != NONE {
            self.symbols[next as usize].prev = left;
        }
        let joined = &mut self.symbols[left as usize];
        (joined.len, joined.token, joined.next) = (best.len, best.token, next);
    }

    fn propose(&mut self, left: u32, right: u32, pair: &impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((rank, token)) = pair(l, r) {
            self.heap.push(Candidate { rank, left: Reverse(left), right, len: l.len + r.len, token });
        }
    }
}
