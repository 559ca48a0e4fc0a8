//! Which kernels a product takes, bound to buffers.

use super::super::{Binding, Dispatch, Gpu, GpuError, KernelSource};
use super::many_rows::{Block, ManyRows, norm_rows_text};
use super::one_row::{OneRow, Tuning};
use super::pack::{Arrange, TileFormat};
use super::text::{Epilogue, Weights};
use super::upload::TileMatrix;
use super::{Activation, padded_len};

/// Blocks of outputs and rows that fill the device; with fewer, smaller ones are better.
const BLOCKS_ENOUGH: u32 = 128;
/// Rows up to which chunks of K may have workgroups of their own.
const SPLIT_ROWS_MAX: u32 = 64;

/// The constants of an RMS norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What is added to the mean of squares.
    pub eps: f32,
}

/// An RMS norm and what it is applied to.
#[derive(Clone, Copy, Debug)]
pub struct Normed<'a> {
    /// The residual, f32 (row, k).
    pub residual: Binding<'a>,
    /// The norm's weights, f32 (k).
    pub weight: Binding<'a>,
    /// Its constants.
    pub norm: Norm,
}

/// The rows of a product.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// One.
    One,
    /// As many as a buffer says.
    Many(Many<'a>),
}

/// Many rows, so that dispatches can be recorded once.
#[derive(Clone, Copy, Debug)]
pub struct Many<'a> {
    /// The most rows there will be.
    pub most: usize,
    /// A u32 on the device: how many there are, at least 1.
    pub count: Binding<'a>,
    /// Room for [`TileMatrix::scratch_bytes`]; products that follow each other may share it.
    pub scratch: Binding<'a>,
}

