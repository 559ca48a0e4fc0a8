//! Products of weights and activations: a task computes some tiles of sixteen outputs for all rows.
//!
//! Quantised: a tile is unpacked once (`tile.rs`, `groups.rs`) and multiplied with a few rows at a time, so that one row and many take the same
//! path. Floats: a few weight rows are converted and multiplied with a few activation rows.

#![allow(unsafe_code)]

use super::activations::{Activations, BLOCK};
use super::dequant::dequantise_inline;
use super::groups::{Numbers, Unsigned};
use super::lanes::{self, LANES, Lanes, Op};
use super::pool::Parts;
use super::tile::{self, Block, Format, Kind};
use super::{Arithmetic, Cpu, Scratch};
use crate::Matrix;
use driftwood_region::{DType, View};

/// Weight rows that a float tile converts at once.
const FLOAT_ROWS: usize = 4;
/// Tasks for each thread, so that a late thread costs little.
const TASKS_PER_THREAD: usize = 6;
/// Elements below which a job is not worth sharing.
const ELEMENTS_ALONE: usize = 1 << 13;

impl Cpu {
    /// Fills the quantised side of `x` from its f32 side, each row by itself. In [`Arithmetic::Exact`] it does nothing.
    ///
    /// Rows that are no multiple of 32 stay as they are: no quantised weight has such rows.
    pub fn quantise(&self, x: &mut Activations) {
        let (rows, k) = (x.rows(), x.k());
        if self.arithmetic == Arithmetic::Exact || k % BLOCK != 0 || rows * k == 0 {
            return;
        }
        let rows_a_task = (ELEMENTS_ALONE / k).max(1);
        let values = &x.values;
        let (quants, split, half_sums) = (Parts::new(&mut x.quants), Parts::new(&mut x.split), Parts::new(&mut x.half_sums));
        let (scales, scaled_sums) = (Parts::new(&mut x.scales), Parts::new(&mut x.scaled_sums));
        self.pool.run(rows.div_ceil(rows_a_task), &|_, task| {
            let first = task * rows_a_task;
            let rows = rows_a_task.min(rows - first);
            let (start, len) = (first * k / BLOCK, rows * k / BLOCK);
            // SAFETY: tasks have rows of their own. `Cpu::new` checked the path.
            unsafe {
                let op = Quantise {
                    values: &values[start * BLOCK..][..len * BLOCK],
                    quants: quants.slice(start * BLOCK, len * BLOCK),
                    split: split.slice(start * BLOCK, len * BLOCK),
                    scales: scales.slice(start, len),
                    scaled_sums: scaled_sums.slice(start, len),
                    half_sums: half_sums.slice(start, len),
                };
                lanes::run(self.simd, op);
            }
        });
    }

    /// `out[row][i] = sum over k of w[i][k] * x[row][k]`, for `w` of shape (n, k), `x` (rows, k) and `out` (rows, n).
    ///
    /// For quantised weights in [`Arithmetic::Fast`], `x` must have been quantised by [`Cpu::quantise`].
    ///
    /// # Panics
    /// If the shapes do not fit, or if `w` holds integers.
    pub fn matmul(&self, w: &Matrix, x: &Activations, out: &mut [f32]) {
        let (n, k, stored) = (w.rows(), w.row_len(), w.weight());
        assert_eq!(k, x.k(), "the inner extents of weights ({n}, {k}) and activations ({}, {})", x.rows(), x.k());
        assert_eq!(out.len(), x.rows() * n, "the output of {} rows of {n}", x.rows());
        if out.is_empty() {
            return;
        }
        let product = Product { matrix: w, row_bytes: stored.row_bytes(), n, x, out: Parts::new(out) };
        let quantised = (stored.dtype().is_quantised() || w.group().is_some()) && self.arithmetic == Arithmetic::Fast;
        let tile_rows = if quantised { LANES } else { FLOAT_ROWS };
        let tiles = n.div_ceil(tile_rows);
        let tasks = if self.threads() == 1 { 1 } else { tiles.min(self.threads() * TASKS_PER_THREAD) };
        self.pool.run(tasks, &|thread, task| {
            let scratch = &mut *self.scratch(thread);
            for tile in task * tiles / tasks..(task + 1) * tiles / tasks {
                let first = tile * tile_rows;
                let rows = tile_rows.min(n - first);
                if quantised {
                    self.quantised_tile(&product, first, rows, scratch)
                } else {
                    self.float_tile(&product, first, rows, scratch)
                }
            }
        });
    }

