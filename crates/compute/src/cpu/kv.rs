//! How keys and values are stored: blocks of 64 tokens for all layers, contiguous.
//!
//! A row is the key (or value) of one token for one KV head. Rows are rounded once, on storing; attention reads what is stored.

use crate::Error;
use half::f16;
use std::fmt;
use std::str::FromStr;

/// Tokens in one block of KV.
pub const KV_BLOCK_TOKENS: usize = 64;

/// Elements that share a scale in [`KvDType::Q8`].
const Q8_GROUP: usize = 32;

/// A block is a multiple of this, so that it maps on 4 K and on 16 K pages.
const BLOCK_GRANULE_BYTES: usize = 16 * 1024;

/// The element type of stored keys and values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum KvDType {
    /// IEEE half precision.
    #[default]
    F16,
    /// IEEE single precision.
    F32,
    /// One byte an element, and an f16 scale for every 32 of a row, after the row's quants.
    Q8,
}

impl KvDType {
    /// Every KV element type, for tables and tests.
    pub const ALL: [KvDType; 3] = [KvDType::F16, KvDType::F32, KvDType::Q8];

    /// Bytes of one row of `head_dim` elements.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            KvDType::F16 => 2 * head_dim,
            KvDType::F32 => 4 * head_dim,
            KvDType::Q8 => head_dim + 2 * head_dim.div_ceil(Q8_GROUP),
        }
    }

    /// The name that users and files know it by.
    pub const fn name(self) -> &'static str {
        match self {
            KvDType::F16 => "f16",
            KvDType::F32 => "f32",
            KvDType::Q8 => "q8",
        }
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvDType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown = || Error::UnknownName { what: "KV type", given: name.to_owned(), known: "f16, f32, q8" };
        Self::ALL.into_iter().find(|d| d.name() == name).ok_or_else(unknown)
    }
}

/// Where each row stands in a block: (layer, k_or_v, kv_head, token, row).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvLayout {
    /// Layers of the model.
    pub layers: usize,
    /// KV heads of each layer.
    pub kv_heads: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// How they are stored.
    pub dtype: KvDType,
}

impl KvLayout {
    /// Bytes of one row.
    pub const fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.head_dim)
    }

    /// Bytes of one token's keys and values in all layers, without padding.
    pub const fn token_bytes(&self) -> usize {
        self.layers * 2 * self.kv_heads * self.row_bytes()
    }

    /// Bytes of one block, rounded up to 16 KiB.
    pub const fn block_bytes(&self) -> usize {
        (self.token_bytes() * KV_BLOCK_TOKENS).next_multiple_of(BLOCK_GRANULE_BYTES)
    }

    /// Where in its block the row of `token` (0 to 63) begins; `kv` is 0 for the key and 1 for the value.
    pub const fn row_offset(&self, layer: usize, kv: usize, head: usize, token: usize) -> usize {
        (((layer * 2 + kv) * self.kv_heads + head) * KV_BLOCK_TOKENS + token) * self.row_bytes()
    }
}

/// Stores one row, rounding it to `dtype`.
///
/// # Panics
/// If `dst` is not exactly one row.
pub fn store_kv_row(dtype: KvDType, src: &[f32], dst: &mut [u8]) {
    assert_eq!(dst.len(), dtype.row_bytes(src.len()), "one row");
    match dtype {
        KvDType::F32 => dst.chunks_exact_mut(4).zip(src).for_each(|(d, s)| d.copy_from_slice(&s.to_le_bytes())),
        KvDType::F16 => dst.chunks_exact_mut(2).zip(src).for_each(|(d, s)| d.copy_from_slice(&f16::from_f32(*s).to_le_bytes())),
        KvDType::Q8 => store_q8(src, dst),
    }
}

fn store_q8(src: &[f32], dst: &mut [u8]) {
    let (quants, scales) = dst.split_at_mut(src.len());
    for ((group, quants), scale_bytes) in src.chunks(Q8_GROUP).zip(quants.chunks_mut(Q8_GROUP)).zip(scales.chunks_exact_mut(2)) {
        let largest = group.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = f16::from_f32((largest / 127.0).min(65504.0));
        scale_bytes.copy_from_slice(&scale.to_le_bytes());
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        for (q, x) in quants.iter_mut().zip(group) {
            *q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        }
    }
}

/// Reads one row back as f32.
///
/// # Panics
/// If `src` is not exactly one row.
pub fn load_kv_row(dtype: KvDType, src: &[u8], dst: &mut [f32]) {
    assert_eq!(src.len(), dtype.row_bytes(dst.len()), "one row");
    match dtype {
        KvDType::F32 => src.chunks_exact(4).zip(dst).for_each(|(s, d)| *d = f32::from_le_bytes([s[0], s[1], s[2], s[3]])),
        KvDType::F16 => src.chunks_exact(2).zip(dst).for_each(|(s, d)| *d = f16::from_le_bytes([s[0], s[1]]).to_f32()),
        KvDType::Q8 => {
            let (quants, scales) = src.split_at(dst.len());
            for (i, (d, q)) in dst.iter_mut().zip(quants).enumerate() {
                let s = &scales[i / Q8_GROUP * 2..][..2];
                *d = f32::from(*q as i8) * f16::from_le_bytes([s[0], s[1]]).to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_close_as_their_type_allows() {
        for (dtype, tolerance) in [(KvDType::F32, 0.0), (KvDType::F16, 5e-4), (KvDType::Q8, 5e-3)] {
            for head_dim in [16, 32, 48, 64, 256] {
                let row: Vec<f32> = (0..head_dim).map(|i| (i as f32 * 0.7).sin()).collect();
                let mut bytes = vec![0; dtype.row_bytes(head_dim)];
                store_kv_row(dtype, &row, &mut bytes);
                let mut back = vec![f32::NAN; head_dim];
                load_kv_row(dtype, &bytes, &mut back);
                assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() <= tolerance), "{dtype} {head_dim}");
            }
        }
    }

    #[test]
    fn extremes_stay_finite() {
        for row in [[0.0f32; 32], [1e30; 32], [-1e-30; 32]] {
            let mut bytes = vec![0; KvDType::Q8.row_bytes(32)];
            store_kv_row(KvDType::Q8, &row, &mut bytes);
            let mut back = [f32::NAN; 32];
            load_kv_row(KvDType::Q8, &bytes, &mut back);
            assert!(back.iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn blocks_are_whole_granules_and_rows_stay_inside() {
        let layout = KvLayout { layers: 30, kv_heads: 3, head_dim: 64, dtype: KvDType::F16 };
        assert_eq!(layout.token_bytes(), 23_040);
        assert_eq!(layout.block_bytes() % BLOCK_GRANULE_BYTES, 0);
        assert!(layout.row_offset(29, 1, 2, 63) + layout.row_bytes() <= layout.block_bytes());
        assert!("f64".parse::<KvDType>().is_err());
        assert!(KvDType::ALL.into_iter().all(|d| d.to_string().parse() == Ok(d)));
    }
}
