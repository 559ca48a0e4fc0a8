//! Norms, sums, activation functions, and the plain f32 product for guests.

#![allow(unsafe_code)]

use super::Cpu;
use super::lanes::{self, LANES, Lanes, Op};
use super::math::{gelu_tanh_lanes, silu_lanes, softcap_lanes};
use super::pool::Parts;

/// Elements of one task: less is not worth sharing.
const ELEMENTS_A_TASK: usize = 1 << 13;

impl Cpu {
    /// Each row of `x`, (rows, k), divided by its root mean square and multiplied by `weight`, (k): `x / sqrt(mean(x^2) + eps) * weight`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let k = weight.len();
        assert!(x.len() == out.len() && k > 0 && x.len().is_multiple_of(k), "rows of {k}: {} to {}", x.len(), out.len());
        let rows_a_task = (ELEMENTS_A_TASK / k).max(1);
        let rows = x.len() / k;
        let out = Parts::new(out);
        self.pool.run(rows.div_ceil(rows_a_task), &|_, task| {
            let (start, len) = (task * rows_a_task * k, rows_a_task.min(rows - task * rows_a_task) * k);
            // SAFETY: tasks have rows of their own. `Cpu::new` checked the path.
            unsafe { lanes::run(self.simd, RmsNorm { x: &x[start..][..len], weight, eps, out: out.slice(start, len) }) };
        });
    }

    /// `x += y`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        self.each::<Add>(x, y);
    }

    /// `x[r] += row` for each row of `x`, (rows, k), and `row`, (k).
    ///
    /// # Panics
    /// If `x` is not whole rows.
    pub fn add_rows(&self, x: &mut [f32], row: &[f32]) {
        let k = row.len();
        assert!(k > 0 && x.len().is_multiple_of(k), "rows of {k}: {}", x.len());
        let rows_a_task = (ELEMENTS_A_TASK / k).max(1);
        let rows = x.len() / k;
        let x = Parts::new(x);
        self.pool.run(rows.div_ceil(rows_a_task), &|_, task| {
            let first = task * rows_a_task;
            for r in first..rows.min(first + rows_a_task) {
                // SAFETY: tasks have rows of their own. `Cpu::new` checked the path.
                unsafe { lanes::run(self.simd, Each::<Add> { x: x.slice(r * k, k), y: row, what: std::marker::PhantomData }) };
            }
        });
    }

    /// `x = cap * tanh(x / cap)`: between -cap and cap.
    ///
    /// # Panics
    /// If `cap` is not above zero.
    pub fn softcap(&self, x: &mut [f32], cap: f32) {
        assert!(cap > 0.0, "a cap above zero, not {cap}");
        let all = x.len();
        let x = Parts::new(x);
        self.pool.run(all.div_ceil(ELEMENTS_A_TASK), &|_, task| {
            let start = task * ELEMENTS_A_TASK;
            // SAFETY: tasks have elements of their own. `Cpu::new` checked the path.
            unsafe { lanes::run(self.simd, SoftCap { x: x.slice(start, ELEMENTS_A_TASK.min(all - start)), cap }) };
        });
    }

    /// `x *= by`.
    pub fn scale(&self, x: &mut [f32], by: f32) {
        // One exactly rounded operation: the same on every path without lanes.
        x.iter_mut().for_each(|x| *x *= by);
    }

    /// `gate = silu(gate) * up`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        self.each::<SiluMul>(gate, up);
    }

    /// `gate = gelu_tanh(gate) * up`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gelu_tanh_mul(&self, gate: &mut [f32], up: &[f32]) {
        self.each::<GeluTanhMul>(gate, up);
    }

    fn each<T: Pairwise>(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "one to one");
        let all = x.len();
        let x = Parts::new(x);
        self.pool.run(all.div_ceil(ELEMENTS_A_TASK), &|_, task| {
            let start = task * ELEMENTS_A_TASK;
            let len = ELEMENTS_A_TASK.min(all - start);
            // SAFETY: tasks have elements of their own. `Cpu::new` checked the path.
            unsafe {
                let op = Each::<T> { x: x.slice(start, len), y: &y[start..][..len], what: std::marker::PhantomData };
                lanes::run(self.simd, op);
            }
        });
    }

    /// `c = a * b`, row-major, for `a` (m, k), `b` (k, n) and `c` (m, n): each element one chain of fused multiply-adds along k.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[allow(clippy::too_many_arguments, clippy::many_single_char_names)] // the conventional names of a matrix product
    pub fn gemm_f32(&self, a: &[f32], b: &[f32], c: &mut [f32], m: usize, k: usize, n: usize) {
        assert_eq!(
            (Some(a.len()), Some(b.len()), Some(c.len())),
            (m.checked_mul(k), k.checked_mul(n), m.checked_mul(n)),
            "({m}, {k}, {n})"
        );
        if c.is_empty() {
            return;
        }
        let c = Parts::new(c);
        self.pool.run(m.div_ceil(GEMM_ROWS), &|_, task| {
            let first = task * GEMM_ROWS;
            let rows = GEMM_ROWS.min(m - first);
            // SAFETY: tasks have rows of their own. `Cpu::new` checked the path.
            unsafe { lanes::run(self.simd, Gemm { a: &a[first * k..][..rows * k], b, c: c.slice(first * n, rows * n), k, n }) };
        });
    }
}

