//! Random weights: some millions of numbers, stored once in the wanted format; a row of a tensor is a stretch of them.
//!
//! Where a row begins depends on the seed, its tensor's name and its own number, so a row can be written by whoever comes to it, in any
//! order, at the speed of copying.

use super::Format;
use half::{bf16, f16};

/// Numbers that there are (a power of two): 8 MB as bf16.
const POOL_LEN: usize = 1 << 22;
/// Rows begin at multiples of this, so that they are whole blocks of every format.
const START_LEN: usize = 256;
/// The standard deviation of the weights.
const DEVIATION: f32 = 0.02;

/// Stored numbers of one kind: the elements themselves, or the scales of their groups.
#[derive(Debug)]
pub struct Plane {
    pub bytes: Vec<u8>, // (POOL_LEN / block_len, block_bytes)
    pub block_len: usize,
    pub block_bytes: usize,
}

/// The weights of one seed in one format.
#[derive(Debug)]
pub struct Weights {
    pub format: Format,
    seed: u64,
    values: Vec<f32>, // (POOL_LEN)
    pub elements: Plane,
    /// MLX's scales and biases.
    pub groups: Option<[Plane; 2]>,
}

impl Weights {
    /// Numbers of a bell-shaped distribution.
    pub fn new(format: Format, seed: u64) -> Weights {
        let values: Vec<f32> = (0..POOL_LEN as u64).map(|i| bell(mix(seed ^ mix(i)))).collect();
        let mut groups = None;
        let elements = match format {
            Format::Bf16 => Plane::of(&values, 1, |x| bf16::from_f32(x[0]).to_le_bytes().to_vec()),
            Format::Q8_0 => Plane::of(&values, 32, q8_0),
            Format::Q4_0 => Plane::of(&values, 32, q4_0),
            Format::Q4_1 => Plane::of(&values, 32, q4_1),
            Format::Mlx { bits, group } => {
                let scales = Plane::of(&values, group, |x| scale(x, bits).to_le_bytes().to_vec());
                groups = Some([scales, Plane::of(&values, group, |x| bias(x).to_le_bytes().to_vec())]);
                Plane::of(&values, group, |x| mlx(x, bits))
            }
        };
        Weights { format, seed, values, elements, groups }
    }

    /// What tells a tensor's rows from another's.
    pub fn tensor_seed(&self, name: &str) -> u64 {
        name.bytes().fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte)))
    }

    /// The weight of a norm or a bias: around `middle`, rounded to bf16.
    pub fn vector(&self, name: &str, len: usize, middle: f32) -> Vec<bf16> {
        let start = start(self.tensor_seed(name), 0, len);
        self.values[start..][..len].iter().map(|x| bf16::from_f32(middle + x)).collect()
    }
}

impl Plane {
    fn of(values: &[f32], block_len: usize, store: impl Fn(&[f32]) -> Vec<u8>) -> Plane {
        let bytes: Vec<u8> = values.chunks_exact(block_len).flat_map(store).collect();
        let block_bytes = bytes.len() * block_len / values.len();
        Plane { bytes, block_len, block_bytes }
    }

    /// The stored bytes of row `row` of a tensor.
    pub fn row(&self, tensor_seed: u64, row: usize, row_len: usize) -> &[u8] {
        &self.bytes[self.bytes_of(start(tensor_seed, row, row_len))..][..self.bytes_of(row_len)]
    }

    /// Bytes of a row.
    pub fn bytes_of(&self, row_len: usize) -> usize {
        row_len / self.block_len * self.block_bytes
    }
}

/// Where a row begins.
fn start(tensor_seed: u64, row: usize, row_len: usize) -> usize {
    let starts = (POOL_LEN - row_len) / START_LEN;
    mix(tensor_seed ^ row as u64) as usize % starts * START_LEN
}

/// SplitMix64's finaliser.
fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sum of four uniform numbers, of variance 4 / 12.
fn bell(random: u64) -> f32 {
    let sum: u32 = (0..4).map(|i| (random >> (16 * i) & 0xffff) as u32).sum();
    (sum as f32 / 65_536.0 - 2.0) * 3f32.sqrt() * DEVIATION
}

/// GGML's: an f16 scale, 32 signed bytes.
fn q8_0(x: &[f32]) -> Vec<u8> {
    let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let numbers = x.iter().map(|x| (x / scale).round() as i8 as u8);
    f16::from_f32(scale).to_le_bytes().into_iter().chain(numbers).collect()
}

/// GGML's: an f16 scale, 32 nibbles offset by 8. The largest magnitude becomes -8.
fn q4_0(x: &[f32]) -> Vec<u8> {
    let largest = x.iter().fold(0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    let scale = largest / -8.0;
    let nibbles = halves_as_nibbles(x, |x| (x / scale + 8.5).clamp(0.0, 15.0) as u8);
    f16::from_f32(scale).to_le_bytes().into_iter().chain(nibbles).collect()
}

/// GGML's: an f16 scale and minimum, 32 nibbles.
fn q4_1(x: &[f32]) -> Vec<u8> {
    let (least, most) = range(x);
    let scale = (most - least) / 15.0;
    let nibbles = halves_as_nibbles(x, |x| ((x - least) / scale + 0.5).clamp(0.0, 15.0) as u8);
    [scale, least].into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).chain(nibbles).collect()
}

/// GGML's order of nibbles: the first half of a block in the low ones.
fn halves_as_nibbles(x: &[f32], nibble: impl Fn(f32) -> u8) -> Vec<u8> {
    let (low, high) = x.split_at(x.len() / 2);
    low.iter().zip(high).map(|(low, high)| nibble(*low) | nibble(*high) << 4).collect()
}

/// MLX's: one stream of bits, the lowest first.
fn mlx(x: &[f32], bits: usize) -> Vec<u8> {
    let (scale, bias) = (scale(x, bits).to_f32(), bias(x).to_f32());
    let most = ((1u32 << bits) - 1) as f32;
    let number = |x: f32| ((x - bias) / scale).round().clamp(0.0, most) as u64;
    let pack = |x: &[f32]| x.iter().rev().fold(0, |pack, x| pack << bits | number(*x)).to_le_bytes();
    x.chunks_exact(8).flat_map(|x| pack(x).into_iter().take(bits)).collect()
}

fn scale(x: &[f32], bits: usize) -> bf16 {
    bf16::from_f32((range(x).1 - bias(x).to_f32()) / ((1u32 << bits) - 1) as f32)
}

fn bias(x: &[f32]) -> bf16 {
    bf16::from_f32(range(x).0)
}

/// The least and the largest.
fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(least, most), x| (least.min(*x), most.max(*x)))
}
