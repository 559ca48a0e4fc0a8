//! Weights on their way to the device: rows as files store them become tiles that a subgroup loads with whole, adjacent reads.
//!
//! A *row tile* is 16 outputs. K, the elements of a row, is padded with zeros to a multiple of 256.
//! - `F16`: for each (row tile, 16 of K) 256 f16, row by row.
//! - `Q4`: for each (row tile, 32 of K, row) four words. Of the row's eight quads of elements, words 0 and 1 hold quads (0, 2) and (4, 6),
//!   words 2 and 3 hold (1, 3) and (5, 7). A quad's elements 0 and 1 stand in the low nibbles of the word's two halves, elements 2
//!   and 3 in the nibbles above, and the second quad's likewise a byte higher. Scales: one word, (f16 d, f16 m): w = q d + m.
//! - `Q8`: for each (row tile, 32 of K, row) eight words, a quad each: 0, 2, 4, 6, 1, 3, 5, 7; the bytes of a quad are its elements 0,
//!   2, 1, 3. Scales: two words, for the first and the second 16 elements.

use super::super::GpuError;
use crate::Matrix;
use crate::cpu::dequant::{half_at, scale_min};
use driftwood_region::{DType, View};
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use std::ops::Range;

/// Outputs of a row tile.
pub const TILE_ROWS: usize = 16;
/// K is padded to a multiple of this: the length of one chain of multiply-adds.
pub const CHUNK: usize = 256;
/// Elements of K that share scales in `Q4` tiles.
const GROUP: usize = 32;

/// How weights are stored on the device. Of several matrices that are packed together, the last format in this order rules, and a matrix of
/// floats makes all of them floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TileFormat {
    /// Four bits, with a scale and a minimum for 32 elements: from `Q4_0`, `Q4_1`, `Q4_K` and MLX's groups of up to four bits.
    Q4,
    /// Eight bits, with a scale and a minimum for 16 elements: from `Q8_0`, `Q5_0`, `Q5_1`, `Q5_K`, `Q6_K` and MLX's wider groups.
    Q8,
    /// Half floats: from F32, F16 and BF16, and MLX's groups whose scales are smaller than half floats can say.
    F16,
}

impl TileFormat {
    /// Words of weights of (row tile, 32 of K).
    const fn words(self) -> usize {
        match self {
            TileFormat::Q4 => 64,
            TileFormat::Q8 => 128,
            TileFormat::F16 => 256,
        }
    }

    /// Words of scales of (row tile, 32 of K).
    const fn scale_words(self) -> usize {
        match self {
            TileFormat::Q4 => 16,
            TileFormat::Q8 => 32,
            TileFormat::F16 => 0,
        }
    }
}

/// The tiles that hold a matrix.
fn format_of(matrix: &Matrix) -> Result<TileFormat, GpuError> {
    if let (Some(scales), Some(biases)) = (matrix.scales(), matrix.biases()) {
        return group_format(bits_of(matrix), largest(scales), largest(biases));
    }
    match matrix.weight().dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(TileFormat::F16),
        DType::Q4_0 | DType::Q4_1 | DType::Q4_K => Ok(TileFormat::Q4),
        DType::Q8_0 | DType::Q5_0 | DType::Q5_1 | DType::Q5_K | DType::Q6_K => Ok(TileFormat::Q8),
        other => Err(GpuError::BadShape { why: format!("{other} holds integers, not weights") }),
    }
}

/// The tiles that hold groups with scales and biases up to these. Their scales become half floats: what those cannot hold is refused. Where
/// all are so small that half floats lose bits of them, the weights themselves lose fewer.
fn group_format(bits: usize, scale: f32, bias: f32) -> Result<TileFormat, GpuError> {
    let largest = scale * (f32::from(u8::MAX >> (8 - bits))) + bias;
    if largest.is_nan() || largest > f16::MAX.to_f32() {
        return Err(GpuError::BadShape {
            why: format!("weights up to {largest} are more than half floats hold: run this model on the cpu"),
        });
    }
    Ok(match bits {
        _ if scale != 0.0 && scale < f16::MIN_POSITIVE.to_f32() => TileFormat::F16,
        ..=4 => TileFormat::Q4,
        _ => TileFormat::Q8,
    })
}

