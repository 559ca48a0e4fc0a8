//! One step for many sessions: their appended tokens become rows of one matrix, pass by pass.
//!
//! A [`Batch`] owns the scratch memory of a model's steps and grows it once; a decode step allocates nothing. Results do not
//! depend on which sessions share a step, nor on how their tokens are cut into passes.

use crate::config::AttentionPlan;
use crate::kv::Part;
use crate::limits::ROWS_PER_PASS_MAX;
use crate::rope::{Rope, Rotations};
use crate::{Error, Model, Session};
use driftwood_compute::{Activations, AttendScratch, AttendShape, Cpu, KvLayout, KvSource, Matrix, Row, store_kv_row};
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
}

/// One session's part in a step.
#[derive(Debug)]
pub struct Work<'a> {
    /// The session; everything appended to it is evaluated.
    pub session: &'a mut Session,
    /// What to answer.
    pub logits: Logits<'a>,
    rows_done: usize,
}

impl<'a> Work<'a> {
    /// Evaluates what is appended to `session`.
    pub fn new(session: &'a mut Session, logits: Logits<'a>) -> Work<'a> {
        Work { session, logits, rows_done: 0 }
    }
}

/// The scratch memory of one model's steps.
#[derive(Debug)]
pub struct Batch {
    model: Arc<Model>,
    rows_per_pass: usize,
    scratch: Scratch,
}

impl Batch {
    /// Scratch for steps of `model`.
    pub fn new(model: &Arc<Model>) -> Batch {
        Batch { model: model.clone(), rows_per_pass: ROWS_PER_PASS_MAX, scratch: Scratch::default() }
    }

    /// As [`Batch::new`], with passes of at most `rows` tokens: less scratch memory, slower prefill, the same bits.
    pub fn with_rows_per_pass(model: &Arc<Model>, rows: usize) -> Batch {
        Batch { rows_per_pass: rows.clamp(1, ROWS_PER_PASS_MAX), ..Self::new(model) }
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
            w.session.kv.verify(self.model.device().threads())?;
            let rows = w.session.begin_step(!matches!(w.logits, Logits::None))?;
            w.rows_done = 0;
            let wanted = match &w.logits {
                Logits::None => continue,
                Logits::Last(out) => out.len() == self.model.config().vocabulary,
                Logits::All(out) => out.len() == rows * self.model.config().vocabulary,
            };
            assert!(wanted, "a logits buffer of another length than promised");
        }
        while self.pass(work) {}
        Ok(())
    }

    /// Runs one pass; false if nothing was left to do.
    fn pass(&mut self, work: &mut [Work<'_>]) -> bool {
        let scratch = &mut self.scratch;
        scratch.rows.clear();
        scratch.tokens.clear();
        scratch.outputs.clear();
        scratch.rotations.clear();
        let mut layout = None; // sessions of one pass store their KV alike
        for (index, w) in work.iter().enumerate() {
            let (tokens, first) = (w.session.tokens(), w.session.evaluated());
            let take = (tokens.len() - first).min(self.rows_per_pass - scratch.rows.len());
            if take == 0 || *layout.get_or_insert(w.session.kv_layout()) != w.session.kv_layout() {
                continue;
            }
            for position in first..first + take {
                let wanted = match w.logits {
                    Logits::None => false,
                    Logits::Last(_) => position + 1 == tokens.len(),
                    Logits::All(_) => true,
                };
                if wanted {
                    scratch.outputs.push(scratch.rows.len());
                }
                scratch.rows.push(Row { session: index as u32, position: position as u32 });
                scratch.tokens.push(tokens[position]);
            }
        }
        let Some(layout) = layout else { return false };
        let mut step = Step { cpu: self.model.device(), layout, scratch, work };
        self.model.decoder().forward(&mut step);
        self.finish_pass(work);
        true
    }

    /// Hands out the logits and moves the sessions on.
    fn finish_pass(&mut self, work: &mut [Work<'_>]) {
        let vocabulary = self.model.config().vocabulary;
        let scratch = &self.scratch;
        for (logits, &row) in scratch.logits.chunks(vocabulary).zip(&scratch.outputs) {
            let w = &mut work[scratch.rows[row].session as usize];
            match &mut w.logits {
                Logits::None => unreachable!("no output row was planned"),
                Logits::Last(out) => out.copy_from_slice(logits),
                Logits::All(out) => {
                    out[w.rows_done * vocabulary..][..vocabulary].copy_from_slice(logits);
                    w.rows_done += 1;
                }
            }
        }
        for run in scratch.rows.chunk_by(|a, b| a.session == b.session) {
            work[run[0].session as usize].session.end_pass(run.len());
        }
    }
}

/// Buffers of one pass, all row-major over the pass's rows.
#[derive(Debug, Default)]
struct Scratch {
    rows: Vec<Row>,
    tokens: Vec<u32>,
    outputs: Vec<usize>,   // rows whose logits are wanted
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

/// The activation of a gated feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Silu,
    GeluTanh,
}

/// The projections of one attention block.
pub(crate) struct AttentionWeights<'a> {
    pub q: &'a Matrix,
    pub k: &'a Matrix,
    pub v: &'a Matrix,
    pub o: &'a Matrix,
    /// RMS norms over each head of Q and K.
    pub q_norm: Option<&'a [f32]>,
    pub k_norm: Option<&'a [f32]>,
}

