//! The lanes in plain Rust: what the other paths must equal.

#![allow(unsafe_code)]

use super::lanes::{LANES, Lanes};
use half::f16;

/// Plain Rust on arrays of sixteen.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn each<T>(f: impl FnMut(usize) -> T) -> [T; LANES] {
    std::array::from_fn(f)
}

impl Lanes for Portable {
    type F = F;
    type I = I;
    const ROWS: usize = 4;
    const BYTE_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { from.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: F) {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { to.cast::<F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        each(|i| a[i].abs())
    }
    #[inline(always)]
    unsafe fn select_less(a: F, b: F, then: F, otherwise: F) -> F {
        each(|i| if a[i] < b[i] { then[i] } else { otherwise[i] })
    }
    #[inline(always)]
    unsafe fn round(a: F) -> I {
        each(|i| a[i].round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn power_of_two(n: I) -> F {
        each(|i| f32::from_bits(((n[i].wrapping_add(127)) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        let a: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let a: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_i(from: *const i32) -> I {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { from.cast::<I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(to: *mut i32, x: I) {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { to.cast::<I>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        each(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn mul_i(a: I, b: I) -> I {
        each(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        each(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        each(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn xor(a: I, b: I) -> I {
        each(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    unsafe fn shift_right_by(a: I, n: i32) -> I {
        each(|i| ((a[i] as u32) >> n) as i32)
    }
    #[inline(always)]
    unsafe fn shift_left_by(a: I, n: i32) -> I {
        each(|i| a[i] << n)
    }
    #[inline(always)]
    unsafe fn shift_right<const N: i32>(a: I) -> I {
        each(|i| ((a[i] as u32) >> N) as i32)
    }
    #[inline(always)]
    unsafe fn shift_left<const N: i32>(a: I) -> I {
        each(|i| a[i] << N)
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: i32>(a: I) -> I {
        each(|i| a[i] >> N)
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        each(|i| f32::from_bits(a[i] as u32))
    }
    #[inline(always)]
    unsafe fn to_f(a: I) -> F {
        each(|i| a[i] as f32)
    }
    #[inline(always)]
    unsafe fn sum_i(a: I) -> i32 {
        a.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: I) {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { to.cast::<[i8; LANES]>().write(each(|i| x[i] as i8)) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> I {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { from.cast::<[i8; LANES]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u8) -> F {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { from.cast::<[[u8; 2]; LANES]>().read() }.map(|b| f16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn low_half(a: I) -> F {
        a.map(|x| f16::from_bits(x as u16).to_f32())
    }
    #[inline(always)]
    unsafe fn gather(base: *const u8, stride: usize) -> I {
        // SAFETY: the caller vouches for four bytes in each lane.
        each(|i| i32::from_le_bytes(unsafe { base.add(i * stride).cast::<[u8; 4]>().read() }))
    }
    #[inline(always)]
    unsafe fn gather4(base: *const u8, stride: usize) -> [I; 4] {
        // SAFETY: the caller vouches for sixteen bytes in each lane.
        std::array::from_fn(|t| unsafe { Self::gather(base.add(4 * t), stride) })
    }
    #[inline(always)]
    unsafe fn fifth_bits<const GROUP: i32>(bits: I) -> I {
        each(|i| (((((bits[i] as u32) >> (4 * GROUP)) & 15).wrapping_mul(0x0020_4081) & 0x0101_0101) << 4) as i32)
    }
    #[inline(always)]
    unsafe fn encode_i8(w: I) -> I {
        w
    }
    #[inline(always)]
    unsafe fn dot<const RANGE: u8>(mut sum: I, w: &[I; 4], activations: *const i8) -> I {
        for (t, w) in w.iter().enumerate() {
            // SAFETY: the caller vouches for sixteen activations.
            let a = unsafe { activations.add(4 * t).cast::<[i8; 4]>().read() }.map(i32::from);
            for (sum, w) in sum.iter_mut().zip(w) {
                let w = w.to_le_bytes().map(|b| i32::from(b as i8));
                *sum += (w[0] * a[0] + w[1] * a[1]) + (w[2] * a[2] + w[3] * a[3]);
            }
        }
        sum
    }
}