/// The largest magnitude among stored floats: without signs, their bits are in the order of the numbers, with NaN above all.
fn largest(floats: &View) -> f32 {
    let short = || floats.bytes().as_chunks().0.iter().map(|b| u16::from_le_bytes(*b) & 0x7fff).max().unwrap_or(0);
    match floats.dtype() {
        DType::F16 => f16::from_bits(short()).to_f32(),
        DType::BF16 => bf16::from_bits(short()).to_f32(),
        _ => f32::from_bits(floats.bytes().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) & 0x7fff_ffff).max().unwrap_or(0)),
    }
}

/// Bits of an element of groups.
fn bits_of(matrix: &Matrix) -> usize {
    matrix.weight().dtype().unsigned_bits().expect("groups are of integers")
}

/// Writes a row as f16.
fn halves_of(matrix: &Matrix, row: usize, floats: &mut Vec<f32>, out: &mut [f16]) {
    let view = matrix.weight();
    if view.dtype() == DType::F16 {
        view.row(row).as_chunks().0.iter().zip(out).for_each(|(bytes, x)| *x = f16::from_le_bytes(*bytes));
        return;
    }
    floats.resize(matrix.row_len(), 0.0);
    matrix.dequantise_row(row, floats);
    out.convert_from_f32_slice(floats);
}

/// One quantised row.
#[derive(Clone, Copy)]
enum Row<'a> {
    Blocks(DType, &'a [u8]),
    Groups(GroupRow<'a>),
}

/// One row of MLX's groups.
#[derive(Clone, Copy)]
struct GroupRow<'a> {
    bits: usize,
    /// How many times 32 elements share a scale and a bias.
    shared: usize,
    elements: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
    float: DType,
}

impl<'a> Row<'a> {
    fn of(matrix: &'a Matrix, row: usize) -> Row<'a> {
        let elements = matrix.weight().row(row);
        match (matrix.scales(), matrix.biases(), matrix.group()) {
            (Some(scales), Some(biases), Some(group)) => {
                let (bits, shared, float) = (bits_of(matrix), group / GROUP, scales.dtype());
                Row::Groups(GroupRow { bits, shared, elements, scales: scales.row(row), biases: biases.row(row), float })
            }
            _ => Row::Blocks(matrix.weight().dtype(), elements),
        }
    }

    /// 32 quantised elements of a row.
    #[inline(always)]
    fn group(&self, group: usize) -> Group {
        match self {
            Row::Blocks(dtype, row) => block_group(*dtype, row, group),
            Row::Groups(row) => Group { q: row.values(group), scales: [row.scale(group); 2] },
        }
    }

    /// 32 elements of a row of up to four bits, as the words and the scale that `Q4` tiles take.
    #[inline(always)]
    fn nibbles(&self, group: usize) -> ([u32; 4], Affine) {
        match self {
            Row::Groups(row) if row.bits == 4 => {
                let bytes: &[u8; 16] = row.elements[group * 16..].first_chunk().expect("16 bytes for 32 elements");
                let [a, b, c, d] = std::array::from_fn(|i| word(bytes, 4 * i));
                let (low, high) = (|a: u32, b: u32| unzip(a & 0xffff | b << 16), |a: u32, b: u32| unzip(a >> 16 | b & 0xffff_0000));
                ([low(a, b), low(c, d), high(a, b), high(c, d)], row.scale(group))
            }
            Row::Blocks(DType::Q4_0, row) => {
                let block = &row[group * 18..][..18];
                (halves_of_bytes(&block[2..]), Affine::centred(half_at(block, 0), 8.0))
            }
            _ => {
                let Group { q, scales } = self.group(group);
                let packed: [u8; 16] = std::array::from_fn(|i| q[i] | q[16 + i] << 4);
                (halves_of_bytes(&packed), scales[0])
            }
        }
    }
}

impl GroupRow<'_> {
    /// 32 integers; eight take as many bytes as one has bits.
    #[inline(always)]
    fn values(&self, group: usize) -> [u8; GROUP] {
        let (bytes, mut q) = (&self.elements[group * 4 * self.bits..][..4 * self.bits], [0; GROUP]);
        for (eight, q) in bytes.chunks_exact(self.bits).zip(q.as_chunks_mut::<8>().0) {
            let mut packed = [0; 8];
            packed[..self.bits].copy_from_slice(eight);
            let packed = u64::from_le_bytes(packed);
            *q = std::array::from_fn(|i| (packed >> (i * self.bits)) as u8 & (u8::MAX >> (8 - self.bits)));
        }
        q
    }

