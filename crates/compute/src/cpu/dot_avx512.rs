//! The lanes as one register of AVX-512 (F, BW, VL and VNNI).

#![allow(unsafe_code)]

use super::lanes::{LANES, Lanes, Op};
use std::arch::x86_64::*;

/// AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Runs `op` with the path's instructions.
///
/// # Safety
/// [`super::simd::Simd::Avx512`] must be available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn run<O: Op>(op: O) -> O::Output {
    // SAFETY: the caller's promise.
    unsafe { op.run::<Avx512>() }
}

impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    const ROWS: usize = 8;
    const BYTE_BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn select_less(a: __m512, b: __m512, then: __m512, otherwise: __m512) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), otherwise, then) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: __m512i) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127)))) }
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        // SAFETY: the trait's conditions.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), high);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn sums(r: &[__m512; LANES]) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe {
            // The tree of `sum` for sixteen rows at once: each step halves what is left of a row and joins two.
            let mut fours = [_mm512_setzero_ps(); 4];
            for (i, four) in fours.iter_mut().enumerate() {
                let (a, b, c, d) = (r[i], r[i + 4], r[i + 8], r[i + 12]);
                let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
                let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
                *four = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            }
            let [a, b, c, d] = fours;
            let even = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b));
            let odd = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(c, d), _mm512_shuffle_ps::<0xee>(c, d));
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>(even, odd), _mm512_shuffle_ps::<0xdd>(even, odd))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_i(from: *const i32) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(to: *mut i32, x: __m512i) {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }
    #[inline(always)]
    unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_i(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: i32>(a: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: i32>(a: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    unsafe fn shift_right_by(a: __m512i, n: i32) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn shift_left_by(a: __m512i, n: i32) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: i32>(a: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    unsafe fn from_bits(a: __m512i) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    unsafe fn to_f(a: __m512i) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn sum_i(a: __m512i) -> i32 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_reduce_add_epi32(a) }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: __m512i) {
        // SAFETY: the trait's conditions.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(x)) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u8) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn low_half(a: __m512i) -> __m512 {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)) }
    }
    #[inline(always)]
    unsafe fn gather(base: *const u8, stride: usize) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm512_i32gather_epi32::<1>(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride as i32)), base.cast())
        }
    }
    #[inline(always)]
    unsafe fn gather4(base: *const u8, stride: usize) -> [__m512i; 4] {
        // SAFETY: the trait's conditions.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 4];
            for (j, rows) in rows.iter_mut().enumerate() {
                let at = base.add(j * stride);
                let x = _mm512_castsi128_si512(_mm_loadu_si128(at.cast()));
                let x = _mm512_inserti32x4::<1>(x, _mm_loadu_si128(at.add(4 * stride).cast()));
                let x = _mm512_inserti32x4::<2>(x, _mm_loadu_si128(at.add(8 * stride).cast()));
                *rows = _mm512_inserti32x4::<3>(x, _mm_loadu_si128(at.add(12 * stride).cast()));
            }
            let [a, b, c, d] = rows;
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }
    #[inline(always)]
    unsafe fn fifth_bits<const GROUP: i32>(bits: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe {
            let byte = GROUP / 2 * 0x0101_0101;
            let in_each = _mm512_broadcast_i32x4(_mm_setr_epi32(byte, byte + 0x0404_0404, byte + 0x0808_0808, byte + 0x0c0c_0c0c));
            let wanted = _mm512_set1_epi32(if GROUP % 2 == 0 { 0x0804_0201 } else { 0x8040_2010u32 as i32 });
            _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, in_each), wanted), _mm512_set1_epi8(16))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: the trait's conditions; a hint never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn encode_i8(w: __m512i) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot<const RANGE: u8>(sum: __m512i, w: &[__m512i; 4], activations: *const i8) -> __m512i {
        // SAFETY: the trait's conditions.
        unsafe {
            let mut sum = sum;
            for (t, w) in w.iter().enumerate() {
                sum = _mm512_dpbusd_epi32(sum, *w, _mm512_set1_epi32(activations.add(4 * t).cast::<i32>().read_unaligned()));
            }
            sum
        }
    }
}
