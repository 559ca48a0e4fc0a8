//! The CPU as a device: threads, a SIMD path and an arithmetic mode.
//!
//! Results are bit-identical however they are computed, because nothing that may vary takes part in the order of summation:
//!
//! - Kernels are written once over sixteen virtual lanes (`lanes.rs`), which `dot_portable.rs`, `dot_avx2.rs`, `dot_avx512.rs` and
//!   `dot_neon.rs` implement with operations that round alike.
//! - Each output of a product, a norm or an attention is computed by one task from its own row, in an order fixed by absolute
//!   positions (`matmul.rs`, `elementwise.rs`, `attend.rs`); threads (`pool.rs`) and company only change who computes it.
//! - Fast products: integer sums over 32 elements, which are exact, joined by one chain of fused multiply-adds along K. Exact products:
//!   sixteen partial sums along K, then a tree.
//!
//! Files with `unsafe`: `pool.rs`, `lanes.rs`, the four `dot_*.rs`, `tile.rs`, `groups.rs`, `matmul.rs`, `elementwise.rs`, `attend.rs`, `math.rs`.

pub(crate) mod activations;
pub(crate) mod attend;
pub(crate) mod dequant;
#[cfg(target_arch = "x86_64")]
mod dot_avx2;
#[cfg(target_arch = "x86_64")]
mod dot_avx512;
#[cfg(target_arch = "aarch64")]
mod dot_neon;
mod dot_portable;
mod elementwise;
mod groups;
pub(crate) mod kv;
mod lanes;
pub mod math;
mod matmul;
mod pool;
pub(crate) mod rope;
pub(crate) mod simd;
#[cfg(test)]
pub(crate) mod tests;
mod tile;

use pool::Pool;
use simd::Simd;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Changes whenever a kernel's results change in any bit; part of the numerics id.
pub const KERNEL_VERSION: u32 = 1;

/// The same of products with MLX's groups, where a model has any.
pub const GROUPS_KERNEL_VERSION: u32 = 2;

/// How products are computed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Arithmetic {
    /// Weights de-quantised to f32, f32 activations: the reference.
    Exact,
    /// Quantised weights times quantised activations. Float weights are computed as in [`Arithmetic::Exact`].
    Fast,
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arithmetic::Exact => "exact",
            Arithmetic::Fast => "fast",
        })
    }
}

/// Threads, a SIMD path and an arithmetic mode.
///
/// All operations take `&self`. Callers on several threads take turns.
pub struct Cpu {
    pool: Pool,
    simd: Simd,
    arithmetic: Arithmetic,
    /// One for each thread of the pool, locked by it for the length of a task.
    scratch: Vec<Mutex<Scratch>>,
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu({} threads, {}, {})", self.threads(), self.simd, self.arithmetic)
    }
}

impl Cpu {
    /// A device of `threads` (at least one, the caller included) on a given path.
    ///
    /// # Panics
    /// If this machine cannot run `simd`: ask [`Simd::available`].
    pub fn new(threads: usize, simd: Simd, arithmetic: Arithmetic) -> Cpu {
        assert!(simd.is_available(), "this machine has no {simd}");
        let pool = Pool::new(threads);
        let scratch = (0..pool.threads()).map(|_| Mutex::new(Scratch::default())).collect();
        Cpu { pool, simd, arithmetic, scratch }
    }

    /// Threads that take part, the caller among them.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The SIMD path.
    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// The arithmetic mode.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    fn scratch(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Buffers of one thread. They grow to what the largest call so far needed.
#[derive(Default)]
struct Scratch {
    /// Unpacked weights, or de-quantised ones, or converted keys.
    first: Aligned,
    /// Scales of unpacked weights, or converted values.
    second: Aligned,
    /// Running sums of outputs.
    third: Aligned,
    /// The last rows of a weight, padded to a whole tile.
    fourth: Aligned,
}

/// Bytes at a cache line's boundary.
#[derive(Default)]
struct Aligned {
    lines: Vec<Line>,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Aligned {
    /// `len` f32 with unspecified contents.
    fn f32(&mut self, len: usize) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(self.lines(len * 4))[..len]
    }

    /// `len` bytes with unspecified contents.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(self.lines(len))[..len]
    }

    fn lines(&mut self, bytes: usize) -> &mut [Line] {
        let lines = bytes.div_ceil(64);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
        &mut self.lines[..lines]
    }
}
