//! A session's keys and values: blocks of 64 tokens, shared by reference count, copied on write.
//!
//! A block lies in a slot of the model's pool or in a mapped snapshot file. Mapped blocks are never written, and their hash is
//! checked before the first step that reads them. Forking clones the references; whoever writes first copies. On a discrete device the
//! pool only numbers the slots; their bytes are the device's ([`ResidentKv`]). Each block knows which of its rows are saved ([`Pieces`]).

use crate::Error;
use crate::gpu::ResidentKv;
use crate::limits::KV_POOL_BYTES_MAX;
use crate::packed::{Packed, UnsavedRows, fill, packed_bytes, tiles};
use crate::saved::{Piece, Pieces, Run, SavedKv, WHOLE_BLOCK, parting_block};
use crate::session::{RestoredBlock, RestoredPiece};
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

/// One block, and the pieces that its rows are saved in.
#[derive(Debug)]
pub(crate) struct Block {
    place: Place,
    pub(crate) pieces: Pieces,
}

/// Where a block's bytes are, laid out as [`KvLayout`] says.
#[derive(Debug)]
enum Place {
    Owned(Slot),
    Mapped { view: View, hash: [u8; 32], verified: AtomicBool },
}

impl Block {
    fn owned(slot: Slot, pieces: Pieces) -> Arc<Block> {
        Arc::new(Block { place: Place::Owned(slot), pieces })
    }

    fn mapped(view: View, hash: [u8; 32]) -> Arc<Block> {
        let pieces = Pieces::in_order([Piece { tokens: KV_BLOCK_TOKENS, hash }]);
        Arc::new(Block { place: Place::Mapped { view, hash, verified: AtomicBool::new(false) }, pieces })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.place {
            Place::Owned(slot) => slot.bytes(),
            Place::Mapped { view, .. } => view.bytes(),
        }
    }

    /// Its slot of the pool, unless it is mapped.
    pub(crate) fn slot(&self) -> Option<usize> {
        if let Place::Owned(slot) = &self.place { Some(slot.index()) } else { None }
    }

    /// The hash of all its bytes, if it is known.
    pub(crate) fn known_hash(&self) -> Option<[u8; 32]> {
        match &self.place {
            Place::Owned(_) => self.pieces.whole(),
            Place::Mapped { hash, .. } => Some(*hash),
        }
    }

