//! Activation rows: f32, and beside it what the quantised products read.

/// Elements that share one scale.
pub(crate) const BLOCK: usize = 32;

/// Rows of activations in buffers that only grow.
///
/// The f32 side, shape (rows, k), is the caller's to fill. [`crate::Cpu::quantise`] fills the rest from it, a row at a time: i8 quants
/// of the same shape, and for each 32 of them a scale, scale times sum, and the sums of the quants themselves. The quants stand there twice:
/// in order, and split into even and odd, which is how weights of four bits unpack.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    k: usize,
    pub(crate) values: Vec<f32>,         // (rows, k)
    pub(crate) quants: Vec<i8>,          // (rows, k)
    pub(crate) split: Vec<i8>,           // (rows, k / 32, even or odd, 16): the same quants
    pub(crate) scales: Vec<f32>,         // (rows, k / 32)
    pub(crate) scaled_sums: Vec<f32>,    // (rows, k / 32)
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
        grow(&mut self.split, len);
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