/// What is multiplied.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// f16 (row, k padded to 256); padding must be numbers.
    Halves(Binding<'a>),
    /// The norm of a residual, for one row alone; [`norm_rows`] makes halves of many, with the same bits.
    Normed(Normed<'a>),
}

/// Where outputs go.
#[derive(Clone, Copy, Debug)]
pub enum Output<'a> {
    /// Written: f32 (row, n).
    Store(Binding<'a>),
    /// Added: f32 (row, n).
    Add(Binding<'a>),
    /// `activation(gate) * up` of an interleaved matrix, at most +-65504: f16 (row, n padded to 256). The padding is left as it is.
    Gated(Binding<'a>, Activation),
}

impl<'a> Output<'a> {
    fn parts(self) -> (Binding<'a>, Epilogue) {
        match self {
            Output::Store(to) => (to, Epilogue::Store),
            Output::Add(to) => (to, Epilogue::Add),
            Output::Gated(to, activation) => (to, Epilogue::Gated(activation)),
        }
    }

    fn needed_bytes(self, n: usize, rows: usize) -> usize {
        match self {
            Output::Store(_) | Output::Add(_) => 4 * n * rows,
            Output::Gated(..) => 2 * padded_len(n) * rows,
        }
    }
}

impl TileMatrix {
    /// The dispatches of a product, to be run in order. The same row gives the same bits, one alone or among many.
    ///
    /// # Errors
    /// If a binding is too short, if the output does not go with the arrangement, if many rows come with a norm, or if the driver refuses.
    pub fn product(&self, gpu: &Gpu, rows: Rows<'_>, input: Input<'_>, output: Output<'_>) -> Result<Vec<Dispatch>, GpuError> {
        let most = if let Rows::Many(many) = rows { many.most } else { 1 };
        self.check(most, input, output)?;
        match (rows, input) {
            (Rows::One, _) => self.one_row(gpu, input, output),
            (Rows::Many(many), Input::Halves(x)) => self.many_rows(gpu, many, x, output),
            (Rows::Many(_), Input::Normed(_)) => Err(bad("many rows are normed by a kernel of their own")),
        }
    }

    /// Bytes of scratch memory for products of up to this many rows; 0 if none is used.
    pub fn scratch_bytes(&self, most: usize) -> u64 {
        let epilogue = if self.arrange == Arrange::Interleaved { Epilogue::Gated(Activation::Silu) } else { Epilogue::Store };
        let kernel = many_rows_kernel(self.shape, epilogue, most as u32);
        if kernel.split { kernel.scratch_bytes(most as u32) } else { 0 }
    }

    fn check(&self, most: usize, input: Input<'_>, output: Output<'_>) -> Result<(), GpuError> {
        if matches!(output, Output::Gated(..)) != (self.arrange == Arrange::Interleaved) {
            return Err(bad("a gated output goes with interleaved weights, and only with them"));
        }
        if most == 0 || u32::try_from(most).is_err() {
            return Err(bad("a product has at least one row, and at most 2^32 - 1"));
        }
        let k = self.k();
        match input {
            Input::Halves(x) => room("the rows", x, 2 * padded_len(k) * most)?,
            Input::Normed(Normed { residual, weight, .. }) => {
                room("the residual", residual, 4 * k)?;
                room("the norm's weights", weight, 4 * k)?;
            }
        }
        room("the output", output.parts().0, output.needed_bytes(self.n(), most))
    }

    /// What its kernels are called.
    fn label(&self, rows: &str) -> String {
        format!("product of {rows}, {} x {}", self.n(), self.k())
    }

    /// The bindings that every product begins with.
    fn bindings(&self) -> Vec<Binding<'_>> {
        std::iter::once(&self.weights).chain(&self.scales).map(Binding::whole).collect()
    }

    fn one_row(&self, gpu: &Gpu, input: Input<'_>, output: Output<'_>) -> Result<Vec<Dispatch>, GpuError> {
        let ((to, epilogue), mut bindings) = (output.parts(), self.bindings());
        let norm = match input {
            Input::Halves(x) => {
                bindings.push(x);
                None
            }
            Input::Normed(Normed { residual, weight, norm }) => {
                bindings.extend([residual, weight]);
                Some(norm)
            }
        };
        bindings.push(to);
        self.one_row_tuned(gpu, norm, (epilogue, tuning(self.shape, epilogue)), &bindings)
    }

    /// A product of one row whose work is cut in a given way.
    pub(super) fn one_row_tuned(
        &self,
        gpu: &Gpu,
        norm: Option<Norm>,
        (epilogue, tuning): (Epilogue, Tuning),
        bindings: &[Binding<'_>],
    ) -> Result<Vec<Dispatch>, GpuError> {
        let kernel = OneRow::new(self.shape, norm, epilogue, tuning);
        let compiled = gpu.kernel(&self.label("one row"), KernelSource::Trusted(&kernel.text()))?;
        Ok(vec![gpu.dispatch(&compiled, bindings, [kernel.workgroups(), 1, 1])])
    }

    fn many_rows(&self, gpu: &Gpu, many: Many<'_>, x: Binding<'_>, output: Output<'_>) -> Result<Vec<Dispatch>, GpuError> {
        let ((to, epilogue), most) = (output.parts(), many.most as u32);
        let kernel = many_rows_kernel(self.shape, epilogue, most);
        room("the count", many.count, 4)?;
        room("the scratch memory", many.scratch, self.scratch_bytes(many.most) as usize)?;
        let mut bindings = self.bindings();
        bindings.extend([x, many.count, if kernel.split { many.scratch } else { to }]);
        let workgroups = kernel.workgroups(most);
        grid(gpu, workgroups[0].max(workgroups[1]) as usize)?;
        let compiled = gpu.kernel(&self.label("many rows"), KernelSource::Trusted(&kernel.text()))?;
        let product = gpu.dispatch(&compiled, &bindings, workgroups);
        if !kernel.split {
            return Ok(vec![product]);
        }
        let settle = gpu.kernel("sum of chunks", KernelSource::Trusted(&kernel.settle_text()))?;
        Ok(vec![product, gpu.dispatch(&settle, &[many.scratch, many.count, to], kernel.settle_workgroups(most))])
    }
}

/// Norms up to `most` rows of `k` elements, as many as `count` says, into f16 rows padded with zeros to 256.
///
/// # Errors
/// If a binding is too short, if there are more rows than workgroups, or if the driver refuses.
pub fn norm_rows(
    gpu: &Gpu,
    k: usize,
    from: Normed<'_>,
    (most, count): (usize, Binding<'_>),
    to: Binding<'_>,
) -> Result<Dispatch, GpuError> {
    room("the residual", from.residual, 4 * k * most)?;
    room("the norm's weights", from.weight, 4 * k)?;
    room("the count", count, 4)?;
    room("the normed rows", to, 2 * padded_len(k) * most)?;
    grid(gpu, most)?;
    let compiled = gpu.kernel("norm of rows", KernelSource::Trusted(&norm_rows_text(k as u32, from.norm)))?;
    Ok(gpu.dispatch(&compiled, &[from.residual, from.weight, count, to], [most as u32, 1, 1]))
}

pub(super) fn bad(why: &str) -> GpuError {
    GpuError::BadShape { why: why.to_owned() }
}

/// Checks an extent of a dispatch.
pub(super) fn grid(gpu: &Gpu, workgroups: usize) -> Result<(), GpuError> {
    let (asked, limit) = (workgroups as u64, u64::from(gpu.info().workgroups_max));
    if asked > limit {
        return Err(GpuError::BeyondLimit { what: "workgroups of a dispatch", asked, limit });
    }
    Ok(())
}

/// Checks the length of a binding.
pub(super) fn room(what: &str, binding: Binding<'_>, bytes: usize) -> Result<(), GpuError> {
    if (binding.bytes as usize) < bytes {
        return Err(bad(&format!("{what} takes {bytes} bytes, its binding has {}", binding.bytes)));
    }
    Ok(())
}

/// How the work of one row is cut. Measured on an H200, which has 132 processors.
pub(super) fn tuning(weights: Weights, epilogue: Epilogue) -> Tuning {
    let base = Tuning { together: 1, across: 1, warps_max: 16, workgroups_max: 1 << 15, depth_max: 64, keep_row: false };
    let pair = if epilogue.gated() { 2 } else { 1 };
    match (weights.format, weights.tiles) {
        (TileFormat::F16, 133..=2048) => Tuning { together: 2, warps_max: 8, ..base },
        (TileFormat::F16, _) => Tuning { across: pair, ..base },
        (_, 0..=132) => Tuning { together: pair, ..base },
        (_, 133..=512) => Tuning { together: 2, ..base },
        (_, 513..=2048) => Tuning { together: 2, across: 2, workgroups_max: 132, keep_row: true, ..base },
        _ => Tuning { together: 2, across: 2, workgroups_max: 264, keep_row: true, ..base },
    }
}

/// How the work of many rows is cut.
pub(super) fn many_rows_kernel(weights: Weights, epilogue: Epilogue, most: u32) -> ManyRows {
    let block = |outputs, rows, warp_outputs, warp_rows| Block { outputs, rows, warp_outputs, warp_rows };
    let (large, outputs) = (block(128, 128, 32, 64), weights.tiles * 16);
    let block = match most {
        0..=16 => block(64, 16, 32, 16),
        17..=32 => block(64, 32, 32, 16),
        33..=64 => block(64, 64, 32, 32),
        _ if outputs.div_ceil(128) * most.div_ceil(128) < BLOCKS_ENOUGH => block(64, 64, 32, 32),
        _ => large,
    };
    let few = outputs.div_ceil(block.outputs) < 2 * BLOCKS_ENOUGH;
    ManyRows { weights, epilogue, block, split: most <= SPLIT_ROWS_MAX && few && weights.chunks() > 1 }
}
