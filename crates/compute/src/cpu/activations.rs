//! Activation rows: f32, and beside it what the quantised products read.

use super::lanes::{Lanes, LANES};

/// Elements that share one scale.
pub(crate) const BLOCK: usize = 32;

/// Rows of activations in buffers that only grow.
///
/// The f32 side, shape (rows, k), is the caller's to fill. [`crate::Cpu::quantise`] fills the rest from it, a row at a time: i8 quants
/// of the same shape, and for each 32 of them a scale, scale times sum, and the sums of the quants themselves.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    k: usize,
    pub(crate) values: Vec<f32>,       // (rows, k)
    pub(crate) quants: Vec<i8>,        // (rows, k)
    pub(crate) scales: Vec<f32>,       // (rows, k / 32)
    pub(crate) scaled_sums: Vec<f32>,  // (rows, k / 32)
    pub(crate) half_sums: Vec<[i32; 2]>, // (rows, k / 32, half): sums of 16 quants
}

impl Activations {
    /// No rows yet.
    pub fn new() -> Activations {
        Activations::default()
    }

    /// Sets the shape; allocates only when it needs more than ever before. The contents are unspecified afterwards.
    pub fn resize(&mut self, rows: usize, k: usize) {
        (self.rows, self.k) = (rows, k);
        let (len, blocks) = (rows * k, rows * (k / BLOCK));
        grow(&mut self.values, len);
        grow(&mut self.quants, len);
        grow(&mut self.scales, blocks);
        grow(&mut self.scaled_sums, blocks);
        grow(&mut self.half_sums, blocks);
    }

    /// Rows of the present shape.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The f32 side, (rows, k).
    pub fn f32(&self) -> &[f32] {
        &self.values[..self.rows * self.k]
    }

    /// The f32 side, (rows, k), to be written.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.rows * self.k]
    }
}

fn grow<T: Default + Clone>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// One block of 32: its scale, scale times sum, and the sums of both halves.
pub(crate) struct Quantised {
    pub scale: f32,
    pub scaled_sum: f32,
    pub half_sums: [i32; 2],
}

/// Quantises 32 elements: scale = largest / 127, quant = round-to-even(x * (1 / scale)).
///
/// # Safety
/// As for every method of `L`.
#[inline(always)]
pub(crate) unsafe fn quantise_block<L: Lanes>(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> Quantised {
    // SAFETY: both halves of 16 lie within the arrays.
    unsafe {
        let x = [L::load(values.as_ptr()), L::load(values.as_ptr().add(LANES))];
        let largest = L::largest(L::max(L::abs(x[0]), L::abs(x[1])));
        let scale = if largest / 127.0 >= f32::MIN_POSITIVE { largest / 127.0 } else { 0.0 };
        let inverse = L::splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
        let mut half_sums = [0; 2];
        for half in 0..2 {
            let q = L::round(L::mul(x[half], inverse));
            L::store_i8(quants.as_mut_ptr().add(half * LANES), q);
            half_sums[half] = L::sum_i(q);
        }
        Quantised { scale, scaled_sum: scale * (half_sums[0] + half_sums[1]) as f32, half_sums }
    }
}
