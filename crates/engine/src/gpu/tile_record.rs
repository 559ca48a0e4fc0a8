//! A family's operations on tiles, recorded once for each class of rows.
//!
//! What one operation leaves to the next is fused where it can be: a norm goes into the product after it, and the product that ends a
//! block adds to the residual itself, unless the family norms the branch first.

use super::record::{pairs, scores};
use super::rope_tables::RopeTables;
use super::tile_inputs::{Extents, INPUTS_BYTES, Most, Sections};
use super::weights::GpuWeights;
use crate::Error;
use crate::config::{AttentionPlan, Config};
use crate::models::Decoder;
use crate::pass::{AttentionWeights, Gate, Pass};
use crate::rope::Rope;
use driftwood_compute::Matrix;
use driftwood_compute::gpu::tiles::{
    Activation, Arrange, Attended, Fused, HeadNorms, Input, Many, Norm, Normed, Output, RUN_ROWS_MAX, Rotation, Rows, TileAttention,
    TileMatrix, norm_rows, padded_len,
};
use driftwood_compute::gpu::{Binding, Buffer, Dispatch, Each, Gpu, GpuError, Heads, Plain, RowDispatch, Sample};
use std::sync::Arc;

/// What sets a dispatch's size from step to step.
#[derive(Clone, Debug)]
enum Sized {
    /// Nothing: surplus workgroups find that there is no row for them.
    Fixed(Dispatch),
    /// The rows, or the outputs, along y or along x.
    Rows(Dispatch),
    RowsAlongX(Dispatch),
    /// As a plain kernel says.
    Plain(RowDispatch),
    /// Rows that are alone: with each of their blocks, or to be joined.
    Blocks(Dispatch),
    Ones(Dispatch),
    /// Runs of rows.
    Runs(Dispatch),
    /// Where rows that are alone see up to so many blocks, or more.
    Short(usize, Dispatch),
    Long(usize, Box<Sized>),
}

impl Sized {
    /// The dispatch of a step; `None` if there is nothing for it to do.
    fn of(&self, rows: u32, e: &Extents) -> Option<Dispatch> {
        let sized = |dispatch: &Dispatch, change: &dyn Fn(&mut [u32; 3])| {
            let mut dispatch = dispatch.clone();
            change(&mut dispatch.workgroups);
            dispatch
        };
        match self {
            Sized::Fixed(d) => Some(d.clone()),
            Sized::Rows(d) => Some(d.for_rows(rows)),
            Sized::RowsAlongX(d) => Some(sized(d, &|w| w[0] = rows)),
            Sized::Plain(d) => Some(d.for_rows(rows)),
            Sized::Blocks(d) => (e.ones > 0).then(|| sized(d, &|w| (w[0], w[2]) = (e.blocks, e.ones))),
            Sized::Ones(d) => (e.ones > 0).then(|| d.for_rows(e.ones)),
            Sized::Runs(d) => (e.runs > 0).then(|| sized(d, &|w| w[0] = e.runs)),
            Sized::Short(most, d) => (e.blocks as usize <= *most).then(|| d.clone()),
            Sized::Long(most, inner) => (e.blocks as usize > *most).then(|| inner.of(rows, e)).flatten(),
        }
    }
}

/// Scratch memory on the device, with the inputs of a step.
#[derive(Debug)]
pub(super) struct TileBuffers {
    residual: Buffer,      // f32 (row, width)
    normed: Buffer,        // f16 (row, width padded)
    qkv: Buffer,           // f32 (row, q, k and v)
    query: Buffer,         // f16 (row, head, head_dim)
    attended: Buffer,      // f16 (row, head * head_dim padded)
    gated: Buffer,         // f16 (row, hidden padded)
    branch: Buffer,        // f32 (row, width)
    branch_normed: Buffer, // f32 (row, width)
    wanted: Buffer,        // f32 (output, width)
    wanted_normed: Buffer, // f16 (output, width padded)
    products: Buffer,      // chunks of products of few rows
    /// Slices of samples.
    pub(super) samples: Buffer,
    /// f32 (output, vocabulary).
    pub(super) logits: Buffer,
    /// Rows, then the token of each.
    pub(super) tokens: Buffer,
    /// All [`super::tile_inputs::Inputs`], where [`Sections`] says.
    pub(super) inputs: Buffer,
}

