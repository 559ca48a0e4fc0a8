//! One step for many sessions: their appended tokens become rows of one matrix, pass by pass.
//!
//! A [`Batch`] owns the scratch memory of a model's steps and grows it once; a decode step allocates nothing. Results do not
//! depend on which sessions share a step, nor on how their tokens are cut into passes.

use crate::config::AttentionPlan;
use crate::gpu::{GpuPasses, TilePasses};
use crate::kv::Part;
use crate::limits::{GPU_OUTPUTS_PER_PASS_MAX, ROWS_PER_PASS_MAX, TILE_ROWS_PER_PASS_MAX};
use crate::pass::{AttentionWeights, Gate, Pass};
use crate::rope::{Rope, Rotations};
use crate::{Error, Model, Session};
use driftwood_compute::gpu::{Buffer, Draw, Timed};
use driftwood_compute::{Activations, AttendScratch, AttendShape, Cpu, KvDType, KvLayout, KvSource, Matrix, Row, store_kv_row};
use std::sync::Arc;

/// Where a session's logits go.
#[derive(Debug)]
pub enum Logits<'a> {
    /// None are wanted.
    None,
    /// Those of the position after the last token: (vocabulary).
    Last(&'a mut [f32]),
    /// Those after each token that this step evaluates: (token, vocabulary).
    All(&'a mut [f32]),
    /// None: its sampler chooses the next token, which is written here and not appended; `None` if no token can be chosen. A device that
    /// can choose sends no logits then.
    Next(&'a mut Option<u32>),
}

/// One session's part in a step.
#[derive(Debug)]
pub struct Work<'a> {
    /// The session; everything appended to it is evaluated.
    pub session: &'a mut Session,
    /// What to answer.
    pub logits: Logits<'a>,
    /// The slice of [`Logits::Last`] as a device sees it, and where it begins there in bytes.
    pub(crate) shared: Option<(Buffer, u64)>,
    rows_done: usize,
}

impl<'a> Work<'a> {
    /// Evaluates what is appended to `session`.
    pub fn new(session: &'a mut Session, logits: Logits<'a>) -> Work<'a> {
        Work { session, logits, shared: None, rows_done: 0 }
    }

    /// Says where the model's device ([`Model::logits_device`]) finds the very bytes of the slice of [`Logits::Last`], so that it writes
    /// them itself: a buffer that shares the memory, and a multiple of 4.
    pub fn shared_with_device(mut self, buffer: Buffer, offset_bytes: u64) -> Work<'a> {
        self.shared = Some((buffer, offset_bytes));
        self
    }

    /// How the next token will be chosen, as far as a device can tell: by the session's own sampler, whoever samples.
    pub(crate) fn guess(&self) -> Option<Draw> {
        if matches!(self.logits, Logits::Next(_) | Logits::Last(_)) { self.session.sampler().draw_on_device() } else { None }
    }

    /// How a device may choose the next token; `None` if the host must, or if logits are wanted.
    pub(crate) fn draw(&self) -> Option<Draw> {
        if matches!(self.logits, Logits::Next(_)) { self.session.sampler().draw_on_device() } else { None }
    }
}

/// The scratch memory of one model's steps.
#[derive(Debug)]
pub struct Batch {
    model: Arc<Model>,
    rows_per_pass: usize,
    plan: Plan,
    place: Place,
}

/// Where passes run, with their scratch memory.
#[derive(Debug)]
enum Place {
    Cpu(Box<Scratch>),
    /// On tiles, sessions with long contexts have passes of their own, the second.
    Gpu {
        plain: Box<GpuPasses>,
        tiles: Vec<TilePasses>,
    },
}

/// The rows of one pass.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<Row>,
    pub(crate) tokens: Vec<u32>,    // (row)
    pub(crate) outputs: Vec<usize>, // rows whose logits are wanted
    pub(crate) long: bool,          // whether their contexts are long ones
}

