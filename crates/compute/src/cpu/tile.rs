//! Unpacking sixteen rows of quantised weights at a time, so that outputs stand in lanes.
//!
//! For each block of 32 elements a tile holds eight vectors of weights (vector t has elements 4t to 4t + 3 of each row, a byte each), a
//! vector of scales, and two more: the minima, or the two integer scales of `Q6_K`.

#![allow(unsafe_code)]

use super::lanes::{LANES, Lanes, range};

/// Blocks of 32 elements that are unpacked at once: a whole number of 256-element blocks, and small enough for a first-level cache.
pub(crate) const BLOCKS_MAX: usize = 32;
/// i32 of weights a block.
pub(crate) const WEIGHTS: usize = 8 * LANES;
/// f32 (or i32) of scales a block.
pub(crate) const SCALES: usize = 3 * LANES;

/// Where an unpacked block goes: [`WEIGHTS`] i32 and [`SCALES`] f32.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub weights: *mut i32,
    pub scales: *mut f32,
}

impl Block {
    /// The block `by` places on.
    ///
    /// # Safety
    /// It must lie within the same buffers.
    #[inline(always)]
    pub unsafe fn at(self, by: usize) -> Block {
        // SAFETY: the caller's promise.
        unsafe { Block { weights: self.weights.add(by * WEIGHTS), scales: self.scales.add(by * SCALES) } }
    }

    #[inline(always)]
    pub unsafe fn put<L: Lanes>(self, first: usize, w: [L::I; 4]) {
        for (t, w) in w.into_iter().enumerate() {
            // SAFETY: `first` is 0 or 4, and a block has eight vectors.
            unsafe { L::store_i(self.weights.add((first + t) * LANES), w) }
        }
    }

    #[inline(always)]
    pub unsafe fn put_scale<L: Lanes>(self, which: usize, scale: L::F) {
        // SAFETY: `which` is 0 to 2, and a block has three vectors of scales.
        unsafe { L::store(self.scales.add(which * LANES), scale) }
    }
}

/// What scales do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One scale a block.
    Scale,
    /// One scale and one minimum a block, with the sign of what is added.
    ScaleMin,
    /// One scale a block, and an integer for each half of it.
    TwoIntegers,
}

/// A quantised format.
pub(crate) trait Format {
    /// Elements stored together, in blocks of 32.
    const BLOCKS: usize;
    /// Bytes of those.
    const BYTES: usize;
    const KIND: Kind;
    /// One of [`range`].
    const RANGE: u8;
    /// Whether a block unpacks to its even elements and then its odd ones.
    const SPLIT: bool = false;
    /// What is added to each weight where it is unpacked.
    fn bias<L: Lanes>() -> i32;
    /// Unpacks what is stored together at `from` of each row.
    ///
    /// # Safety
    /// As for `L`; sixteen rows of [`Format::BYTES`] at `from`, `stride` apart, and [`Format::BLOCKS`] blocks at `to`.
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block);
}

// Loops instead of `map` in what follows: a closure is a function of its own, without the path's instructions.

#[inline(always)]
unsafe fn low_nibbles<L: Lanes>(mut q: [L::I; 4]) -> [L::I; 4] {
    for q in &mut q {
        // SAFETY: as the caller's.
        *q = unsafe { L::and(*q, L::splat_i(0x0f0f_0f0f)) };
    }
    q
}

#[inline(always)]
unsafe fn high_nibbles<L: Lanes>(mut q: [L::I; 4]) -> [L::I; 4] {
    for q in &mut q {
        // SAFETY: as the caller's.
        *q = unsafe { L::and(L::shift_right::<4>(*q), L::splat_i(0x0f0f_0f0f)) };
    }
    q
}

#[inline(always)]
unsafe fn or4<L: Lanes>(mut a: [L::I; 4], b: [L::I; 4]) -> [L::I; 4] {
    for (a, b) in a.iter_mut().zip(b) {
        // SAFETY: as the caller's.
        *a = unsafe { L::or(*a, b) };
    }
    a
}

/// `(x << LEFT >> RIGHT) & mask` of each.
#[inline(always)]
unsafe fn moved<L: Lanes, const LEFT: i32, const RIGHT: i32>(mut x: [L::I; 4], mask: i32) -> [L::I; 4] {
    for x in &mut x {
        // SAFETY: as the caller's.
        *x = unsafe { L::and(L::shift_right::<RIGHT>(L::shift_left::<LEFT>(*x)), L::splat_i(mask)) };
    }
    x
}

#[inline(always)]
unsafe fn put_bytes<L: Lanes>(from: *const u8, stride: usize, first: usize, to: Block) {
    // SAFETY: as the caller's.
    unsafe {
        let mut q = L::gather4(from, stride);
        for q in &mut q {
            *q = L::encode_i8(*q);
        }
        to.put::<L>(first, q);
    }
}