impl TileBuffers {
    pub(super) fn new(gpu: &Gpu, c: &Config, most: Most, products_bytes: u64) -> Result<TileBuffers, Error> {
        let of = |name: &str, rows: usize, row_bytes: usize| gpu.buffer(name, (rows * row_bytes) as u64);
        let (q_len, kv_len) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let (rows, outputs) = (most.rows, most.outputs);
        Ok(TileBuffers {
            residual: of("residual", rows, 4 * c.width)?,
            normed: of("normed", rows, 2 * padded_len(c.width))?,
            qkv: of("q, k, v", rows, 4 * (q_len + 2 * kv_len))?,
            query: of("query", rows + RUN_ROWS_MAX, 2 * q_len)?,
            attended: of("attended", rows, 2 * padded_len(q_len))?,
            gated: of("gated", rows, 2 * padded_len(c.hidden))?,
            branch: of("branch", rows, 4 * c.width)?,
            branch_normed: of("branch, normed", rows, 4 * c.width)?,
            wanted: of("wanted", outputs, 4 * c.width)?,
            wanted_normed: of("wanted, normed", outputs, 2 * padded_len(c.width))?,
            products: gpu.buffer("products", products_bytes)?,
            samples: gpu.buffer("samples", Sample::new(c.vocabulary).scratch_bytes(outputs))?,
            logits: of("logits", outputs, 4 * c.vocabulary)?,
            tokens: of("tokens", 1 + rows, 4)?,
            inputs: of("inputs", 1, INPUTS_BYTES)?,
        })
    }
}

/// A recorded forward pass for up to so many rows.
#[derive(Debug)]
pub(super) struct TileProgram {
    layers: Vec<Sized>,
    /// Logits of up to so many outputs, fewest first.
    heads: Vec<(usize, Vec<Sized>)>,
}

impl TileProgram {
    /// The dispatches of a step.
    pub(super) fn of(&self, e: &Extents) -> Vec<Dispatch> {
        let layers = self.layers.iter().filter_map(|sized| sized.of(e.rows, e));
        let head = self.heads.iter().find(|(most, _)| e.outputs > 0 && e.outputs as usize <= *most);
        layers.chain(head.into_iter().flat_map(|(_, head)| head.iter().filter_map(|sized| sized.of(e.outputs, e)))).collect()
    }
}

/// Records one pass.
pub(super) struct TileRecorder<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) weights: &'a GpuWeights,
    pub(super) config: &'a Config,
    pub(super) buffers: &'a TileBuffers,
    pub(super) most: Most,
    /// One buffer of keys and values for each layer.
    pub(super) kv: &'a [Buffer],
    /// What rows that are alone leave of each block.
    pub(super) partial: &'a Buffer,
    pub(super) ropes: &'a mut RopeTables,
    /// Threads that compute rotations.
    pub(super) threads: usize,
}

/// A recorder at work: operations cannot fail, so the first failure is kept.
pub(super) struct TileRecording<'a> {
    to: TileRecorder<'a>,
    program: TileProgram,
    norm: Option<(Buffer, Norm)>,
    /// The product that ends a block: its weights, and its input.
    branch: Option<(Arc<TileMatrix>, &'a Buffer)>,
    failure: Option<Error>,
}

/// Outputs for which logits are recorded.
const HEAD_CLASSES: [usize; 3] = [1, 16, 64];

impl<'a> TileRecorder<'a> {
    /// Records what `forward` does.
    pub(super) fn record(self, forward: impl FnOnce(&mut TileRecording<'a>)) -> Result<TileProgram, Error> {
        let program = TileProgram { layers: Vec::new(), heads: Vec::new() };
        let mut recording = TileRecording { to: self, program, norm: None, branch: None, failure: None };
        forward(&mut recording);
        match recording.failure {
            None => Ok(recording.program),
            Some(failure) => Err(failure),
        }
    }

    fn sections(&self) -> Sections {
        Sections::new(self.most)
    }

    fn input(&self, at: usize) -> Binding<'a> {
        Sections::from(&self.buffers.inputs, at)
    }

