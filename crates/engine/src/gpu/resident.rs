//! KV in a discrete device's own memory: a pool's slots, layer by layer.
//!
//! The pool of `region` numbers the slots; their bytes stand here, and the pool's own pages are never touched. Everything that happens to
//! them goes through the device's queue, in its order, so that a slot may change hands while work that read it is still running.

use crate::Error;
use crate::packed::{Packed, fill};
use driftwood_compute::KvLayout;
use driftwood_compute::gpu::{Buffer, CommandEncoder, Gpu, SubmissionIndex, Window};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of shared memory through which blocks are sent.
const STAGING_BYTES: usize = 64 << 20;
/// Shared memory through which blocks come, in each of two windows: one is read while the device fills the other.
const COMING_BYTES: usize = 64 << 20;
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
    /// Windows of [`ResidentKv::stream`] that are not in use.
    coming: Vec<Window>,
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

/// One buffer for each layer. Who submits work on them holds this until it is submitted: whoever makes room meanwhile would copy the layers
/// before the work has written to them, and what it writes would be lost.
#[derive(Debug)]
pub(crate) struct Layers<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for Layers<'_> {
    type Target = [Buffer];

    fn deref(&self) -> &[Buffer] {
        &self.0.layers
    }
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

    /// The layers, with every change made that was asked for before. They stay where they are until the guard is dropped.
    pub(crate) fn layers(&self) -> Result<Layers<'_>, Error> {
        let mut state = self.state();
        self.make_changes(&mut state)?;
        Ok(Layers(state))
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

    /// Writes blocks into slots, each put together from its runs of rows: as many as fit at a time through shared memory, filled and
    /// verified by `threads`.
    ///
    /// # Errors
    /// [`Error::AlteredKv`] if rows have not the hash that is given with them; the slots hold anything then.
    pub(crate) fn upload(&self, slots: &[usize], blocks: &[Vec<Packed<'_>>], threads: usize) -> Result<(), Error> {
        let Some(last) = slots.iter().max() else { return Ok(()) };
        let mut state = self.state();
        self.reserve(&mut state, last + 1)?;
        self.make_changes(&mut state)?;
        slots.iter().for_each(|slot| state.note(*slot));
        let block_bytes = self.layout.block_bytes();
        if state.staging.is_none() {
            let bytes = (STAGING_BYTES / 2).max(block_bytes);
            state.staging = Some(Staging { halves: [self.gpu.window(bytes)?, self.gpu.window(bytes)?] });
        }
        let State { layers, staging: Some(Staging { halves }), .. } = &mut *state else { unreachable!("it was just made") };
        let mut sent = [None, None];
        let (at_once, mut intact) = (halves[0].bytes().len() / block_bytes, true);
        for (index, (slots, group)) in slots.chunks(at_once).zip(blocks.chunks(at_once)).enumerate() {
            let half = &mut halves[index % 2];
            if let Some(before) = sent[index % 2].take() {
                self.gpu.wait_for(before)?;
            }
            intact &= fill(self.layout, half.bytes_mut().chunks_mut(block_bytes).take(group.len()).collect(), group, threads);
            let mut encoder = self.gpu.encoder();
            for (at, slot) in slots.iter().enumerate() {
                self.each_layer(*slot, |layer, in_block, in_layer, bytes| {
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
        let bytes = (slots.len() * self.layout.block_bytes()).max(1);
        let window = match state.window.take().filter(|window| window.bytes().len() >= bytes) {
            Some(window) => window,
            None => self.gpu.window(bytes)?,
        };
        self.gpu.submit(self.reading(&state.layers, slots, &window))?;
        self.gpu.wait()?;
        Ok(window)
    }

    /// The commands that read slots into a window.
    fn reading(&self, layers: &[Buffer], slots: &[usize], window: &Window) -> CommandEncoder {
        let mut encoder = self.gpu.encoder();
        for (at, slot) in slots.iter().enumerate() {
            self.each_layer(*slot, |layer, in_block, in_layer, bytes| {
                let to = (at * self.layout.block_bytes()) as u64 + in_block;
                encoder.copy_buffer_to_buffer(&layers[layer], in_layer, window.buffer(), to, bytes);
            });
        }
        driftwood_compute::gpu::show_host(&mut encoder, [window.buffer()]);
        encoder
    }

    /// How many blocks [`ResidentKv::stream`] reads at a time.
    pub(crate) fn blocks_at_once(&self) -> usize {
        (COMING_BYTES / self.layout.block_bytes()).max(1)
    }

    /// Reads groups of slots, of at most [`ResidentKv::blocks_at_once`], and hands each to `f` with its number, one block behind the other as
    /// [`KvLayout`] lays them out. While `f` works on one the device reads the next; nobody may write the slots meanwhile.
    pub(crate) fn stream<E: From<Error>>(&self, groups: &[Vec<usize>], mut f: impl FnMut(usize, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut coming = groups.first().map(|slots| self.send_for(slots)).transpose()?;
        for index in 0..groups.len() {
            let next = groups.get(index + 1).map(|slots| self.send_for(slots)).transpose()?;
            let (window, number) = std::mem::replace(&mut coming, next).expect("it was sent for");
            self.gpu.wait_for(number).map_err(Error::from)?;
            f(index, window.bytes())?;
            let mut state = self.state();
            state.coming.push(window);
            state.coming.truncate(2);
        }
        Ok(())
    }

    /// Has the device read slots into a window that is not in use.
    fn send_for(&self, slots: &[usize]) -> Result<(Window, SubmissionIndex), Error> {
        let mut state = self.state();
        self.make_changes(&mut state)?;
        let window = match state.coming.pop() {
            Some(window) => window,
            None => self.gpu.window(self.blocks_at_once() * self.layout.block_bytes())?,
        };
        let number = self.gpu.submit_numbered(self.reading(&state.layers, slots, &window))?;
        Ok((window, number))
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

#[cfg(test)]
mod tests {
    use super::*;
    use driftwood_compute::{KV_BLOCK_TOKENS, KvDType};

    /// What a step writes while another thread wants more slots is in the layers that it grows.
    #[test]
    fn layers_stay_until_work_on_them_is_submitted() {
        let gpu = Gpu::open(None).expect("tests of the GPU need a Vulkan driver: apt install mesa-vulkan-drivers");
        let layout = KvLayout { layers: 2, kv_heads: 1, head_dim: 32, dtype: KvDType::F16 };
        let resident = ResidentKv::new(&gpu, layout);
        resident.clear(0).unwrap();
        let written = gpu.upload("a row", &[7; 64]).unwrap();
        std::thread::scope(|scope| {
            let layers = resident.layers().unwrap();
            let grows = scope.spawn(|| resident.clear(10 * SLOTS_MIN));
            std::thread::sleep(std::time::Duration::from_millis(100)); // time to grow at once, if it could
            let mut encoder = gpu.encoder();
            layers.iter().for_each(|layer| encoder.copy_buffer_to_buffer(&written, 0, layer, 0, 64));
            gpu.submit(encoder).unwrap();
            drop(layers);
            grows.join().unwrap().unwrap();
        });
        let window = resident.download(&[0]).unwrap();
        for layer in 0..layout.layers {
            assert_eq!(window.bytes()[layer * resident.slot_bytes()..][..64], [7; 64], "layer {layer}");
        }
    }

    #[test]
    fn a_stream_brings_each_group_as_it_was_sent() {
        let gpu = Gpu::open(None).expect("tests of the GPU need a Vulkan driver: apt install mesa-vulkan-drivers");
        let layout = KvLayout { layers: 3, kv_heads: 2, head_dim: 32, dtype: KvDType::F16 };
        let resident = ResidentKv::new(&gpu, layout);
        let blocks: Vec<Vec<u8>> = (1..=20).map(|i| (0..layout.block_bytes()).map(|at| (at / 7 * i) as u8).collect()).collect();
        let packed = |bytes| vec![Packed { tokens: KV_BLOCK_TOKENS, bytes, hash: None }];
        let incoming: Vec<_> = blocks.iter().map(|block| packed(&block[..])).collect();
        resident.upload(&(0..20).collect::<Vec<_>>(), &incoming, 2).unwrap();
        resident.copy(3, 20).unwrap();
        let groups = [vec![4, 2], vec![7], vec![0, 1, 20], vec![], vec![19, 18]];
        let expected = |slot: usize| &blocks[if slot == 20 { 3 } else { slot }][..KV_BLOCK_TOKENS * layout.token_bytes()];
        for fails_at in [1, 5, 5] {
            let mut seen = 0;
            let streamed = resident.stream(&groups, |index, bytes| {
                assert_eq!(index, seen);
                seen += 1;
                for (slot, block) in groups[index].iter().zip(bytes.chunks(layout.block_bytes())) {
                    assert!(block.starts_with(expected(*slot)), "slot {slot}");
                }
                if index == fails_at { Err(Error::NothingToEvaluate) } else { Ok(()) }
            });
            assert_eq!((streamed.is_err(), seen), (fails_at == 1, if fails_at == 1 { 2 } else { 5 }));
            assert!(resident.state().coming.len() <= 2);
        }
    }
}
