//! A family's operations, recorded once as a list of dispatches that every step replays.

use super::weights::GpuWeights;
use crate::Error;
use crate::config::{AttentionPlan, Config};
use crate::pass::{AttentionWeights, Gate, Pass};
use crate::rope::{Rope, RopePairs};
use driftwood_compute::gpu::{Binding, Buffer, Dispatch, Gpu};
use driftwood_compute::gpu::{Each, Heads, KvBinding, Pairs, Plain, RowDispatch, Scores};
use driftwood_compute::{KvLayout, Matrix};

/// How many rows a dispatch works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// All of the pass.
    Rows,
    /// Those whose logits are wanted.
    Outputs,
}

/// Scratch memory on the device for `rows_max` rows, all f32 and row-major.
#[derive(Debug)]
pub(super) struct Buffers {
    residual: Buffer, // (row, width)
    normed: Buffer,   // (row, width)
    branch: Buffer,   // (row, width)
    query: Buffer,    // (row, head, head_dim)
    rotated: Buffer,  // (row, head, head_dim)
    attended: Buffer, // (row, head, head_dim)
    key: Buffer,      // (row, kv_head, head_dim)
    key_normed: Buffer,
    value: Buffer,  // (row, kv_head, head_dim)
    gate: Buffer,   // (row, hidden)
    up: Buffer,     // (row, hidden)
    wanted: Buffer, // (output, width)
    wanted_normed: Buffer,
}

impl Buffers {
    pub(super) fn new(gpu: &Gpu, c: &Config, rows_max: usize, outputs_max: usize) -> Result<Buffers, Error> {
        let of = |name: &str, rows: usize, row_len: usize| gpu.buffer(name, (rows * row_len * size_of::<f32>()) as u64);
        let (q_len, kv_len) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Ok(Buffers {
            residual: of("residual", rows_max, c.width)?,
            normed: of("normed", rows_max, c.width)?,
            branch: of("branch", rows_max, c.width)?,
            query: of("query", rows_max, q_len)?,
            rotated: of("rotated", rows_max, q_len)?,
            attended: of("attended", rows_max, q_len)?,
            key: of("key", rows_max, kv_len)?,
            key_normed: of("key, normed", rows_max, kv_len)?,
            value: of("value", rows_max, kv_len)?,
            gate: of("gate", rows_max, c.hidden)?,
            up: of("up", rows_max, c.hidden)?,
            wanted: of("wanted", outputs_max, c.width)?,
            wanted_normed: of("wanted, normed", outputs_max, c.width)?,
        })
    }
}

/// What changes from step to step. The kernels of `compute` say what stands where.
#[derive(Debug)]
pub(super) struct StepBuffers {
    pub(super) tokens: Buffer,  // rows, then the token of each
    pub(super) places: Buffer,  // rows, position and table of each, tables
    pub(super) outputs: Buffer, // outputs, then the row of each
}

/// A recorded forward pass.
#[derive(Debug)]
pub(super) struct Program {
    dispatches: Vec<(RowDispatch, Count)>,
    /// One for each kind of layer: its RoPE, and the buffer of its rotations, (row, cos or sin, head_dim / 2).
    pub(super) ropes: Vec<(Rope, Buffer)>,
}

impl Program {
    /// The dispatches of a step with so many rows and outputs.
    pub(super) fn of(&self, rows: usize, outputs: usize) -> impl Iterator<Item = Dispatch> + '_ {
        self.dispatches.iter().filter_map(move |(dispatch, count)| match count {
            Count::Rows => Some(dispatch.for_rows(rows as u32)),
            Count::Outputs => (outputs > 0).then(|| dispatch.for_rows(outputs as u32)),
        })
    }
}

/// Records one pass.
pub(super) struct Recorder<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) weights: &'a GpuWeights,
    pub(super) buffers: &'a Buffers,
    pub(super) step: &'a StepBuffers,
    pub(super) rows_max: usize,
    pub(super) outputs_max: usize,
    pub(super) kv: &'a Buffer,
    pub(super) layout: KvLayout,
    pub(super) slot_bytes: usize,
    pub(super) logits: &'a Buffer,
}

/// A recorder at work: operations cannot fail, so the first failure is kept.
pub(super) struct Recording<'a> {
    to: Recorder<'a>,
    program: Program,
    /// Whether a norm of the branch stands where `normed` is, instead of in `branch`.
    branch_in_normed: bool,
    failure: Option<Error>,
}

impl<'a> Recorder<'a> {
    /// Records what `forward` does.
    pub(super) fn record(self, forward: impl FnOnce(&mut Recording<'a>)) -> Result<Program, Error> {
        let program = Program { dispatches: Vec::new(), ropes: Vec::new() };
        let mut recording = Recording { to: self, program, branch_in_normed: false, failure: None };
        forward(&mut recording);
        match recording.failure {
            None => Ok(recording.program),
            Some(failure) => Err(failure),
        }
    }

    fn rows(&self) -> Plain<'a> {
        Plain::new(self.gpu, self.rows_max as u32)
    }

