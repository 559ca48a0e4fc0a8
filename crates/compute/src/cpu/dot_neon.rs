//! The lanes as four registers of NEON, with or without the dot-product instructions.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // an index goes through several arrays at once

use super::lanes::{Lanes, Op};
use std::arch::aarch64::*;

/// NEON; `DOT` says whether the machine has `sdot`.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>;

/// Runs `op` with the path's instructions.
///
/// # Safety
/// [`super::simd::Simd::Neon`] must be available.
pub(crate) unsafe fn run<O: Op>(op: O) -> O::Output {
    // SAFETY: the caller's promise, and what is detected here.
    unsafe { if std::arch::is_aarch64_feature_detected!("dotprod") { run_dot(op) } else { run_plain(op) } }
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn run_dot<O: Op>(op: O) -> O::Output {
    // SAFETY: the caller's promise.
    unsafe { op.run::<Neon<true>>() }
}

#[target_feature(enable = "neon")]
unsafe fn run_plain<O: Op>(op: O) -> O::Output {
    // SAFETY: the caller's promise.
    unsafe { op.run::<Neon<false>>() }
}

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];

impl<const DOT: bool> Lanes for Neon<DOT> {
    type F = F;
    type I = I;
    const ROWS: usize = 4;
    const BYTE_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: F) {
        // SAFETY: the trait's conditions.
        unsafe {
            for (i, x) in x.into_iter().enumerate() {
                vst1q_f32(to.add(4 * i), x);
            }
        }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1]), vaddq_f32(a[2], b[2]), vaddq_f32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1]), vsubq_f32(a[2], b[2]), vsubq_f32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1]), vmulq_f32(a[2], b[2]), vmulq_f32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1]), vdivq_f32(a[2], b[2]), vdivq_f32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1]), vfmaq_f32(c[2], a[2], b[2]), vfmaq_f32(c[3], a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                vbslq_f32(vcgtq_f32(a[0], b[0]), a[0], b[0]),
                vbslq_f32(vcgtq_f32(a[1], b[1]), a[1], b[1]),
                vbslq_f32(vcgtq_f32(a[2], b[2]), a[2], b[2]),
                vbslq_f32(vcgtq_f32(a[3], b[3]), a[3], b[3]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vabsq_f32(a[0]), vabsq_f32(a[1]), vabsq_f32(a[2]), vabsq_f32(a[3])] }
    }
    #[inline(always)]
    unsafe fn select_less(a: F, b: F, then: F, otherwise: F) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                vbslq_f32(vcltq_f32(a[0], b[0]), then[0], otherwise[0]),
                vbslq_f32(vcltq_f32(a[1], b[1]), then[1], otherwise[1]),
                vbslq_f32(vcltq_f32(a[2], b[2]), then[2], otherwise[2]),
                vbslq_f32(vcltq_f32(a[3], b[3]), then[3], otherwise[3]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn round(a: F) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [vcvtnq_s32_f32(a[0]), vcvtnq_s32_f32(a[1]), vcvtnq_s32_f32(a[2]), vcvtnq_s32_f32(a[3])] }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: I) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n[0], vdupq_n_s32(127)))),
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n[1], vdupq_n_s32(127)))),
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n[2], vdupq_n_s32(127)))),
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n[3], vdupq_n_s32(127)))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        // SAFETY: the trait's conditions.
        unsafe {
            let four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        // SAFETY: the trait's conditions.
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a[0], a[1]), vmaxq_f32(a[2], a[3]))) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load_i(from: *const i32) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [vld1q_s32(from), vld1q_s32(from.add(4)), vld1q_s32(from.add(8)), vld1q_s32(from.add(12))] }
    }
    #[inline(always)]
    unsafe fn store_i(to: *mut i32, x: I) {
        // SAFETY: the trait's conditions.
        unsafe {
            for (i, x) in x.into_iter().enumerate() {
                vst1q_s32(to.add(4 * i), x);
            }
        }
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1]), vaddq_s32(a[2], b[2]), vaddq_s32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn mul_i(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [vmulq_s32(a[0], b[0]), vmulq_s32(a[1], b[1]), vmulq_s32(a[2], b[2]), vmulq_s32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [vandq_s32(a[0], b[0]), vandq_s32(a[1], b[1]), vandq_s32(a[2], b[2]), vandq_s32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [vorrq_s32(a[0], b[0]), vorrq_s32(a[1], b[1]), vorrq_s32(a[2], b[2]), vorrq_s32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn xor(a: I, b: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe { [veorq_s32(a[0], b[0]), veorq_s32(a[1], b[1]), veorq_s32(a[2], b[2]), veorq_s32(a[3], b[3])] }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: i32>(a: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[0]), vdupq_n_s32(-N))),
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[1]), vdupq_n_s32(-N))),
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[2]), vdupq_n_s32(-N))),
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[3]), vdupq_n_s32(-N))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: i32>(a: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                vshlq_s32(a[0], vdupq_n_s32(N)),
                vshlq_s32(a[1], vdupq_n_s32(N)),
                vshlq_s32(a[2], vdupq_n_s32(N)),
                vshlq_s32(a[3], vdupq_n_s32(N)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn shift_right_by(a: I, n: i32) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[0]), vdupq_n_s32(-n))),
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[1]), vdupq_n_s32(-n))),
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[2]), vdupq_n_s32(-n))),
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[3]), vdupq_n_s32(-n))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn shift_left_by(a: I, n: i32) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                vshlq_s32(a[0], vdupq_n_s32(n)),
                vshlq_s32(a[1], vdupq_n_s32(n)),
                vshlq_s32(a[2], vdupq_n_s32(n)),
                vshlq_s32(a[3], vdupq_n_s32(n)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: i32>(a: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            [
                vshlq_s32(a[0], vdupq_n_s32(-N)),
                vshlq_s32(a[1], vdupq_n_s32(-N)),
                vshlq_s32(a[2], vdupq_n_s32(-N)),
                vshlq_s32(a[3], vdupq_n_s32(-N)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vreinterpretq_f32_s32(a[0]), vreinterpretq_f32_s32(a[1]), vreinterpretq_f32_s32(a[2]), vreinterpretq_f32_s32(a[3])] }
    }
    #[inline(always)]
    unsafe fn to_f(a: I) -> F {
        // SAFETY: the trait's conditions.
        unsafe { [vcvtq_f32_s32(a[0]), vcvtq_f32_s32(a[1]), vcvtq_f32_s32(a[2]), vcvtq_f32_s32(a[3])] }
    }
    #[inline(always)]
    unsafe fn sum_i(a: I) -> i32 {
        // SAFETY: the trait's conditions.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3]))) }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: I) {
        // SAFETY: the trait's conditions.
        unsafe {
            let low = vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1]));
            let high = vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3]));
            vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            let x = vld1q_s8(from);
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_high_s8(x)));
            [vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))]
        }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u8) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            Self::low_half([
                vreinterpretq_s32_u32(vmovl_u16(vld1_u16(from.cast()))),
                vreinterpretq_s32_u32(vmovl_u16(vld1_u16(from.add(8).cast()))),
                vreinterpretq_s32_u32(vmovl_u16(vld1_u16(from.add(16).cast()))),
                vreinterpretq_s32_u32(vmovl_u16(vld1_u16(from.add(24).cast()))),
            ])
        }
    }
    #[inline(always)]
    unsafe fn low_half(a: I) -> F {
        // SAFETY: the trait's conditions.
        unsafe {
            let mut out = [vdupq_n_f32(0.0); 4];
            for (out, a) in out.iter_mut().zip(a) {
                // Exponent and fraction moved into place, and 2^112 to move the exponent's bias; infinities and NaN by hand.
                let low = vreinterpretq_u32_s32(a);
                let sign = vshlq_n_u32::<16>(vandq_u32(low, vdupq_n_u32(0x8000)));
                let magnitude = vshlq_n_u32::<13>(vandq_u32(low, vdupq_n_u32(0x7fff)));
                let finite =
                    vreinterpretq_u32_f32(vmulq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(f32::from_bits((127 + 112) << 23))));
                let special = vandq_u32(vcgeq_u32(magnitude, vdupq_n_u32(0x7c00 << 13)), vdupq_n_u32(0x7f80_0000));
                *out = vreinterpretq_f32_u32(vorrq_u32(sign, vorrq_u32(finite, special)));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn gather(base: *const u8, stride: usize) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            let mut lanes = [0; 16];
            for (lane, to) in lanes.iter_mut().enumerate() {
                *to = base.add(lane * stride).cast::<i32>().read_unaligned();
            }
            Self::load_i(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn gather4(base: *const u8, stride: usize) -> [I; 4] {
        // SAFETY: the trait's conditions.
        unsafe {
            let mut out = [[vdupq_n_s32(0); 4]; 4];
            for quarter in 0..4 {
                let mut rows = [vdupq_n_s32(0); 4];
                for (j, row) in rows.iter_mut().enumerate() {
                    *row = vreinterpretq_s32_u8(vld1q_u8(base.add((4 * quarter + j) * stride)));
                }
                let [a, b, c, d] = rows;
                let (ab, cd) = (vreinterpretq_s64_s32(vtrn1q_s32(a, b)), vreinterpretq_s64_s32(vtrn1q_s32(c, d)));
                let (ab_odd, cd_odd) = (vreinterpretq_s64_s32(vtrn2q_s32(a, b)), vreinterpretq_s64_s32(vtrn2q_s32(c, d)));
                out[0][quarter] = vreinterpretq_s32_s64(vtrn1q_s64(ab, cd));
                out[1][quarter] = vreinterpretq_s32_s64(vtrn1q_s64(ab_odd, cd_odd));
                out[2][quarter] = vreinterpretq_s32_s64(vtrn2q_s64(ab, cd));
                out[3][quarter] = vreinterpretq_s32_s64(vtrn2q_s64(ab_odd, cd_odd));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn fifth_bits<const GROUP: i32>(bits: I) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            let wanted = vreinterpretq_u8_u32(vdupq_n_u32(0x0804_0201));
            let mut out = bits;
            for bits in &mut out {
                let nibble = vandq_u32(vshlq_u32(vreinterpretq_u32_s32(*bits), vdupq_n_s32(-4 * GROUP)), vdupq_n_u32(15));
                let in_each = vreinterpretq_u8_u32(vmulq_u32(nibble, vdupq_n_u32(0x0101_0101)));
                *bits = vreinterpretq_s32_u8(vandq_u8(vtstq_u8(in_each, wanted), vdupq_n_u8(16)));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn encode_i8(w: I) -> I {
        w
    }
    #[inline(always)]
    unsafe fn dot<const RANGE: u8>(mut sum: I, w: &[I; 4], activations: *const i8) -> I {
        // SAFETY: the trait's conditions.
        unsafe {
            let _ = RANGE; // signed products hold every range
            for (t, w) in w.iter().enumerate() {
                let a = vreinterpretq_s8_s32(vdupq_n_s32(activations.add(4 * t).cast::<i32>().read_unaligned()));
                for (sum, w) in sum.iter_mut().zip(w) {
                    *sum = quarter_dot::<DOT>(*sum, vreinterpretq_s8_s32(*w), a);
                }
            }
            sum
        }
    }
}

/// Four lanes' dot products of four bytes each, added to `sum`.
///
/// # Safety
/// NEON must be available, and with `DOT` its dot-product instructions.
#[inline(always)]
unsafe fn quarter_dot<const DOT: bool>(sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    if DOT {
        let mut sum = sum;
        // SAFETY: the caller's promise; registers only. (The intrinsic is not stable yet.)
        unsafe {
            std::arch::asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {w:v}.16b, {a:v}.16b",
                sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        return sum;
    }
    // SAFETY: the caller's promise. A pair of products is at most 128 * 127 * 2 = 32,512.
    unsafe {
        let products = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a));
        vpadalq_s16(sum, products)
    }
}