/// One pass through a decoder: the operations that families are written in. Each reads and writes the pass's scratch.
pub(crate) struct Step<'a, 'w> {
    cpu: &'a Cpu,
    layout: KvLayout,
    scratch: &'a mut Scratch,
    work: &'a mut [Work<'w>],
}

impl Step<'_, '_> {
    /// residual = rows of the embedding, scaled.
    pub(crate) fn embed(&mut self, embedding: &Matrix, scale: f32) {
        let width = embedding.row_len();
        let s = &mut *self.scratch;
        s.residual.resize(s.rows.len() * width, 0.0);
        for (&token, out) in s.tokens.iter().zip(s.residual.chunks_mut(width)) {
            embedding.dequantise_row(token as usize, out);
        }
        if scale != 1.0 {
            self.cpu.scale(&mut s.residual, scale);
        }
    }

    /// normed = norm(residual), ready to be projected.
    pub(crate) fn norm(&mut self, weight: &[f32], eps: f32) {
        let s = &mut *self.scratch;
        s.normed.resize(s.rows.len(), weight.len());
        self.cpu.rms_norm(&s.residual, weight, eps, s.normed.f32_mut());
        self.cpu.quantise(&mut s.normed);
    }

    /// branch = norm(branch): Gemma's norm after a block.
    pub(crate) fn norm_branch(&mut self, weight: &[f32], eps: f32) {
        let s = &mut *self.scratch;
        s.normed.resize(s.rows.len(), weight.len());
        self.cpu.rms_norm(&s.branch, weight, eps, s.normed.f32_mut());
        s.branch.copy_from_slice(s.normed.f32());
    }

    /// branch = attention(normed), with K and V written to the sessions' blocks first.
    pub(crate) fn attention(&mut self, w: &AttentionWeights<'_>, plan: AttentionPlan, rope: &Rope, eps: f32) {
        let shape = &plan.over(self.layout);
        let s = &mut *self.scratch;
        let rows = s.rows.len();
        project(self.cpu, w.q, &s.normed, rows, &mut s.query);
        project(self.cpu, w.k, &s.normed, rows, &mut s.key);
        project(self.cpu, w.v, &s.normed, rows, &mut s.value);
        if let Some(weight) = w.q_norm {
            norm_heads(self.cpu, &mut s.query, &mut s.rotated, weight, eps);
        }
        if let Some(weight) = w.k_norm {
            norm_heads(self.cpu, &mut s.key, &mut s.rotated, weight, eps);
        }
        self.rotate_and_store(shape, rope);
        let s = &mut *self.scratch;
        s.attended.resize(rows, shape.heads * shape.head_dim);
        let kv = SessionsKv(self.work);
        self.cpu.attend(shape, &s.rows, &s.rotated, &kv, &mut s.attend, s.attended.f32_mut());
        self.cpu.quantise(&mut s.attended);
        project(self.cpu, w.o, &s.attended, rows, &mut s.branch);
    }

    /// rotated = rope(query); K is rotated and written, V is written.
    fn rotate_and_store(&mut self, shape: &AttendShape, rope: &Rope) {
        let s = &mut *self.scratch;
        let dim = shape.head_dim;
        let rotations = s.rotations.of(rope, &s.rows);
        s.rotated.resize(s.query.len(), 0.0);
        s.head_row.resize(dim, 0.0);
        let layout = shape.layout;
        for (r, row) in s.rows.iter().enumerate() {
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

    /// branch = down(gate(normed) * up(normed)).
    pub(crate) fn feed_forward(&mut self, gate: &Matrix, up: &Matrix, down: &Matrix, activation: Gate) {
        let s = &mut *self.scratch;
        let rows = s.rows.len();
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

    /// residual += branch.
    pub(crate) fn add(&mut self) {
        self.cpu.add(&mut self.scratch.residual, &self.scratch.branch);
    }

    /// logits = output(norm(residual)), for the rows whose logits are wanted.
    pub(crate) fn logits(&mut self, norm: &[f32], eps: f32, output: &Matrix) {
        let s = &mut *self.scratch;
        let width = norm.len();
        for (to, &from) in s.outputs.iter().enumerate() {
            s.residual.copy_within(from * width..(from + 1) * width, to * width);
        }
        s.logits.clear();
        if s.outputs.is_empty() {
            return;
        }
        s.normed.resize(s.outputs.len(), width);
        self.cpu.rms_norm(&s.residual[..s.outputs.len() * width], norm, eps, s.normed.f32_mut());
        self.cpu.quantise(&mut s.normed);
        project(self.cpu, output, &s.normed, s.outputs.len(), &mut s.logits);
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