/// Puts the 32 nibbles at `from`.
#[inline(always)]
pub(super) unsafe fn put_nibbles<L: Lanes>(from: *const u8, stride: usize, to: Block) {
    // SAFETY: as the caller's.
    unsafe {
        let q = L::gather4(from, stride);
        to.put::<L>(0, low_nibbles::<L>(q));
        to.put::<L>(4, high_nibbles::<L>(q));
    }
}

/// Puts the 32 nibbles at `from`, with a fifth bit each from `high`.
#[inline(always)]
unsafe fn put_five_bits<L: Lanes>(from: *const u8, stride: usize, high: L::I, to: Block) {
    // SAFETY: as the caller's.
    unsafe {
        let q = L::gather4(from, stride);
        let low = [L::fifth_bits::<0>(high), L::fifth_bits::<1>(high), L::fifth_bits::<2>(high), L::fifth_bits::<3>(high)];
        let top = [L::fifth_bits::<4>(high), L::fifth_bits::<5>(high), L::fifth_bits::<6>(high), L::fifth_bits::<7>(high)];
        to.put::<L>(0, or4::<L>(low_nibbles::<L>(q), low));
        to.put::<L>(4, or4::<L>(high_nibbles::<L>(q), top));
    }
}

/// Puts a scale and a minimum that stand side by side as f16.
#[inline(always)]
unsafe fn put_scale_min<L: Lanes>(from: *const u8, stride: usize, to: Block) {
    // SAFETY: as the caller's.
    unsafe {
        let both = L::gather(from, stride);
        to.put_scale::<L>(0, L::low_half(both));
        to.put_scale::<L>(1, L::low_half(L::shift_right::<16>(both)));
    }
}

pub(crate) struct Q8_0;
impl Format for Q8_0 {
    const BLOCKS: usize = 1;
    const BYTES: usize = 34;
    const KIND: Kind = Kind::Scale;
    const RANGE: u8 = range::BYTE;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        L::BYTE_BIAS
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's; every read lies within the 34 bytes.
        unsafe {
            to.put_scale::<L>(0, L::low_half(L::gather(from, stride)));
            put_bytes::<L>(from.add(2), stride, 0, to);
            put_bytes::<L>(from.add(18), stride, 4, to);
        }
    }
}

pub(crate) struct Q4_0;
impl Format for Q4_0 {
    const BLOCKS: usize = 1;
    const BYTES: usize = 18;
    const KIND: Kind = Kind::Scale;
    const RANGE: u8 = range::FIVE_BITS;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        8
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's; every read lies within the 18 bytes.
        unsafe {
            to.put_scale::<L>(0, L::low_half(L::gather(from, stride)));
            put_nibbles::<L>(from.add(2), stride, to);
        }
    }
}

pub(crate) struct Q4_1;
impl Format for Q4_1 {
    const BLOCKS: usize = 1;
    const BYTES: usize = 20;
    const KIND: Kind = Kind::ScaleMin;
    const RANGE: u8 = range::FIVE_BITS;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's; every read lies within the 20 bytes.
        unsafe {
            put_scale_min::<L>(from, stride, to);
            put_nibbles::<L>(from.add(4), stride, to);
        }
    }
}

pub(crate) struct Q5_0;
impl Format for Q5_0 {
    const BLOCKS: usize = 1;
    const BYTES: usize = 22;
    const KIND: Kind = Kind::Scale;
    const RANGE: u8 = range::FIVE_BITS;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        16
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's; every read lies within the 22 bytes.
        unsafe {
            to.put_scale::<L>(0, L::low_half(L::gather(from, stride)));
            put_five_bits::<L>(from.add(6), stride, L::gather(from.add(2), stride), to);
        }
    }
}

pub(crate) struct Q5_1;
impl Format for Q5_1 {
    const BLOCKS: usize = 1;
    const BYTES: usize = 24;
    const KIND: Kind = Kind::ScaleMin;
    const RANGE: u8 = range::FIVE_BITS;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's; every read lies within the 24 bytes.
        unsafe {
            put_scale_min::<L>(from, stride, to);
            put_five_bits::<L>(from.add(8), stride, L::gather(from.add(4), stride), to);
        }
    }
}