    fn quantised_tile(&self, p: &Product<'_>, first: usize, lanes: usize, scratch: &mut Scratch) {
        match p.matrix.weight().dtype() {
            DType::Q8_0 => self.tile_of::<tile::Q8_0>(p, first, lanes, scratch),
            DType::Q4_0 => self.tile_of::<tile::Q4_0>(p, first, lanes, scratch),
            DType::Q4_1 => self.tile_of::<tile::Q4_1>(p, first, lanes, scratch),
            DType::Q5_0 => self.tile_of::<tile::Q5_0>(p, first, lanes, scratch),
            DType::Q5_1 => self.tile_of::<tile::Q5_1>(p, first, lanes, scratch),
            DType::Q4_K => self.tile_of::<tile::Q4K>(p, first, lanes, scratch),
            DType::Q5_K => self.tile_of::<tile::Q5K>(p, first, lanes, scratch),
            DType::Q6_K => self.tile_of::<tile::Q6K>(p, first, lanes, scratch),
            DType::U2 => self.tile_of::<Unsigned<2>>(p, first, lanes, scratch),
            DType::U3 => self.tile_of::<Unsigned<3>>(p, first, lanes, scratch),
            DType::U4 => self.tile_of::<Unsigned<4>>(p, first, lanes, scratch),
            DType::U5 => self.tile_of::<Unsigned<5>>(p, first, lanes, scratch),
            DType::U6 => self.tile_of::<Unsigned<6>>(p, first, lanes, scratch),
            DType::U8 => self.tile_of::<Unsigned<8>>(p, first, lanes, scratch),
            other => unreachable!("{other} is not quantised"),
        }
    }

    fn tile_of<T: Format>(&self, p: &Product<'_>, first: usize, lanes: usize, scratch: &mut Scratch) {
        let numbers_bytes = p.matrix.scales().map_or(0, View::row_bytes);
        let (weights, numbers) = scratch.fourth.bytes(LANES * (p.row_bytes + 2 * numbers_bytes)).split_at_mut(LANES * p.row_bytes);
        let (scales, biases) = numbers.split_at_mut(LANES * numbers_bytes);
        let op = QuantisedTile::<'_, T> {
            weights: sixteen_rows(p.matrix.weight(), first, lanes, weights),
            numbers: p.matrix.scales().zip(p.matrix.biases()).zip(p.matrix.group()).map(|((s, b), group)| Numbers {
                dtype: s.dtype(),
                scales: sixteen_rows(s, first, lanes, scales),
                biases: sixteen_rows(b, first, lanes, biases),
                row_bytes: numbers_bytes,
                group,
            }),
            row_bytes: p.row_bytes,
            x: p.x,
            sums: scratch.third.f32(p.x.rows() * LANES),
            block: Block {
                weights: scratch.first.f32(tile::BLOCKS_MAX * tile::WEIGHTS).as_mut_ptr().cast(),
                scales: scratch.second.f32(tile::BLOCKS_MAX * tile::SCALES).as_mut_ptr(),
            },
            format: std::marker::PhantomData,
        };
        // SAFETY: `Cpu::new` checked the path.
        unsafe { lanes::run(self.simd, op) };
        let sums = scratch.third.f32(p.x.rows() * LANES);
        for (row, sums) in sums.chunks_exact(LANES).enumerate() {
            // SAFETY: these outputs are this tile's alone.
            unsafe { p.out.slice(row * p.n + first, lanes) }.copy_from_slice(&sums[..lanes]);
        }
    }

    fn float_tile(&self, p: &Product<'_>, first: usize, rows: usize, scratch: &mut Scratch) {
        let padded_k = p.x.k().next_multiple_of(LANES);
        let floats = scratch.first.f32(FLOAT_ROWS * padded_k);
        for (row, floats) in floats.chunks_exact_mut(padded_k.max(1)).enumerate() {
            let (real, padding) = floats.split_at_mut(p.x.k());
            padding.fill(0.0);
            if row >= rows {
                real.fill(0.0);
                continue;
            }
            // SAFETY: `Cpu::new` checked the path.
            unsafe { lanes::run(self.simd, Dequantise { matrix: p.matrix, row: first + row, to: real }) };
        }
        let op = FloatTile { weights: floats, padded_k, x: p.x, sums: scratch.third.f32(p.x.rows() * FLOAT_ROWS) };
        // SAFETY: `Cpu::new` checked the path.
        unsafe { lanes::run(self.simd, op) };
        let sums = scratch.third.f32(p.x.rows() * FLOAT_ROWS);
        for (row, sums) in sums.chunks_exact(FLOAT_ROWS).enumerate() {
            // SAFETY: these outputs are this tile's alone.
            unsafe { p.out.slice(row * p.n + first, rows) }.copy_from_slice(&sums[..rows]);
        }
    }
}

