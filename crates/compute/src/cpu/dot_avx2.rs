//! The lanes as two registers of AVX2, with FMA and F16C.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // an index goes through several arrays at once

use super::lanes::{Lanes, Op, range};
use std::arch::x86_64::*;

/// AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Runs `op` with the path's instructions.
///
/// # Safety
/// [`super::simd::Simd::Avx2`] must be available.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run<O: Op>(op: O) -> O::Output {
    // SAFETY: the caller's promise.
    unsafe { op.run::<Avx2>() }
}

type F = [__m256; 2];
type I = [__m256i; 2];

impl Lanes for Avx2 {
    type F = F;
    type I = I;
    const ROWS: usize = 4;
    const BYTE_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: F) {
        // SAFETY: the trait's conditions.
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }
    #[inline(always)]
    unsafe fn select_less(a: F, b: F, then: F, otherwise: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                _mm256_blendv_ps(otherwise[0], then[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                _mm256_blendv_ps(otherwise[1], then[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn round(a: F) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            // The default rounding mode, which Rust never changes: to nearest, ties to even.
            [_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])]
        }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: I) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n[0], _mm256_set1_epi32(127)))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n[1], _mm256_set1_epi32(127)))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        // SAFETY: the trait's conditions.
        unsafe {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        // SAFETY: the trait's conditions.
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_i(from: *const i32) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())] }
    }
    #[inline(always)]
    unsafe fn store_i(to: *mut i32, x: I) {
        // SAFETY: the trait's conditions.
        unsafe {
            _mm256_storeu_si256(to.cast(), x[0]);
            _mm256_storeu_si256(to.add(8).cast(), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul_i(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn xor(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: i32>(a: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_srli_epi32::<N>(a[0]), _mm256_srli_epi32::<N>(a[1])] }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: i32>(a: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_slli_epi32::<N>(a[0]), _mm256_slli_epi32::<N>(a[1])] }
    }
    #[inline(always)]
    unsafe fn shift_right_by(a: I, n: i32) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_srl_epi32(a[0], _mm_cvtsi32_si128(n)), _mm256_srl_epi32(a[1], _mm_cvtsi32_si128(n))] }
    }
    #[inline(always)]
    unsafe fn shift_left_by(a: I, n: i32) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_sll_epi32(a[0], _mm_cvtsi32_si128(n)), _mm256_sll_epi32(a[1], _mm_cvtsi32_si128(n))] }
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: i32>(a: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_srai_epi32::<N>(a[0]), _mm256_srai_epi32::<N>(a[1])] }
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])] }
    }
    #[inline(always)]
    unsafe fn to_f(a: I) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    unsafe fn sum_i(a: I) -> i32 {
        // SAFETY: the trait's conditions.
        unsafe {
            let eight = _mm256_add_epi32(a[0], a[1]);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0xee>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0x55>(two)))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: I) {
        // SAFETY: the trait's conditions.
        unsafe {
            let low_bytes = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
            for (i, x) in x.into_iter().enumerate() {
                let low = _mm_shuffle_epi8(_mm256_castsi256_si128(x), low_bytes);
                let high = _mm_shuffle_epi8(_mm256_extracti128_si256::<1>(x), low_bytes);
                _mm_storel_epi64(to.add(8 * i).cast(), _mm_unpacklo_epi32(low, high));
            }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())), _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()))] }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u8) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn low_half(a: I) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            let low = [_mm256_and_si256(a[0], _mm256_set1_epi32(0xffff)), _mm256_and_si256(a[1], _mm256_set1_epi32(0xffff))];
            [
                _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low[0]), _mm256_extracti128_si256::<1>(low[0]))),
                _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low[1]), _mm256_extracti128_si256::<1>(low[1]))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn gather(base: *const u8, stride: usize) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let offsets = _mm256_mullo_epi32(lanes, _mm256_set1_epi32(stride as i32));
            [_mm256_i32gather_epi32::<1>(base.cast(), offsets), _mm256_i32gather_epi32::<1>(base.add(8 * stride).cast(), offsets)]
        }
    }
    #[inline(always)]
    unsafe fn gather4(base: *const u8, stride: usize) -> [I; 4] {
        // SAFETY: the trait's conditions.
        unsafe {
            let mut out = [[_mm256_setzero_si256(); 2]; 4];
            for half in 0..2 {
                let mut rows = [_mm256_setzero_si256(); 4];
                for (j, rows) in rows.iter_mut().enumerate() {
                    let at = base.add((8 * half + j) * stride);
                    let x = _mm256_castsi128_si256(_mm_loadu_si128(at.cast()));
                    *rows = _mm256_inserti128_si256::<1>(x, _mm_loadu_si128(at.add(4 * stride).cast()));
                }
                let [a, b, c, d] = rows;
                let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                out[0][half] = _mm256_unpacklo_epi64(ab, cd);
                out[1][half] = _mm256_unpackhi_epi64(ab, cd);
                out[2][half] = _mm256_unpacklo_epi64(ab_high, cd_high);
                out[3][half] = _mm256_unpackhi_epi64(ab_high, cd_high);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn fifth_bits<const GROUP: i32>(bits: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            let byte = GROUP / 2 * 0x0101_0101;
            let in_each = _mm256_broadcastsi128_si256(_mm_setr_epi32(byte, byte + 0x0404_0404, byte + 0x0808_0808, byte + 0x0c0c_0c0c));
            let wanted = _mm256_set1_epi32(if GROUP % 2 == 0 { 0x0804_0201 } else { 0x8040_2010u32 as i32 });
            let mut out = bits;
            for b in &mut out {
                let found = _mm256_and_si256(_mm256_shuffle_epi8(*b, in_each), wanted);
                *b = _mm256_and_si256(_mm256_cmpeq_epi8(found, wanted), _mm256_set1_epi8(16));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: the trait's conditions; a hint never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn encode_i8(w: I) -> I {
        w
    }
    #[inline(always)]
    unsafe fn dot<const RANGE: u8>(sum: I, w: &[I; 4], activations: *const i8) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            let mut a = [_mm256_setzero_si256(); 4];
            for (t, a) in a.iter_mut().enumerate() {
                *a = _mm256_set1_epi32(activations.add(4 * t).cast::<i32>().read_unaligned());
            }
            [
                _mm256_add_epi32(sum[0], half_dot::<RANGE>([w[0][0], w[1][0], w[2][0], w[3][0]], a)),
                _mm256_add_epi32(sum[1], half_dot::<RANGE>([w[0][1], w[1][1], w[2][1], w[3][1]], a)),
            ]
        }
    }
}

/// The dot products of eight lanes. Sums of pairs saturate at 16 bits, so how many may be added in 16 bits depends on the range.
///
/// # Safety
/// AVX2 must be available.
#[inline(always)]
unsafe fn half_dot<const RANGE: u8>(w: [__m256i; 4], a: [__m256i; 4]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut pairs = [_mm256_setzero_si256(); 4];
        if RANGE == range::BYTE {
            let mut sum = _mm256_setzero_si256();
            for (w, a) in w.into_iter().zip(a) {
                // |w| <= 128 and |a| <= 127: a pair is at most 32,512.
                let pair = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pair, ones));
            }
            return sum;
        }
        for (t, pair) in pairs.iter_mut().enumerate() {
            *pair = _mm256_maddubs_epi16(w[t], a[t]);
        }
        // 63 * 127 * 4 = 32,004 fits, and so does 31 * 127 * 8 = 31,496.
        let (first, second) = (_mm256_add_epi16(pairs[0], pairs[1]), _mm256_add_epi16(pairs[2], pairs[3]));
        if RANGE == range::SIX_BITS {
            return _mm256_add_epi32(_mm256_madd_epi16(first, ones), _mm256_madd_epi16(second, ones));
        }
        _mm256_madd_epi16(_mm256_add_epi16(first, second), ones)
    }
}