/// Puts the scales and minima of the eight sub-blocks of a `Q4_K` or `Q5_K` block: scale d * sc, minimum -(dmin * mn).
///
/// # Safety
/// As for [`Format::unpack`]: sixteen bytes at `from` of each row.
#[inline(always)]
unsafe fn put_scales_k<L: Lanes>(from: *const u8, stride: usize, to: Block) {
    // SAFETY: as the caller's.
    unsafe {
        let [both, first, second, third] = L::gather4(from, stride);
        let d = L::low_half(both);
        let minus_dmin = L::sub(L::splat(-0.0), L::low_half(L::shift_right::<16>(both)));
        let six = L::splat_i(0x3f3f_3f3f);
        let (four, two) = (L::splat_i(0x0f0f_0f0f), L::splat_i(0x3030_3030));
        // Four sub-blocks a lane, a byte each; see `dequant::scale_min`.
        let scales = [L::and(first, six), L::or(L::and(third, four), L::and(L::shift_right::<2>(first), two))];
        let mins = [L::and(second, six), L::or(L::and(L::shift_right::<4>(third), four), L::and(L::shift_right::<2>(second), two))];
        for half in 0..2 {
            let (mut scale, mut min) = (scales[half], mins[half]);
            for i in 0..4 {
                let to = to.at(4 * half + i);
                let byte = L::splat_i(0xff);
                to.put_scale::<L>(0, L::mul(d, L::to_f(L::and(scale, byte))));
                to.put_scale::<L>(1, L::mul(minus_dmin, L::to_f(L::and(min, byte))));
                (scale, min) = (L::shift_right::<8>(scale), L::shift_right::<8>(min));
            }
        }
    }
}

pub(crate) struct Q4K;
impl Format for Q4K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 144;
    const KIND: Kind = Kind::ScaleMin;
    const RANGE: u8 = range::FIVE_BITS;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's; every read lies within the 144 bytes.
        unsafe {
            put_scales_k::<L>(from, stride, to);
            for pair in 0..4 {
                for half in 0..2 {
                    let q = L::gather4(from.add(16 + 32 * pair + 16 * half), stride);
                    to.at(2 * pair).put::<L>(4 * half, low_nibbles::<L>(q));
                    to.at(2 * pair + 1).put::<L>(4 * half, high_nibbles::<L>(q));
                }
            }
        }
    }
}

pub(crate) struct Q5K;
impl Format for Q5K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 176;
    const KIND: Kind = Kind::ScaleMin;
    const RANGE: u8 = range::FIVE_BITS;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's; every read lies within the 176 bytes.
        unsafe {
            put_scales_k::<L>(from, stride, to);
            let bit = 0x1010_1010;
            for half in 0..2 {
                // Bit j of a byte belongs to sub-block j.
                let mut high = L::gather4(from.add(16 + 16 * half), stride);
                for pair in 0..4 {
                    let q = L::gather4(from.add(48 + 32 * pair + 16 * half), stride);
                    let (even, odd) = (moved::<L, 4, 0>(high, bit), moved::<L, 3, 0>(high, bit));
                    to.at(2 * pair).put::<L>(4 * half, or4::<L>(low_nibbles::<L>(q), even));
                    to.at(2 * pair + 1).put::<L>(4 * half, or4::<L>(high_nibbles::<L>(q), odd));
                    high = moved::<L, 0, 2>(high, -1);
                }
            }
        }
    }
}

pub(crate) struct Q6K;
impl Format for Q6K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 210;
    const KIND: Kind = Kind::TwoIntegers;
    const RANGE: u8 = range::SIX_BITS;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        32
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's; every read lies within the 210 bytes.
        unsafe {
            let d = L::low_half(L::shift_right::<16>(L::gather(from.add(206), stride)));
            for (four, mut scales) in L::gather4(from.add(192), stride).into_iter().enumerate() {
                for i in 0..2 {
                    let to = to.at(2 * four + i);
                    to.put_scale::<L>(0, d);
                    let to = to.scales.cast::<i32>();
                    L::store_i(to.add(LANES), L::shift_right_signed::<24>(L::shift_left::<24>(scales)));
                    L::store_i(to.add(2 * LANES), L::shift_right_signed::<24>(L::shift_left::<16>(scales)));
                    scales = L::shift_right::<16>(scales);
                }
            }
            for part in 0..4 {
                let (half, sixteen) = (part / 2, part % 2);
                put_six_bits::<L>(
                    from.add(64 * half + 16 * sixteen),
                    from.add(128 + 32 * half + 16 * sixteen),
                    stride,
                    to.at(4 * half),
                    4 * sixteen,
                );
            }
        }
    }
}

/// Puts sixteen elements of each of four sub-blocks of a `Q6_K` block.
#[inline(always)]
unsafe fn put_six_bits<L: Lanes>(low: *const u8, high: *const u8, stride: usize, to: Block, first: usize) {
    // SAFETY: as the caller's.
    unsafe {
        let pairs = 0x3030_3030;
        let (a, b, h) = (L::gather4(low, stride), L::gather4(low.add(32), stride), L::gather4(high, stride));
        to.put::<L>(first, or4::<L>(low_nibbles::<L>(a), moved::<L, 4, 0>(h, pairs)));
        to.at(1).put::<L>(first, or4::<L>(low_nibbles::<L>(b), moved::<L, 2, 0>(h, pairs)));
        to.at(2).put::<L>(first, or4::<L>(high_nibbles::<L>(a), moved::<L, 0, 0>(h, pairs)));
        to.at(3).put::<L>(first, or4::<L>(high_nibbles::<L>(b), moved::<L, 0, 2>(h, pairs)));
    }
}
