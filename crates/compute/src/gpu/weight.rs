//! A stored matrix as the plain kernels bind it, and the text by which they read its format.

use super::{Binding, GpuError, GpuInfo};
use driftwood_region::DType;

/// Elements of a row that `unit` of a weight format de-quantises.
pub(super) const UNIT_LEN: u32 = 32;

/// Bytes that begin somewhere in a window that a device can bind.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The window.
    pub window: Binding<'a>,
    /// Where they begin in it.
    pub offset_bytes: u32,
}

/// Some rows of a stored matrix.
#[derive(Clone, Copy, Debug)]
pub struct WeightPart<'a> {
    /// Their elements; they begin at a multiple of 2 (of 4 for f32), those of groups anywhere.
    pub elements: Span<'a>,
    /// Their scales and biases, where elements are MLX's groups. They, too, begin anywhere.
    pub numbers: Option<[Span<'a>; 2]>,
    /// The number of the first row in the matrix.
    pub first_row: u32,
    /// How many there are.
    pub rows: u32,
}

/// The scales and biases of MLX's groups: floats of (rows, elements of a row / group).
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    /// Elements that share a scale and a bias.
    pub group: u32,
    /// How scales and biases are stored.
    pub dtype: DType,
    /// The buffer of the scales, and where they begin in it.
    pub scales: (&'a wgpu::Buffer, u64),
    /// The same of the biases.
    pub biases: (&'a wgpu::Buffer, u64),
}

/// A stored matrix (n, k) in GGML's row layout, or in MLX's groups.
#[derive(Clone, Debug)]
pub struct Weight<'a> {
    /// How its elements are stored.
    pub dtype: DType,
    /// Rows.
    pub n: u32,
    /// Elements of a row, a multiple of the format's block.
    pub k: u32,
    /// What its integers stand for, if they are MLX's.
    pub groups: Option<Groups<'a>>,
    /// All rows, in as few windows as the device's limits allow.
    pub parts: Vec<WeightPart<'a>>,
}

impl<'a> Weight<'a> {
    /// A matrix that begins `offset_bytes` into a buffer, cut into windows that the device can bind.
    ///
    /// # Errors
    /// If a row is longer than a binding may be.
    ///
    /// # Panics
    /// If the matrix is not within the buffer, or if `k` is no whole number of blocks.
    pub fn new(info: &GpuInfo, dtype: DType, (n, k): (u32, u32), buffer: &'a wgpu::Buffer, offset_bytes: u64) -> Result<Self, GpuError> {
        let row_bytes = row_bytes(dtype, k);
        assert!(offset_bytes + u64::from(n) * row_bytes <= buffer.size(), "({n}, {k}) of {dtype} is not within its buffer");
        // A window begins before its first row and ends behind the last.
        let most = (info.binding_bytes_max.min(u32::MAX.into()) - info.binding_align_bytes - 4) / row_bytes;
        if most == 0 {
            return Err(GpuError::BeyondLimit { what: "the bytes of a weight's row", asked: row_bytes, limit: info.binding_bytes_max });
        }
        let part = |first_row: u32| {
            let rows = n.saturating_sub(first_row).min(u32::try_from(most).unwrap_or(u32::MAX));
            WeightPart { elements: rows_of(info, (buffer, offset_bytes), row_bytes, (first_row, rows)), numbers: None, first_row, rows }
        };
        let parts = (0..n).step_by(usize::try_from(most).unwrap_or(usize::MAX)).map(part).collect();
        Ok(Weight { dtype, n, k, groups: None, parts })
    }

    /// The same, of MLX's groups. A row's scales take no more bytes than its elements, so that they can be bound where those can.
    ///
    /// # Panics
    /// If scales or biases are not within their buffers, if a row is no whole number of groups, or if the elements are no integers.
    pub fn with_groups(mut self, info: &GpuInfo, groups: Groups<'a>) -> Self {
        assert!(self.k.is_multiple_of(groups.group) && groups.group.is_multiple_of(UNIT_LEN), "whole groups of {}", groups.group);
        assert!(self.dtype.unsigned_bits().is_some(), "{} holds no integers", self.dtype);
        let row_bytes = row_bytes(groups.dtype, self.k / groups.group);
        for (buffer, offset_bytes) in [groups.scales, groups.biases] {
            assert!(offset_bytes + u64::from(self.n) * row_bytes <= buffer.size(), "scales or biases are not within their buffer");
        }
        for part in &mut self.parts {
            let rows = (part.first_row, part.rows);
            part.numbers = Some([groups.scales, groups.biases].map(|place| rows_of(info, place, row_bytes, rows)));
        }
        Weight { groups: Some(groups), ..self }
    }

    /// The words that a kernel's `Params` are, for one part.
    pub(super) fn params(&self, part: &WeightPart<'_>, scale: f32) -> [u32; 9] {
        let row_bytes = row_bytes(self.dtype, self.k);
        let end = u64::from(part.elements.offset_bytes) + u64::from(part.rows) * row_bytes;
        assert!(end <= part.elements.window.bytes.min(u32::MAX.into()), "the rows are not within their window");
        assert!(u64::from(part.first_row) + u64::from(part.rows) <= self.n.into(), "the matrix has not as many rows");
        let [scales, biases] = part.numbers.map_or([0; 2], |spans| spans.map(|span| span.offset_bytes));
        let offset_bytes = part.elements.offset_bytes;
        assert!(self.groups.is_some() || offset_bytes.is_multiple_of(2), "weights begin at multiples of two");
        [offset_bytes, row_bytes as u32, part.rows, part.first_row, self.k, self.n, scale.to_bits(), scales, biases]
    }