/// Sixteen rows of a view from `first` on: the `lanes` that there are and, for the rest, zeros, for which there is `room`.
fn sixteen_rows<'a>(view: &'a View, first: usize, lanes: usize, room: &'a mut [u8]) -> &'a [u8] {
    let row_bytes = view.row_bytes();
    let rows = &view.bytes()[first * row_bytes..][..lanes * row_bytes];
    if lanes == LANES {
        return rows;
    }
    room[..rows.len()].copy_from_slice(rows);
    room[rows.len()..].fill(0);
    room
}

/// What all tasks of one product share.
struct Product<'a> {
    matrix: &'a Matrix,
    row_bytes: usize,
    n: usize,
    x: &'a Activations,
    out: Parts<'a, f32>, // (rows, n)
}

struct Quantise<'a> {
    values: &'a [f32],
    quants: &'a mut [i8],
    split: &'a mut [i8],
    scales: &'a mut [f32],
    scaled_sums: &'a mut [f32],
    half_sums: &'a mut [[i32; 2]],
}

impl Op for Quantise<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (values, _) = self.values.as_chunks::<BLOCK>();
        let (quants, _) = self.quants.as_chunks_mut::<BLOCK>();
        let (split, _) = self.split.as_chunks_mut::<BLOCK>();
        for (b, ((values, quants), split)) in values.iter().zip(quants).zip(split).enumerate() {
            // SAFETY: as the caller's.
            let block = unsafe { quantise_block::<L>(values, quants) };
            for i in 0..BLOCK / 2 {
                (split[i], split[BLOCK / 2 + i]) = (quants[2 * i], quants[2 * i + 1]);
            }
            (self.scales[b], self.scaled_sums[b], self.half_sums[b]) = (block.scale, block.scaled_sum, block.half_sums);
        }
    }
}

/// One block of 32: its scale, scale times sum, and the sums of both halves.
struct Quantised {
    scale: f32,
    scaled_sum: f32,
    half_sums: [i32; 2],
}

/// Quantises 32 elements: scale = largest / 127, quant = round-to-even(x * (1 / scale)).
///
/// # Safety
/// As for every method of `L`.
#[inline(always)]
unsafe fn quantise_block<L: Lanes>(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> Quantised {
    // SAFETY: both halves of 16 lie within the arrays.
    unsafe {
        let x = [L::load(values.as_ptr()), L::load(values.as_ptr().add(LANES))];
        let largest = L::largest(L::max(L::abs(x[0]), L::abs(x[1])));
        let scale = if largest / 127.0 >= f32::MIN_POSITIVE { largest / 127.0 } else { 0.0 };
        let inverse = L::splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
        let mut half_sums = [0; 2];
        for half in 0..2 {
            let q = L::round(L::mul(x[half], inverse));
            L::store_i8(quants.as_mut_ptr().add(half * LANES), q);
            half_sums[half] = L::sum_i(q);
        }
        Quantised { scale, scaled_sum: scale * (half_sums[0] + half_sums[1]) as f32, half_sums }
    }
}

/// Sixteen weight rows times all activation rows.
struct QuantisedTile<'a, T> {
    weights: &'a [u8], // (16, k) as stored
    row_bytes: usize,
    numbers: Option<Numbers<'a>>, // of groups
    x: &'a Activations,
    sums: &'a mut [f32], // (rows, 16), the result
    block: Block,        // BLOCKS_MAX of them
    format: std::marker::PhantomData<T>,
}

