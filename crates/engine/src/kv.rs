//! A session's keys and values: blocks of 64 tokens, shared by reference count, copied on write.
//!
//! A block lies in a slot of the model's pool or in a mapped snapshot file. Mapped blocks are never written, and their hash is
//! checked before the first step that reads them. Forking clones the references; whoever writes first copies. On a discrete device the
//! pool only numbers the slots; their bytes are the device's ([`ResidentKv`]).

use crate::Error;
use crate::gpu::{Incoming, ResidentKv};
use crate::limits::KV_POOL_BYTES_MAX;
use driftwood_compute::gpu::{Gpu, Window};
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

    /// A mapped block on its way to a slot of a device.
    fn incoming<'a>(&'a self, slot: &Slot) -> Incoming<'a> {
        let hash = match self {
            Block::Mapped { hash, verified, .. } if !verified.load(Ordering::Relaxed) => Some(*hash),
            Block::Mapped { .. } | Block::Owned(_) => None,
        };
        Incoming { slot: slot.index(), bytes: self.bytes(), hash }
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

/// Where the blocks of one KV dtype are.
#[derive(Clone, Debug)]
pub(crate) struct KvHome {
    pub(crate) pool: Pool,
    /// The slots' bytes, where a device keeps them.
    pub(crate) resident: Option<Arc<ResidentKv>>,
}

/// A model's KV pools, one for each dtype in use, made when first asked for.
#[derive(Debug, Default)]
pub(crate) struct KvPools(Mutex<HashMap<KvDType, KvHome>>);

impl KvPools {
    /// The home of blocks of a layout; `resident` is the device that keeps them in its own memory.
    pub(crate) fn get(&self, layout: KvLayout, resident: Option<&Arc<Gpu>>) -> Result<KvHome, Error> {
        let mut homes = self.0.lock().expect("no holder panics");
        if let Some(home) = homes.get(&layout.dtype) {
            return Ok(home.clone());
        }
        let pool = Pool::new(layout.block_bytes(), KV_POOL_BYTES_MAX / layout.block_bytes())?;
        let home = KvHome { pool, resident: resident.map(|gpu| Arc::new(ResidentKv::new(gpu, layout))) };
        homes.insert(layout.dtype, home.clone());
        Ok(home)
    }
}

/// The KV cache of one session.
#[derive(Clone, Debug)]
pub(crate) struct Kv {
    layout: KvLayout,
    home: KvHome,
    blocks: Vec<Arc<Block>>,
}

