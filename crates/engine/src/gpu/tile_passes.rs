//! One step on tiles: what changed is written, the recording of the step's class of rows is replayed, and the logits are read, or only the
//! tokens that the device chose.
//!
//! **Ahead.** While every session only asks for its next token, the step after this one is submitted before this one's tokens are read:
//! the device leaves them where the next step takes its own from. If the next call wants just that (the same places and tokens, and
//! nothing else has touched the KV), it finds the step done or running; else what was computed is dropped. It wrote nothing but rows of
//! KV behind the end of its sessions. Who reads logits and samples from them is run ahead of once some tokens in a row were those that the
//! device would have chosen.

use super::resident::ResidentKv;
use super::rope_tables::RopeTables;
use super::scribe::{Commands, Copy, Scribe};
use super::tile_inputs::{Extents, Inputs, Most, Sections};
use super::tile_record::{TileBuffers, TileProgram, TileRecorder};
use crate::batch::{Answer, Plan, Work};
use crate::limits::{GPU_OUTPUTS_PER_PASS_MAX, TILE_ROWS_PER_PASS_MAX};
use crate::{Error, Model};
use driftwood_compute::gpu::{Binding, Buffer, CommandBuffer, Dispatch, Gpu, Sample, SubmissionIndex, Timed, Window};
use std::sync::Arc;

/// Rows that programs are recorded for.
const CLASSES: [usize; 5] = [1, 16, 64, 256, TILE_ROWS_PER_PASS_MAX];
/// Rows whose products may use scratch memory.
const SCRATCH_CLASSES: [usize; 2] = [16, 64];
/// Tokens in a row that the device has guessed before it runs ahead of who reads logits.
const GUESSED_MIN: usize = 4;
/// From one half of the window of tokens to the other.
const HALF_BYTES: usize = 4096;

/// The scratch memory of one model's steps on a device with tiles, in long contexts or in others.
#[derive(Debug)]
pub(crate) struct TilePasses {
    gpu: Arc<Gpu>,
    long: bool,
    scratch: Option<Scratch>,
    programs: [Option<TileProgram>; CLASSES.len()],
    ahead: Option<Ahead>,
    /// Encodes the step that is expected next.
    scribe: Scribe<Step>,
    /// The tokens that the device chose last, and how often in a row they were those that came next.
    chosen: Vec<u32>,
    guessed: usize,
    /// Which half of the window the next step's tokens go to.
    half: usize,
    inputs: Inputs,
    bytes: Vec<u8>,
    /// The number of rows that stands on the device.
    rows_written: u32,
    /// Times of the last step's kernels, if they are wanted.
    pub(crate) times: Option<Vec<Timed>>,
}

#[derive(Debug)]
struct Scratch {
    buffers: TileBuffers,
    /// The choice of tokens, into each half of `chosen`.
    samples: [[Dispatch; 2]; 2],
    logits: Window, // f32 (output, vocabulary)
    chosen: Window, // u32: two halves of (output), for this step and the one ahead
    partial: Buffer,
    kv: Vec<Buffer>,
    ropes: RopeTables,
}

/// A step that was submitted before it was asked for.
#[derive(Debug)]
struct Ahead {
    submitted: Submitted,
    inputs: Inputs,
    kv_changes: u64,
}

/// What decides the commands of a step.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    extents: Extents,
    /// Where the logits of each output go, `None` for our own window; empty if nobody needs any.
    logits: Vec<Option<(Buffer, u64)>>,
    /// Which half of the window gets the tokens.
    half: usize,
}

#[derive(Clone, Debug)]
struct Submitted {
    number: SubmissionIndex,
    step: Step,
}

impl TilePasses {
    pub(crate) fn new(gpu: &Arc<Gpu>, long: bool) -> TilePasses {
        TilePasses {
            gpu: gpu.clone(),
            long,
            scratch: None,
            programs: Default::default(),
            ahead: None,
            scribe: Scribe::new(gpu),
            chosen: Vec::new(),
            guessed: 0,
            half: 0,
            inputs: Inputs::default(),
            bytes: Vec::new(),
            rows_written: 0,
            times: None,
        }
    }

