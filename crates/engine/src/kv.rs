//! A session's keys and values: blocks of 64 tokens, shared by reference count, copied on write.
//!
//! A block lies in a slot of the model's pool or in a mapped snapshot file. Mapped blocks are never written, and their hash is
//! checked before the first step that reads them. Forking clones the references; whoever writes first copies.

use crate::Error;
use crate::limits::KV_POOL_BYTES_MAX;
use driftwood_compute::{KV_BLOCK_TOKENS, KvDType, KvLayout};
use driftwood_region::{Pool, Slot, View};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key = 0,
    Value = 1,
}

/// One block's bytes, laid out as [`KvLayout`] says.
#[derive(Debug)]
pub(crate) enum Block {
    Owned(Slot),
    Mapped { view: View, hash: [u8; 32], verified: AtomicBool },
}

impl Block {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Block::Owned(slot) => slot.bytes(),
            Block::Mapped { view, .. } => view.bytes(),
        }
    }

    /// Checks a mapped block against its hash, once.
    fn verify(&self) -> bool {
        let Block::Mapped { view, hash, verified } = self else { return true };
        if verified.load(Ordering::Relaxed) {
            return true;
        }
        let same = blake3::hash(view.bytes()) == *hash;
        verified.store(same, Ordering::Relaxed);
        same
    }
}

/// A model's KV pools, one for each dtype in use, made when first asked for.
#[derive(Debug, Default)]
pub(crate) struct KvPools(Mutex<HashMap<KvDType, Pool>>);

impl KvPools {
    pub(crate) fn get(&self, layout: KvLayout) -> Result<Pool, Error> {
        let mut pools = self.0.lock().expect("no holder panics");
        if let Some(pool) = pools.get(&layout.dtype) {
            return Ok(pool.clone());
        }
        let pool = Pool::new(layout.block_bytes(), KV_POOL_BYTES_MAX / layout.block_bytes())?;
        pools.insert(layout.dtype, pool.clone());
        Ok(pool)
    }
}

/// The KV cache of one session.
#[derive(Clone, Debug)]
pub(crate) struct Kv {
    layout: KvLayout,
    pool: Pool,
    blocks: Vec<Arc<Block>>,
}

impl Kv {
    /// An empty cache; `tokens_max` sizes the table of blocks, so that growing it later allocates nothing.
    pub(crate) fn new(layout: KvLayout, pool: Pool, tokens_max: usize) -> Kv {
        Kv { layout, pool, blocks: Vec::with_capacity(tokens_max.div_ceil(KV_BLOCK_TOKENS)) }
    }

    pub(crate) fn layout(&self) -> KvLayout {
        self.layout
    }

    pub(crate) fn block(&self, index: usize) -> &[u8] {
        self.blocks[index].bytes()
    }

    pub(crate) fn blocks(&self) -> &[Arc<Block>] {
        &self.blocks
    }

