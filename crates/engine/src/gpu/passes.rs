//! One step on the device: share the KV, write what changed, replay the recording, read the logits.

use super::record::{Buffers, Program, Recorder, StepBuffers};
use crate::batch::{Plan, Work};
use crate::config::Config;
use crate::limits::{GPU_OUTPUTS_PER_PASS_MAX, ROWS_PER_PASS_MAX};
use crate::{Error, Model};
use driftwood_compute::gpu::{Gpu, Imported, Window, record, show_host};
use driftwood_compute::{KV_BLOCK_TOKENS, KvDType, KvLayout};
use driftwood_region::Pool;
use std::collections::HashMap;
use std::sync::Arc;

/// The scratch memory of one model's steps on a device.
#[derive(Debug)]
pub(crate) struct GpuPasses {
    gpu: Arc<Gpu>,
    scratch: Option<Scratch>,
    kv: HashMap<KvDType, SharedKv>,
    programs: HashMap<KvDType, Program>,
    words: Vec<u32>,
}

/// Buffers whose size the model decides, made at the first step.
#[derive(Debug)]
struct Scratch {
    buffers: Buffers,
    step: StepBuffers,
    logits: Window, // (output, vocabulary)
    outputs_max: usize,
}

/// A pool of KV blocks as the device sees it.
#[derive(Debug)]
struct SharedKv {
    shared: Imported,
}

impl GpuPasses {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> GpuPasses {
        let (kv, programs) = (HashMap::new(), HashMap::new());
        GpuPasses { gpu: gpu.clone(), scratch: None, kv, programs, words: Vec::new() }
    }

    /// How many rows of one pass may want their logits.
    pub(crate) fn outputs_max(&self, config: &Config) -> usize {
        let row_bytes = (config.vocabulary * size_of::<f32>()) as u64;
        let most = self.gpu.info().binding_bytes_max / row_bytes;
        usize::try_from(most).unwrap_or(usize::MAX).clamp(1, GPU_OUTPUTS_PER_PASS_MAX)
    }