    #[inline(always)]
    fn scale(&self, group: usize) -> Affine {
        let at = group / self.shared * self.float.block_bytes();
        let float = |bytes: &[u8]| match self.float {
            DType::BF16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
            DType::F16 => half_at(bytes, at),
            _ => f32::from_bits(word(bytes, at)),
        };
        Affine::new(float(self.scales), float(self.biases))
    }
}

/// `w = q d + m`, as kernels read it.
#[derive(Clone, Copy)]
struct Affine {
    d: f16,
    m: f16,
}

impl Affine {
    fn new(d: f32, m: f32) -> Affine {
        Affine { d: f16::from_f32(d), m: f16::from_f32(m) }
    }

    /// `w = (q - centre) d`, so that the centre is exactly zero.
    fn centred(d: f32, centre: f32) -> Affine {
        let d = f16::from_f32(d);
        Affine { d, m: f16::from_f32(-centre * d.to_f32()) }
    }

    fn word(self) -> u32 {
        u32::from(self.d.to_bits()) | u32::from(self.m.to_bits()) << 16
    }
}

/// 32 elements, each 16 with a scale.
struct Group {
    q: [u8; GROUP],
    scales: [Affine; 2],
}

/// Group `group` of a row of GGML's blocks; `cpu/dequant.rs` describes them.
#[inline(always)]
fn block_group(dtype: DType, row: &[u8], group: usize) -> Group {
    let (blocks, j) = (dtype.block_len() / GROUP, group % (dtype.block_len() / GROUP));
    let block = &row[group / blocks * dtype.block_bytes()..][..dtype.block_bytes()];
    let half = |at: usize| half_at(block, at);
    let bits = |at: usize| word(block, at);
    let split = |at: usize, high: u32| -> [u8; GROUP] {
        std::array::from_fn(|i| block[at + i % 16] >> (i / 16 * 4) & 15 | ((high >> i & 1) << 4) as u8)
    };
    let both = |q, scale| Group { q, scales: [scale; 2] };
    match dtype {
        DType::Q8_0 => both(std::array::from_fn(|i| block[2 + i] ^ 0x80), Affine::centred(half(0), 128.0)),
        DType::Q4_0 => both(split(2, 0), Affine::centred(half(0), 8.0)),
        DType::Q4_1 => both(split(4, 0), Affine::new(half(0), half(2))),
        DType::Q5_0 => both(split(6, bits(2)), Affine::centred(half(0), 16.0)),
        DType::Q5_1 => both(split(8, bits(4)), Affine::new(half(0), half(2))),
        DType::Q4_K => both(std::array::from_fn(|i| nibble_k(&block[16..], i, j)), scale_k(block, j)),
        DType::Q5_K => both(std::array::from_fn(|i| nibble_k(&block[48..], i, j) | (block[16 + i] >> j & 1) << 4), scale_k(block, j)),
        DType::Q6_K => {
            let (side, quarter) = (j / 4, j % 4);
            let low = |i: usize| block[side * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
            let q = std::array::from_fn(|i| low(i) | (block[128 + side * 32 + i] >> (2 * quarter) & 3) << 4);
            Group { q, scales: [0, 1].map(|s| Affine::centred(half(208) * f32::from(block[192 + 2 * j + s] as i8), 32.0)) }
        }
        _ => unreachable!("{dtype} has no groups"),
    }
}

/// Element `i` of sub-block `j` of the nibbles of a K block.
fn nibble_k(nibbles: &[u8], i: usize, j: usize) -> u8 {
    nibbles[j / 2 * 32 + i] >> (j % 2 * 4) & 15
}

/// Scale and minimum of sub-block `j` of `Q4_K` or `Q5_K`.
fn scale_k(block: &[u8], j: usize) -> Affine {
    let (scale, min) = scale_min(&block[4..16], j);
    Affine::new(half_at(block, 0) * f32::from(scale), -half_at(block, 2) * f32::from(min))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("four bytes"))
}

