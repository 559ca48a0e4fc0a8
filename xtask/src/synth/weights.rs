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
            Format::Bf16 => Plane::of::<1, 2>(&values, |[x]| bf16::from_f32(*x).to_le_bytes()),
            Format::Q8_0 => Plane::of(&values, q8_0),
            Format::Q4_0 => Plane::of(&values, q4_0),
            Format::Mlx4 => {
                groups = Some([0, 1].map(|which| Plane::of::<64, 2>(&values, |x| [scale, bias][which](x).to_le_bytes())));
                Plane::of(&values, mlx4)
            }
        };
        Weights { format, seed, values, elements, groups }
    }

    /// What tells a tensor's rows from another's.
    pub fn tensor_seed(&self, name: &str) -> u64 {
        name.bytes().fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte)))
    }

    /// The weight of a norm: around 1, rounded to bf16.
    pub fn norm(&self, name: &str, len: usize) -> Vec<bf16> {
        let start = start(self.tensor_seed(name), 0, len);
        self.values[start..][..len].iter().map(|x| bf16::from_f32(1.0 + x)).collect()
    }
}

impl Plane {
    fn of<const LEN: usize, const BYTES: usize>(values: &[f32], store: impl Fn(&[f32; LEN]) -> [u8; BYTES]) -> Plane {
        let bytes = values.as_chunks::<LEN>().0.iter().flat_map(store).collect();
        Plane { bytes, block_len: LEN, block_bytes: BYTES }
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
fn q8_0(x: &[f32; 32]) -> [u8; 34] {
    let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (x, byte) in x.iter().zip(&mut block[2..]) {
        *byte = (x / scale).round() as i8 as u8;
    }
    block
}

/// GGML's: an f16 scale, 32 nibbles offset by 8, the low ones first. The largest magnitude becomes -8.
fn q4_0(x: &[f32; 32]) -> [u8; 18] {
    let largest = x.iter().fold(0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    let scale = largest / -8.0;
    let nibble = |x: f32| (x / scale + 8.5).clamp(0.0, 15.0) as u8;
    let mut block = [0; 18];
    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (i, byte) in block[2..].iter_mut().enumerate() {
        *byte = nibble(x[i]) | nibble(x[16 + i]) << 4;
    }
    block
}

/// MLX's: 64 nibbles, the low one of a byte first.
fn mlx4(x: &[f32; 64]) -> [u8; 32] {
    let (scale, bias) = (scale(x).to_f32(), bias(x).to_f32());
    let nibble = |x: f32| ((x - bias) / scale).round().clamp(0.0, 15.0) as u8;
    std::array::from_fn(|i| nibble(x[2 * i]) | nibble(x[2 * i + 1]) << 4)
}

fn scale(x: &[f32; 64]) -> bf16 {
    let largest = x.iter().copied().fold(f32::MIN, f32::max);
    bf16::from_f32((largest - bias(x).to_f32()) / 15.0)
}

fn bias(x: &[f32; 64]) -> bf16 {
    bf16::from_f32(x.iter().copied().fold(f32::MAX, f32::min))
}
