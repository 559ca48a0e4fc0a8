//! How elements are stored: plain floats and integers, and GGML's quantised blocks.
//!
//! Block layouts follow GGML's `ggml-common.h` (as documented in the GGUF specification): each block of `block_len`
//! consecutive elements of a row takes `block_bytes` bytes. All numbers are little-endian.

use std::fmt;

/// An element type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(non_camel_case_types)] // GGML's names are what users know
pub enum DType {
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// Unsigned 32-bit integers (token ids).
    U32,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// 32 elements: f16 scale, 32 i8.
    Q8_0,
    /// 32 elements: f16 scale, 32 nibbles offset by 8.
    Q4_0,
    /// 32 elements: f16 scale, f16 minimum, 32 nibbles.
    Q4_1,
    /// 32 elements: f16 scale, 32 high bits, 32 nibbles, offset by 16.
    Q5_0,
    /// 32 elements: f16 scale, f16 minimum, 32 high bits, 32 nibbles.
    Q5_1,
    /// 256 elements: f16 scale, f16 scale of minima, 8 six-bit scales and minima, nibbles.
    Q4_K,
    /// 256 elements: as `Q4_K`, with one more bit an element.
    Q5_K,
    /// 256 elements: low nibbles, high bit pairs, 16 i8 scales, f16 scale.
    Q6_K,
    /// A row of unsigned 2-bit integers as one stream of bits, the lowest first: MLX's quants, whose scales and biases are tensors of
    /// their own. Eight of them take two bytes; so with the widths that follow. MLX's 8-bit quants are [`DType::U8`].
    U2,
    /// As [`DType::U2`], of 3 bits.
    U3,
    /// As [`DType::U2`], of 4 bits.
    U4,
    /// As [`DType::U2`], of 5 bits.
    U5,
    /// As [`DType::U2`], of 6 bits.
    U6,
}

impl DType {
    /// Every element type, for tables and tests.
    pub const ALL: [DType; 19] = [
        DType::U8,
        DType::I8,
        DType::U32,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::U2,
        DType::U3,
        DType::U4,
        DType::U5,
        DType::U6,
    ];

    /// Elements that are stored together.
    pub const fn block_len(self) -> usize {
        match self {
            DType::U8 | DType::I8 | DType::U32 | DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::U2 | DType::U3 | DType::U4 | DType::U5 | DType::U6 => 8,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => 32,
            DType::Q4_K | DType::Q5_K | DType::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::U8 | DType::I8 => 1,
            DType::F16 | DType::BF16 | DType::U2 => 2,
            DType::U3 => 3,
            DType::U32 | DType::F32 | DType::U4 => 4,
            DType::U5 => 5,
            DType::U6 => 6,
            DType::Q8_0 => 34,
            DType::Q4_0 => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q4_K => 144,
            DType::Q5_K => 176,
            DType::Q6_K => 210,
        }
    }

    /// Bytes of `len` consecutive elements, or `None` if `len` is no whole number of blocks or the product overflows.
    pub const fn bytes_of(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether elements share scales that stand in their blocks.
    pub const fn is_quantised(self) -> bool {
        self.block_len() >= 32
    }

    /// Unsigned integers of 2, 3, 4, 5, 6 or 8 bits: what MLX's groups hold.
    pub const fn unsigned(bits: usize) -> Option<DType> {
        match bits {
            2 => Some(DType::U2),
            3 => Some(DType::U3),
            4 => Some(DType::U4),
            5 => Some(DType::U5),
            6 => Some(DType::U6),
            8 => Some(DType::U8),
            _ => None,
        }
    }

    /// The bits of an element of [`DType::unsigned`].
    pub const fn unsigned_bits(self) -> Option<usize> {
        match self {
            DType::U2 | DType::U3 | DType::U4 | DType::U5 | DType::U6 | DType::U8 => Some(self.block_bytes() * 8 / self.block_len()),
            _ => None,
        }
    }

    /// The name that users and files know it by.
    pub const fn name(self) -> &'static str {
        match self {
            DType::U8 => "U8",
            DType::I8 => "I8",
            DType::U32 => "U32",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::Q8_0 => "Q8_0",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q5_0 => "Q5_0",
            DType::Q5_1 => "Q5_1",
            DType::Q4_K => "Q4_K",
            DType::Q5_K => "Q5_K",
            DType::Q6_K => "Q6_K",
            DType::U2 => "U2",
            DType::U3 => "U3",
            DType::U4 => "U4",
            DType::U5 => "U5",
            DType::U6 => "U6",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