impl<T: Format> Op for QuantisedTile<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (rows, blocks) = (self.x.rows(), self.x.k() / BLOCK);
        assert!(self.row_bytes * T::BLOCKS == blocks * T::BYTES && self.weights.len() == LANES * self.row_bytes, "whole blocks");
        assert!(self.numbers.as_ref().is_none_or(|numbers| numbers.cover(blocks)), "a scale and a bias a group");
        assert!(self.sums.len() == rows * LANES, "one sum an output");
        self.sums.fill(0.0);
        for first in (0..blocks).step_by(tile::BLOCKS_MAX) {
            let count = tile::BLOCKS_MAX.min(blocks - first);
            // SAFETY: as the caller's; the row has blocks up to `blocks`, and `first` is a multiple of BLOCKS_MAX.
            unsafe { self.unpack::<L>(first, count) };
            let scale_shift = self.numbers.as_ref().map_or(0, |numbers| (numbers.group / BLOCK).ilog2());
            let mut row = 0;
            while row < rows {
                let rows_now = largest_power_of_two(L::ROWS.min(rows - row));
                // SAFETY: `row + rows_now <= rows`, and the activations hold (rows, blocks) of everything.
                unsafe {
                    let a = Rows::new(self.x, row, first, T::SPLIT);
                    let sums = self.sums.as_mut_ptr().add(row * LANES);
                    match rows_now {
                        8 => multiply::<L, T, 8>((self.block, count, scale_shift), a, sums),
                        4 => multiply::<L, T, 4>((self.block, count, scale_shift), a, sums),
                        2 => multiply::<L, T, 2>((self.block, count, scale_shift), a, sums),
                        _ => multiply::<L, T, 1>((self.block, count, scale_shift), a, sums),
                    }
                }
                row += rows_now;
            }
        }
    }
}

/// The most bytes that groups store together.
const TOGETHER_BYTES_MAX: usize = 80;

impl<T: Format> QuantisedTile<'_, T> {
    /// Unpacks `count` blocks of the sixteen rows from `first` on.
    ///
    /// # Safety
    /// As for every method of `L`; the rows have these blocks, at most BLOCKS_MAX, and `first` is a multiple of that.
    #[inline(always)]
    unsafe fn unpack<L: Lanes>(&self, first: usize, count: usize) {
        for at in (0..count).step_by(T::BLOCKS) {
            let stored = (first + at) / T::BLOCKS;
            // SAFETY: the caller's promise, and the buffers hold BLOCKS_MAX.
            unsafe {
                self.prefetch_next::<L>(stored);
                if at + T::BLOCKS <= count {
                    T::unpack::<L>(self.weights.as_ptr().add(stored * T::BYTES), self.row_bytes, self.block.at(at));
                } else {
                    self.unpack_last::<L>(stored, self.block.at(at));
                }
            }
        }
        if let Some(numbers) = &self.numbers {
            // SAFETY: the caller's promise.
            unsafe { numbers.put::<L>(first, count, self.block) };
        }
    }

    /// Unpacks a row's last blocks, where they are fewer than what is stored together: groups of 32 and 64 end anywhere.
    ///
    /// # Safety
    /// As for every method of `L`, and `to` has room for [`Format::BLOCKS`] blocks.
    #[inline(always)]
    unsafe fn unpack_last<L: Lanes>(&self, stored: usize, to: Block) {
        assert!(T::BYTES <= TOGETHER_BYTES_MAX, "only groups end within what is stored together");
        let mut padded = [[0u8; TOGETHER_BYTES_MAX]; LANES];
        for (row, padded) in self.weights.chunks_exact(self.row_bytes).zip(&mut padded) {
            let last = &row[stored * T::BYTES..];
            padded[..last.len()].copy_from_slice(last);
        }
        // SAFETY: as the caller's; the copies are long enough.
        unsafe { T::unpack::<L>(padded.as_ptr().cast(), TOGETHER_BYTES_MAX, to) }
    }

    /// Asks for a part of the next tile, which follows in memory: sixteen rows are too many for hardware to foresee.
    ///
    /// # Safety
    /// As for every method of `L`.
    #[inline(always)]
    unsafe fn prefetch_next<L: Lanes>(&self, stored: usize) {
        let next = self.weights.as_ptr().wrapping_add(LANES * (self.row_bytes + stored * T::BYTES));
        for line in (0..LANES * T::BYTES).step_by(64) {
            // SAFETY: a hint for any address.
            unsafe { L::prefetch(next.wrapping_add(line)) }
        }
    }
}