/// Rows of a plain product that share what is loaded of `b`.
const GEMM_ROWS: usize = 4;

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Op for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let k = self.weight.len();
        for (x, out) in self.x.chunks_exact(k).zip(self.out.chunks_exact_mut(k)) {
            // SAFETY: as the caller's; every access is to sixteen elements of a chunk or of a padded copy.
            unsafe {
                let (chunks, tail) = x.as_chunks::<LANES>();
                let padded = pad(tail);
                let mut squares = L::splat(0.0);
                for chunk in chunks.iter().chain((!tail.is_empty()).then_some(&padded)) {
                    let x = L::load(chunk.as_ptr());
                    squares = L::fma(x, x, squares);
                }
                let factor = L::splat(1.0 / (L::sum(squares) / k as f32 + self.eps).sqrt());
                let (weights, weight_tail) = self.weight.as_chunks::<LANES>();
                let (outs, out_tail) = out.as_chunks_mut::<LANES>();
                for ((x, weight), out) in chunks.iter().zip(weights).zip(outs) {
                    L::store(out.as_mut_ptr(), normed::<L>(x, factor, weight));
                }
                let mut last = [0.0; LANES];
                L::store(last.as_mut_ptr(), normed::<L>(&padded, factor, &pad(weight_tail)));
                out_tail.copy_from_slice(&last[..out_tail.len()]);
            }
        }
    }
}

/// # Safety
/// As for every method of `L`.
#[inline(always)]
unsafe fn normed<L: Lanes>(x: &[f32; LANES], factor: L::F, weight: &[f32; LANES]) -> L::F {
    // SAFETY: as the caller's; both have sixteen elements.
    unsafe { L::mul(L::mul(L::load(x.as_ptr()), factor), L::load(weight.as_ptr())) }
}

/// Up to fifteen elements, and zeros.
#[inline(always)]
fn pad(tail: &[f32]) -> [f32; LANES] {
    let mut padded = [0.0; LANES];
    padded[..tail.len()].copy_from_slice(tail);
    padded
}

/// A function of two elements, for each pair of them.
trait Pairwise {
    /// # Safety
    /// As for every method of `L`.
    unsafe fn of<L: Lanes>(x: L::F, y: L::F) -> L::F;
}

struct Add;
impl Pairwise for Add {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L::F, y: L::F) -> L::F {
        // SAFETY: as the caller's.
        unsafe { L::add(x, y) }
    }
}

struct SiluMul;
impl Pairwise for SiluMul {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L::F, y: L::F) -> L::F {
        // SAFETY: as the caller's.
        unsafe { L::mul(silu_lanes::<L>(x), y) }
    }
}

struct GeluTanhMul;
impl Pairwise for GeluTanhMul {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L::F, y: L::F) -> L::F {
        // SAFETY: as the caller's.
        unsafe { L::mul(gelu_tanh_lanes::<L>(x), y) }
    }
}

struct Each<'a, T> {
    x: &'a mut [f32],
    y: &'a [f32],
    what: std::marker::PhantomData<T>,
}

impl<T: Pairwise> Op for Each<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (xs, x_tail) = self.x.as_chunks_mut::<LANES>();
        let (ys, y_tail) = self.y.as_chunks::<LANES>();
        // SAFETY: as the caller's; every access is to sixteen elements of a chunk or of a padded copy.
        unsafe {
            for (x, y) in xs.iter_mut().zip(ys) {
                L::store(x.as_mut_ptr(), T::of::<L>(L::load(x.as_ptr()), L::load(y.as_ptr())));
            }
            let mut last = pad(x_tail);
            L::store(last.as_mut_ptr(), T::of::<L>(L::load(last.as_ptr()), L::load(pad(y_tail).as_ptr())));
            x_tail.copy_from_slice(&last[..x_tail.len()]);
        }
    }
}

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Op for SoftCap<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (xs, tail) = self.x.as_chunks_mut::<LANES>();
        let mut last = pad(tail);
        for x in xs.iter_mut().chain([&mut last]) {
            // SAFETY: as the caller's; every access is to sixteen elements of a chunk or of a padded copy.
            unsafe { L::store(x.as_mut_ptr(), softcap_lanes::<L>(L::load(x.as_ptr()), L::splat(self.cap))) };
        }
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

/// At most [`GEMM_ROWS`] rows of a plain product.
struct Gemm<'a> {
    a: &'a [f32],     // (rows, k)
    b: &'a [f32],     // (k, n)
    c: &'a mut [f32], // (rows, n)
    k: usize,
    n: usize,
}

impl Op for Gemm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (k, n) = (self.k, self.n);
        let rows = self.c.len() / n;
        for column in (0..n).step_by(LANES) {
            let width = LANES.min(n - column);
            let mut acc = [pad(&[]); GEMM_ROWS];
            // SAFETY: as the caller's; full columns have sixteen elements, narrow ones are copied.
            unsafe {
                let mut sums = [L::splat(0.0); GEMM_ROWS];
                for i in 0..k {
                    let from = &self.b[i * n + column..][..width];
                    let b = if width == LANES { L::load(from.as_ptr()) } else { L::load(pad(from).as_ptr()) };
                    for (r, sum) in sums.iter_mut().enumerate() {
                        // A row beyond the last repeats it, and its sums are dropped.
                        *sum = L::fma(L::splat(self.a[r.min(rows - 1) * k + i]), b, *sum);
                    }
                }
                for r in 0..GEMM_ROWS {
                    L::store(acc[r].as_mut_ptr(), sums[r]);
                }
            }
            for (row, acc) in self.c.chunks_exact_mut(n).zip(acc) {
                row[column..][..width].copy_from_slice(&acc[..width]);
            }
        }
    }
}
