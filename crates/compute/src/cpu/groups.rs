//! Unpacking sixteen rows of MLX's groups: integers of 2 to 8 bits, whose scales and biases are tensors of their own.
//!
//! A row's integers are one stream of bits, the lowest first: 32 of them take as many 32-bit words as they have bits. Four bits unpack to
//! the even elements and then the odd ones, for which activations stand split; eight bits are read as they are; the other widths are
//! spread, four elements at a time. Scales and biases are read sixteen bytes of a row at a time, which is 4 or 8 groups.

#![allow(unsafe_code)]

use super::activations::BLOCK;
use super::lanes::{LANES, Lanes, range};
use super::tile::{Block, Format, Kind, put_nibbles};
use driftwood_region::DType;

/// Integers of `BITS` bits.
pub(crate) struct Unsigned<const BITS: usize>;

impl<const BITS: usize> Format for Unsigned<BITS> {
    // As many as take a multiple of sixteen bytes.
    const BLOCKS: usize = match BITS {
        4 | 8 => 1,
        2 | 6 => 2,
        _ => 4,
    };
    const BYTES: usize = Self::BLOCKS * 4 * BITS;
    const KIND: Kind = Kind::ScaleMin;
    const RANGE: u8 = match BITS {
        8 => range::BYTE,
        6 => range::SIX_BITS,
        _ => range::FIVE_BITS,
    };
    const SPLIT: bool = BITS == 4;
    #[inline(always)]
    fn bias<L: Lanes>() -> i32 {
        if BITS == 8 { L::BYTE_BIAS - 128 } else { 0 }
    }
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(from: *const u8, stride: usize, to: Block) {
        // SAFETY: as the caller's.
        unsafe {
            match BITS {
                4 => put_nibbles::<L>(from, stride, to),
                8 => put_unsigned_bytes::<L>(from, stride, to),
                _ => put_spread::<L, BITS>(from, stride, to, Self::BLOCKS),
            }
        }
    }
}

/// Puts 32 bytes less 128 each: what [`Lanes::encode_i8`] takes.
#[inline(always)]
unsafe fn put_unsigned_bytes<L: Lanes>(from: *const u8, stride: usize, to: Block) {
    for half in 0..2 {
        // SAFETY: as the caller's; every read lies within the 32 bytes.
        unsafe {
            let mut q = L::gather4(from.add(16 * half), stride);
            for q in &mut q {
                *q = L::encode_i8(L::xor(*q, L::splat_i(0x8080_8080u32 as i32)));
            }
            to.put::<L>(4 * half, q);
        }
    }
}

/// Puts `blocks` blocks of any other width.
#[inline(always)]
unsafe fn put_spread<L: Lanes, const BITS: usize>(from: *const u8, stride: usize, to: Block, blocks: usize) {
    // SAFETY: as the caller's; BITS words a block are a multiple of four, and at most 20.
    unsafe {
        let mut words = [L::splat_i(0); 20];
        for sixteen in 0..blocks * BITS / 4 {
            words[4 * sixteen..][..4].copy_from_slice(&L::gather4(from.add(16 * sixteen), stride));
        }
        for four in 0..8 * blocks {
            let (word, shift) = (4 * four * BITS / 32, 4 * four * BITS % 32);
            let mut x = L::shift_right_by(words[word], shift as i32);
            if shift + 4 * BITS > 32 {
                x = L::or(x, L::shift_left_by(words[word + 1], 32 - shift as i32));
            }
            L::store_i(to.weights.add(four * LANES), spread::<L, BITS>(x));
        }
    }
}

/// The lowest four elements of each lane, a byte each.
#[inline(always)]
unsafe fn spread<L: Lanes, const BITS: usize>(x: L::I) -> L::I {
    let (bits, element) = (BITS as i32, (1 << BITS) - 1);
    // SAFETY: as the caller's.
    unsafe {
        let pairs = L::or(L::and(x, L::splat_i(0xffff)), L::and(L::shift_left_by(x, 16 - 2 * bits), L::splat_i(!0xffff)));
        let even = L::and(pairs, L::splat_i(element * 0x0001_0001));
        L::or(even, L::and(L::shift_left_by(pairs, 8 - bits), L::splat_i(element * 0x0100_0100)))
    }
}