    /// The pool that its own blocks come from.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Which slot of the pool each block stands in, once [`Kv::make_owned`] has run.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.iter().map(|block| match &**block {
            Block::Owned(slot) => slot.index() as u32,
            Block::Mapped { .. } => unreachable!("make_owned left no mapped block"),
        })
    }

    /// Copies blocks that stand in mapped files, verified before, into the pool, for devices that share only the pool's memory.
    pub(crate) fn make_owned(&mut self) -> Result<(), Error> {
        for block in &mut self.blocks {
            if let Block::Mapped { view, .. } = &**block {
                let (mut slot, bytes) = (self.pool.take()?, view.bytes());
                slot.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
                *block = Arc::new(Block::Owned(slot));
            }
        }
        Ok(())
    }

    /// A second reference to the same blocks, with room for as many.
    pub(crate) fn share(&self) -> Kv {
        let mut blocks = Vec::with_capacity(self.blocks.capacity());
        blocks.extend(self.blocks.iter().cloned());
        Kv { layout: self.layout, pool: self.pool.clone(), blocks }
    }

    /// Drops the blocks that hold nothing of the first `tokens` tokens.
    pub(crate) fn truncate(&mut self, tokens: usize) {
        self.blocks.truncate(tokens.div_ceil(KV_BLOCK_TOKENS));
    }

    /// Makes positions `from..to` writable: takes new blocks, and a copy of the one that `from` stands in if others share it.
    pub(crate) fn make_writable(&mut self, from: usize, to: usize) -> Result<(), Error> {
        let first = from / KV_BLOCK_TOKENS;
        for index in first..to.div_ceil(KV_BLOCK_TOKENS) {
            match self.blocks.get_mut(index).map(Arc::get_mut) {
                Some(Some(Block::Owned(_))) => {}
                None => self.blocks.push(Arc::new(Block::Owned(self.pool.take()?))),
                Some(_) => {
                    self.blocks[index] = Arc::new(Block::Owned(self.copy_rows(index, from.saturating_sub(index * KV_BLOCK_TOKENS))?))
                }
            }
        }
        Ok(())
    }

    /// A slot of our own with the first `tokens` rows of a block.
    fn copy_rows(&self, index: usize, tokens: usize) -> Result<Slot, Error> {
        let (mut slot, from) = (self.pool.take()?, self.blocks[index].bytes());
        self.each_tile(|offset, row_bytes| {
            let rows = offset..offset + tokens * row_bytes;
            slot.bytes_mut()[rows.clone()].copy_from_slice(&from[rows]);
        });
        Ok(slot)
    }

    /// One row of keys or values, to write. Its block was made writable.
    pub(crate) fn row_mut(&mut self, layer: usize, part: Part, head: usize, position: usize) -> &mut [u8] {
        let offset = self.layout.row_offset(layer, part as usize, head, position % KV_BLOCK_TOKENS);
        let row_bytes = self.layout.row_bytes();
        match Arc::get_mut(&mut self.blocks[position / KV_BLOCK_TOKENS]) {
            Some(Block::Owned(slot)) => &mut slot.bytes_mut()[offset..offset + row_bytes],
            _ => unreachable!("make_writable gave this session its own block"),
        }
    }

    /// Checks every mapped block that has not been checked yet, on up to `threads` threads.
    pub(crate) fn verify(&self, threads: usize) -> Result<(), Error> {
        let pending = |b: &&Arc<Block>| matches!(&***b, Block::Mapped { verified, .. } if !verified.load(Ordering::Relaxed));
        let pending_blocks = self.blocks.iter().filter(pending).count();
        if pending_blocks == 0 {
            return Ok(());
        }
        let share = self.blocks.len().div_ceil(threads.min(pending_blocks));
        let intact = std::thread::scope(|scope| {
            let mut shares = self.blocks.chunks(share);
            let mine = shares.next().unwrap_or_default();
            let others: Vec<_> = shares.map(|s| scope.spawn(|| s.iter().all(|b| b.verify()))).collect();
            let intact = mine.iter().all(|b| b.verify());
            others.into_iter().fold(intact, |all, t| t.join().expect("hashing does not panic") && all)
        });
        if intact { Ok(()) } else { Err(Error::AlteredKv) }
    }

    /// Appends a full block that stands in a mapped file.
    pub(crate) fn push_mapped(&mut self, view: View, hash: [u8; 32]) {
        self.blocks.push(Arc::new(Block::Mapped { view, hash, verified: AtomicBool::new(false) }));
    }

    /// Appends a block that another session of the same model already holds.
    pub(crate) fn push_shared(&mut self, block: Arc<Block>) {
        self.blocks.push(block);
    }

    /// Appends a block whose first `tokens` rows come from `packed`: (layer, key or value, head, token, row).
    pub(crate) fn push_tail(&mut self, packed: &[u8], tokens: usize) -> Result<(), Error> {
        let mut slot = self.pool.take()?;
        let mut source = packed;
        self.each_tile(|offset, row_bytes| {
            let (tile, rest) = source.split_at(tokens * row_bytes);
            slot.bytes_mut()[offset..offset + tile.len()].copy_from_slice(tile);
            source = rest;
        });
        debug_assert!(source.is_empty());
        self.blocks.push(Arc::new(Block::Owned(slot)));
        Ok(())
    }

    /// Calls `f` with the offset in a block of each (layer, key or value, head) tile, in order, and the bytes of a row.
    fn each_tile(&self, mut f: impl FnMut(usize, usize)) {
        let l = self.layout;
        for layer in 0..l.layers {
            for part in [Part::Key, Part::Value] {
                for head in 0..l.kv_heads {
                    f(l.row_offset(layer, part as usize, head, 0), l.row_bytes());
                }
            }
        }
    }
}