    fn many(&self, most: usize, count: Binding<'a>) -> Rows<'a> {
        match most {
            1 => Rows::One,
            most => Rows::Many(Many { most, count, scratch: Binding::whole(&self.buffers.products) }),
        }
    }

    fn rows(&self) -> Rows<'a> {
        self.many(self.most.rows, Binding::whole(&self.buffers.tokens))
    }

    fn plain(&self) -> Plain<'a> {
        Plain::new(self.gpu, self.most.rows as u32)
    }
}

/// The attention of a plan.
pub(crate) fn tile_attention(plan: &AttentionPlan) -> Result<TileAttention, GpuError> {
    let heads = Heads { heads: plan.heads as u32, kv_heads: plan.kv_heads as u32, head_dim: plan.head_dim as u32 };
    TileAttention::new(heads, scores(plan))
}

fn fixed(dispatches: Vec<Dispatch>) -> Vec<Sized> {
    dispatches.into_iter().map(Sized::Fixed).collect()
}

impl<'a> TileRecording<'a> {
    fn keep(&mut self, recorded: Result<Vec<Sized>, Error>) {
        match recorded {
            Ok(sized) => self.program.layers.extend(sized),
            Err(failure) => {
                self.failure.get_or_insert(failure);
            }
        }
    }

    /// A product of the norm that was asked for before.
    fn normed_product(&mut self, weights: &TileMatrix, output: Output<'_>) -> Result<Vec<Sized>, Error> {
        let (to, b) = (&self.to, self.to.buffers);
        let (weight, norm) = self.norm.as_ref().expect("a family norms before it projects");
        let normed = Normed { residual: Binding::whole(&b.residual), weight: Binding::whole(weight), norm: *norm };
        if to.most.rows == 1 {
            return Ok(fixed(weights.product(to.gpu, Rows::One, Input::Normed(normed), output)?));
        }
        let count = Binding::whole(&b.tokens);
        let mut all = vec![Sized::RowsAlongX(norm_rows(to.gpu, weights.k(), normed, (to.most.rows, count), Binding::whole(&b.normed))?)];
        all.extend(fixed(weights.product(to.gpu, to.rows(), Input::Halves(Binding::whole(&b.normed)), output)?));
        Ok(all)
    }

    /// The product that ends a block.
    fn end_block(&mut self, output: Output<'_>) -> Result<Vec<Sized>, Error> {
        let (weights, input) = self.branch.take().expect("a block was begun");
        Ok(fixed(weights.product(self.to.gpu, self.to.rows(), Input::Halves(Binding::whole(input)), output)?))
    }

    fn attend(&mut self, w: &AttentionWeights, plan: &AttentionPlan, rope: &Rope, eps: f32) -> Result<Vec<Sized>, Error> {
        let b = self.to.buffers;
        let qkv = self.to.weights.tiles(&[&w.q, &w.k, &w.v], Arrange::Stacked)?;
        let mut all = self.normed_product(&qkv, Output::Store(Binding::whole(&b.qkv)))?;
        let rotations = self.to.ropes.table(self.to.gpu, rope, self.to.threads)?;
        let vector = |weights: &Vec<f32>| self.to.weights.vector(weights);
        let norms = w.head_norms.as_ref().map(|[q, k]| Ok::<_, Error>([vector(q)?, vector(k)?])).transpose()?;
        let bias = w.biases.as_ref().map(|biases| self.to.weights.joined(biases)).transpose()?;
        let (to, attention) = (&self.to, tile_attention(plan)?);
        let (q, kv, places) = (Binding::whole(&b.query), Binding::whole(&to.kv[plan.layer]), to.input(to.sections().places));
        let rotation = Rotation {
            qkv: Binding::whole(&b.qkv),
            rotations: Binding::whole(&rotations),
            pairs: pairs(rope),
            norms: norms.as_ref().map(|[q, k]| HeadNorms { q: Binding::whole(q), k: Binding::whole(k), norm: Norm { eps } }),
            bias: bias.as_ref().map(Binding::whole),
        };
        let (from, out, partial) = (Attended { q, kv, places }, Binding::whole(&b.attended), Binding::whole(to.partial));
        if to.most.rows == 1 && attention.fuses() {
            let (from, short) = (Fused { rotation, kv, places }, attention.short_blocks());
            let [blocks, joined] = attention.fused_ones(to.gpu, from, partial, out)?;
            all.push(Sized::Short(short, attention.short_ones(to.gpu, from, out)?));
            all.extend([Sized::Blocks(blocks), Sized::Ones(joined)].map(|sized| Sized::Long(short, Box::new(sized))));
        } else {
            all.push(Sized::Rows(attention.rope_store(to.gpu, to.most.rows, rotation, places, (q, kv))?));
            let [blocks, joined] = attention.ones(to.gpu, from, to.input(to.sections().ones), partial, out)?;
            all.extend([Sized::Blocks(blocks), Sized::Ones(joined)]);
        }
        if to.most.rows > 1 {
            all.push(Sized::Runs(attention.runs(to.gpu, from, to.input(to.sections().runs), out)?));
        }
        self.branch = Some((to.weights.tiles(&[&w.o], Arrange::Stacked)?, &b.attended));
        Ok(all)
    }

