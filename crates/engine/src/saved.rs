//! Which rows of a block are saved, and under what hash: a turn saves only the others.
//!
//! A *piece* holds the rows of consecutive tokens of one block. Each block remembers the pieces that hold its rows; since forks share
//! blocks, and may have fewer rows of one than others, pieces of a block may overlap. Whoever writes row r of a block keeps only the
//! pieces that end at or before r, so a piece never tells of rows that are no longer there.

use crate::kv::Block;
use crate::limits::{KV_FULL_BLOCK_PIECES_MAX, KV_PIECES_NOTED_MAX};
use driftwood_compute::KV_BLOCK_TOKENS;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Unsaved rows are cut at multiples of so many tokens, unless they are a whole block.
const CUT_TOKENS: usize = 16;

/// Rows of consecutive tokens of one block, saved under the blake3 hash of their packed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// How many tokens: 1 to 64.
    pub tokens: usize,
    /// The hash of a whole block's bytes as they lie, otherwise of (layer, key or value, head, token, row).
    pub hash: [u8; 32],
}

/// All pieces of a session, block by block.
///
/// As long as this is alive nobody writes the blocks in place: a session that goes on copies the block that it writes.
#[derive(Debug)]
pub struct SavedKv {
    pub(crate) blocks: Vec<Arc<Block>>,
    pub(crate) pieces: Vec<Vec<Piece>>,
}

impl SavedKv {
    /// The pieces of each block, in order: their tokens add up to [`crate::Session::evaluated`].
    pub fn blocks(&self) -> &[Vec<Piece>] {
        &self.pieces
    }

    /// Remembers them, so that they are not saved again.
    pub fn note(self) {
        self.blocks.iter().zip(&self.pieces).for_each(|(block, pieces)| block.pieces.note(pieces));
    }
}

/// The pieces that hold rows of one block.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Mutex<Vec<Held>>);

/// A piece and the row that it begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    from: usize,
    piece: Piece,
}

impl Held {
    fn end(&self) -> usize {
        self.from + self.piece.tokens
    }
}

/// What becomes of consecutive rows of a block when its session is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Saved(Piece),
    Unsaved { from: usize, tokens: usize },
}

/// The plan of a full block of which nothing is saved.
pub(crate) const WHOLE_BLOCK: [Run; 1] = [Run::Unsaved { from: 0, tokens: KV_BLOCK_TOKENS }];

/// The plan of the block in which a session parts from others whose blocks up to here are the same: in pieces, so that those who part in it
/// from the same prompt share its beginning.
pub(crate) fn parting_block() -> Vec<Run> {
    runs(&[None; KV_BLOCK_TOKENS], None)
}

