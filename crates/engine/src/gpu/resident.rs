//! KV in a discrete device's own memory: a pool's slots, layer by layer.
//!
//! The pool of `region` numbers the slots; their bytes stand here, and the pool's own pages are never touched. Everything that happens to
//! them goes through the device's queue, in its order, so that a slot may change hands while work that read it is still running.

use crate::Error;
use driftwood_compute::KvLayout;
use driftwood_compute::gpu::{Buffer, Gpu, Window};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of shared memory through which blocks are sent.
const STAGING_BYTES: usize = 64 << 20;
/// Shared memory for blocks on their way out that is kept at most.
const WINDOW_KEPT_BYTES_MAX: usize = 256 << 20;
/// Slots that are made at first.
const SLOTS_MIN: usize = 16;

/// The KV of one pool on a device. A slot holds of each layer (k_or_v, kv_head, token, row).
#[derive(Debug)]
pub(crate) struct ResidentKv {
    gpu: Arc<Gpu>,
    layout: KvLayout,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    layers: Vec<Buffer>,
    slots: usize,
    waiting: Vec<Change>,
    changes: u64,
    /// When each slot was changed last, counted in changes.
    changed: Vec<u64>,
    staging: Option<Staging>,
    /// Shared memory that blocks were last read into.
    window: Option<Window>,
    /// All layers of a slot on their way to another.
    spare: Option<Buffer>,
}

impl State {
    /// Takes note of a change.
    fn note(&mut self, slot: usize) {
        self.changes += 1;
        self.changed[slot] = self.changes;
    }
}

/// What happens to slots before the next step reads them.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Zeros, so that rows nobody has written are numbers: a masked value counts zero times, and zero times NaN is NaN.
    Clear(usize),
    Copy {
        from: usize,
        to: usize,
    },
}

/// Shared memory that blocks pass through on their way in, in two halves: one is filled while the device reads the other.
#[derive(Debug)]
struct Staging {
    halves: [Window; 2],
}

impl ResidentKv {
    pub(crate) fn new(gpu: &Arc<Gpu>, layout: KvLayout) -> ResidentKv {
        ResidentKv { gpu: gpu.clone(), layout, state: Mutex::default() }
    }

    /// Bytes of one layer's part of a slot.
    pub(crate) fn slot_bytes(&self) -> usize {
        2 * self.layout.row_offset(0, 1, 0, 0)
    }