    fn gated(&mut self, [gate, up, down]: [&Matrix; 3], activation: Activation) -> Result<Vec<Sized>, Error> {
        let b = self.to.buffers;
        let both = self.to.weights.tiles(&[gate, up], Arrange::Interleaved)?;
        let all = self.normed_product(&both, Output::Gated(Binding::whole(&b.gated), activation))?;
        self.branch = Some((self.to.weights.tiles(&[down], Arrange::Stacked)?, &b.gated));
        Ok(all)
    }

    /// Logits of up to `most` outputs, capped where the family does before anybody chooses from them.
    fn capped_head(&self, most: usize, normed: (&Buffer, Norm), output: &TileMatrix, cap: Option<f32>) -> Result<Vec<Sized>, Error> {
        let mut all = self.head(most, normed, output)?;
        if let Some(cap) = cap {
            let (plain, count) = (Plain::new(self.to.gpu, most as u32), self.to.input(self.to.sections().outputs));
            let logits = Binding::whole(&self.to.buffers.logits);
            all.push(Sized::Plain(plain.softcap(self.to.config.vocabulary as u32, count, logits, cap)?));
        }
        Ok(all)
    }

    /// Logits of up to `most` outputs.
    fn head(&self, most: usize, (weight, norm): (&Buffer, Norm), output: &TileMatrix) -> Result<Vec<Sized>, Error> {
        let (to, b) = (&self.to, self.to.buffers);
        let (count, logits) = (to.input(to.sections().outputs), Output::Store(Binding::whole(&b.logits)));
        let mut all = Vec::new();
        let mut residual = Binding::whole(&b.residual);
        if to.most.rows > 1 {
            let plain = Plain::new(to.gpu, most as u32);
            all.push(Sized::Plain(plain.gather(to.config.width as u32, count, residual, Binding::whole(&b.wanted))?));
            residual = Binding::whole(&b.wanted);
        }
        let normed = Normed { residual, weight: Binding::whole(weight), norm };
        if most == 1 {
            all.extend(fixed(output.product(to.gpu, Rows::One, Input::Normed(normed), logits)?));
            return Ok(all);
        }
        let halves = Binding::whole(&b.wanted_normed);
        all.push(Sized::RowsAlongX(norm_rows(to.gpu, to.config.width, normed, (most, count), halves)?));
        all.extend(fixed(output.product(to.gpu, to.many(most, count), Input::Halves(halves), logits)?));
        Ok(all)
    }

    fn all_heads(&mut self, norm: &[f32], eps: f32, output: &Matrix, cap: Option<f32>) -> Result<(), Error> {
        let (weight, output) = (self.to.weights.vector(norm)?, self.to.weights.tiles(&[output], Arrange::Stacked)?);
        for most in HEAD_CLASSES.into_iter().filter(|most| *most <= self.to.most.outputs.min(self.to.most.rows)) {
            let head = self.capped_head(most, (&weight, Norm { eps }), &output, cap)?;
            self.program.heads.push((most, head));
        }
        Ok(())
    }
}