    fn outputs(&self) -> Plain<'a> {
        Plain::new(self.gpu, self.outputs_max as u32)
    }

    fn tokens(&self) -> Binding<'a> {
        Binding::whole(&self.step.tokens)
    }

    fn product(&self, weight: &Matrix, x: &Buffer, out: &Buffer) -> Result<Vec<RowDispatch>, Error> {
        let placed = self.weights.matrix(weight)?;
        Ok(self.rows().matmul(&placed.weight(self.gpu)?, self.tokens(), Binding::whole(x), Binding::whole(out))?)
    }

    fn norm(&self, (heads, n): (usize, usize), x: &Buffer, weight: &[f32], eps: f32, out: &Buffer) -> Result<RowDispatch, Error> {
        let weight = self.weights.vector(weight)?;
        let shape = (heads as u32, n as u32);
        Ok(self.rows().rms_norm(shape, self.tokens(), Binding::whole(x), Binding::whole(&weight), eps, Binding::whole(out))?)
    }

    fn add_row(&self, bias: &[f32], x: &Buffer) -> Result<RowDispatch, Error> {
        let row = self.weights.vector(bias)?;
        Ok(self.rows().each(Each::AddRow, bias.len() as u32, self.tokens(), Binding::whole(x), Binding::whole(&row))?)
    }

    /// One layer's part of the KV of all slots.
    fn kv_binding(&self, layer: usize) -> KvBinding<'a> {
        let first_bytes = self.layout.row_offset(layer, 0, 0, 0) as u32;
        KvBinding { binding: Binding::whole(self.kv), dtype: self.layout.dtype, first_bytes, slot_bytes: self.slot_bytes as u32 }
    }
}

impl Recording<'_> {
    fn push(&mut self, count: Count, recorded: Result<Vec<RowDispatch>, Error>) {
        match recorded {
            Ok(dispatches) => self.program.dispatches.extend(dispatches.into_iter().map(|d| (d, count))),
            Err(failure) => {
                self.failure.get_or_insert(failure);
            }
        }
    }

    /// The rotations of a kind of layer.
    fn rotations(&mut self, rope: &Rope) -> Result<Buffer, Error> {
        if let Some((_, buffer)) = self.program.ropes.iter().find(|(known, _)| known == rope) {
            return Ok(buffer.clone());
        }
        let buffer = self.to.gpu.buffer("rotations", (self.to.rows_max * rope.row_len() * size_of::<f32>()) as u64)?;
        self.program.ropes.push((rope.clone(), buffer.clone()));
        Ok(buffer)
    }

    /// query, key and value = projections of the normed rows, with biases, and with Q and K normed head by head, where the family has them.
    /// Returns where they stand.
    fn project(&mut self, w: &AttentionWeights, plan: &AttentionPlan, eps: f32) -> [Buffer; 3] {
        let b = self.to.buffers;
        let outs = [&b.query, &b.key, &b.value];
        for (weight, out) in [&w.q, &w.k, &w.v].into_iter().zip(outs) {
            self.push(Count::Rows, self.to.product(weight, &b.normed, out));
        }
        for (bias, out) in w.biases.iter().flatten().zip(outs) {
            self.push(Count::Rows, self.to.add_row(bias, out).map(|d| vec![d]));
        }
        let mut places = [b.query.clone(), b.key.clone(), b.value.clone()];
        // `attended` is free until attention writes it.
        let normed = [(plan.heads, &b.attended), (plan.kv_heads, &b.key_normed)];
        for (weight, (place, (heads, out))) in w.head_norms.iter().flatten().zip(places.iter_mut().zip(normed)) {
            let recorded = self.to.norm((heads, plan.head_dim), place, weight, eps, out);
            self.push(Count::Rows, recorded.map(|d| vec![d]));
            *place = out.clone();
        }
        places
    }

    fn rotate_store_attend(&mut self, [q, k, v]: [Buffer; 3], plan: &AttentionPlan, rope: &Rope) -> Result<Vec<RowDispatch>, Error> {
        let rotations = self.rotations(rope)?;
        let (to, b) = (&self.to, self.to.buffers);
        let heads = Heads { heads: plan.heads as u32, kv_heads: plan.kv_heads as u32, head_dim: plan.head_dim as u32 };
        let (places, kv) = (Binding::whole(&to.step.places), to.kv_binding(plan.layer));
        let qkv = [Binding::whole(&q), Binding::whole(&k), Binding::whole(&v)];
        let rotated = Binding::whole(&b.rotated);
        let store = to.rows().rope_store(heads, pairs(rope), places, Binding::whole(&rotations), qkv, rotated, kv)?;
        let attend = to.rows().attend(heads, scores(plan), places, rotated, kv, Binding::whole(&b.attended))?;
        Ok(vec![store, attend])
    }

    fn wanted_logits(&self, norm: &[f32], eps: f32, output: &Matrix, cap: Option<f32>) -> Result<Vec<RowDispatch>, Error> {
        let (to, b) = (&self.to, self.to.buffers);
        let (outputs, width) = (Binding::whole(&to.step.outputs), norm.len() as u32);
        let (wanted, normed) = (Binding::whole(&b.wanted), Binding::whole(&b.wanted_normed));
        let weight = to.weights.vector(norm)?;
        let placed = to.weights.matrix(output)?;
        let logits = Binding::whole(to.logits);
        let mut all = vec![
            to.outputs().gather(width, outputs, Binding::whole(&b.residual), wanted)?,
            to.outputs().rms_norm((1, width), outputs, wanted, Binding::whole(&weight), eps, normed)?,
        ];
        all.extend(to.outputs().matmul(&placed.weight(to.gpu)?, outputs, normed, logits)?);
        if let Some(cap) = cap {
            all.push(to.outputs().softcap(output.rows() as u32, outputs, logits, cap)?);
        }
        Ok(all)
    }
}