/// The scales and biases of sixteen rows.
pub(crate) struct Numbers<'a> {
    pub dtype: DType,
    pub scales: &'a [u8], // (16, groups) as stored
    pub biases: &'a [u8], // (16, groups) as stored
    pub row_bytes: usize,
    /// Elements of a group.
    pub group: usize,
}

impl Numbers<'_> {
    /// Whether there is a scale and a bias for each group of rows of so many blocks.
    pub fn cover(&self, blocks: usize) -> bool {
        let groups = self.row_bytes / self.dtype.block_bytes();
        blocks * BLOCK == groups * self.group && self.scales.len() == LANES * self.row_bytes && self.biases.len() == self.scales.len()
    }

    /// Puts the scales and biases of `count` blocks from `first` on, each group's once, and of as many more as share sixteen bytes with them.
    ///
    /// # Safety
    /// As for `L`; `first` is a multiple of [`super::tile::BLOCKS_MAX`], the rows have these blocks, and `to` has room for BLOCKS_MAX.
    #[inline(always)]
    pub unsafe fn put<L: Lanes>(&self, first: usize, count: usize, to: Block) {
        let (bytes, blocks) = (self.dtype.block_bytes(), self.group / BLOCK);
        for group in (0..count.div_ceil(blocks)).step_by(16 / bytes) {
            let offset = (first / blocks + group) * bytes;
            for (which, stored) in [self.scales, self.biases].into_iter().enumerate() {
                // SAFETY: the caller's promise. The groups of sixteen bytes divide BLOCKS_MAX.
                unsafe { self.put_sixteen_bytes::<L>(which, self.sixteen_bytes::<L>(stored, offset), to.at(group)) }
            }
        }
    }

    /// Puts the numbers in sixteen bytes of each row: four words, of one number or of two.
    #[inline(always)]
    unsafe fn put_sixteen_bytes<L: Lanes>(&self, which: usize, words: [L::I; 4], to: Block) {
        // SAFETY: as the caller's.
        unsafe {
            match self.dtype {
                DType::F32 => {
                    for (i, word) in words.into_iter().enumerate() {
                        to.at(i).put_scale::<L>(which, L::from_bits(word));
                    }
                }
                DType::BF16 => {
                    for (i, word) in words.into_iter().enumerate() {
                        to.at(2 * i).put_scale::<L>(which, L::from_bits(L::shift_left::<16>(word)));
                        to.at(2 * i + 1).put_scale::<L>(which, L::from_bits(L::and(word, L::splat_i(!0xffff))));
                    }
                }
                _ => {
                    for (i, word) in words.into_iter().enumerate() {
                        to.at(2 * i).put_scale::<L>(which, L::low_half(word));
                        to.at(2 * i + 1).put_scale::<L>(which, L::low_half(L::shift_right::<16>(word)));
                    }
                }
            }
        }
    }

    /// The next sixteen bytes of each row, or what is left of it and zeros; a hint for the same part of the next tile.
    #[inline(always)]
    unsafe fn sixteen_bytes<L: Lanes>(&self, stored: &[u8], offset: usize) -> [L::I; 4] {
        let next = stored.as_ptr().wrapping_add(LANES * (self.row_bytes + offset));
        // SAFETY: as the caller's; hints are for any address, and reads stay within each row.
        unsafe {
            for line in 0..4 {
                L::prefetch(next.wrapping_add(64 * line));
            }
            if offset + 16 <= self.row_bytes {
                return L::gather4(stored.as_ptr().add(offset), self.row_bytes);
            }
            let mut padded = [[0; LANES]; 4];
            for lane in 0..LANES {
                let row = &stored[lane * self.row_bytes..][..self.row_bytes];
                for (i, two) in row[offset..].as_chunks::<2>().0.iter().enumerate() {
                    padded[i / 2][lane] |= i32::from(u16::from_le_bytes(*two)) << (i % 2 * 16);
                }
            }
            let mut numbers = [L::splat_i(0); 4];
            for (x, padded) in numbers.iter_mut().zip(&padded) {
                *x = L::load_i(padded.as_ptr());
            }
            numbers
        }
    }
}