    /// Runs one pass.
    pub(crate) fn evaluate(&mut self, model: &Model, plan: &Plan, work: &mut [Work<'_>]) -> Result<Answer<'_>, Error> {
        for run in plan.rows.chunk_by(|a, b| a.session == b.session) {
            work[run[0].session as usize].session.kv.make_owned(model.cpu().threads())?;
        }
        let home = work[plan.rows[0].session as usize].session.kv.home().clone();
        let kv = home.resident.as_deref().expect("tiles read KV in the device's memory");
        self.inputs.fill(plan, work);
        self.guessed = if self.chosen == plan.tokens { self.guessed + 1 } else { 0 };
        let submitted = match self.ahead.take().filter(|ahead| self.guessed > 0 && ahead.is(&self.inputs, kv)) {
            Some(ahead) if self.inputs.logits => {
                let targets = targets(&self.inputs, plan, work);
                self.copy_logits(model, ahead.submitted.step, targets)?
            }
            Some(ahead) => ahead.submitted,
            None => self.submit(model, kv, &plan.tokens, targets(&self.inputs, plan, work))?,
        };
        let asked = self.inputs.clone();
        let mut last = submitted.step.clone();
        let sure = !asked.logits || self.guessed >= GUESSED_MIN;
        if sure && asked.goes_ahead(work) && self.times.is_none() {
            self.inputs.advance();
            let submitted = self.submit(model, kv, &[], Vec::new())?;
            last = submitted.step.clone();
            self.ahead = Some(Ahead { submitted, inputs: self.inputs.clone(), kv_changes: kv.changes() });
        }
        if self.times.is_none() {
            self.prepare(model, &last);
        }
        self.read(model, &asked, &submitted)
    }

    /// Waits for a step and reads what it gave.
    fn read(&mut self, model: &Model, asked: &Inputs, submitted: &Submitted) -> Result<Answer<'_>, Error> {
        let outputs = submitted.step.extents.outputs as usize;
        if outputs == 0 {
            return Ok(Answer { logits: &[], tokens: &[], wrote_shared: true });
        }
        self.gpu.wait_for(submitted.number.clone())?;
        let scratch = self.scratch.as_ref().expect("make_room made it");
        let tokens = &bytemuck::cast_slice(&scratch.chosen.bytes()[submitted.step.half * HALF_BYTES..])[..outputs];
        self.chosen.clear();
        self.chosen.extend_from_slice(tokens);
        let logits = if asked.logits { outputs * model.config().vocabulary } else { 0 };
        Ok(Answer { logits: &bytemuck::cast_slice(scratch.logits.bytes())[..logits], tokens, wrote_shared: true })
    }

    /// Makes whatever is missing or too small for the inputs, and the program of their class.
    fn make_room(&mut self, model: &Model, layers: &[Buffer]) -> Result<(), Error> {
        let extents = self.inputs.extents();
        if self.scratch.is_none() {
            self.scratch = Some(self.new_scratch(model)?);
        }
        let scratch = self.scratch.as_mut().expect("it was just made");
        let mut stale = scratch.kv != layers;
        if stale {
            scratch.kv = layers.to_vec();
        }
        stale |= grow(&self.gpu, &mut scratch.partial, "partial attention", partial_bytes(model, &extents)?)?;
        stale |= scratch.ropes.reach(&self.gpu, self.inputs.positions(), model.cpu().threads())?;
        if stale {
            self.programs = Default::default();
            self.scribe.forget();
        }
        let class = class_of(extents.rows);
        if self.programs[class].is_none() {
            self.programs[class] = Some(self.record(model, CLASSES[class])?);
        }
        Ok(())
    }

    fn new_scratch(&self, model: &Model) -> Result<Scratch, Error> {
        let (gpu, config) = (&*self.gpu, model.config());
        let most = Most { rows: TILE_ROWS_PER_PASS_MAX, outputs: GPU_OUTPUTS_PER_PASS_MAX };
        let products_bytes = SCRATCH_CLASSES.map(|rows| model.gpu_weights().products_bytes(rows)).into_iter().max().unwrap_or(0);
        let buffers = TileBuffers::new(gpu, config, most, products_bytes)?;
        let chosen = gpu.window(2 * HALF_BYTES)?;
        let half = |half: usize| {
            let inputs = [&buffers.inputs, &buffers.logits, &buffers.samples].map(Binding::whole);
            let to = Binding { buffer: chosen.buffer(), offset_bytes: (half * HALF_BYTES) as u64, bytes: HALF_BYTES as u64 };
            Sample::new(config.vocabulary).dispatches(gpu, most.outputs, inputs, [to, Binding::whole(&buffers.tokens)])
        };
        let samples = [half(0)?, half(1)?];
        let logits = gpu.window(most.outputs * config.vocabulary * size_of::<f32>())?;
        let partial = gpu.buffer("partial attention", 4)?;
        Ok(Scratch { buffers, samples, logits, chosen, partial, kv: Vec::new(), ropes: RopeTables::new(self.long) })
    }

    fn record(&mut self, model: &Model, most_rows: usize) -> Result<TileProgram, Error> {
        let scratch = self.scratch.as_mut().expect("make_room made it");
        let recorder = TileRecorder {
            gpu: &self.gpu,
            weights: model.gpu_weights(),
            config: model.config(),
            buffers: &scratch.buffers,
            most: Most { rows: most_rows, outputs: GPU_OUTPUTS_PER_PASS_MAX },
            kv: &scratch.kv,
            partial: &scratch.partial,
            ropes: &mut scratch.ropes,
            threads: model.cpu().threads(),
        };
        recorder.record(|recording| model.decoder().forward(recording))
    }

    /// Writes the inputs, with these tokens or else those that the device chose last, and submits the step.
    fn submit(&mut self, model: &Model, kv: &ResidentKv, tokens: &[u32], logits: Vec<Option<(Buffer, u64)>>) -> Result<Submitted, Error> {
        let layers = kv.layers()?; // until the end
        self.make_room(model, &layers)?;
        let step = Step { extents: self.inputs.extents(), logits, half: self.half };
        self.half = 1 - self.half;
        self.write_inputs(step.extents.rows, tokens)?;
        let commands = self.encoded(model, &step)?;
        Ok(Submitted { number: self.gpu.submit_commands(commands)?, step })
    }

    fn write_inputs(&mut self, rows: u32, tokens: &[u32]) -> Result<(), Error> {
        let b = &self.scratch.as_ref().expect("make_room made it").buffers;
        let most = Most { rows: CLASSES[class_of(rows)], outputs: GPU_OUTPUTS_PER_PASS_MAX };
        Sections::new(most).write(&self.inputs, &mut self.bytes)?;
        self.gpu.queue().write_buffer(&b.inputs, 0, &self.bytes);
        if self.rows_written != rows {
            self.gpu.queue().write_buffer(&b.tokens, 0, bytemuck::bytes_of(&rows));
            self.rows_written = rows;
        }
        if !tokens.is_empty() {
            self.gpu.queue().write_buffer(&b.tokens, 4, bytemuck::cast_slice(tokens));
        }
        Ok(())
    }

    /// The commands of a step. What they compute is decided when they are submitted, by the inputs that are written before.
    fn commands(&self, model: &Model, step: &Step) -> Commands {
        let scratch = self.scratch.as_ref().expect("make_room made it");
        let Extents { rows, outputs, .. } = step.extents;
        let program = self.programs[class_of(rows)].as_ref().expect("make_room made it");
        let mut dispatches = program.of(&step.extents);
        dispatches.extend(scratch.samples[step.half].iter().filter(|_| outputs > 0).map(|d| d.for_rows(outputs)));
        Commands { dispatches, ..self.reading(model, &step.logits) }
    }

    /// The commands by which the host sees what was chosen, and the logits where each target says.
    fn reading(&self, model: &Model, targets: &[Option<(Buffer, u64)>]) -> Commands {
        let scratch = self.scratch.as_ref().expect("make_room made it");
        let row_bytes = 4 * model.config().vocabulary as u64;
        let rows = targets.iter().zip((0..).step_by(row_bytes as usize));
        let copy = |(target, from): (&Option<(Buffer, u64)>, u64)| {
            let (to, at) = target.clone().unwrap_or_else(|| (scratch.logits.buffer().clone(), from));
            Copy { from, to, at, bytes: row_bytes }
        };
        let (logits, chosen) = (scratch.buffers.logits.clone(), scratch.chosen.buffer().clone());
        Commands { dispatches: Vec::new(), logits, copies: rows.map(copy).collect(), chosen }
    }

    /// Copies the logits that a step ahead left on the device.
    fn copy_logits(&mut self, model: &Model, step: Step, targets: Vec<Option<(Buffer, u64)>>) -> Result<Submitted, Error> {
        let commands = self.reading(model, &targets).encode(&self.gpu);
        Ok(Submitted { number: self.gpu.submit_commands(commands)?, step: Step { logits: targets, ..step } })
    }

    /// Has what will probably be the step after the one that was submitted last encoded, while that one runs.
    fn prepare(&mut self, model: &Model, last: &Step) {
        let mut inputs = self.inputs.clone();
        if inputs.outputs[0] == 0 {
            return;
        }
        inputs.advance();
        let step = Step { extents: inputs.extents(), half: self.half, logits: last.logits.clone() };
        if self.programs[class_of(step.extents.rows)].is_some() && !self.scribe.has(&step) {
            let commands = self.commands(model, &step);
            self.scribe.begin(step, commands);
        }
    }

    /// A step's commands, encoded before if this is the one that was expected.
    fn encoded(&mut self, model: &Model, step: &Step) -> Result<CommandBuffer, Error> {
        let prepared = self.scribe.finish(step).filter(|_| self.times.is_none());
        if let Some(commands) = prepared {
            return Ok(commands);
        }
        let mut commands = self.commands(model, step);
        if let Some(times) = &mut self.times {
            *times = self.gpu.run_timed(&std::mem::take(&mut commands.dispatches))?;
        }
        Ok(commands.encode(&self.gpu))
    }
}

impl Ahead {
    /// Whether this is the step that is asked for now, if it begins with the tokens that the device chose.
    fn is(&self, inputs: &Inputs, kv: &ResidentKv) -> bool {
        self.inputs.same(inputs) && !kv.changed_since(self.kv_changes, inputs.slots())
    }
}

/// Where the logits of each output go.
fn targets(inputs: &Inputs, plan: &Plan, work: &[Work<'_>]) -> Vec<Option<(Buffer, u64)>> {
    let target = |&row: &usize| work[plan.rows[row].session as usize].shared.clone();
    if inputs.logits { plan.outputs.iter().map(target).collect() } else { Vec::new() }
}

/// The class of a number of rows.
fn class_of(rows: u32) -> usize {
    CLASSES.iter().position(|most| rows as usize <= *most).expect("a pass has no more rows")
}

/// Makes a buffer at least so long; says whether it is another one now.
fn grow(gpu: &Gpu, buffer: &mut Buffer, label: &str, bytes: u64) -> Result<bool, Error> {
    let short = buffer.size() < bytes;
    if short {
        *buffer = gpu.buffer(label, bytes.next_power_of_two())?;
    }
    Ok(short)
}

/// Bytes that rows which are alone leave of their blocks.
fn partial_bytes(model: &Model, e: &Extents) -> Result<u64, Error> {
    let attention = super::tile_record::tile_attention(&model.config().attention(0, None))?;
    Ok(attention.scratch_bytes(e.ones.max(1) as usize, e.blocks.max(1) as usize))
}
