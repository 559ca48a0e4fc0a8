//! Elementary functions of our own, built from fused multiply-adds: libraries' versions differ between machines.

#![allow(unsafe_code)]

use super::dot_portable::Portable;
use super::lanes::Lanes;

/// Below this [`exp`] is zero, which keeps its results normal numbers.
const EXP_LEAST: f32 = -87.0;
/// Above this [`exp`] is infinite.
const EXP_MOST: f32 = 88.0;

/// e to the power of `x`, to about one unit in the last place. Zero below -87, infinite above 88.
pub fn exp(x: f32) -> f32 {
    // SAFETY: the portable lanes need nothing.
    unsafe { exp_lanes::<Portable>(Portable::splat(x))[0] }
}

/// `x / (1 + exp(-x))`.
pub fn silu(x: f32) -> f32 {
    // SAFETY: the portable lanes need nothing.
    unsafe { silu_lanes::<Portable>(Portable::splat(x))[0] }
}

/// The tanh approximation of GELU: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
pub fn gelu_tanh(x: f32) -> f32 {
    // SAFETY: the portable lanes need nothing.
    unsafe { gelu_tanh_lanes::<Portable>(Portable::splat(x))[0] }
}

/// The hyperbolic tangent, to about 1e-7 (absolutely); exactly -1 and 1 from about 9 on.
pub fn tanh(x: f32) -> f32 {
    // SAFETY: the portable lanes need nothing.
    unsafe { tanh_lanes::<Portable>(Portable::splat(x))[0] }
}

/// `cap * tanh(x / cap)`: between -cap and cap.
pub fn softcap(x: f32, cap: f32) -> f32 {
    // SAFETY: the portable lanes need nothing.
    unsafe { softcap_lanes::<Portable>(Portable::splat(x), Portable::splat(cap))[0] }
}

/// # Safety
/// As for every method of `L`.
#[inline(always)]
pub(crate) unsafe fn exp_lanes<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: as the caller's.
    unsafe {
        let n = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        let whole = L::to_f(n);
        // ln 2 in two parts (Cephes' expf), the first exact in a few bits.
        let r = L::fma(whole, L::splat(-0.693_359_4), x);
        let r = L::fma(whole, L::splat(2.121_944_4e-4), r);
        // Cephes' expf polynomial for |r| <= ln(2) / 2.
        let mut p = L::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
            p = L::fma(p, r, L::splat(c));
        }
        let p = L::add(L::fma(L::mul(r, r), p, r), L::splat(1.0));
        let y = L::mul(p, L::power_of_two(n));
        let y = L::select_less(x, L::splat(EXP_LEAST), L::splat(0.0), y);
        L::select_less(L::splat(EXP_MOST), x, L::splat(f32::INFINITY), y)
    }
}

/// # Safety
/// As for every method of `L`.
#[inline(always)]
pub(crate) unsafe fn silu_lanes<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: as the caller's.
    unsafe { L::div(x, L::add(L::splat(1.0), exp_lanes::<L>(L::sub(L::splat(0.0), x)))) }
}

/// # Safety
/// As for every method of `L`.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh_lanes<L: Lanes>(x: L::F) -> L::F {
    // (1 + tanh u) / 2 is 1 / (1 + exp(-2 u)).
    // SAFETY: as the caller's.
    unsafe {
        let cubic = L::fma(L::mul(L::mul(x, x), x), L::splat(0.044_715), x);
        let minus_two_u = L::mul(cubic, L::splat(-1.595_769));
        L::div(x, L::add(L::splat(1.0), exp_lanes::<L>(minus_two_u)))
    }
}

/// # Safety
/// As for every method of `L`.
#[inline(always)]
pub(crate) unsafe fn tanh_lanes<L: Lanes>(x: L::F) -> L::F {
    // 1 - 2 / (1 + exp(2 x)), where an exponential of zero or infinity gives -1 or 1.
    // SAFETY: as the caller's.
    unsafe {
        let one = L::splat(1.0);
        L::sub(one, L::div(L::splat(2.0), L::add(one, exp_lanes::<L>(L::add(x, x)))))
    }
}

/// # Safety
/// As for every method of `L`.
#[inline(always)]
pub(crate) unsafe fn softcap_lanes<L: Lanes>(x: L::F, cap: L::F) -> L::F {
    // SAFETY: as the caller's.
    unsafe { L::mul(cap, tanh_lanes::<L>(L::div(x, cap))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_stays_within_one() {
        for i in -20_000..=20_000 {
            let x = i as f32 / 1000.0;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() <= 2e-7, "tanh({x})");
            assert!((f64::from(softcap(x, 5.0)) - 5.0 * (f64::from(x) / 5.0).tanh()).abs() <= 2e-6, "{x} capped");
        }
        assert_eq!((tanh(0.0), tanh(1e9), tanh(f32::NEG_INFINITY), softcap(-1e30, 30.0)), (0.0, 1.0, -1.0, -30.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error <= 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(f32::NEG_INFINITY), exp(-1e9), exp(-88.0)), (0.0, 0.0, 0.0));
        assert_eq!((exp(f32::INFINITY), exp(1e9)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn silu_and_gelu_follow_their_definitions() {
        for i in -2000..=2000 {
            let x = f64::from(i) / 100.0;
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            for (got, exact) in [(silu(x as f32), x / (1.0 + (-x).exp())), (gelu_tanh(x as f32), 0.5 * x * (1.0 + u.tanh()))] {
                assert!((f64::from(got) - exact).abs() <= 1e-6 * x.abs().max(1e-3), "{x}: {got} {exact}");
            }
        }
        assert_eq!((silu(-1e9), silu(0.0), gelu_tanh(-1e9), gelu_tanh(1e9)), (0.0, 0.0, 0.0, 1e9));
    }
}