/// Eight nibbles, even ones to the low half and odd ones to the high half.
#[inline(always)]
fn unzip(v: u32) -> u32 {
    let squeeze = |x: u32| {
        let x = x & 0x0f0f_0f0f;
        let x = (x | x >> 4) & 0x00ff_00ff;
        (x | x >> 8) & 0xffff
    };
    squeeze(v) | squeeze(v >> 4) << 16
}

/// The words of 32 nibbles of which byte i holds element i, and element 16 + i above it.
#[inline(always)]
fn halves_of_bytes(bytes: &[u8]) -> [u32; 4] {
    let pair = |a: u32, b: u32| {
        // Bytes 0 to 3 hold elements; 0 and 2 go to one byte, 1 and 3 to another.
        let fold = |x: u32| (x & 0x0f0f_0f0f) | (x & 0x0f0f_0f0f) >> 12;
        let (a, b) = (fold(a), fold(b));
        a & 0xff | (b & 0xff) << 8 | (a & 0xff00) << 8 | (b & 0xff00) << 16
    };
    let [a, b, c, d] = std::array::from_fn(|i| word(bytes, 4 * i));
    [pair(a, c), pair(a >> 4, c >> 4), pair(b, d), pair(b >> 4, d >> 4)]
}

/// How several matrices become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrange {
    /// One below the other: their outputs stand one behind the other.
    Stacked,
    /// Two of one shape, 16 rows of the first and 16 of the second in turn, for a gated product: first the gate, then the factor.
    Interleaved,
}

/// What is to be packed, checked.
#[derive(Debug)]
pub struct Packing<'a> {
    sources: &'a [&'a Matrix],
    arrange: Arrange,
    format: TileFormat,
    n: usize,
    k: usize,
}