    /// A mapped block on its way to a slot.
    fn incoming(&self, layout: KvLayout) -> Packed<'_> {
        let hash = match &self.place {
            Place::Mapped { hash, verified, .. } if !verified.load(Ordering::Relaxed) => Some(*hash),
            Place::Mapped { .. } | Place::Owned(_) => None,
        };
        Packed { tokens: KV_BLOCK_TOKENS, bytes: &self.bytes()[..layout.block_bytes()], hash }
    }

    fn is_unverified(&self) -> bool {
        matches!(&self.place, Place::Mapped { verified, .. } if !verified.load(Ordering::Relaxed))
    }

    /// Checks a mapped block against its hash, once.
    fn verify(&self) -> bool {
        let Place::Mapped { view, hash, verified } = &self.place else { return true };
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
        self.blocks.iter().map(|block| block.slot().expect("make_owned left no mapped block") as u32)
    }

    /// Copies blocks that stand in mapped files to where its own blocks are, for devices that read only those. What goes to a device's own
    /// memory is verified on the way, everything else was before.
    pub(crate) fn make_owned(&mut self, threads: usize) -> Result<(), Error> {
        let mapped: Vec<usize> = (0..self.blocks.len()).filter(|index| self.blocks[*index].slot().is_none()).collect();
        let incoming: Vec<_> = mapped.iter().map(|index| vec![self.blocks[*index].incoming(self.layout)]).collect();
        let slots = self.filled(&incoming, threads)?;
        for (index, slot) in mapped.into_iter().zip(slots) {
            self.blocks[index] = Block::owned(slot, self.blocks[index].pieces.of_first(KV_BLOCK_TOKENS));
        }
        Ok(())
    }

    /// Slots of our own that hold these rows, which are verified on the way.
    fn filled(&self, blocks: &[Vec<Packed<'_>>], threads: usize) -> Result<Vec<Slot>, Error> {
        let mut slots = blocks.iter().map(|_| self.home.pool.take()).collect::<Result<Vec<_>, _>>()?;
        if let Some(resident) = &self.home.resident {
            let places: Vec<usize> = slots.iter().map(Slot::index).collect();
            resident.upload(&places, blocks, threads)?;
        } else if !fill(self.layout, slots.iter_mut().map(Slot::bytes_mut).collect(), blocks, threads) {
            return Err(Error::AlteredKv);
        }
        Ok(slots)
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

    /// Makes positions `from..to` writable: takes new blocks, and a copy of the one that `from` stands in if others share it. No piece tells of
    /// these positions any more.
    pub(crate) fn make_writable(&mut self, from: usize, to: usize) -> Result<(), Error> {
        if from == to {
            return Ok(());
        }
        for index in from / KV_BLOCK_TOKENS..to.div_ceil(KV_BLOCK_TOKENS) {
            let row = from.saturating_sub(index * KV_BLOCK_TOKENS);
            match self.blocks.get_mut(index).map(Arc::get_mut) {
                Some(Some(block)) if block.slot().is_some() => block.pieces.truncate(row),
                None => self.blocks.push(Block::owned(self.fresh()?, Pieces::default())),
                Some(_) => self.blocks[index] = Block::owned(self.copy_rows(index, row)?, self.blocks[index].pieces.of_first(row)),
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
        let block = &self.blocks[index];
        if let Some(resident) = &self.home.resident {
            let Some(from) = block.slot() else {
                let mut slots = self.filled(&[vec![block.incoming(self.layout)]], 1)?;
                return Ok(slots.pop().expect("one for one"));
            };
            let slot = self.home.pool.take()?;
            resident.copy(from, slot.index())?;
            return Ok(slot);
        }
        let mut slot = self.home.pool.take()?;
        for offset in tiles(self.layout) {
            let rows = offset..offset + tokens * self.layout.row_bytes();
            slot.bytes_mut()[rows.clone()].copy_from_slice(&block.bytes()[rows]);
        }
        Ok(slot)
    }

    /// One row of keys or values, to write, in the pool's own pages. Its block was made writable.
    pub(crate) fn row_mut(&mut self, layer: usize, part: Part, head: usize, position: usize) -> &mut [u8] {
        let offset = self.layout.row_offset(layer, part as usize, head, position % KV_BLOCK_TOKENS);
        let row_bytes = self.layout.row_bytes();
        match Arc::get_mut(&mut self.blocks[position / KV_BLOCK_TOKENS]).map(|block| &mut block.place) {
            Some(Place::Owned(slot)) => &mut slot.bytes_mut()[offset..offset + row_bytes],
            _ => unreachable!("make_writable gave this session its own block"),
        }
    }

    /// Checks every mapped block that has not been checked yet, on up to `threads` threads. [`Kv::make_owned`] checks those that go to a
    /// device's own memory.
    pub(crate) fn verify(&self, threads: usize) -> Result<(), Error> {
        if self.home.resident.is_some() { Ok(()) } else { verify(&self.blocks, threads) }
    }

    /// Appends the blocks of a snapshot, each of which [`Kv::takes`]. Pieces are copied and verified.
    pub(crate) fn push_restored(&mut self, blocks: Vec<RestoredBlock>, threads: usize) -> Result<(), Error> {
        let pieces = blocks.iter().filter_map(|block| if let RestoredBlock::Pieces(pieces) = block { Some(pieces) } else { None });
        let incoming: Vec<Vec<_>> = pieces.map(|pieces| pieces.iter().map(RestoredPiece::packed).collect()).collect();
        let mut slots = self.filled(&incoming, threads)?.into_iter();
        for block in blocks {
            self.blocks.push(match block {
                RestoredBlock::Mapped { view, hash } => Block::mapped(view, hash),
                RestoredBlock::Shared(shared) => shared.0,
                RestoredBlock::Pieces(pieces) => {
                    let pieces = pieces.iter().map(|piece| Piece { tokens: piece.tokens, hash: piece.hash });
                    Block::owned(slots.next().expect("one for each"), Pieces::in_order(pieces))
                }
            });
        }
        Ok(())
    }

    /// Whether a block of a snapshot holds `rows` rows as this cache lays them out.
    pub(crate) fn takes(&self, block: &RestoredBlock, rows: usize) -> bool {
        let whole = |bytes: &[u8]| rows == KV_BLOCK_TOKENS && bytes.len() >= self.layout.block_bytes();
        match block {
            RestoredBlock::Mapped { view, .. } => whole(view.bytes()),
            RestoredBlock::Shared(shared) => whole(shared.0.bytes()),
            RestoredBlock::Pieces(pieces) => {
                let fits = |piece: &RestoredPiece| {
                    (1..=rows).contains(&piece.tokens) && piece.view.bytes().len() == packed_bytes(self.layout, piece.tokens)
                };
                pieces.len() <= rows && pieces.iter().all(fits) && pieces.iter().map(|piece| piece.tokens).sum::<usize>() == rows
            }
        }
    }

    /// Appends a block whose first `tokens` rows come from `packed`: (layer, key or value, head, token, row).
    pub(crate) fn push_tail(&mut self, packed: &[u8], tokens: usize) -> Result<(), Error> {
        let slots = self.filled(&[vec![Packed { tokens, bytes: packed, hash: None }]], 1)?;
        self.blocks.extend(slots.into_iter().map(|slot| Block::owned(slot, Pieces::default())));
        Ok(())
    }

    /// Has the rows of the first `tokens` tokens saved that no piece holds, in pieces that end where the `opening` does. See
    /// [`crate::Session::save_kv`].
    pub(crate) fn save<E: From<Error>>(
        &self,
        (tokens, opening): (usize, usize),
        is_kept: impl Fn(&[u8; 32]) -> bool,
        mut save: impl FnMut(&[UnsavedRows<'_>]) -> Result<Vec<[u8; 32]>, E>,
        threads: usize,
    ) -> Result<SavedKv, E> {
        let blocks = self.blocks[..tokens.div_ceil(KV_BLOCK_TOKENS)].to_vec();
        let rows = |index: usize| (tokens - index * KV_BLOCK_TOKENS).min(KV_BLOCK_TOKENS);
        let cut = |index: usize| (opening / KV_BLOCK_TOKENS == index).then_some(opening % KV_BLOCK_TOKENS).filter(|row| *row > 0);
        let plan = |(index, block): (usize, &Arc<Block>)| block.pieces.plan(rows(index), cut(index), &is_kept);
        let mut plans: Vec<_> = blocks.iter().enumerate().map(plan).collect();
        let unsaved = (0..blocks.len()).filter(|index| plans[*index].iter().any(|run| matches!(run, Run::Unsaved { .. })));
        let unsaved: Vec<usize> = unsaved.collect();
        let mut hashes = Vec::new();
        let mut shared = 0; // blocks from the first on that others have saved, too
        self.read::<E>(&unsaved, threads, |group| {
            for &(index, bytes) in group {
                if index != shared || plans[index] != WHOLE_BLOCK {
                    continue;
                }
                if is_kept(&UnsavedRows::new(self.layout, bytes, 0, KV_BLOCK_TOKENS).hash()) {
                    shared += 1;
                } else if shared > 0 {
                    plans[index] = parting_block();
                }
            }
            let runs = |&(index, bytes): &(usize, _)| {
                plans[index].iter().filter_map(move |run| match *run {
                    Run::Unsaved { from, tokens } => Some(UnsavedRows::new(self.layout, bytes, from, tokens)),
                    Run::Saved(_) => None,
                })
            };
            let rows: Vec<UnsavedRows<'_>> = group.iter().flat_map(runs).collect();
            let saved = save(&rows)?;
            assert_eq!(saved.len(), rows.len(), "one hash for each of the rows to save");
            hashes.extend(saved);
            Ok(())
        })?;
        let mut hashes = hashes.into_iter();
        let mut piece = |run| match run {
            Run::Saved(piece) => piece,
            Run::Unsaved { tokens, .. } => Piece { tokens, hash: hashes.next().expect("all were saved") },
        };
        let pieces = plans.into_iter().map(|plan| plan.into_iter().map(&mut piece).collect()).collect();
        Ok(SavedKv { blocks, pieces })
    }

    /// Hands these blocks to `f` with their bytes, in order: all at once, or what fits at a time where they have to come from a device.
    fn read<E: From<Error>>(
        &self,
        indices: &[usize],
        threads: usize,
        mut f: impl FnMut(&[(usize, &[u8])]) -> Result<(), E>,
    ) -> Result<(), E> {
        let blocks: Vec<Arc<Block>> = indices.iter().map(|index| self.blocks[*index].clone()).collect();
        verify(&blocks, threads)?;
        let Some(resident) = &self.home.resident else {
            let group: Vec<_> = indices.iter().map(|index| (*index, self.block(*index))).collect();
            return if group.is_empty() { Ok(()) } else { f(&group) };
        };
        let groups: Vec<&[usize]> = indices.chunks(resident.blocks_at_once()).collect();
        let slots = |group: &&[usize]| group.iter().filter_map(|index| self.blocks[*index].slot()).collect();
        resident.stream(&groups.iter().map(slots).collect::<Vec<_>>(), |at, fetched| {
            let mut fetched = fetched.chunks(self.layout.block_bytes());
            let bytes = |index: usize| match self.blocks[index].slot() {
                Some(_) => fetched.next().expect("a block for each slot"),
                None => self.block(index),
            };
            let bytes: Vec<_> = groups[at].iter().copied().map(bytes).collect();
            f(&groups[at].iter().copied().zip(bytes).collect::<Vec<_>>())
        })
    }

    /// Brings the first `blocks` blocks to where the host can read them; nothing if they are there.
    pub(crate) fn fetch(&self, blocks: usize) -> Result<Option<Fetched>, Error> {
        let Some(resident) = &self.home.resident else { return Ok(None) };
        let slots: Vec<usize> = self.blocks[..blocks].iter().filter_map(|block| block.slot()).collect();
        if slots.is_empty() {
            return Ok(None);
        }
        Ok(Some(Fetched { window: Some(resident.download(&slots)?), resident: resident.clone() }))
    }
}

/// Checks every mapped block that has not been checked yet, on up to `threads` threads.
fn verify(blocks: &[Arc<Block>], threads: usize) -> Result<(), Error> {
    let pending_blocks = blocks.iter().filter(|block| block.is_unverified()).count();
    if pending_blocks == 0 {
        return Ok(());
    }
    let share = blocks.len().div_ceil(threads.min(pending_blocks));
    let intact = std::thread::scope(|scope| {
        let mut shares = blocks.chunks(share);
        let mine = shares.next().unwrap_or_default();
        let others: Vec<_> = shares.map(|s| scope.spawn(|| s.iter().all(|b| b.verify()))).collect();
        let intact = mine.iter().all(|b| b.verify());
        others.into_iter().fold(intact, |all, t| t.join().expect("hashing does not panic") && all)
    });
    if intact { Ok(()) } else { Err(Error::AlteredKv) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use driftwood_region::Region;
    use std::io::Write;

    const LAYOUT: KvLayout = KvLayout { layers: 3, kv_heads: 2, head_dim: 32, dtype: KvDType::F16 };

    /// A cache in memory of the device's own, though this device may share the host's.
    fn on_device() -> Kv {
        let gpu = Gpu::open(None).expect("tests of the GPU need a Vulkan driver: apt install mesa-vulkan-drivers");
        Kv::new(LAYOUT, KvPools::default().get(LAYOUT, Some(&gpu)).unwrap(), 512)
    }

    fn piece(seed: usize, tokens: usize) -> RestoredPiece {
        let mut bytes: Vec<u8> = (0..packed_bytes(LAYOUT, tokens)).map(|at| (at / 5 * seed) as u8).collect();
        bytes[tokens * LAYOUT.token_bytes()..].fill(0);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let view = View::whole(&Arc::new(Region::map_file(&file).unwrap())).unwrap();
        RestoredPiece { hash: *blake3::hash(&bytes).as_bytes(), view, tokens }
    }

    /// The hashes of what is saved.
    fn saved(kv: &Kv, tokens: usize, is_kept: impl Fn(&[u8; 32]) -> bool) -> (Vec<[u8; 32]>, SavedKv) {
        let mut hashes = Vec::new();
        let saved = kv.save::<Error>(
            (tokens, 0),
            is_kept,
            |rows| {
                hashes.extend(rows.iter().map(|rows| *blake3::hash(&rows.slices().collect::<Vec<_>>().concat()).as_bytes()));
                Ok(hashes[hashes.len() - rows.len()..].to_vec())
            },
            2,
        );
        (hashes, saved.unwrap())
    }

    #[test]
    fn a_device_gives_back_the_pieces_it_was_given() {
        let mut kv = on_device();
        let all = [piece(1, 64), piece(2, 16), piece(3, 16), piece(4, 16), piece(5, 16), piece(6, 64), piece(7, 16), piece(8, 5)];
        let hash = |index: usize| all[index].hash;
        let mapped = RestoredBlock::Mapped { view: all[5].view.clone(), hash: hash(5) };
        let in_pieces = |pieces: &[RestoredPiece]| RestoredBlock::Pieces(pieces.to_vec());
        kv.push_restored(vec![in_pieces(&all[..1]), in_pieces(&all[1..5]), mapped, in_pieces(&all[6..])], 2).unwrap();
        assert!(saved(&kv, 213, |_| true).0.is_empty());
        let lost = [hash(2), hash(5), hash(7)];
        assert_eq!(saved(&kv, 213, |hash| !lost.contains(hash)).0, lost, "one of a mapped block, too");
        kv.make_owned(2).unwrap();
        let (again, whole) = saved(&kv, 213, |_| false);
        assert_eq!((again[0], again[2], &again[3..]), (hash(0), hash(5), &[hash(6), hash(7)][..]));
        whole.note();
        assert!(saved(&kv, 213, |_| true).0.is_empty());
        kv.make_writable(200, 213).unwrap();
        assert_eq!(saved(&kv, 200, |_| true).0.len(), 1, "rows 0 to 8 of the last block, which was not shared");
        let fork = kv.share();
        kv.make_writable(10, 20).unwrap();
        assert_eq!(saved(&kv, 192, |_| true).0, [hash(0)], "a copy has the same rows, and no piece with written ones");
        assert!(saved(&fork, 192, |_| true).0.is_empty());
    }

    #[test]
    fn a_device_refuses_altered_pieces() {
        let mut altered = piece(1, 16);
        altered.hash[0] ^= 1;
        assert!(matches!(on_device().push_restored(vec![RestoredBlock::Pieces(vec![altered])], 2), Err(Error::AlteredKv)));
    }
}