    /// How many changes there were, by anything but steps.
    pub(crate) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Whether one of these slots was changed after so many changes, by anything but steps.
    pub(crate) fn changed_since(&self, changes: u64, slots: &[u32]) -> bool {
        let state = self.state();
        slots.iter().any(|slot| state.changed.get(*slot as usize).is_some_and(|at| *at > changes))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a slot, and zeros in it.
    pub(crate) fn clear(&self, slot: usize) -> Result<(), Error> {
        let mut state = self.state();
        self.reserve(&mut state, slot + 1)?;
        state.note(slot);
        state.waiting.push(Change::Clear(slot));
        Ok(())
    }

    /// Makes a slot the copy of another.
    pub(crate) fn copy(&self, from: usize, to: usize) -> Result<(), Error> {
        let mut state = self.state();
        self.reserve(&mut state, to + 1)?;
        state.note(to);
        state.waiting.push(Change::Copy { from, to });
        Ok(())
    }

    /// One buffer for each layer, with every change made that was asked for before.
    pub(crate) fn layers(&self) -> Result<Vec<Buffer>, Error> {
        let mut state = self.state();
        self.make_changes(&mut state)?;
        Ok(state.layers.clone())
    }

    /// Grows all layers, keeping what they hold.
    fn reserve(&self, state: &mut State, slots: usize) -> Result<(), Error> {
        if slots <= state.slots {
            return Ok(());
        }
        self.make_changes(state)?;
        let slots = slots.max(2 * state.slots).max(SLOTS_MIN);
        let bytes = (slots * self.slot_bytes()) as u64;
        let mut encoder = self.gpu.encoder();
        let mut layers = Vec::with_capacity(self.layout.layers);
        for layer in 0..self.layout.layers {
            let grown = self.gpu.buffer("keys and values", bytes)?;
            if let Some(old) = state.layers.get(layer) {
                encoder.copy_buffer_to_buffer(old, 0, &grown, 0, old.size());
            }
            layers.push(grown);
        }
        self.gpu.submit(encoder)?;
        (state.layers, state.slots) = (layers, slots);
        state.changed.resize(slots, 0);
        Ok(())
    }

    fn make_changes(&self, state: &mut State) -> Result<(), Error> {
        if state.waiting.is_empty() {
            return Ok(());
        }
        let bytes = self.slot_bytes() as u64;
        if state.spare.is_none() {
            state.spare = Some(self.gpu.buffer("slot on its way", bytes * state.layers.len() as u64)?);
        }
        let State { layers, waiting, spare: Some(spare), .. } = state else { unreachable!("it was just made") };
        let mut encoder = self.gpu.encoder();
        for change in waiting.drain(..) {
            let layers = layers.iter().zip((0..).step_by(bytes as usize));
            match change {
                Change::Clear(slot) => layers.for_each(|(layer, _)| encoder.clear_buffer(layer, slot as u64 * bytes, Some(bytes))),
                Change::Copy { from, to } => {
                    // A buffer cannot be copied to itself.
                    layers.clone().for_each(|(layer, at)| encoder.copy_buffer_to_buffer(layer, from as u64 * bytes, spare, at, bytes));
                    layers.for_each(|(layer, at)| encoder.copy_buffer_to_buffer(spare, at, layer, to as u64 * bytes, bytes));
                }
            }
        }
        Ok(self.gpu.submit(encoder)?)
    }

    /// Writes whole blocks, laid out as [`KvLayout`] says, into slots: as many as fit at a time through shared memory, filled and verified
    /// by `threads`.
    ///
    /// # Errors
    /// [`Error::AlteredKv`] if a block has not the hash that is given with it; the slots hold anything then.
    pub(crate) fn upload(&self, blocks: &[Incoming<'_>], threads: usize) -> Result<(), Error> {
        let Some(last) = blocks.iter().map(|block| block.slot).max() else { return Ok(()) };
        let mut state = self.state();
        self.reserve(&mut state, last + 1)?;
        self.make_changes(&mut state)?;
        blocks.iter().for_each(|block| state.note(block.slot));
        let block_bytes = self.layout.block_bytes();
        if state.staging.is_none() {
            let bytes = (STAGING_BYTES / 2).max(block_bytes);
            state.staging = Some(Staging { halves: [self.gpu.window(bytes)?, self.gpu.window(bytes)?] });
        }
        let State { layers, staging: Some(Staging { halves }), .. } = &mut *state else { unreachable!("it was just made") };
        let mut sent = [None, None];
        let (at_once, mut intact) = (halves[0].bytes().len() / block_bytes, true);
        for (index, group) in blocks.chunks(at_once).enumerate() {
            let half = &mut halves[index % 2];
            if let Some(before) = sent[index % 2].take() {
                self.gpu.wait_for(before)?;
            }
            intact &= fill(half.bytes_mut(), block_bytes, group, threads);
            let mut encoder = self.gpu.encoder();
            for (at, block) in group.iter().enumerate() {
                self.each_layer(block.slot, |layer, in_block, in_layer, bytes| {
                    let from = (at * block_bytes) as u64 + in_block;
                    encoder.copy_buffer_to_buffer(half.buffer(), from, &layers[layer], in_layer, bytes);
                });
            }
            sent[index % 2] = Some(self.gpu.submit_numbered(encoder)?);
        }
        sent.into_iter().flatten().try_for_each(|before| self.gpu.wait_for(before))?;
        if intact { Ok(()) } else { Err(Error::AlteredKv) }
    }

    /// Reads slots into shared memory, one block behind the other as [`KvLayout`] lays them out. [`ResidentKv::give_back`] takes the memory.
    pub(crate) fn download(&self, slots: &[usize]) -> Result<Window, Error> {
        let mut state = self.state();
        self.make_changes(&mut state)?;
        let block_bytes = self.layout.block_bytes();
        let bytes = (slots.len() * block_bytes).max(1);
        let window = match state.window.take().filter(|window| window.bytes().len() >= bytes) {
            Some(window) => window,
            None => self.gpu.window(bytes)?,
        };
        let mut encoder = self.gpu.encoder();
        for (at, slot) in slots.iter().enumerate() {
            self.each_layer(*slot, |layer, in_block, in_layer, bytes| {
                let to = (at * block_bytes) as u64 + in_block;
                encoder.copy_buffer_to_buffer(&state.layers[layer], in_layer, window.buffer(), to, bytes);
            });
        }
        driftwood_compute::gpu::show_host(&mut encoder, [window.buffer()]);
        self.gpu.submit(encoder)?;
        self.gpu.wait()?;
        Ok(window)
    }

    /// Keeps the memory of a download for the next, unless it is long: sharing it costs more than copying into it.
    pub(crate) fn give_back(&self, window: Window) {
        let mut state = self.state();
        let longest = state.window.as_ref().map_or(0, |kept| kept.bytes().len());
        if (longest..=WINDOW_KEPT_BYTES_MAX).contains(&window.bytes().len()) {
            state.window = Some(window);
        }
    }

    /// Where the bytes of block `index` stand in what [`ResidentKv::download`] made.
    pub(crate) fn block_in_window(&self, index: usize) -> Range<usize> {
        let block_bytes = self.layout.block_bytes();
        index * block_bytes..(index + 1) * block_bytes
    }

    /// Calls `f` with each layer, where it begins in a block and where in its buffer, and its bytes.
    fn each_layer(&self, slot: usize, mut f: impl FnMut(usize, u64, u64, u64)) {
        let bytes = self.slot_bytes();
        (0..self.layout.layers).for_each(|layer| f(layer, (layer * bytes) as u64, (slot * bytes) as u64, bytes as u64));
    }
}

/// A block on its way in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming<'a> {
    pub(crate) slot: usize,
    pub(crate) bytes: &'a [u8],
    /// What the bytes must hash to, unless they have been checked.
    pub(crate) hash: Option<[u8; 32]>,
}

/// Copies blocks side by side, on several threads, and hashes them while they are in the cache; false if one was altered.
fn fill(to: &mut [u8], block_bytes: usize, blocks: &[Incoming<'_>], threads: usize) -> bool {
    let share = blocks.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let shares = to.chunks_mut(share * block_bytes).zip(blocks.chunks(share));
        let running: Vec<_> = shares.map(|(to, blocks)| scope.spawn(move || fill_share(to, block_bytes, blocks))).collect();
        let intact: Vec<bool> = running.into_iter().map(|share| share.join().expect("copying does not panic")).collect();
        !intact.contains(&false)
    })
}

fn fill_share(to: &mut [u8], block_bytes: usize, blocks: &[Incoming<'_>]) -> bool {
    to.chunks_mut(block_bytes).zip(blocks).fold(true, |intact, (to, block)| {
        to.copy_from_slice(&block.bytes[..block_bytes]);
        intact && block.hash.is_none_or(|hash| *blake3::hash(to).as_bytes() == hash)
    })
}