impl Pass for TileRecording<'_> {
    fn embed(&mut self, embedding: &Matrix, scale: f32) {
        let (to, b) = (&self.to, self.to.buffers);
        let (tokens, residual) = (Binding::whole(&b.tokens), Binding::whole(&b.residual));
        let recorded = to
            .weights
            .tiles(&[embedding], Arrange::Stacked)
            .and_then(|tiles| Ok(vec![Sized::Rows(tiles.embed(to.gpu, to.most.rows, tokens, scale, residual)?)]));
        self.keep(recorded);
    }

    fn norm(&mut self, weight: &[f32], eps: f32) {
        match self.to.weights.vector(weight) {
            Ok(weight) => self.norm = Some((weight, Norm { eps })),
            Err(failure) => self.keep(Err(failure)),
        }
    }

    fn norm_branch(&mut self, weight: &[f32], eps: f32) {
        let b = self.to.buffers;
        let (branch, normed) = (Binding::whole(&b.branch), Binding::whole(&b.branch_normed));
        let recorded = self.end_block(Output::Store(branch)).and_then(|mut all| {
            let weights = self.to.weights.vector(weight)?;
            let (shape, count) = ((1, weight.len() as u32), Binding::whole(&b.tokens));
            all.push(Sized::Plain(self.to.plain().rms_norm(shape, count, branch, Binding::whole(&weights), eps, normed)?));
            Ok(all)
        });
        self.keep(recorded);
    }

    fn attention(&mut self, w: &AttentionWeights, plan: AttentionPlan, rope: &Rope, eps: f32) {
        let recorded = self.attend(w, &plan, rope, eps);
        self.keep(recorded);
    }

    fn feed_forward(&mut self, gate: &Matrix, up: &Matrix, down: &Matrix, activation: Gate) {
        let activation = match activation {
            Gate::Silu => Activation::Silu,
            Gate::GeluTanh => Activation::GeluTanh,
        };
        let recorded = self.gated([gate, up, down], activation);
        self.keep(recorded);
    }

    fn add(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let b = self.to.buffers;
        let residual = Binding::whole(&b.residual);
        let recorded = match self.branch {
            Some(_) => self.end_block(Output::Add(residual)),
            None => {
                let (width, count) = (self.to.config.width as u32, Binding::whole(&b.tokens));
                let added = self.to.plain().each(Each::Add, width, count, residual, Binding::whole(&b.branch_normed));
                added.map(|sized| vec![Sized::Plain(sized)]).map_err(Error::from)
            }
        };
        self.keep(recorded);
    }

    fn logits(&mut self, norm: &[f32], eps: f32, output: &Matrix, cap: Option<f32>) {
        if let Err(failure) = self.all_heads(norm, eps, output, cap) {
            self.failure.get_or_insert(failure);
        }
    }
}

/// Packs and sends every weight that a pass takes: a model that has been loaded is ready.
pub(crate) fn upload_tiles(weights: &GpuWeights, decoder: &Decoder) -> Result<(), Error> {
    let mut upload = Upload { weights, failure: None };
    decoder.forward(&mut upload);
    weights.end_upload();
    upload.failure.map_or(Ok(()), Err)
}

struct Upload<'a> {
    weights: &'a GpuWeights,
    failure: Option<Error>,
}

impl Upload<'_> {
    fn tiles(&mut self, matrices: &[&Matrix], arrange: Arrange) {
        if self.failure.is_none() {
            self.failure = self.weights.tiles(matrices, arrange).err();
        }
    }
}

impl Pass for Upload<'_> {
    fn embed(&mut self, embedding: &Matrix, _: f32) {
        self.tiles(&[embedding], Arrange::Stacked);
    }

    fn norm(&mut self, _: &[f32], _: f32) {}

    fn norm_branch(&mut self, _: &[f32], _: f32) {}

    fn attention(&mut self, w: &AttentionWeights, _: AttentionPlan, _: &Rope, _: f32) {
        self.tiles(&[&w.q, &w.k, &w.v], Arrange::Stacked);
        self.tiles(&[&w.o], Arrange::Stacked);
    }

    fn feed_forward(&mut self, gate: &Matrix, up: &Matrix, down: &Matrix, _: Gate) {
        self.tiles(&[gate, up], Arrange::Interleaved);
        self.tiles(&[down], Arrange::Stacked);
    }

    fn add(&mut self) {}

    fn logits(&mut self, _: &[f32], _: f32, output: &Matrix, _: Option<f32>) {
        self.tiles(&[output], Arrange::Stacked);
    }
}
