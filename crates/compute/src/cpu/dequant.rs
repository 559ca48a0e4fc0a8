//! From stored elements to f32, plainly: the reference that every other kernel is tested against.
//!
//! Block layouts are GGML's (`ggml-common.h`); all numbers are little-endian.

use driftwood_region::DType;
use half::{bf16, f16};

/// Reads the f16 at `at`.
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The six-bit scale and minimum of sub-block `j` of a `Q4_K` or `Q5_K` block, from its twelve packed bytes.
#[inline(always)]
pub(crate) fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4))
    }
}

/// Writes the elements of one row (or of any whole number of blocks) to `out`.
///
/// # Panics
/// If `bytes` is not exactly what `out.len()` elements take, or if `dtype` holds integers.
pub fn dequantise_row(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), dtype.bytes_of(out.len()), "{} elements of {dtype}", out.len());
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    match dtype {
        DType::F32 => blocks.zip(out).for_each(|(b, x)| *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DType::F16 => blocks.zip(out).for_each(|(b, x)| *x = half_at(b, 0)),
        DType::BF16 => blocks.zip(out).for_each(|(b, x)| *x = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => {
            let (block32, _) = out.as_chunks_mut::<32>();
            blocks.zip(block32).for_each(|(b, x)| small_block(dtype, b, x));
        }
        DType::Q4_K | DType::Q5_K => {
            let (block256, _) = out.as_chunks_mut::<256>();
            blocks.zip(block256).for_each(|(b, x)| nibbles_k(dtype, b, x));
        }
        DType::Q6_K => {
            let (block256, _) = out.as_chunks_mut::<256>();
            blocks.zip(block256).for_each(|(b, x)| q6_k(b, x));
        }
        DType::U8 | DType::I8 | DType::U32 => panic!("{dtype} holds integers, not weights"),
    }
}

/// One block of 32 elements.
fn small_block(dtype: DType, block: &[u8], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    match dtype {
        DType::Q8_0 => (0..32).for_each(|i| out[i] = f32::from(block[2 + i] as i8) * d),
        DType::Q4_0 => nibbles(&block[2..18], 0, |i, q| out[i] = (f32::from(q) - 8.0) * d),
        DType::Q4_1 => {
            let m = half_at(block, 2);
            nibbles(&block[4..20], 0, |i, q| out[i] = f32::from(q) * d + m);
        }
        DType::Q5_0 => {
            let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
            nibbles(&block[6..22], high, |i, q| out[i] = (f32::from(q) - 16.0) * d);
        }
        _ => {
            let m = half_at(block, 2);
            let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
            nibbles(&block[8..24], high, |i, q| out[i] = f32::from(q) * d + m);
        }
    }
}

/// Calls `each` with the index and value of 32 elements: low nibbles first, then high ones, with a fifth bit each from `high`.
#[inline(always)]
fn nibbles(packed: &[u8], high: u32, mut each: impl FnMut(usize, u8)) {
    for i in 0..16 {
        each(i, (packed[i] & 15) | ((high >> i & 1) << 4) as u8);
        each(i + 16, (packed[i] >> 4) | ((high >> (i + 16) & 1) << 4) as u8);
    }
}

/// One block of 256 elements of `Q4_K` or `Q5_K`.
fn nibbles_k(dtype: DType, block: &[u8], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (high, low) = if dtype == DType::Q5_K { (Some(&block[16..48]), &block[48..]) } else { (None, &block[16..]) };
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(&block[4..16], j);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        for (i, x) in out.iter_mut().enumerate() {
            let nibble = low[j / 2 * 32 + i] >> (j % 2 * 4) & 15;
            let fifth = high.map_or(0, |h| (h[i] >> j & 1) << 4);
            *x = d * f32::from(nibble | fifth) - m;
        }
    }
}

/// One block of 256 elements of `Q6_K`.
fn q6_k(block: &[u8], out: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (high, scales) = rest.split_at(64);
    let d = half_at(block, 208);
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (j / 4, j % 4);
        for (i, x) in out.iter_mut().enumerate() {
            let nibble = low[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
            let pair = (high[half * 32 + i] >> (2 * quarter) & 3) << 4;
            let scale = f32::from(scales[2 * j + i / 16] as i8);
            *x = d * scale * (f32::from(nibble | pair) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_spelled_out_by_hand() {
        let half = |x: f32| f16::from_f32(x).to_le_bytes();
        let mut out = [f32::NAN; 32];
        let q4_1 = [&half(0.5)[..], &half(-1.0), &[0x2f; 16]].concat();
        dequantise_row(DType::Q4_1, &q4_1, &mut out);
        assert_eq!((out[0], out[15], out[16], out[31]), (6.5, 6.5, 0.0, 0.0));
        let q5_0 = [&half(2.0)[..], &0x8000_0001u32.to_le_bytes(), &[0x10; 16]].concat();
        dequantise_row(DType::Q5_0, &q5_0, &mut out);
        assert_eq!((out[0], out[1], out[16], out[31]), (0.0, -32.0, -30.0, 2.0));
        let q8_0 = [&half(0.25)[..], &[0x80; 32]].concat();
        dequantise_row(DType::Q8_0, &q8_0, &mut out);
        assert_eq!(out, [-32.0; 32]);
    }

    #[test]
    fn packed_scales_keep_six_bits() {
        // Sub-block 5: scale low nibble and high pair, minimum low nibble and high pair, as ggml's get_scale_min_k4 has it.
        let mut packed = [0u8; 12];
        (packed[1], packed[5], packed[9]) = (0b1000_0000, 0b0100_0000, 0x3a);
        assert_eq!(scale_min(&packed, 5), (0x2a, 0x13));
        assert_eq!(scale_min(&packed, 1), (0, 0));
    }

    #[test]
    fn k_blocks_read_every_element() {
        for dtype in [DType::Q4_K, DType::Q5_K, DType::Q6_K] {
            let bytes: Vec<u8> = (0..dtype.block_bytes()).map(|i| (i * 37 % 61) as u8).collect();
            let mut out = [f32::NAN; 256];
            dequantise_row(dtype, &bytes, &mut out);
            assert!(out.iter().all(|x| x.is_finite()), "{dtype}");
        }
    }
}