    /// Runs one pass and returns the logits of its outputs: (output, vocabulary).
    pub(crate) fn evaluate(&mut self, model: &Model, plan: &Plan, layout: KvLayout, work: &mut [Work<'_>]) -> Result<&[f32], Error> {
        for run in plan.rows.chunk_by(|a, b| a.session == b.session) {
            work[run[0].session as usize].session.kv.make_owned(model.cpu().threads())?;
        }
        let first = &work[plan.rows[0].session as usize].session.kv;
        self.share_kv(layout.dtype, &first.home().pool)?;
        self.make_room(model, plan, work)?;
        if !self.programs.contains_key(&layout.dtype) {
            let program = self.record(model, layout, first.home().pool.slot_bytes())?;
            self.programs.insert(layout.dtype, program);
        }
        self.write_step(plan, layout.dtype, work);
        self.replay(plan, layout.dtype)?;
        let scratch = self.scratch.as_ref().expect("make_room made it");
        Ok(&bytemuck::cast_slice(scratch.logits.bytes())[..plan.outputs.len() * model.config().vocabulary])
    }

    /// Imports the pool's open bytes, again when it has grown.
    fn share_kv(&mut self, dtype: KvDType, pool: &Pool) -> Result<(), Error> {
        let open_bytes = pool.region().open_bytes() as u64;
        if self.kv.get(&dtype).is_none_or(|kv| kv.shared.bytes() != open_bytes) {
            self.programs.remove(&dtype);
            self.kv.remove(&dtype);
            self.kv.insert(dtype, SharedKv { shared: self.gpu.import(pool.region())? });
        }
        Ok(())
    }

    /// Makes the scratch memory, or new step buffers when the tables of slots have outgrown theirs.
    fn make_room(&mut self, model: &Model, plan: &Plan, work: &[Work<'_>]) -> Result<(), Error> {
        let table_words: usize = work.iter().map(|w| w.session.tokens().len().div_ceil(KV_BLOCK_TOKENS)).sum();
        let places_words = 1 + 2 * plan.rows.len() + table_words;
        if self.scratch.as_ref().is_some_and(|s| s.step.places.size() >= 4 * places_words as u64) {
            return Ok(());
        }
        self.programs.clear();
        let places_words = (1 + 2 * ROWS_PER_PASS_MAX + table_words).next_power_of_two();
        let step = self.step_buffers(places_words)?;
        match &mut self.scratch {
            Some(scratch) => scratch.step = step,
            None => self.scratch = Some(self.new_scratch(model.config(), step)?),
        }
        Ok(())
    }

    fn step_buffers(&self, places_words: usize) -> Result<StepBuffers, Error> {
        let of = |name: &str, words: usize| self.gpu.buffer(name, 4 * words as u64);
        Ok(StepBuffers {
            tokens: of("tokens", 1 + ROWS_PER_PASS_MAX)?,
            places: of("places", places_words)?,
            outputs: of("outputs", 1 + ROWS_PER_PASS_MAX)?,
        })
    }

    fn new_scratch(&self, config: &Config, step: StepBuffers) -> Result<Scratch, Error> {
        let outputs_max = self.outputs_max(config);
        let buffers = Buffers::new(&self.gpu, config, ROWS_PER_PASS_MAX, outputs_max)?;
        let logits = self.gpu.window(outputs_max * config.vocabulary * size_of::<f32>())?;
        Ok(Scratch { buffers, step, logits, outputs_max })
    }

    fn record(&self, model: &Model, layout: KvLayout, slot_bytes: usize) -> Result<Program, Error> {
        let scratch = self.scratch.as_ref().expect("make_room made it");
        let recorder = Recorder {
            gpu: &self.gpu,
            weights: model.gpu_weights(),
            buffers: &scratch.buffers,
            step: &scratch.step,
            rows_max: ROWS_PER_PASS_MAX,
            outputs_max: scratch.outputs_max,
            kv: self.kv[&layout.dtype].shared.buffer(),
            layout,
            slot_bytes,
            logits: scratch.logits.buffer(),
        };
        recorder.record(|recording| model.decoder().forward(recording))
    }

    /// Writes rows, tokens, places, outputs and rotations.
    fn write_step(&mut self, plan: &Plan, dtype: KvDType, work: &[Work<'_>]) {
        let step = &self.scratch.as_ref().expect("make_room made it").step;
        let queue = self.gpu.queue();
        let mut write = |buffer, words: &mut dyn Iterator<Item = u32>| {
            self.words.clear();
            self.words.extend(words);
            queue.write_buffer(buffer, 0, bytemuck::cast_slice(&self.words));
        };
        let rows = plan.rows.len() as u32;
        write(&step.tokens, &mut std::iter::once(rows).chain(plan.tokens.iter().copied()));
        write(&step.outputs, &mut std::iter::once(plan.outputs.len() as u32).chain(plan.outputs.iter().map(|&row| row as u32)));
        let (places, tables) = places(plan, work);
        write(&step.places, &mut std::iter::once(rows).chain(places).chain(tables));
        for (rope, buffer) in &self.programs[&dtype].ropes {
            queue.write_buffer(buffer, 0, bytemuck::cast_slice(&rope.rotations(&plan.rows, plan.long)));
        }
    }

    /// Submits the recorded dispatches, and waits until the host sees what they wrote.
    fn replay(&self, plan: &Plan, dtype: KvDType) -> Result<(), Error> {
        let dispatches: Vec<_> = self.programs[&dtype].of(plan.rows.len(), plan.outputs.len()).collect();
        let mut encoder = self.gpu.encoder();
        record(&mut encoder, &dispatches);
        let logits = &self.scratch.as_ref().expect("make_room made it").logits;
        show_host(&mut encoder, [logits.buffer(), self.kv[&dtype].shared.buffer()]);
        self.gpu.submit(encoder)?;
        Ok(self.gpu.wait()?)
    }
}

/// Position and table of each row, and the tables: the slots of each session in order, found by their index among all words.
fn places(plan: &Plan, work: &[Work<'_>]) -> (Vec<u32>, Vec<u32>) {
    let (mut places, mut tables) = (Vec::with_capacity(2 * plan.rows.len()), Vec::new());
    let first_table = 1 + 2 * plan.rows.len() as u32;
    for run in plan.rows.chunk_by(|a, b| a.session == b.session) {
        let table = first_table + tables.len() as u32;
        places.extend(run.iter().flat_map(|row| [row.position, table]));
        tables.extend(work[run[0].session as usize].session.kv.slots());
    }
    (places, tables)
}
