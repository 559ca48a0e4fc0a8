//! Rows of consecutive tokens of one block, as they are saved.
//!
//! Of a whole block these are its bytes as they lie, so that they can be mapped again; otherwise they are packed as (layer, key or value,
//! head, token, row). [`UnsavedRows`] are on their way out, [`Packed`] ones on their way in.

use driftwood_compute::{KV_BLOCK_TOKENS, KvLayout};

/// Bytes of the rows of so many tokens.
pub(crate) fn packed_bytes(layout: KvLayout, tokens: usize) -> usize {
    if tokens == KV_BLOCK_TOKENS { layout.block_bytes() } else { tokens * layout.token_bytes() }
}

/// Rows that are to be saved as one piece: of a whole block its bytes as they lie, else (layer, key or value, head, token, row).
#[derive(Clone, Copy, Debug)]
pub struct UnsavedRows<'a> {
    layout: KvLayout,
    block: &'a [u8],
    from: usize,
    tokens: usize,
}

impl<'a> UnsavedRows<'a> {
    /// `tokens` rows of a block, from row `from` on.
    pub(crate) fn new(layout: KvLayout, block: &'a [u8], from: usize, tokens: usize) -> UnsavedRows<'a> {
        debug_assert!(tokens >= 1 && from + tokens <= KV_BLOCK_TOKENS);
        UnsavedRows { layout, block, from, tokens }
    }

    /// How many tokens' rows these are: 1 to 64.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The bytes of all slices together.
    pub fn len_bytes(&self) -> usize {
        packed_bytes(self.layout, self.tokens)
    }

    /// What they are saved under.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for slice in self.slices() {
            hasher.update(slice);
        }
        *hasher.finalize().as_bytes()
    }

    /// The bytes, in slices one after the other.
    pub fn slices(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let UnsavedRows { layout, block, from, tokens } = *self;
        let whole = (tokens == KV_BLOCK_TOKENS).then(|| &block[..layout.block_bytes()]);
        let row_bytes = layout.row_bytes();
        let tile = move |offset: usize| &block[offset + from * row_bytes..][..tokens * row_bytes];
        whole.into_iter().chain(tiles(layout).filter(move |_| whole.is_none()).map(tile))
    }
}

/// Rows that are to be put into a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed<'a> {
    pub(crate) tokens: usize,
    pub(crate) bytes: &'a [u8],
    /// What the bytes must hash to, unless they have been checked.
    pub(crate) hash: Option<[u8; 32]>,
}