impl<'a> Packing<'a> {
    /// Plans the tiles of matrices of one row length.
    ///
    /// # Errors
    /// If there are none, if they do not fit together, if they hold integers, or if scales of groups are beyond half floats.
    pub fn new(sources: &'a [&'a Matrix], arrange: Arrange) -> Result<Packing<'a>, GpuError> {
        let bad = |why: &str| Err(GpuError::BadShape { why: why.to_owned() });
        let Some(first) = sources.first() else { return bad("there are none") };
        if sources.iter().any(|s| s.row_len() != first.row_len() || s.rows() == 0 || s.row_len() == 0) {
            return bad("their rows have different lengths, or none");
        }
        if arrange == Arrange::Interleaved && !matches!(sources, [a, b] if a.rows() == b.rows()) {
            return bad("a gate goes with one factor of its own shape");
        }
        let formats = sources.iter().map(|s| format_of(s)).collect::<Result<Vec<_>, _>>()?;
        let format = formats.into_iter().max().expect("there is one");
        let n = if arrange == Arrange::Interleaved { first.rows() } else { sources.iter().map(|s| s.rows()).sum() };
        Ok(Packing { sources, arrange, format, n, k: first.row_len() })
    }

    /// How the tiles are stored.
    pub fn format(&self) -> TileFormat {
        self.format
    }

    /// How the matrices are arranged.
    pub fn arrange(&self) -> Arrange {
        self.arrange
    }

    /// Outputs of a product; an interleaved one has as many as its gate.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Row tiles.
    pub fn tiles(&self) -> usize {
        self.n.div_ceil(TILE_ROWS) * if self.arrange == Arrange::Interleaved { 2 } else { 1 }
    }

    /// Words of weights of one row tile.
    pub fn tile_words(&self) -> usize {
        self.k.next_multiple_of(CHUNK) / GROUP * self.format.words()
    }

    /// Words of scales of one row tile; none for floats.
    pub fn tile_scale_words(&self) -> usize {
        self.k.next_multiple_of(CHUNK) / GROUP * self.format.scale_words()
    }

    /// Packs a range of row tiles on this many threads.
    ///
    /// # Panics
    /// If the slices are not as long as the tiles take, or there are no such tiles.
    pub fn pack(&self, tiles: Range<usize>, threads: usize, weights: &mut [u32], scales: &mut [u32]) {
        assert!(tiles.end <= self.tiles() && tiles.start < tiles.end, "tiles {tiles:?} of {}", self.tiles());
        let (words, scale_words) = (self.tile_words(), self.tile_scale_words());
        assert_eq!((weights.len(), scales.len()), (tiles.len() * words, tiles.len() * scale_words), "room for {tiles:?}");
        let share = tiles.len().div_ceil(threads.max(1));
        let mut scales = scales.chunks_mut((share * scale_words).max(1));
        std::thread::scope(|scope| {
            for (i, weights) in weights.chunks_mut(share * words).enumerate() {
                let (scales, first) = (scales.next().unwrap_or_default(), tiles.start + i * share);
                let mut work = move || self.pack_share(first, weights, scales);
                if threads > 1 {
                    scope.spawn(work);
                } else {
                    work();
                }
            }
        });
    }

    /// Packs row tiles from `first` on, until the room is full.
    fn pack_share(&self, first: usize, weights: &mut [u32], scales: &mut [u32]) {
        let (words, scale_words) = (self.tile_words(), self.tile_scale_words());
        let (mut halves, mut floats) = (vec![f16::ZERO; self.k.next_multiple_of(CHUNK)], Vec::new());
        for (i, weights) in weights.chunks_exact_mut(words).enumerate() {
            let scales = &mut scales[i * scale_words..][..scale_words];
            let rows: [_; TILE_ROWS] = std::array::from_fn(|r| self.locate(first + i, r));
            if !self.k.is_multiple_of(CHUNK) || rows.iter().any(Option::is_none) {
                weights.fill(0);
                scales.fill(0);
            }
            for (r, (source, row)) in rows.into_iter().enumerate().filter_map(|(r, at)| Some((r, at?))) {
                match self.format {
                    TileFormat::F16 => {
                        halves_of(source, row, &mut floats, &mut halves[..self.k]);
                        place_halves(&halves, r, weights);
                    }
                    TileFormat::Q4 => self.place_nibbles(Row::of(source, row), r, weights, scales),
                    TileFormat::Q8 => self.place_bytes(Row::of(source, row), r, weights, scales),
                }
            }
        }
    }

    /// The matrix and the row of it that is row `r` of a tile; none in the padding.
    fn locate(&self, tile: usize, r: usize) -> Option<(&'a Matrix, usize)> {
        if self.arrange == Arrange::Interleaved {
            let row = tile / 2 * TILE_ROWS + r;
            return (row < self.n).then_some((self.sources[tile % 2], row));
        }
        let mut row = tile * TILE_ROWS + r;
        for source in self.sources {
            if row < source.rows() {
                return Some((source, row));
            }
            row -= source.rows();
        }
        None
    }

    fn place_nibbles(&self, row: Row<'_>, r: usize, weights: &mut [u32], scales: &mut [u32]) {
        let tiles = weights.as_chunks_mut::<64>().0.iter_mut().zip(scales.as_chunks_mut::<16>().0);
        for (group, (weights, scales)) in tiles.take(self.k / GROUP).enumerate() {
            let (words, scale) = row.nibbles(group);
            weights[4 * r..4 * r + 4].copy_from_slice(&words);
            scales[r] = scale.word();
        }
    }

    fn place_bytes(&self, row: Row<'_>, r: usize, weights: &mut [u32], scales: &mut [u32]) {
        let tiles = weights.as_chunks_mut::<128>().0.iter_mut().zip(scales.as_chunks_mut::<32>().0);
        for (group, (weights, scales)) in tiles.take(self.k / GROUP).enumerate() {
            let Group { q, scales: [low, high] } = row.group(group);
            for (i, word) in weights[8 * r..8 * r + 8].iter_mut().enumerate() {
                let quad = 4 * (i % 4 * 2 + i / 4);
                *word = u32::from_le_bytes([q[quad], q[quad + 2], q[quad + 1], q[quad + 3]]);
            }
            (scales[2 * r], scales[2 * r + 1]) = (low.word(), high.word());
        }
    }
}

/// Spreads a row of halves over the tiles of 16 of K.
fn place_halves(halves: &[f16], r: usize, weights: &mut [u32]) {
    for (halves, tile) in halves.as_chunks::<16>().0.iter().zip(weights.as_chunks_mut::<128>().0) {
        for (word, pair) in tile[8 * r..8 * r + 8].iter_mut().zip(halves.as_chunks::<2>().0) {
            *word = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        }
    }
}