    /// A kernel that reads a part, and has so many bindings besides scales and biases, which follow them.
    pub(super) fn text(&self, part: &WeightPart<'_>, kernel: &str, bindings: u32) -> String {
        let block_bytes = if self.dtype.is_quantised() { self.dtype.block_bytes() as u64 } else { row_bytes(self.dtype, self.k) };
        let aligned = part.elements.offset_bytes.is_multiple_of(4) && block_bytes.is_multiple_of(4);
        let words = match (aligned, &self.groups) {
            (true, _) => include_str!("wgsl/words_aligned.wgsl"),
            (false, None) => concat!(include_str!("wgsl/join_halves.wgsl"), include_str!("wgsl/words_any.wgsl")),
            (false, Some(_)) => include_str!("wgsl/words_any.wgsl"), // which groups join bytes for
        };
        let unit = match &self.groups {
            Some(groups) => group_text(self.dtype, groups, bindings),
            None => block_text(self.dtype).to_owned(),
        };
        [include_str!("wgsl/weight_params.wgsl"), words, include_str!("wgsl/unpack.wgsl"), &unit, kernel].concat()
    }
}

/// Where a first row and as many as follow are, of rows that begin somewhere in a buffer.
fn rows_of<'a>(info: &GpuInfo, (buffer, offset_bytes): (&'a wgpu::Buffer, u64), row_bytes: u64, (first_row, rows): (u32, u32)) -> Span<'a> {
    let start = offset_bytes + u64::from(first_row) * row_bytes;
    let window_start = start / info.binding_align_bytes * info.binding_align_bytes;
    let bytes = (start + u64::from(rows) * row_bytes - window_start).next_multiple_of(4);
    Span { window: Binding { buffer, offset_bytes: window_start, bytes }, offset_bytes: (start - window_start) as u32 }
}

fn row_bytes(dtype: DType, k: u32) -> u64 {
    dtype.bytes_of(k as usize).expect("a whole number of blocks") as u64
}

/// `unit` of floats and of GGML's blocks.
fn block_text(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => include_str!("wgsl/unit_f32.wgsl"),
        DType::F16 => include_str!("wgsl/unit_f16.wgsl"),
        DType::BF16 => include_str!("wgsl/unit_bf16.wgsl"),
        DType::Q8_0 => include_str!("wgsl/unit_q8_0.wgsl"),
        DType::Q4_0 => include_str!("wgsl/unit_q4_0.wgsl"),
        DType::Q4_1 => include_str!("wgsl/unit_q4_1.wgsl"),
        DType::Q5_0 => include_str!("wgsl/unit_q5_0.wgsl"),
        DType::Q5_1 => include_str!("wgsl/unit_q5_1.wgsl"),
        DType::Q4_K => concat!(include_str!("wgsl/scale_min.wgsl"), include_str!("wgsl/unit_q4_k.wgsl")),
        DType::Q5_K => concat!(include_str!("wgsl/scale_min.wgsl"), include_str!("wgsl/unit_q5_k.wgsl")),
        DType::Q6_K => include_str!("wgsl/unit_q6_k.wgsl"),
        other => panic!("{other} holds integers, not weights"),
    }
}

/// `unit` of MLX's groups: eight quads of a stream of bits, which are in as many words as an element has bits.
fn group_text(dtype: DType, groups: &Groups<'_>, bindings: u32) -> String {
    let bits = dtype.unsigned_bits().expect("integers") as u32;
    let float = match groups.dtype {
        DType::F32 => "bitcast<f32>(bits)",
        DType::F16 => "unpack2x16float(bits).x",
        DType::BF16 => "bitcast<f32>(bits << 16u)",
        other => panic!("{other} scales nothing"),
    };
    let fours = (0..bits / 4).map(|i| format!("let f{i} = four_words(at + {}u);", 16 * i));
    let rest = (bits / 4 * 4..bits).map(|i| format!("let w{i} = word(at + {}u);", 4 * i));
    let word = |i: u32| if i < bits / 4 * 4 { format!("f{}.{}", i / 4, ["x", "y", "z", "w"][i as usize % 4]) } else { format!("w{i}") };
    let quad = |quad: u32| {
        let (first, shift) = (quad * 4 * bits / 32, quad * 4 * bits % 32);
        match shift + 4 * bits > 32 {
            true => format!("four({} >> {shift}u | {} << {}u)", word(first), word(first + 1), 32 - shift),
            false => format!("four({} >> {shift}u)", word(first)),
        }
    };
    let quads = (0..8).map(|i| format!("fma({}, s, b)", quad(i))).collect::<Vec<_>>().join(", ");
    let (group, float_bytes) = (groups.group, groups.dtype.block_bytes());
    let constants = format!("const BITS = {bits}u;\nconst GROUP = {group}u;\nconst FLOAT_BYTES = {float_bytes}u;\n");
    let float = format!("fn number(bits: u32) -> f32 {{ return {float}; }}\n");
    let unit = include_str!("wgsl/unit_group.wgsl")
        .replace("SCALE_BINDING", &bindings.to_string())
        .replace("BIAS_BINDING", &(bindings + 1).to_string())
        .replace("WORDS", &fours.chain(rest).collect::<Vec<_>>().join(" "))
        .replace("QUADS", &quads);
    [&constants, &float, include_str!("wgsl/join_bytes.wgsl"), &unit].concat()
}