impl Pieces {
    /// Pieces that stand one after the other from row 0 on.
    pub(crate) fn in_order(pieces: impl IntoIterator<Item = Piece>) -> Pieces {
        Pieces(Mutex::new(held(pieces).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the pieces of the first `rows` rows: the others are about to be written.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).retain(|held| held.end() <= rows);
    }

    /// The pieces of a copy of the first `rows` rows.
    pub(crate) fn of_first(&self, rows: usize) -> Pieces {
        Pieces(Mutex::new(self.lock().iter().filter(|held| held.end() <= rows).copied().collect()))
    }

    /// The hash of the whole block.
    pub(crate) fn whole(&self) -> Option<[u8; 32]> {
        self.lock().iter().find(|held| held.piece.tokens == KV_BLOCK_TOKENS).map(|held| held.piece.hash)
    }

    /// What to do about the first `rows` rows, after forgetting pieces that are not kept. Others may have the rows before row `cut`, so a piece
    /// ends there.
    pub(crate) fn plan(&self, rows: usize, cut: Option<usize>, is_kept: &impl Fn(&[u8; 32]) -> bool) -> Vec<Run> {
        let mut pieces = self.lock();
        pieces.retain(|held| is_kept(&held.piece.hash));
        let runs = runs(&cover(&pieces, rows), cut);
        let none_saved = !runs.iter().any(|run| matches!(run, Run::Saved(_)));
        if rows == KV_BLOCK_TOKENS && (none_saved && cut.is_none() || runs.len() > KV_FULL_BLOCK_PIECES_MAX) {
            return WHOLE_BLOCK.to_vec();
        }
        runs
    }

    /// Adds pieces that stand one after the other from row 0 on. Others are kept for sessions with fewer rows or more, as long as there are few.
    fn note(&self, pieces: &[Piece]) {
        let mut known = self.lock();
        let new: Vec<Held> = held(pieces.iter().copied()).filter(|held| !known.contains(held)).collect();
        if known.len() + new.len() > KV_PIECES_NOTED_MAX {
            *known = held(pieces.iter().copied()).collect();
        } else {
            known.extend(new);
        }
    }
}

/// Pieces one after the other, from row 0 on.
fn held(pieces: impl IntoIterator<Item = Piece>) -> impl Iterator<Item = Held> {
    pieces.into_iter().scan(0, |end, piece| {
        *end += piece.tokens;
        Some(Held { from: *end - piece.tokens, piece })
    })
}

/// For each row the piece to use if one is to begin there: such that as few rows as possible are in none, in as few pieces as possible.
fn cover(pieces: &[Held], rows: usize) -> Vec<Option<Piece>> {
    let mut cost = [(0, 0); KV_BLOCK_TOKENS + 1]; // (rows in no piece, pieces) from each row on
    let mut chosen = vec![None; rows];
    for row in (0..rows).rev() {
        (cost[row], chosen[row]) = ((cost[row + 1].0 + 1, cost[row + 1].1), None);
        for held in pieces.iter().filter(|held| held.from == row && held.end() <= rows) {
            let (unsaved, count) = cost[held.end()];
            if (unsaved, count + 1) < cost[row] {
                (cost[row], chosen[row]) = ((unsaved, count + 1), Some(held.piece));
            }
        }
    }
    chosen
}

/// The chosen pieces, and the rows between them, cut at `own`, too.
fn runs(chosen: &[Option<Piece>], own: Option<usize>) -> Vec<Run> {
    let (mut runs, mut row) = (Vec::new(), 0);
    while row < chosen.len() {
        let from = row;
        match chosen[row] {
            Some(piece) => {
                row += piece.tokens;
                runs.push(Run::Saved(piece));
            }
            None => {
                let end = ((from / CUT_TOKENS + 1) * CUT_TOKENS).min(chosen.len());
                row = (from + 1..end).find(|row| chosen[*row].is_some() || own == Some(*row)).unwrap_or(end);
                runs.push(Run::Unsaved { from, tokens: row - from });
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(from: usize, tokens: usize) -> Piece {
        let mut hash = [0; 32];
        (hash[0], hash[1]) = (from as u8, tokens as u8);
        Piece { tokens, hash }
    }

    /// Pieces of a block, as (first row, tokens).
    fn pieces(all: &[(usize, usize)]) -> Pieces {
        Pieces(Mutex::new(all.iter().map(|&(from, tokens)| Held { from, piece: piece(from, tokens) }).collect()))
    }

    /// A plan as (tokens, whether they are saved).
    fn planned_with(pieces: &Pieces, rows: usize, cut: Option<usize>) -> Vec<(usize, bool)> {
        let show = |run| match run {
            Run::Saved(piece) => (piece.tokens, true),
            Run::Unsaved { tokens, .. } => (tokens, false),
        };
        pieces.plan(rows, cut, &|_| true).into_iter().map(show).collect()
    }

    fn planned(pieces: &Pieces, rows: usize) -> Vec<(usize, bool)> {
        planned_with(pieces, rows, None)
    }

    #[test]
    fn a_piece_ends_where_the_opening_does() {
        let cases: [(Case, usize); 5] = [
            ((&[], 64, &[(16, false), (16, false), (7, false), (9, false), (16, false)]), 39),
            ((&[], 64, &[(16, false), (16, false), (16, false), (16, false)]), 32),
            ((&[], 20, &[(16, false), (4, false)]), 39),
            ((&[(0, 16), (16, 16), (32, 7)], 64, &[(16, true), (16, true), (7, true), (9, false), (16, false)]), 39),
            ((&[(0, 64)], 64, &[(64, true)]), 39),
        ];
        for ((held, rows, expected), cut) in cases {
            assert_eq!(planned_with(&pieces(held), rows, Some(cut)), expected, "{held:?} of {rows} rows, cut at {cut}");
        }
    }

    /// The pieces that a block remembers, its rows, and what is planned.
    type Case = (&'static [(usize, usize)], usize, &'static [(usize, bool)]);

    #[test]
    fn only_rows_in_no_piece_are_planned() {
        let cases: [Case; 13] = [
            (&[], 64, &[(64, false)]),
            (&[], 63, &[(16, false), (16, false), (16, false), (15, false)]),
            (&[], 1, &[(1, false)]),
            (&[(0, 64)], 64, &[(64, true)]),
            (&[(0, 64)], 40, &[(16, false), (16, false), (8, false)]),
            (&[(0, 10)], 64, &[(10, true), (6, false), (16, false), (16, false), (16, false)]),
            (&[(0, 16), (16, 16), (32, 8)], 20, &[(16, true), (4, false)]),
            (&[(0, 16), (16, 16), (32, 8), (16, 4)], 20, &[(16, true), (4, true)]),
            (&[(0, 16), (16, 16), (32, 8), (16, 4)], 40, &[(16, true), (16, true), (8, true)]),
            (&[(16, 16), (40, 8)], 64, &[(16, false), (16, true), (8, false), (8, true), (16, false)]),
            (&[(0, 4), (0, 2), (2, 4)], 6, &[(2, true), (4, true)]),
            (&[(0, 16), (16, 16), (32, 16), (48, 16), (0, 64)], 64, &[(64, true)]),
            (&[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)], 64, &[(64, false)]),
        ];
        for (held, rows, expected) in cases {
            assert_eq!(planned(&pieces(held), rows), expected, "{held:?} of {rows} rows");
        }
    }

    #[test]
    fn a_full_block_of_more_than_eight_pieces_is_saved_once_more() {
        let eight: Vec<(usize, usize)> = (0..8).map(|i| (i * 8, 8)).collect();
        assert!(planned(&pieces(&eight), 64).iter().all(|run| run.1));
        let nine = [&eight[..7], &[(56, 4), (60, 4)]].concat();
        assert_eq!(planned(&pieces(&nine), 64), [(64, false)]);
        assert!(planned(&pieces(&nine[..8]), 60).iter().all(|run| run.1), "a block that is not full keeps them");
    }

    #[test]
    fn written_rows_are_in_no_piece() {
        let all = [(0, 16), (16, 16), (32, 8), (16, 4), (0, 64)];
        for (row, left) in [(0, 0), (15, 0), (16, 1), (19, 1), (20, 2), (32, 3), (39, 3), (40, 4), (63, 4), (64, 5)] {
            let mut written = pieces(&all);
            assert_eq!(written.of_first(row).lock().len(), left, "copied up to {row}");
            written.truncate(row);
            assert_eq!(written.lock().len(), left, "written from {row}");
            assert!(written.lock().iter().all(|held| held.end() <= row));
        }
    }

    #[test]
    fn pieces_that_are_gone_are_forgotten() {
        let held = pieces(&[(0, 16), (16, 16)]);
        let lost = piece(0, 16).hash;
        assert_eq!(held.plan(32, None, &|hash| *hash != lost)[0], Run::Unsaved { from: 0, tokens: 16 });
        assert_eq!(planned(&held, 32), [(16, false), (16, true)], "for good");
    }

    #[test]
    fn notes_add_up_and_are_bounded() {
        let held = Pieces::default();
        held.note(&[piece(0, 16), piece(16, 16)]);
        held.note(&[piece(0, 16), piece(16, 4)]);
        assert_eq!(held.lock().len(), 3);
        for tokens in 1..64 {
            (1..=tokens).for_each(|first| held.note(&[piece(0, first), piece(first, 64 - first)]));
        }
        assert!(held.lock().len() <= KV_PIECES_NOTED_MAX);
        assert!(planned(&held, 64).iter().all(|run| run.1), "the last are known");
    }
}
