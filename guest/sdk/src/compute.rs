//! Matrix products computed by the host on this module's own memory.
#![forbid(unsafe_code)]

use crate::{Result, host};

/// The three sizes of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulShape {
    /// Rows of a and c.
    pub m: u32,
    /// Columns of a, rows of b.
    pub k: u32,
    /// Columns of b and c.
    pub n: u32,
}

/// `c` (m, n) = `a` (m, k) times `b` (k, n), row-major; the bytes stay where they are.
///
/// # Errors
/// If a slice is not of its shape, or the host can't compute.
pub fn matmul(a: &[f32], b: &[f32], c: &mut [f32], shape: MatmulShape) -> Result<()> {
    host::matmul(a, b, c, [shape.m, shape.k, shape.n])
}
