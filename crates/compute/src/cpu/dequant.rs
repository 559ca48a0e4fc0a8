//! From stored elements to f32, plainly: the reference that every other kernel is tested against.
//!
//! Block layouts are GGML's (`ggml-common.h`); all numbers are little-endian.

use driftwood_region::DType;

/// Reads the f16 at `at`. Without branches, so that loops of it can be vectorised, and without subnormal f32, which are slow.
#[inline(always)]
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    let x = u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let magnitude = x & 0x7fff;
    // The exponent's bias moves by 112, and by another 112 for infinities and NaN; subnormals are fractions counted in 2^-24.
    let bias = if magnitude >= 0x7c00 { 224 << 23 } else { 112 << 23 };
    let normal = (magnitude << 13) + bias;
    let subnormal = (f32::from_bits(magnitude | 0.5f32.to_bits()) - 0.5).to_bits();
    f32::from_bits(if magnitude < 0x400 { subnormal } else { normal } | (x & 0x8000) << 16)
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
    dequantise_inline(dtype, bytes, out);
}

/// [`dequantise_row`], to be compiled into callers that have more instructions. The bits are the same: nothing is fused.
#[inline(always)]
pub(crate) fn dequantise_inline(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), dtype.bytes_of(out.len()), "{} elements of {dtype}", out.len());
    match dtype {
        DType::F32 => bytes.as_chunks::<4>().0.iter().zip(out).for_each(|(b, x)| *x = f32::from_le_bytes(*b)),
        DType::F16 => bytes.as_chunks::<2>().0.iter().zip(out).for_each(|(b, x)| *x = half_at(b, 0)),
        DType::BF16 => {
            bytes.as_chunks::<2>().0.iter().zip(out).for_each(|(b, x)| *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
        }
        DType::Q8_0 => blocks::<34, 32>(bytes, out, |block, out| {
            let d = half_at(block, 0);
            (0..32).for_each(|i| out[i] = f32::from(block[2 + i] as i8) * d);
        }),
        DType::Q4_0 => blocks::<18, 32>(bytes, out, |block, out| nibbles(&block[2..18], 0, -8.0, half_at(block, 0), None, out)),
        DType::Q4_1 => blocks::<20, 32>(bytes, out, |block, out| {
            nibbles(&block[4..20], 0, 0.0, half_at(block, 0), Some(half_at(block, 2)), out);
        }),
        DType::Q5_0 => blocks::<22, 32>(bytes, out, |block, out| {
            let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
            nibbles(&block[6..22], high, -16.0, half_at(block, 0), None, out);
        }),
        DType::Q5_1 => blocks::<24, 32>(bytes, out, |block, out| {
            let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
            nibbles(&block[8..24], high, 0.0, half_at(block, 0), Some(half_at(block, 2)), out);
        }),
        DType::Q4_K => blocks::<144, 256>(bytes, out, |block, out| nibbles_k(dtype, block, out)),
        DType::Q5_K => blocks::<176, 256>(bytes, out, |block, out| nibbles_k(dtype, block, out)),
        DType::Q6_K => blocks::<210, 256>(bytes, out, |block, out| q6_k(block, out)),
        DType::U8 | DType::I8 | DType::U32 | DType::U2 | DType::U3 | DType::U4 | DType::U5 | DType::U6 => {
            panic!("{dtype} holds integers, not weights")
        }
    }
}

/// The numbers of a row of MLX's groups: one of each a group, as stored in `dtype`.
#[derive(Clone, Copy)]
pub(crate) struct Numbers<'a> {
    pub dtype: DType,
    pub scales: &'a [u8],
    pub biases: &'a [u8],
}

/// MLX's affine groups of unsigned integers: `q * scale + bias`, neither fused.
///
/// # Panics
/// If the lengths do not fit, or if `dtype` is not of [`DType::unsigned`].
#[inline(always)]
pub(crate) fn dequantise_groups(dtype: DType, group: usize, stored: &[u8], numbers: Numbers<'_>, out: &mut [f32]) {
    let groups = out.len() / group;
    assert!(out.len() == groups * group && Some(stored.len()) == dtype.bytes_of(out.len()), "{} elements of {dtype}", out.len());
    assert!(
        Some(numbers.scales.len()) == numbers.dtype.bytes_of(groups) && numbers.biases.len() == numbers.scales.len(),
        "{groups} groups"
    );
    match dtype {
        DType::U2 => groups_of::<2>(group, stored, numbers, out),
        DType::U3 => groups_of::<3>(group, stored, numbers, out),
        DType::U4 => groups_of::<4>(group, stored, numbers, out),
        DType::U5 => groups_of::<5>(group, stored, numbers, out),
        DType::U6 => groups_of::<6>(group, stored, numbers, out),
        DType::U8 => groups_of::<8>(group, stored, numbers, out),
        _ => panic!("{dtype} has no groups"),
    }
}