#[inline(always)]
fn largest_power_of_two(n: usize) -> usize {
    1 << n.ilog2()
}

/// Activation rows from some row and block on.
#[derive(Clone, Copy)]
struct Rows {
    quants: *const i8,
    scales: *const f32,
    scaled_sums: *const f32,
    half_sums: *const [i32; 2],
    blocks: usize,
}

impl Rows {
    /// # Safety
    /// The row and the block must exist in `x`.
    #[inline(always)]
    unsafe fn new(x: &Activations, row: usize, block: usize, split: bool) -> Rows {
        let quants = if split { &x.split } else { &x.quants };
        let blocks = x.k() / BLOCK;
        let at = row * blocks + block;
        // SAFETY: the caller's promise; `resize` made every buffer hold all rows.
        unsafe {
            Rows {
                quants: quants.as_ptr().add(at * BLOCK),
                scales: x.scales.as_ptr().add(at),
                scaled_sums: x.scaled_sums.as_ptr().add(at),
                half_sums: x.half_sums.as_ptr().add(at),
                blocks,
            }
        }
    }
}

/// Adds the products of `count` unpacked blocks with `R` rows to `sums`, (R, 16): the chain that defines the result. Scales are those of
/// block `b >> scale_shift`.
#[inline(always)]
unsafe fn multiply<L: Lanes, T: Format, const R: usize>((blocks, count, scale_shift): (Block, usize, u32), a: Rows, sums: *mut f32) {
    // SAFETY: the caller vouches for `count` blocks, for `R` rows of them, and for `R` times sixteen sums.
    unsafe {
        let mut acc = [L::splat(0.0); R];
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = L::load(sums.add(r * LANES));
        }
        for b in 0..count {
            let block = Block { scales: blocks.at(b >> scale_shift).scales, ..blocks.at(b) };
            let (mut low, mut high) = ([L::splat_i(0); 4], [L::splat_i(0); 4]);
            for t in 0..4 {
                low[t] = L::load_i(block.weights.add(t * LANES));
                high[t] = L::load_i(block.weights.add((4 + t) * LANES));
            }
            let scale = L::load(block.scales);
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = r * a.blocks + b;
                let total = integer_sum::<L, T>(block, &low, &high, a.quants.add(at * BLOCK), *a.half_sums.add(at));
                *acc = L::fma(L::mul(scale, L::splat(*a.scales.add(at))), L::to_f(total), *acc);
                if T::KIND == Kind::ScaleMin {
                    *acc = L::fma(L::load(block.scales.add(LANES)), L::splat(*a.scaled_sums.add(at)), *acc);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            L::store(sums.add(r * LANES), acc);
        }
    }
}

/// The exact integer sum of one block with one row.
#[inline(always)]
unsafe fn integer_sum<L: Lanes, T: Format>(
    block: Block,
    low: &[L::I; 4],
    high: &[L::I; 4],
    quants: *const i8,
    half_sums: [i32; 2],
) -> L::I {
    let bias = T::bias::<L>();
    // SAFETY: the caller vouches for 32 quants and for the block's scales.
    unsafe {
        if T::KIND == Kind::TwoIntegers {
            let scales = block.scales.cast::<i32>();
            let first = L::dot::<{ lanes::range::SIX_BITS }>(L::splat_i(-bias * half_sums[0]), low, quants);
            let second = L::dot::<{ lanes::range::SIX_BITS }>(L::splat_i(-bias * half_sums[1]), high, quants.add(LANES));
            return L::add_i(L::mul_i(first, L::load_i(scales.add(LANES))), L::mul_i(second, L::load_i(scales.add(2 * LANES))));
        }
        let start = if bias == 0 { 0 } else { -bias * (half_sums[0] + half_sums[1]) };
        let (start, zero) = (L::splat_i(start), L::splat_i(0));
        if T::RANGE == lanes::range::BYTE {
            let first = L::dot::<{ lanes::range::BYTE }>(start, low, quants);
            L::add_i(first, L::dot::<{ lanes::range::BYTE }>(zero, high, quants.add(LANES)))
        } else if T::RANGE == lanes::range::SIX_BITS {
            let first = L::dot::<{ lanes::range::SIX_BITS }>(start, low, quants);
            L::add_i(first, L::dot::<{ lanes::range::SIX_BITS }>(zero, high, quants.add(LANES)))
        } else {
            let first = L::dot::<{ lanes::range::FIVE_BITS }>(start, low, quants);
            L::add_i(first, L::dot::<{ lanes::range::FIVE_BITS }>(zero, high, quants.add(LANES)))
        }
    }
}