impl Batch {
    /// The model whose steps these are.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Scratch for steps of `model`.
    pub fn new(model: &Arc<Model>) -> Batch {
        let place = match &model.device().gpu {
            None => Place::Cpu(Box::default()),
            Some(gpu) => {
                let long = [Some(false), model.config().context_long_max.map(|_| true)].into_iter().flatten();
                let tiles = model.tiles_on().map_or_else(Vec::new, |gpu| long.map(|long| TilePasses::new(gpu, long)).collect());
                Place::Gpu { plain: Box::new(GpuPasses::new(gpu)), tiles }
            }
        };
        Batch { model: model.clone(), rows_per_pass: TILE_ROWS_PER_PASS_MAX, plan: Plan::default(), place }
    }

    /// As [`Batch::new`], with passes of at most `rows` tokens: less scratch memory, slower prefill, the same bits.
    pub fn with_rows_per_pass(model: &Arc<Model>, rows: usize) -> Batch {
        Batch { rows_per_pass: rows.clamp(1, TILE_ROWS_PER_PASS_MAX), ..Self::new(model) }
    }

    /// Evaluates all appended tokens of all sessions and writes the logits that are wanted. If a session wants its last logits and has
    /// nothing appended, its last token is evaluated again, to the same bits.
    ///
    /// # Errors
    /// If a session has no token at all, belongs to another model, if there is no memory for KV, or if mapped KV was altered. The
    /// sessions' tokens are unchanged then; a later step may be tried.
    ///
    /// # Panics
    /// If a logits buffer has not the length that [`Logits`] says.
    pub fn step(&mut self, work: &mut [Work<'_>]) -> Result<(), Error> {
        for w in work.iter_mut() {
            if !Arc::ptr_eq(w.session.model(), &self.model) {
                return Err(Error::OtherModel);
            }
            w.session.kv.verify(self.model.cpu().threads())?;
            let rows = w.session.begin_step(!matches!(w.logits, Logits::None))?;
            w.rows_done = 0;
            let wanted = match &w.logits {
                Logits::None | Logits::Next(_) => continue,
                Logits::Last(out) => out.len() == self.model.config().vocabulary,
                Logits::All(out) => out.len() == rows * self.model.config().vocabulary,
            };
            assert!(wanted, "a logits buffer of another length than promised");
        }
        while self.pass(work)? {}
        Ok(())
    }

    /// Takes a step as [`Batch::step`] does, and says how long the kernels of its last pass took; nothing where no device multiplies tiles.
    ///
    /// # Errors
    /// As [`Batch::step`], or if the device cannot time kernels.
    pub fn step_timed(&mut self, work: &mut [Work<'_>]) -> Result<Vec<Timed>, Error> {
        self.time_kernels(true);
        let stepped = self.step(work);
        let times = self.time_kernels(false);
        stepped.map(|()| times)
    }

    fn time_kernels(&mut self, on: bool) -> Vec<Timed> {
        let Place::Gpu { tiles, .. } = &mut self.place else { return Vec::new() };
        tiles.iter_mut().flat_map(|tiles| std::mem::replace(&mut tiles.times, on.then(Vec::new)).unwrap_or_default()).collect()
    }

    /// How many rows one pass takes, and how many of them may want their logits.
    fn pass_max(&self, work: &[Work<'_>]) -> (usize, usize) {
        let rows = self.rows_per_pass.min(ROWS_PER_PASS_MAX);
        match &self.place {
            Place::Cpu(_) => (rows, usize::MAX),
            Place::Gpu { tiles, .. } if !tiles.is_empty() && next_layout(work).is_some_and(|l| l.dtype == KvDType::F16) => {
                (self.rows_per_pass, GPU_OUTPUTS_PER_PASS_MAX)
            }
            Place::Gpu { plain, .. } => (rows, plain.outputs_max(self.model.config())),
        }
    }

    /// Runs one pass; false if nothing was left to do.
    fn pass(&mut self, work: &mut [Work<'_>]) -> Result<bool, Error> {
        let Some(layout) = self.plan.fill(work, self.pass_max(work)) else { return Ok(false) };
        let answer = match &mut self.place {
            Place::Cpu(scratch) => {
                scratch.rotations.clear(self.plan.long);
                let mut step = Step { cpu: self.model.cpu(), layout, plan: &self.plan, scratch, work };
                self.model.decoder().forward(&mut step);
                Answer { logits: &scratch.logits, tokens: &[], wrote_shared: false }
            }
            Place::Gpu { tiles, .. } if !tiles.is_empty() && layout.dtype == KvDType::F16 => {
                tiles[usize::from(self.plan.long)].evaluate(&self.model, &self.plan, work)?
            }
            Place::Gpu { plain, .. } => {
                Answer { logits: plain.evaluate(&self.model, &self.plan, layout, work)?, tokens: &[], wrote_shared: false }
            }
        };
        answer.hand_out(self.model.config().vocabulary, &self.plan, work);
        for run in self.plan.rows.chunk_by(|a, b| a.session == b.session) {
            work[run[0].session as usize].session.end_pass(run.len());
        }
        Ok(true)
    }
}

impl Plan {
    /// Takes up to `rows_max` rows that are still to be evaluated, of sessions that turn and store their keys alike; nothing if none is left.
    fn fill(&mut self, work: &[Work<'_>], (rows_max, outputs_max): (usize, usize)) -> Option<KvLayout> {
        self.rows.clear();
        self.tokens.clear();
        self.outputs.clear();
        let mut layout = None;
        for (index, w) in work.iter().enumerate() {
            let (tokens, first) = (w.session.tokens(), w.session.evaluated());
            let take = (tokens.len() - first).min(rows_max - self.rows.len());
            if take == 0 {
                continue;
            }
            if layout.is_none() {
                (layout, self.long) = (Some(w.session.kv_layout()), w.session.is_long());
            }
            if layout != Some(w.session.kv_layout()) || self.long != w.session.is_long() {
                continue;
            }
            for position in first..first + take {
                let wanted = match w.logits {
                    Logits::None => false,
                    Logits::Last(_) | Logits::Next(_) => position + 1 == tokens.len(),
                    Logits::All(_) => true,
                };
                if wanted && self.outputs.len() == outputs_max {
                    return layout;
                }
                if wanted {
                    self.outputs.push(self.rows.len());
                }
                self.rows.push(Row { session: index as u32, position: position as u32 });
                self.tokens.push(tokens[position]);
            }
        }
        layout
    }
}

/// What a pass gave, output by output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    /// (output, vocabulary); empty if nobody needs any.
    pub(crate) logits: &'a [f32],
    /// (output), where the device chose tokens: of those that it may choose.
    pub(crate) tokens: &'a [u32],
    /// Whether the device has written logits where [`Work::shared_with_device`] says.
    pub(crate) wrote_shared: bool,
}

impl Answer<'_> {
    /// Gives everyone what they want.
    fn hand_out(self, vocabulary: usize, plan: &Plan, work: &mut [Work<'_>]) {
        for (output, &row) in plan.outputs.iter().enumerate() {
            let w = &mut work[plan.rows[row].session as usize];
            let drawn = w.draw().and_then(|_| self.tokens.get(output));
            let logits = || &self.logits[output * vocabulary..][..vocabulary];
            match &mut w.logits {
                Logits::None => unreachable!("no output row was planned"),
                Logits::Last(_) if self.wrote_shared && w.shared.is_some() => {}
                Logits::Last(out) => out.copy_from_slice(logits()),
                Logits::All(out) => {
                    out[w.rows_done * vocabulary..][..vocabulary].copy_from_slice(logits());
                    w.rows_done += 1;
                }
                Logits::Next(token) => {
                    **token = match drawn {
                        Some(drawn) => w.session.take_drawn(*drawn).ok(),
                        None => w.session.sample(logits()).ok(),
                    };
                }
            }
        }
    }
}

/// How the session that comes first in the next pass stores its KV.
fn next_layout(work: &[Work<'_>]) -> Option<KvLayout> {
    work.iter().find(|w| w.session.evaluated() < w.session.tokens().len()).map(|w| w.session.kv_layout())
}

/// Buffers of one pass, all row-major over the pass's rows.
#[derive(Debug, Default)]
struct Scratch {
    residual: Vec<f32>,    // (row, width)
    branch: Vec<f32>,      // (row, width): what a layer adds to the residual
    normed: Activations,   // (row, width)
    query: Vec<f32>,       // (row, head, head_dim)
    rotated: Vec<f32>,     // (row, head, head_dim)
    key: Vec<f32>,         // (row, kv_head, head_dim)
    value: Vec<f32>,       // (row, kv_head, head_dim)
    head_row: Vec<f32>,    // (head_dim)
    attended: Activations, // (row, head, head_dim)
    gate: Activations,     // (row, hidden)
    up: Vec<f32>,          // (row, hidden)
    logits: Vec<f32>,      // (output, vocabulary)
    attend: AttendScratch,
    rotations: Rotations,
}

/// One pass through a decoder on the CPU.
struct Step<'a, 'w> {
    cpu: &'a Cpu,
    layout: KvLayout,
    plan: &'a Plan,
    scratch: &'a mut Scratch,
    work: &'a mut [Work<'w>],
}

impl Pass for Step<'_, '_> {
    fn embed(&mut self, embedding: &Matrix, scale: f32) {
        let width = embedding.row_len();
        let s = &mut *self.scratch;
        s.residual.resize(self.plan.rows.len() * width, 0.0);
        for (&token, out) in self.plan.tokens.iter().zip(s.residual.chunks_mut(width)) {
            embedding.dequantise_row(token as usize, out);
        }
        if scale != 1.0 {
            self.cpu.scale(&mut s.residual, scale);
        }
    }

    fn norm(&mut self, weight: &[f32], eps: f32) {
        let s = &mut *self.scratch;
        s.normed.resize(self.plan.rows.len(), weight.len());
        self.cpu.rms_norm(&s.residual, weight, eps, s.normed.f32_mut());
        self.cpu.quantise(&mut s.normed);
    }

    fn norm_branch(&mut self, weight: &[f32], eps: f32) {
        let s = &mut *self.scratch;
        s.normed.resize(self.plan.rows.len(), weight.len());
        self.cpu.rms_norm(&s.branch, weight, eps, s.normed.f32_mut());
        s.branch.copy_from_slice(s.normed.f32());
    }

    fn attention(&mut self, w: &AttentionWeights, plan: AttentionPlan, rope: &Rope, eps: f32) {
        let shape = &plan.over(self.layout);
        let s = &mut *self.scratch;
        let rows = self.plan.rows.len();
        for (weight, out) in [(&w.q, &mut s.query), (&w.k, &mut s.key), (&w.v, &mut s.value)] {
            project(self.cpu, weight, &s.normed, rows, out);
        }
        for (bias, out) in w.biases.iter().flatten().zip([&mut s.query, &mut s.key, &mut s.value]) {
            self.cpu.add_rows(out, bias);
        }
        for (weight, out) in w.head_norms.iter().flatten().zip([&mut s.query, &mut s.key]) {
            norm_heads(self.cpu, out, &mut s.rotated, weight, eps);
        }
        self.rotate_and_store(shape, rope);
        let s = &mut *self.scratch;
        s.attended.resize(rows, shape.heads * shape.head_dim);
        let kv = SessionsKv(self.work);
        self.cpu.attend(shape, &self.plan.rows, &s.rotated, &kv, &mut s.attend, s.attended.f32_mut());
        self.cpu.quantise(&mut s.attended);
        project(self.cpu, &w.o, &s.attended, rows, &mut s.branch);
    }

    fn feed_forward(&mut self, gate: &Matrix, up: &Matrix, down: &Matrix, activation: Gate) {
        let s = &mut *self.scratch;
        let rows = self.plan.rows.len();
        s.gate.resize(rows, gate.rows());
        self.cpu.matmul(gate, &s.normed, s.gate.f32_mut());
        project(self.cpu, up, &s.normed, rows, &mut s.up);
        match activation {
            Gate::Silu => self.cpu.silu_mul(s.gate.f32_mut(), &s.up),
            Gate::GeluTanh => self.cpu.gelu_tanh_mul(s.gate.f32_mut(), &s.up),
        }
        self.cpu.quantise(&mut s.gate);
        project(self.cpu, down, &s.gate, rows, &mut s.branch);
    }

    fn add(&mut self) {
        self.cpu.add(&mut self.scratch.residual, &self.scratch.branch);
    }

    fn logits(&mut self, norm: &[f32], eps: f32, output: &Matrix, cap: Option<f32>) {
        let s = &mut *self.scratch;
        let width = norm.len();
        for (to, &from) in self.plan.outputs.iter().enumerate() {
            s.residual.copy_within(from * width..(from + 1) * width, to * width);
        }
        s.logits.clear();
        if self.plan.outputs.is_empty() {
            return;
        }
        s.normed.resize(self.plan.outputs.len(), width);
        self.cpu.rms_norm(&s.residual[..self.plan.outputs.len() * width], norm, eps, s.normed.f32_mut());
        self.cpu.quantise(&mut s.normed);
        project(self.cpu, output, &s.normed, self.plan.outputs.len(), &mut s.logits);
        if let Some(cap) = cap {
            self.cpu.softcap(&mut s.logits, cap);
        }
    }
}

impl Step<'_, '_> {
    /// rotated = rope(query); K is rotated and written, V is written.
    fn rotate_and_store(&mut self, shape: &AttendShape, rope: &Rope) {
        let s = &mut *self.scratch;
        let dim = shape.head_dim;
        let rotations = s.rotations.of(rope, &self.plan.rows);
        s.rotated.resize(s.query.len(), 0.0);
        s.head_row.resize(dim, 0.0);
        let layout = shape.layout;
        for (r, row) in self.plan.rows.iter().enumerate() {
            let position = row.position as usize;
            let rotation = rotations.row(r);
            let heads = r * shape.heads..(r + 1) * shape.heads;
            for head in heads {
                rotation.apply(&s.query[head * dim..][..dim], &mut s.rotated[head * dim..][..dim]);
            }
            let kv = &mut self.work[row.session as usize].session.kv;
            for head in 0..shape.kv_heads {
                let at = (r * shape.kv_heads + head) * dim;
                rotation.apply(&s.key[at..][..dim], &mut s.head_row);
                store_kv_row(layout.dtype, &s.head_row, kv.row_mut(shape.layer, Part::Key, head, position));
                store_kv_row(layout.dtype, &s.value[at..][..dim], kv.row_mut(shape.layer, Part::Value, head, position));
            }
        }
    }
}

/// out = weight times rows: (row, n).
fn project(cpu: &Cpu, weight: &Matrix, x: &Activations, rows: usize, out: &mut Vec<f32>) {
    out.resize(rows * weight.rows(), 0.0);
    cpu.matmul(weight, x, out);
}

/// Norms each head by itself.
fn norm_heads(cpu: &Cpu, heads: &mut [f32], scratch: &mut Vec<f32>, weight: &[f32], eps: f32) {
    scratch.resize(heads.len(), 0.0);
    cpu.rms_norm(heads, weight, eps, scratch);
    heads.copy_from_slice(scratch);
}

/// The blocks of a step's sessions, as attention asks for them.
struct SessionsKv<'a, 'w>(&'a [Work<'w>]);

impl KvSource for SessionsKv<'_, '_> {
    fn block(&self, session: u32, block: u32) -> &[u8] {
        self.0[session as usize].session.kv.block(block as usize)
    }
}