/// Which elements a RoPE turns together.
pub(super) fn pairs(rope: &Rope) -> Pairs {
    Pairs { turned: rope.rotated_half() as u32, interleaved: rope.pairs() == RopePairs::Interleaved }
}

/// How an attention's scores become weights.
pub(super) fn scores(plan: &AttentionPlan) -> Scores {
    Scores { scale: plan.scale, softcap: plan.softcap, window: plan.window.map(|w| w as u32) }
}

impl Pass for Recording<'_> {
    fn embed(&mut self, embedding: &Matrix, scale: f32) {
        let to = &self.to;
        let recorded = to
            .weights
            .matrix(embedding)
            .and_then(|placed| Ok(to.rows().embed(&placed.weight(to.gpu)?, to.tokens(), scale, Binding::whole(&to.buffers.residual))?));
        self.push(Count::Rows, recorded);
    }

    fn norm(&mut self, weight: &[f32], eps: f32) {
        let b = self.to.buffers;
        let recorded = self.to.norm((1, weight.len()), &b.residual, weight, eps, &b.normed);
        self.push(Count::Rows, recorded.map(|d| vec![d]));
    }

    fn norm_branch(&mut self, weight: &[f32], eps: f32) {
        let b = self.to.buffers;
        let recorded = self.to.norm((1, weight.len()), &b.branch, weight, eps, &b.normed);
        self.push(Count::Rows, recorded.map(|d| vec![d]));
        self.branch_in_normed = true;
    }

    fn attention(&mut self, w: &AttentionWeights, plan: AttentionPlan, rope: &Rope, eps: f32) {
        let places = self.project(w, &plan, eps);
        let recorded = self.rotate_store_attend(places, &plan, rope);
        self.push(Count::Rows, recorded);
        let b = self.to.buffers;
        self.push(Count::Rows, self.to.product(&w.o, &b.attended, &b.branch));
    }

    fn feed_forward(&mut self, gate: &Matrix, up: &Matrix, down: &Matrix, activation: Gate) {
        let b = self.to.buffers;
        self.push(Count::Rows, self.to.product(gate, &b.normed, &b.gate));
        self.push(Count::Rows, self.to.product(up, &b.normed, &b.up));
        let what = match activation {
            Gate::Silu => Each::SiluMul,
            Gate::GeluTanh => Each::GeluTanhMul,
        };
        let (x, y) = (Binding::whole(&b.gate), Binding::whole(&b.up));
        let gated = self.to.rows().each(what, gate.rows() as u32, self.to.tokens(), x, y);
        self.push(Count::Rows, gated.map(|d| vec![d]).map_err(Error::from));
        self.push(Count::Rows, self.to.product(down, &b.gate, &b.branch));
    }

    fn add(&mut self) {
        let b = self.to.buffers;
        let branch = if std::mem::take(&mut self.branch_in_normed) { &b.normed } else { &b.branch };
        let width = (b.residual.size() / self.to.rows_max as u64 / size_of::<f32>() as u64) as u32;
        let added = self.to.rows().each(Each::Add, width, self.to.tokens(), Binding::whole(&b.residual), Binding::whole(branch));
        self.push(Count::Rows, added.map(|d| vec![d]).map_err(Error::from));
    }

    fn logits(&mut self, norm: &[f32], eps: f32, output: &Matrix, cap: Option<f32>) {
        let recorded = self.wanted_logits(norm, eps, output, cap);
        self.push(Count::Outputs, recorded);
    }
}