/// A row of weights as f32, with the path's instructions.
struct Dequantise<'a> {
    matrix: &'a Matrix,
    row: usize,
    to: &'a mut [f32],
}

impl Op for Dequantise<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        if self.matrix.weight().dtype() != DType::F16 {
            return self.matrix.dequantise_inline(self.row, self.to);
        }
        let (from, from_tail) = self.matrix.weight().row(self.row).as_chunks::<{ 2 * LANES }>();
        let (to, to_tail) = self.to.as_chunks_mut::<LANES>();
        for (from, to) in from.iter().zip(to) {
            // SAFETY: as the caller's; both have sixteen elements.
            unsafe { L::store(to.as_mut_ptr(), L::load_half(from.as_ptr())) };
        }
        dequantise_inline(DType::F16, from_tail, to_tail);
    }
}

/// [`FLOAT_ROWS`] weight rows times all activation rows.
struct FloatTile<'a> {
    weights: &'a [f32], // (FLOAT_ROWS, padded_k), zero beyond k
    padded_k: usize,
    x: &'a Activations,
    sums: &'a mut [f32], // (rows, FLOAT_ROWS), the result
}

impl Op for FloatTile<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (rows, k) = (self.x.rows(), self.x.k());
        assert!(self.weights.len() == FLOAT_ROWS * self.padded_k && self.padded_k >= k && self.sums.len() == rows * FLOAT_ROWS);
        let mut row = 0;
        while row < rows {
            // SAFETY: four or one rows exist from `row` on; weights and sums were checked.
            unsafe {
                let (x, sums) = (self.x.f32().as_ptr().add(row * k), self.sums.as_mut_ptr().add(row * FLOAT_ROWS));
                if rows - row >= 4 && L::ROWS == 8 {
                    float_block::<L, 4, 4>(self.weights.as_ptr(), self.padded_k, x, k, sums);
                    row += 4;
                } else if rows - row >= 2 {
                    float_block::<L, 2, 2>(self.weights.as_ptr(), self.padded_k, x, k, sums);
                    float_block::<L, 2, 2>(self.weights.as_ptr().add(2 * self.padded_k), self.padded_k, x, k, sums.add(2));
                    row += 2;
                } else {
                    float_block::<L, 4, 1>(self.weights.as_ptr(), self.padded_k, x, k, sums);
                    row += 1;
                }
            }
        }
    }
}

/// `W` weight rows times `R` activation rows: sixteen partial sums along K, then the tree.
///
/// # Safety
/// As for `L`; (W, padded_k) weights that are zero beyond `k`, (R, k) activations, and `R` sums [`FLOAT_ROWS`] apart.
#[inline(always)]
unsafe fn float_block<L: Lanes, const W: usize, const R: usize>(w: *const f32, padded_k: usize, x: *const f32, k: usize, sums: *mut f32) {
    // SAFETY: the caller's promise; a tail is copied to a padded array first.
    unsafe {
        let mut acc = [[L::splat(0.0); W]; R];
        let whole = k / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let mut weights = [L::splat(0.0); W];
            for (i, weights) in weights.iter_mut().enumerate() {
                *weights = L::load(w.add(i * padded_k + at));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = L::load(x.add(r * k + at));
                for i in 0..W {
                    acc[i] = L::fma(weights[i], x, acc[i]);
                }
            }
        }
        if whole < k {
            for (r, acc) in acc.iter_mut().enumerate() {
                let mut tail = [0.0; LANES];
                std::ptr::copy_nonoverlapping(x.add(r * k + whole), tail.as_mut_ptr(), k - whole);
                let x = L::load(tail.as_ptr());
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = L::fma(L::load(w.add(i * padded_k + whole)), x, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (i, acc) in acc.iter().enumerate() {
                *sums.add(r * FLOAT_ROWS + i) = L::sum(*acc);
            }
        }
    }
}