impl Kv {
    /// An empty cache; `tokens_max` sizes the table of blocks, so that growing it later allocates nothing.
    pub(crate) fn new(layout: KvLayout, home: KvHome, tokens_max: usize) -> Kv {
        Kv { layout, home, blocks: Vec::with_capacity(tokens_max.div_ceil(KV_BLOCK_TOKENS)) }
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

    /// Where its own blocks are.
    pub(crate) fn home(&self) -> &KvHome {
        &self.home
    }

    /// Which slot of the pool each block stands in, once [`Kv::make_owned`] has run.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.iter().map(|block| match &**block {
            Block::Owned(slot) => slot.index() as u32,
            Block::Mapped { .. } => unreachable!("make_owned left no mapped block"),
        })
    }

    /// Copies blocks that stand in mapped files to where its own blocks are, for devices that read only those. What goes to a device's own
    /// memory is verified on the way, everything else was before.
    pub(crate) fn make_owned(&mut self, threads: usize) -> Result<(), Error> {
        let mapped = self.blocks.iter_mut().filter(|block| matches!(***block, Block::Mapped { .. }));
        let mut copies = Vec::new();
        for block in mapped {
            copies.push((self.home.pool.take()?, block));
        }
        match &self.home.resident {
            Some(resident) => {
                let blocks: Vec<_> = copies.iter().map(|(slot, block)| block.incoming(slot)).collect();
                resident.upload(&blocks, threads)?;
            }
            None => copies.iter_mut().for_each(|(slot, block)| {
                let bytes = block.bytes();
                slot.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
            }),
        }
        copies.into_iter().for_each(|(slot, block)| *block = Arc::new(Block::Owned(slot)));
        Ok(())
    }

    /// A second reference to the same blocks, with room for as many.
    pub(crate) fn share(&self) -> Kv {
        let mut blocks = Vec::with_capacity(self.blocks.capacity());
        blocks.extend(self.blocks.iter().cloned());
        Kv { layout: self.layout, home: self.home.clone(), blocks }
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
                None => self.blocks.push(Arc::new(Block::Owned(self.fresh()?))),
                Some(_) => {
                    self.blocks[index] = Arc::new(Block::Owned(self.copy_rows(index, from.saturating_sub(index * KV_BLOCK_TOKENS))?))
                }
            }
        }
        Ok(())
    }

    /// A slot for a new block.
    fn fresh(&self) -> Result<Slot, Error> {
        let slot = self.home.pool.take()?;
        if let Some(resident) = &self.home.resident {
            resident.clear(slot.index())?;
        }
        Ok(slot)
    }

    /// A slot of our own with the first `tokens` rows of a block.
    fn copy_rows(&self, index: usize, tokens: usize) -> Result<Slot, Error> {
        let mut slot = self.home.pool.take()?;
        match (&self.home.resident, &*self.blocks[index]) {
            (Some(resident), Block::Owned(from)) => {
                resident.copy(from.index(), slot.index())?;
                return Ok(slot);
            }
            (Some(resident), mapped) => {
                resident.upload(&[mapped.incoming(&slot)], 1)?;
                return Ok(slot);
            }
            (None, _) => {}
        }
        let from = self.blocks[index].bytes();
        self.each_tile(|offset, row_bytes| {
            let rows = offset..offset + tokens * row_bytes;
            slot.bytes_mut()[rows.clone()].copy_from_slice(&from[rows]);
        });
        Ok(slot)
    }

    /// One row of keys or values, to write, in the pool's own pages. Its block was made writable.
    pub(crate) fn row_mut(&mut self, layer: usize, part: Part, head: usize, position: usize) -> &mut [u8] {
        let offset = self.layout.row_offset(layer, part as usize, head, position % KV_BLOCK_TOKENS);
        let row_bytes = self.layout.row_bytes();
        match Arc::get_mut(&mut self.blocks[position / KV_BLOCK_TOKENS]) {
            Some(Block::Owned(slot)) => &mut slot.bytes_mut()[offset..offset + row_bytes],
            _ => unreachable!("make_writable gave this session its own block"),
        }
    }

    /// Checks every mapped block that has not been checked yet, on up to `threads` threads. [`Kv::make_owned`] checks those that go to a
    /// device's own memory.
    pub(crate) fn verify(&self, threads: usize) -> Result<(), Error> {
        if self.home.resident.is_some() {
            return Ok(());
        }
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
        let mut slot = self.home.pool.take()?;
        match &self.home.resident {
            None => self.unpack(packed, tokens, slot.bytes_mut()),
            Some(resident) => {
                let mut block = vec![0; self.layout.block_bytes()];
                self.unpack(packed, tokens, &mut block);
                resident.upload(&[Incoming { slot: slot.index(), bytes: &block, hash: None }], 1)?;
            }
        }
        self.blocks.push(Arc::new(Block::Owned(slot)));
        Ok(())
    }

    /// Writes packed rows where a block has them.
    fn unpack(&self, packed: &[u8], tokens: usize, block: &mut [u8]) {
        let mut source = packed;
        self.each_tile(|offset, row_bytes| {
            let (tile, rest) = source.split_at(tokens * row_bytes);
            block[offset..offset + tile.len()].copy_from_slice(tile);
            source = rest;
        });
        debug_assert!(source.is_empty());
    }

    /// Brings the first `blocks` blocks to where the host can read them; nothing if they are there.
    pub(crate) fn fetch(&self, blocks: usize) -> Result<Option<Fetched>, Error> {
        let Some(resident) = &self.home.resident else { return Ok(None) };
        let slot = |block: &Arc<Block>| if let Block::Owned(slot) = &**block { Some(slot.index()) } else { None };
        let slots: Vec<usize> = self.blocks[..blocks].iter().filter_map(slot).collect();
        if slots.is_empty() {
            return Ok(None);
        }
        Ok(Some(Fetched { window: Some(resident.download(&slots)?), resident: resident.clone() }))
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

/// Blocks that were brought from a device, in the order of those that stood there.
#[derive(Debug)]
pub(crate) struct Fetched {
    window: Option<Window>, // until it is given back
    resident: Arc<ResidentKv>,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Some(window) = self.window.take() {
            self.resident.give_back(window);
        }
    }
}

impl Fetched {
    /// The bytes of the `index`-th.
    pub(crate) fn block(&self, index: usize) -> &[u8] {
        let window = self.window.as_ref().expect("it is given back on drop");
        &window.bytes()[self.resident.block_in_window(index)]
    }
}