/// Groups of `BITS` bits: eight elements take `BITS` bytes.
#[inline(always)]
fn groups_of<const BITS: usize>(group: usize, stored: &[u8], numbers: Numbers<'_>, out: &mut [f32]) {
    let bytes = numbers.dtype.block_bytes();
    let number = |stored: &[u8], group: usize| {
        let mut x = [0.0];
        dequantise_inline(numbers.dtype, &stored[group * bytes..][..bytes], &mut x);
        x[0]
    };
    for (i, (stored, out)) in stored.chunks_exact(group / 8 * BITS).zip(out.chunks_exact_mut(group)).enumerate() {
        let (scale, bias) = (number(numbers.scales, i), number(numbers.biases, i));
        for (eight, out) in stored.as_chunks::<BITS>().0.iter().zip(out.as_chunks_mut::<8>().0) {
            let mut bits = [0; 8];
            bits[..BITS].copy_from_slice(eight);
            let bits = u64::from_le_bytes(bits);
            (0..8).for_each(|j| out[j] = f32::from((bits >> (j * BITS)) as u8 & (0xff >> (8 - BITS))) * scale + bias);
        }
    }
}

/// Calls `each` with every block and its elements.
#[inline(always)]
fn blocks<const BYTES: usize, const LEN: usize>(bytes: &[u8], out: &mut [f32], each: impl Fn(&[u8; BYTES], &mut [f32; LEN])) {
    bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0).for_each(|(block, out)| each(block, out));
}

/// 32 elements: low nibbles first, then high ones, with a fifth bit each from `high`: `(q + bias) * d`, and `+ m` where there is one.
#[inline(always)]
fn nibbles(packed: &[u8], high: u32, bias: f32, d: f32, m: Option<f32>, out: &mut [f32; 32]) {
    let packed: &[u8; 16] = packed.first_chunk().expect("sixteen bytes");
    // Four short loops over integers, each of which compilers vectorise.
    let mut q = [0i32; 32];
    (0..16).for_each(|i| q[i] = i32::from(packed[i] & 15));
    (0..16).for_each(|i| q[16 + i] = i32::from(packed[i] >> 4));
    if high != 0 {
        (0..32).for_each(|i| q[i] |= ((high >> i & 1) << 4) as i32);
    }
    (0..32).for_each(|i| out[i] = q[i] as f32);
    match m {
        Some(m) => out.iter_mut().for_each(|x| *x = *x * d + m),
        None => out.iter_mut().for_each(|x| *x = (*x + bias) * d),
    }
}

/// One block of 256 elements of `Q4_K` or `Q5_K`.
#[inline(always)]
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
#[inline(always)]
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
    use half::f16;

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
    fn groups_spelled_out_by_hand() {
        // Word 0 is 0x76543210: nibble i of a word is element i. The second group has the bias alone.
        let words = [&0x7654_3210u32.to_le_bytes()[..], &[0xf8; 28], &[0; 32]].concat();
        let f16s = |a: f32, b: f32| [f16::from_f32(a).to_le_bytes(), f16::from_f32(b).to_le_bytes()].concat();
        let mut out = [f32::NAN; 128];
        let mut groups = |dtype, scales: &[u8], biases: &[u8]| {
            dequantise_groups(DType::U4, 64, &words, Numbers { dtype, scales, biases }, &mut out);
            out
        };
        let out = groups(DType::F16, &f16s(0.5, 3.0), &f16s(-2.0, 0.25));
        assert_eq!(out[..10], [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 5.5]);
        assert_eq!(out[64..], [0.25; 64]);
        let bf16s = |a: f32, b: f32| [half::bf16::from_f32(a).to_le_bytes(), half::bf16::from_f32(b).to_le_bytes()].concat();
        let out = groups(DType::BF16, &bf16s(-1.0, 3.0), &bf16s(8.0, -0.5));
        assert_eq!((out[0], out[7], out[9], out[64]), (8.0, 1.0, -7.0, -0.5));
    }

    #[test]
    fn groups_of_every_width_are_one_stream_of_bits() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let dtype = DType::unsigned(bits).unwrap();
            for group in [32, 64, 128] {
                let k = 2 * group;
                // Element i, spelled out bit by bit.
                let q = |i: usize| (i * 37 + 11) % (1 << bits);
                let mut stored = vec![0u8; dtype.bytes_of(k).unwrap()];
                (0..k * bits).filter(|at| q(at / bits) >> (at % bits) & 1 == 1).for_each(|at| stored[at / 8] |= 1 << (at % 8));
                let scales: Vec<u8> = [0.5f32, -3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
                let biases: Vec<u8> = [-1.0f32, 0.25].iter().flat_map(|x| x.to_le_bytes()).collect();
                let mut out = vec![f32::NAN; k];
                dequantise_groups(dtype, group, &stored, Numbers { dtype: DType::F32, scales: &scales, biases: &biases }, &mut out);
                let right = |i: usize| if i < group { q(i) as f32 * 0.5 - 1.0 } else { q(i) as f32 * -3.0 + 0.25 };
                assert!((0..k).all(|i| out[i] == right(i)), "{dtype} in groups of {group}: {out:?}");
            }
        }
    }

    #[test]
    fn every_half_is_read_as_it_is() {
        for x in 0..=u16::MAX {
            let (got, right) = (half_at(&x.to_le_bytes(), 0), f16::from_bits(x).to_f32());
            assert!(got.to_bits() == right.to_bits() || got.is_nan() && right.is_nan(), "{x:#x}: {got} {right}");
        }
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