/// Puts the rows of each of `blocks`, one run after the other, where it is to stand, on up to `threads` threads; false if a run was
/// altered. Rows after the last run become zeros.
pub(crate) fn fill(layout: KvLayout, mut to: Vec<&mut [u8]>, blocks: &[Vec<Packed<'_>>], threads: usize) -> bool {
    let share = blocks.len().div_ceil(threads.max(1)).max(1);
    let fill_share =
        |(to, blocks): (&mut [&mut [u8]], &[Vec<Packed<'_>>])| to.iter_mut().zip(blocks).all(|(to, runs)| unpack(layout, runs, to));
    std::thread::scope(|scope| {
        let mut shares = to.chunks_mut(share).zip(blocks.chunks(share));
        let mine = shares.next();
        let others: Vec<_> = shares.map(|share| scope.spawn(move || fill_share(share))).collect();
        let intact = mine.is_none_or(fill_share);
        others.into_iter().fold(intact, |all, share| share.join().expect("copying does not panic") && all)
    })
}

/// Puts runs of rows one after the other into a block, hashing each while it is in the cache; false if one was altered.
fn unpack(layout: KvLayout, runs: &[Packed<'_>], block: &mut [u8]) -> bool {
    let rows: usize = runs.iter().map(|run| run.tokens).sum();
    let unwritten = if rows == KV_BLOCK_TOKENS { KV_BLOCK_TOKENS * layout.token_bytes() } else { 0 };
    block[unwritten..layout.block_bytes()].fill(0);
    let (mut from, row_bytes) = (0, layout.row_bytes());
    for run in runs {
        if run.hash.is_some_and(|hash| *blake3::hash(run.bytes).as_bytes() != hash) {
            return false;
        }
        if run.tokens == KV_BLOCK_TOKENS {
            block[..run.bytes.len()].copy_from_slice(run.bytes);
        } else {
            let rows = run.bytes.chunks_exact(run.tokens * row_bytes);
            tiles(layout).zip(rows).for_each(|(offset, rows)| block[offset + from * row_bytes..][..rows.len()].copy_from_slice(rows));
        }
        from += run.tokens;
    }
    true
}

/// Where each (layer, key or value, head) begins in a block, in order.
pub(crate) fn tiles(layout: KvLayout) -> impl Iterator<Item = usize> {
    (0..layout.layers * 2 * layout.kv_heads).map(move |tile| tile * KV_BLOCK_TOKENS * layout.row_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftwood_compute::KvDType;

    const LAYOUT: KvLayout = KvLayout { layers: 3, kv_heads: 2, head_dim: 32, dtype: KvDType::Q8 };

    /// A block in which no two rows are alike, zeros in its padding.
    fn block() -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..LAYOUT.block_bytes() as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        bytes[KV_BLOCK_TOKENS * LAYOUT.token_bytes()..].fill(0);
        bytes
    }

    fn packed(block: &[u8], from: usize, tokens: usize) -> Vec<u8> {
        let rows = UnsavedRows::new(LAYOUT, block, from, tokens);
        let bytes: Vec<u8> = rows.slices().flatten().copied().collect();
        assert_eq!(bytes.len(), rows.len_bytes());
        bytes
    }

    #[test]
    fn tiles_begin_where_the_layout_says() {
        let first: Vec<usize> = tiles(LAYOUT).take(3).collect();
        assert_eq!(first, [LAYOUT.row_offset(0, 0, 0, 0), LAYOUT.row_offset(0, 0, 1, 0), LAYOUT.row_offset(0, 1, 0, 0)]);
        assert_eq!(tiles(LAYOUT).last(), Some(LAYOUT.row_offset(2, 1, 1, 0)));
    }

    #[test]
    fn rows_come_back_where_they_were() {
        let block = block();
        for cuts in [&[64][..], &[16, 48], &[1, 15, 47, 1], &[63], &[1], &[16, 16, 8]] {
            let mut from = 0;
            let all: Vec<(usize, Vec<u8>)> = cuts
                .iter()
                .map(|&tokens| {
                    from += tokens;
                    (tokens, packed(&block, from - tokens, tokens))
                })
                .collect();
            let run = |(tokens, bytes): &(usize, Vec<u8>)| Packed {
                tokens: *tokens,
                bytes: &all.iter().find(|(_, b)| b == bytes).expect("itself").1,
                hash: Some(*blake3::hash(bytes).as_bytes()),
            };
            let mut runs: Vec<Packed<'_>> = all.iter().map(run).collect();
            let mut to = vec![0xAA; LAYOUT.block_bytes()];
            assert!(fill(LAYOUT, vec![&mut to], &[runs.clone()], 2));
            for row in 0..64 {
                let expected = if row < from { packed(&block, row, 1) } else { vec![0; LAYOUT.token_bytes()] };
                assert!(packed(&to, row, 1) == expected, "row {row} of {cuts:?}");
            }
            assert!(to[KV_BLOCK_TOKENS * LAYOUT.token_bytes()..].iter().all(|byte| *byte == 0));
            runs.last_mut().expect("one at least").hash = Some([0; 32]);
            assert!(!fill(LAYOUT, vec![&mut to], &[runs], 2), "an altered run");
        }
    }

    #[test]
    fn every_share_counts() {
        let (block, hash) = (block(), *blake3::hash(&block()).as_bytes());
        for altered in 0..5 {
            let run = |index| Packed { tokens: 64, bytes: &block, hash: Some(if index == altered { [1; 32] } else { hash }) };
            let runs: Vec<Vec<Packed<'_>>> = (0..4).map(|index| vec![run(index)]).collect();
            for threads in [0, 1, 3, 9] {
                let mut to = vec![vec![0; LAYOUT.block_bytes()]; 4];
                let intact = fill(LAYOUT, to.iter_mut().map(Vec::as_mut_slice).collect(), &runs, threads);
                assert_eq!(intact, altered == 4, "{altered} on {threads} threads");
            }
        }
    }
}
