//! One virtual machine of sixteen lanes, which every SIMD path implements. Kernels are written once, over [`Lanes`].
//!
//! Sixteen f32 (or i32) are one register of AVX-512, two of AVX2, four of NEON. Each operation is exactly rounded or exact, so a
//! kernel gives the same bits on each. A kernel is a value with an [`Op`] implementation; [`run`] compiles it once for each path,
//! inside a function that has the path's instructions enabled, with everything inlined into it.

#![allow(unsafe_code)]

use super::simd::Simd;

/// Lanes of the virtual machine.
pub(crate) const LANES: usize = 16;

/// How large the stored weights of a dot product can be.
pub(crate) mod range {
    /// 0 to 31.
    pub const FIVE_BITS: u8 = 0;
    /// 0 to 63.
    pub const SIX_BITS: u8 = 1;
    /// What [`super::Lanes::encode_i8`] made of an i8.
    pub const BYTE: u8 = 2;
}

/// Sixteen lanes of f32 and i32.
///
/// # Safety
/// Every method may be called only where [`Simd::is_available`] says so for the implementing path, which [`run`] sees to. Methods that take
/// pointers read or write the number of elements they name; no alignment is needed.
pub(crate) trait Lanes: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// Activation rows that a tile kernel takes at once: as many as registers allow.
    const ROWS: usize;
    /// What [`Lanes::encode_i8`] adds to each weight.
    const BYTE_BIAS: i32;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` where either is no number.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// `then` where `a < b`, else `otherwise`.
    unsafe fn select_less(a: Self::F, b: Self::F, then: Self::F, otherwise: Self::F) -> Self::F;
    /// To the nearest integer, ties to even. Unspecified beyond i32.
    unsafe fn round(a: Self::F) -> Self::I;
    /// Two to the power of each of -126 to 127.
    unsafe fn power_of_two(n: Self::I) -> Self::F;
    /// The sum of all lanes: l with l + 8, then + 4, + 2, + 1.
    unsafe fn sum(a: Self::F) -> f32;
    /// [`Lanes::sum`] of each of sixteen.
    #[inline(always)]
    unsafe fn sums(rows: &[Self::F; LANES]) -> Self::F {
        let mut sums = [0.0; LANES];
        // SAFETY: as the caller's; the array has sixteen elements.
        unsafe {
            for (sum, row) in sums.iter_mut().zip(rows) {
                *sum = Self::sum(*row);
            }
            Self::load(sums.as_ptr())
        }
    }
    /// The largest lane.
    unsafe fn largest(a: Self::F) -> f32;

    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn load_i(from: *const i32) -> Self::I;
    unsafe fn store_i(to: *mut i32, x: Self::I);
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I;
    /// Logical shift.
    unsafe fn shift_right<const N: i32>(a: Self::I) -> Self::I;
    unsafe fn shift_left<const N: i32>(a: Self::I) -> Self::I;
    /// Logical shift by 0 to 31.
    unsafe fn shift_right_by(a: Self::I, n: i32) -> Self::I;
    /// Shift by 0 to 31.
    unsafe fn shift_left_by(a: Self::I, n: i32) -> Self::I;
    /// Arithmetic shift.
    unsafe fn shift_right_signed<const N: i32>(a: Self::I) -> Self::I;
    /// The f32 whose bits these are.
    unsafe fn from_bits(a: Self::I) -> Self::F;
    /// The nearest f32, ties to even.
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// The sum of all lanes.
    unsafe fn sum_i(a: Self::I) -> i32;
    /// The low byte of each lane, for sixteen contiguous i8.
    unsafe fn store_i8(to: *mut i8, x: Self::I);
    /// Sixteen contiguous i8.
    unsafe fn load_i8(from: *const i8) -> Self::I;
    /// Sixteen contiguous f16.
    unsafe fn load_half(from: *const u8) -> Self::F;
    /// The f16 in the low half of each lane.
    unsafe fn low_half(a: Self::I) -> Self::F;

    /// Four bytes at `base + lane * stride` for each lane.
    unsafe fn gather(base: *const u8, stride: usize) -> Self::I;
    /// Sixteen bytes at `base + lane * stride` for each lane: result `t` holds the t-th four of each.
    unsafe fn gather4(base: *const u8, stride: usize) -> [Self::I; 4];
    /// Bit `4 * group + i` of a lane becomes bit 4 of its byte `i`; the other bits are zero.
    unsafe fn fifth_bits<const GROUP: i32>(bits: Self::I) -> Self::I;
    /// Asks for the cache line at an address that will soon be read, and that need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    /// The form in which [`Lanes::dot`] takes signed weights.
    unsafe fn encode_i8(w: Self::I) -> Self::I;
    /// For each lane `sum` plus the dot product of its 16 weights (four in each of `w`) with the same 16 activations in all lanes.
    /// The weights are of the range that `RANGE` names.
    unsafe fn dot<const RANGE: u8>(sum: Self::I, w: &[Self::I; 4], activations: *const i8) -> Self::I;
}

/// A kernel, written over any lanes.
pub(crate) trait Op {
    /// What it returns.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`, and so is everything they call.
    ///
    /// # Safety
    /// As for every method of `L`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs `op` on the path that `simd` names.
///
/// # Safety
/// `simd` must be available on this machine.
pub(crate) unsafe fn run<O: Op>(simd: Simd, op: O) -> O::Output {
    // SAFETY: the caller's promise is each path's condition.
    unsafe {
        match simd {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => super::dot_avx2::run(op),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => super::dot_avx512::run(op),
            #[cfg(target_arch = "aarch64")]
            Simd::Neon => super::dot_neon::run(op),
            _ => op.run::<super::dot_portable::Portable>(),
        }
    }
}
