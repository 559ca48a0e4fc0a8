//! The plain kernels of a decoder: f32 arithmetic, no workgroup memory, no barriers; right on every device.
//!
//! Each output is computed by one invocation in an order fixed along K or along absolute positions, with `fma` wherever a multiplication
//! and an addition could be contracted: its bits do not depend on how many rows are in the dispatch.
//!
//! [`Plain`] makes [`RowDispatch`]es once for a whole forward pass, to be replayed for every step. What changes from step to step is read
//! from *step buffers* of u32, whose first word is the number of rows:
//!
//! - *tokens*: the number, then a token id for each row;
//! - *places*: the number, then position and table of each row, then the tables. A table lists the slots that a session's blocks of 64
//!   tokens are in, and is named by the index of its first entry in the same buffer;
//! - *wanted*: the number, then a row number for each.
//!
//! A kernel that needs only the number takes any of them. Cosines and sines come as f32 in a buffer of their own, (row, 2, head_dim / 2).
//! A dispatch is sized for the most rows, and [`RowDispatch::for_rows`] narrows it. Everything is row-major f32 unless said otherwise.
//!
//! The texts are composed of `wgsl/*.wgsl`. The guests' matrix product is [`Plain::product`].

use super::weight::{UNIT_LEN, Weight, WeightPart};
use super::{Binding, Dispatch, Gpu, GpuError, KernelSource};
use crate::{KV_BLOCK_TOKENS, KvDType};

/// Elements of a norm that an invocation has.
const NORM_LEN: u32 = 16;
/// Rows of activations that an invocation of the matrix product has.
const MATMUL_ROWS: u32 = 4;
/// Invocations of a workgroup, in most kernels.
const GROUP: u32 = 64;
/// Elements that one invocation searches for the largest.
const ARGMAX_CHUNK: u32 = 256;
/// Words that a line of workgroups of the ragged f16 product writes.
const WORDS_A_LINE: u32 = 0x20_0000;

/// The plain kernels of a device, for steps of at most some number of rows.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    gpu: &'a Gpu,
    rows_max: u32,
    /// Whether eight lanes load for each other.
    pub(super) shared: bool,
}

/// A dispatch whose rows lie along the y axis.
#[derive(Clone, Debug)]
pub struct RowDispatch {
    dispatch: Dispatch,
    rows_a_group: u32,
}

impl RowDispatch {
    /// The dispatch for a step of `rows`: no more workgroups than they need.
    pub fn for_rows(&self, rows: u32) -> Dispatch {
        let mut dispatch = self.dispatch.clone();
        dispatch.workgroups[1] = rows.div_ceil(self.rows_a_group);
        dispatch
    }

    /// The dispatch for the most rows.
    pub fn whole(&self) -> &Dispatch {
        &self.dispatch
    }
}

/// Heads of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub heads: u32,
    /// KV heads; query heads are spread over them in equal groups.
    pub kv_heads: u32,
    /// Elements of a head, a multiple of 16.
    pub head_dim: u32,
}

/// Which elements of a head RoPE turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairs {
    /// How many pairs are turned, at the beginning of a head: half a head, or less. The elements behind them stay as they are.
    pub turned: u32,
    /// Whether pairs stand side by side, else `turned` elements apart, which is how they are stored.
    pub interleaved: bool,
}

/// How scores become weights.
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    /// What they are multiplied by.
    pub scale: f32,
    /// A score `s` then becomes `softcap * tanh(s / softcap)`, if there is one.
    pub softcap: Option<f32>,
    /// How many positions a row sees, its own included, or all.
    pub window: Option<u32>,
}

/// One layer's keys and values: in each slot (k_or_v, kv_head, token 0 to 63, row).
#[derive(Clone, Copy, Debug)]
pub struct KvBinding<'a> {
    /// All slots.
    pub binding: Binding<'a>,
    /// How rows are stored. A row must be a multiple of 4 bytes long.
    pub dtype: KvDType,
    /// From the start of the binding to the layer's first row in slot 0, a multiple of 16.
    pub first_bytes: u32,
    /// From one slot to the next, a multiple of 16.
    pub slot_bytes: u32,
}

/// A product that is computed in place with what the other operand has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Each {
    /// `x + y`.
    Add,
    /// `x + y`, where `y` is one row for all.
    AddRow,
    /// `silu(x) * y`.
    SiluMul,
    /// `gelu_tanh(x) * y`.
    GeluTanhMul,
}

/// A guest's matrices, in elements of their type.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Whether elements are f16; f32 otherwise. Sums are f32.
    pub half: bool,
    /// Whether f32 go through workgroup memory: fast on hardware, slow on software devices. The bits are the same.
    pub staged: bool,
    /// Rows of `a` and `c`, columns of `a` and rows of `b`, columns of `b` and `c`.
    pub shape: (u32, u32, u32),
    /// The windows that `a`, `b` and `c` are in. They may overlap where the matrices do not.
    pub windows: [Binding<'a>; 3],
    /// Where each begins in its window.
    pub firsts: [u32; 3],
}

impl<'a> Plain<'a> {
    /// Kernels for steps of at most `rows_max` rows.
    ///
    /// # Panics
    /// If the device has no grids of that many.
    pub fn new(gpu: &'a Gpu, rows_max: u32) -> Plain<'a> {
        assert!(rows_max <= gpu.info().workgroups_max, "{rows_max} rows are more than a grid has");
        Plain { gpu, rows_max, shared: eight_lanes(gpu) }
    }

    /// `out[row] = weight[tokens[row]] * scale`, a dispatch for each part.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn embed(&self, weight: &Weight<'_>, tokens: Binding<'_>, scale: f32, out: Binding<'_>) -> Result<Vec<RowDispatch>, GpuError> {
        let ragged = !weight.k.is_multiple_of(UNIT_LEN);
        let kernel = if ragged { include_str!("wgsl/embed_ragged.wgsl") } else { include_str!("wgsl/embed.wgsl") };
        let width = if ragged { weight.k } else { weight.k / UNIT_LEN };
        let each = |part: &WeightPart<'_>| {
            let params = self.params(&weight.params(part, scale))?;
            let bindings = bindings_of(part, &[Binding::whole(&params), tokens, part.elements.window, out]);
            self.rows("embed", &weight.text(part, kernel, 4), &bindings, width.div_ceil(GROUP), 1)
        };
        weight.parts.iter().map(each).collect()
    }

    /// `out[row][n] = sum over k of weight[n][k] * x[row][k]`, a dispatch for each part.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn matmul(&self, weight: &Weight<'_>, step: Binding<'_>, x: Binding<'_>, out: Binding<'_>) -> Result<Vec<RowDispatch>, GpuError> {
        let ragged = !weight.k.is_multiple_of(UNIT_LEN);
        let kernel = if ragged { include_str!("wgsl/matmul_ragged.wgsl").to_owned() } else { matmul_text(self.shared) };
        let each = |part: &WeightPart<'_>| {
            let params = self.params(&weight.params(part, 1.0))?;
            let bindings = bindings_of(part, &[Binding::whole(&params), step, part.elements.window, x, out]);
            let rows_a_group = if ragged { 1 } else { MATMUL_ROWS };
            self.rows("matmul", &weight.text(part, &kernel, 5), &bindings, part.rows.div_ceil(GROUP), rows_a_group)
        };
        weight.parts.iter().map(each).collect()
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight` for `heads` times `n` elements of each row; `weight` has `n`.
    ///
    /// # Errors
    /// If the driver refuses.
    #[allow(clippy::too_many_arguments)] // the operands of a norm
    pub fn rms_norm(
        &self,
        (heads, n): (u32, u32),
        step: Binding<'_>,
        x: Binding<'_>,
        weight: Binding<'_>,
        eps: f32,
        out: Binding<'_>,
    ) -> Result<RowDispatch, GpuError> {
        let params = self.params(&[n, heads, eps.to_bits()])?;
        let bindings = [Binding::whole(&params), step, x, weight, out];
        let width = heads * n.div_ceil(NORM_LEN);
        let element = if n.is_multiple_of(4) { include_str!("wgsl/element_four.wgsl") } else { include_str!("wgsl/element_one.wgsl") };
        self.rows("rms_norm", &[element, include_str!("wgsl/rms_norm.wgsl")].concat(), &bindings, width.div_ceil(GROUP), 1)
    }

    /// `x = f(x, y)` for the `n` elements of each row. The two must be in different buffers.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn each(&self, what: Each, n: u32, step: Binding<'_>, x: Binding<'_>, y: Binding<'_>) -> Result<RowDispatch, GpuError> {
        let (label, value) = match what {
            Each::Add => ("add", "x[i] + y[i]"),
            Each::AddRow => ("add_row", "x[i] + y[id.x]"),
            Each::SiluMul => ("silu_mul", "silu(x[i]) * y[i]"),
            Each::GeluTanhMul => ("gelu_tanh_mul", "gelu_tanh(x[i]) * y[i]"),
        };
        let operand = "@group(0) @binding(3) var<storage, read> y: array<f32>; // (row, n)\n";
        let params = self.params(&[n, 0])?;
        let text = format!("{operand}{}{}", include_str!("wgsl/math.wgsl"), each_text(value));
        self.rows(label, &text, &[Binding::whole(&params), step, x, y], n.div_ceil(GROUP), 1)
    }

    /// `x = x * scale` for the `n` elements of each row.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn scale(&self, n: u32, step: Binding<'_>, x: Binding<'_>, scale: f32) -> Result<RowDispatch, GpuError> {
        let params = self.params(&[n, scale.to_bits()])?;
        self.rows("scale", &each_text("x[i] * params.scale"), &[Binding::whole(&params), step, x], n.div_ceil(GROUP), 1)
    }

    /// `x = cap * tanh(x / cap)` for the `n` elements of each row.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn softcap(&self, n: u32, step: Binding<'_>, x: Binding<'_>, cap: f32) -> Result<RowDispatch, GpuError> {
        let params = self.params(&[n, cap.to_bits()])?;
        let functions = concat!(include_str!("wgsl/math.wgsl"), include_str!("wgsl/softcap.wgsl"));
        let text = [functions, &each_text("softcap(x[i], params.scale)")].concat();
        self.rows("softcap", &text, &[Binding::whole(&params), step, x], n.div_ceil(GROUP), 1)
    }

    /// `out[i] = x[wanted[i]]`, rows of `n` elements.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn gather(&self, n: u32, wanted: Binding<'_>, x: Binding<'_>, out: Binding<'_>) -> Result<RowDispatch, GpuError> {
        let params = self.params(&[n])?;
        self.rows("gather", include_str!("wgsl/gather.wgsl"), &[Binding::whole(&params), wanted, x, out], n.div_ceil(GROUP), 1)
    }

    /// Bytes of scratch that [`Plain::argmax`] needs.
    pub fn argmax_scratch_bytes(&self, n: u32) -> u64 {
        u64::from(self.rows_max) * u64::from(n.div_ceil(ARGMAX_CHUNK)) * 8
    }

    /// `out[row]` is the index, a u32, of the largest of the row's `n` elements: the lowest at ties, never one that is NaN.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn argmax(
        &self,
        n: u32,
        step: Binding<'_>,
        x: Binding<'_>,
        scratch: Binding<'_>,
        out: Binding<'_>,
    ) -> Result<[RowDispatch; 2], GpuError> {
        let params = self.params(&[n, ARGMAX_CHUNK])?;
        let params = Binding::whole(&params);
        let text = |pass: &str| [include_str!("wgsl/argmax.wgsl"), pass].concat();
        let chunks = text(include_str!("wgsl/argmax_chunks.wgsl"));
        let width = n.div_ceil(ARGMAX_CHUNK).div_ceil(GROUP);
        Ok([
            self.rows("argmax chunks", &chunks, &[params, step, x, scratch], width, 1)?,
            self.rows("argmax rows", &text(include_str!("wgsl/argmax_rows.wgsl")), &[params, step, scratch, out], 1, 1)?,
        ])
    }

    /// Turns `q` to `turned`, and stores `k`, turned, and `v` at the rows' places: in half-split order, whatever the pairs are here. `qkv`
    /// are (row, head, head_dim) each. Of `cos_sin` the first `pairs.turned` of either half are read.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If a stored row is not a multiple of 4 bytes long, or if a head has not as many pairs.
    #[allow(clippy::too_many_arguments)] // the operands of a layer's rotation
    pub fn rope_store(
        &self,
        heads: Heads,
        pairs: Pairs,
        places: Binding<'_>,
        cos_sin: Binding<'_>,
        [q, k, v]: [Binding<'_>; 3],
        turned: Binding<'_>,
        kv: KvBinding<'_>,
    ) -> Result<RowDispatch, GpuError> {
        let (unit, store) = match kv.dtype {
            KvDType::F32 => (1, include_str!("wgsl/store_f32.wgsl")),
            KvDType::F16 => (2, include_str!("wgsl/store_f16.wgsl")),
            KvDType::Q8 => (64, include_str!("wgsl/store_q8.wgsl")),
        };
        assert!((1..=heads.head_dim / 2).contains(&pairs.turned), "{pairs:?} of {heads:?}");
        let params = self.kv_params(heads, kv, None, pairs.interleaved, 0.0)?;
        let bindings = [Binding::whole(&params), places, cos_sin, q, k, v, turned, kv.binding];
        let constant = format!("const PAIRS = {}u;\n", pairs.turned);
        let rotate = include_str!("wgsl/rope_store.wgsl");
        let text = [include_str!("wgsl/kv.wgsl"), include_str!("wgsl/half_bits.wgsl"), store, &constant, rotate].concat();
        let width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim.div_ceil(unit);
        self.rows("rope_store", &text, &bindings, width.div_ceil(GROUP), 1)
    }

    /// `out = softmax(scores) values`, with a score for each `q . key`, over the positions up to the row's own, and within the window; `q` and `out` are
    /// (row, head, head_dim).
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If a stored row is not a multiple of 4 bytes long.
    #[allow(clippy::too_many_arguments)] // the operands of an attention
    pub fn attend(
        &self,
        heads: Heads,
        scores: Scores,
        places: Binding<'_>,
        q: Binding<'_>,
        kv: KvBinding<'_>,
        out: Binding<'_>,
    ) -> Result<RowDispatch, GpuError> {
        let params = self.kv_params(heads, kv, scores.window, false, scores.scale)?;
        // Vectors of four that an invocation sums; each slice computes the scores for itself.
        let slice = [16, 12, 8, 4].into_iter().find(|s| heads.head_dim.is_multiple_of(4 * s)).expect("a multiple of 16");
        let width = heads.heads * heads.head_dim / 4 / slice;
        let bindings = [Binding::whole(&params), places, q, kv.binding, out];
        self.rows("attend", &attend_text(kv.dtype, slice, scores.softcap), &bindings, width.div_ceil(8), 1)
    }

    /// A guest's `c = a * b`.
    ///
    /// # Errors
    /// If the driver refuses, or if a grid has not enough workgroups.
    ///
    /// # Panics
    /// If a matrix is not within its window.
    pub fn product(gpu: &Gpu, product: &Product<'_>) -> Result<Dispatch, GpuError> {
        let (m, k, n) = product.shape;
        let element_bytes = if product.half { 2 } else { 4 };
        for ((window, first), (rows, columns)) in product.windows.iter().zip(product.firsts).zip([(m, k), (k, n), (m, n)]) {
            let end = u128::from(first) + u128::from(rows) * u128::from(columns);
            assert!(end * element_bytes <= window.bytes.into() && end <= u32::MAX.into(), "({rows}, {columns}) is not within its window");
        }
        let plain = Plain { gpu, rows_max: 1, shared: false };
        let [a, b, c] = product.firsts;
        let params = plain.params(&[m, k, n, a, b, c])?;
        let bindings = [Binding::whole(&params), product.windows[0], product.windows[1], product.windows[2]];
        let words = product.half && !(n.is_multiple_of(2) && c.is_multiple_of(2));
        let grid = if words {
            let words = (u64::from(c % 2) + u64::from(m) * u64::from(n)).div_ceil(2) as u32;
            [words.min(WORDS_A_LINE).div_ceil(GROUP), words.div_ceil(WORDS_A_LINE), 1]
        } else {
            // A workgroup of either kernel has 32 columns and 32 rows.
            [n.div_ceil(32), m.div_ceil(32), 1]
        };
        let limit = gpu.info().workgroups_max;
        if grid[0].max(grid[1]) > limit {
            return Err(GpuError::BeyondLimit { what: "workgroups", asked: grid[0].max(grid[1]).into(), limit: limit.into() });
        }
        let kernel = gpu.kernel("product", KernelSource::Checked(&product_text(product.half, words, product.staged)))?;
        Ok(gpu.dispatch(&kernel, &bindings, grid))
    }

    fn kv_params(
        &self,
        heads: Heads,
        kv: KvBinding<'_>,
        window: Option<u32>,
        interleaved: bool,
        scale: f32,
    ) -> Result<wgpu::Buffer, GpuError> {
        let row_bytes = kv.dtype.row_bytes(heads.head_dim as usize) as u32;
        assert!(heads.head_dim.is_multiple_of(16) && heads.heads.is_multiple_of(heads.kv_heads.max(1)), "{heads:?}");
        let unit_bytes = if kv.dtype == KvDType::Q8 { 4 } else { 16 };
        let aligned = [row_bytes, kv.first_bytes, kv.slot_bytes].iter().all(|b| b.is_multiple_of(unit_bytes));
        assert!(aligned, "rows of {} must begin at multiples of {unit_bytes} bytes", kv.dtype);
        let layer_bytes = 2 * u64::from(heads.kv_heads) * KV_BLOCK_TOKENS as u64 * u64::from(row_bytes);
        assert!(u64::from(kv.first_bytes) + layer_bytes <= kv.binding.bytes, "a slot is not within the binding");
        assert!(window != Some(0), "a row sees at least itself");
        let words = [row_bytes / 4, kv.slot_bytes / 4, kv.first_bytes / 4];
        let shape = [heads.heads, heads.kv_heads, heads.head_dim];
        self.params(&[&shape[..], &words, &[window.unwrap_or(0), u32::from(interleaved), scale.to_bits()]].concat())
    }

    /// What stays the same from step to step, in a buffer that lives as long as the dispatch.
    fn params(&self, words: &[u32]) -> Result<wgpu::Buffer, GpuError> {
        let buffer = self.gpu.buffer("params", 4 * words.len() as u64)?;
        self.gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(words));
        Ok(buffer)
    }

    fn rows(&self, label: &str, text: &str, bindings: &[Binding<'_>], groups: u32, rows_a_group: u32) -> Result<RowDispatch, GpuError> {
        let limit = self.gpu.info().workgroups_max;
        if groups > limit {
            return Err(GpuError::BeyondLimit { what: "workgroups", asked: groups.into(), limit: limit.into() });
        }
        let kernel = self.gpu.kernel(label, KernelSource::Trusted(text))?;
        let dispatch = self.gpu.dispatch(&kernel, bindings, [groups, self.rows_max.div_ceil(rows_a_group), 1]);
        Ok(RowDispatch { dispatch, rows_a_group })
    }
}

/// What a kernel binds of a part: its scales and biases stand last.
fn bindings_of<'a>(part: &WeightPart<'a>, others: &[Binding<'a>]) -> Vec<Binding<'a>> {
    others.iter().copied().chain(part.numbers.iter().flatten().map(|span| span.window)).collect()
}

/// Whether lanes may hand what eight of them loaded round.
fn eight_lanes(gpu: &Gpu) -> bool {
    gpu.device().features().contains(wgpu::Features::SUBGROUP) && gpu.device().adapter_info().subgroup_min_size >= 8
}

/// The product of a stored matrix, whose lanes share what they load of `x`, or not.
fn matmul_text(shared: bool) -> String {
    let y = |name: &str, at: &str| if shared { format!("subgroupBroadcast({name}, #u)") } else { format!("x[{at} + #u]") };
    let four = [("y0", "at.x"), ("y1", "at.y"), ("y2", "at.z"), ("y3", "at.w")].map(|(name, at)| y(name, at)).join(", ");
    let (argument, lane) = if shared { (", @builtin(subgroup_invocation_id) invocation: u32", "invocation & 7u") } else { ("", "0u") };
    include_str!("wgsl/matmul.wgsl")
        .replace("GAIN_ONE", &unrolled(8, &format!("        a0 = fma(w[#], {}, a0);", y("y", "at"))))
        .replace("GAIN_FOUR", &unrolled(8, &format!("        s = gain(s, w[#], {four});")))
        .replace("LANE_ARGUMENT", argument)
        .replace("LANE", lane)
}

/// A line for each number, in the place of `#`.
fn unrolled(times: u32, line: &str) -> String {
    (0..times).map(|i| line.replace('#', &i.to_string())).collect::<Vec<_>>().join("\n")
}

/// A kernel that computes `value` of element `i`.
fn each_text(value: &str) -> String {
    let main = "
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.n || id.y >= step[0] {
        return;
    }
    let i = id.y * params.n + id.x;
    x[i] = VALUE;
}
";
    [include_str!("wgsl/each.wgsl"), &main.replace("VALUE", value)].concat()
}

/// The attention over keys and values of a type, with `slice` running sums in registers.
fn attend_text(dtype: KvDType, slice: u32, softcap: Option<f32>) -> String {
    let load = match dtype {
        KvDType::F32 => include_str!("wgsl/load_f32.wgsl"),
        KvDType::F16 => include_str!("wgsl/load_f16.wgsl"),
        KvDType::Q8 => include_str!("wgsl/load_q8.wgsl"),
    };
    let each = |line| unrolled(slice, line);
    let kernel = include_str!("wgsl/attend.wgsl")
        .replace("DECLARE", &each("    var o# = vec4<f32>(0.0);"))
        .replace("GAIN", &each("        o# = gained(o#, keep, p, values, slice + #u);"))
        .replace("STORE", &each("    out[q0 + slice + #u] = o# * inverse;"))
        .replace(
            "SCALED",
            &softcap.map_or_else(|| "s * params.scale".to_owned(), |cap| format!("softcap_four(s * params.scale, {cap:?})")),
        );
    let slice = format!("const SLICE = {slice}u;\n");
    let capped = if softcap.is_some() { include_str!("wgsl/softcap.wgsl") } else { "" };
    [include_str!("wgsl/kv.wgsl"), include_str!("wgsl/math.wgsl"), capped, load, &slice, &kernel].concat()
}

/// The guests' product; `words` where rows of f16 are not whole words.
fn product_text(half: bool, words: bool, staged: bool) -> String {
    let head = include_str!("wgsl/product.wgsl");
    let tile = include_str!("wgsl/product_tile.wgsl");
    if !half {
        let tile = if staged { include_str!("wgsl/product_staged.wgsl") } else { tile };
        return [head, include_str!("wgsl/product_f32.wgsl"), tile].concat();
    }
    let half = [head, include_str!("wgsl/product_f16.wgsl"), include_str!("wgsl/half_bits.wgsl")].concat();
    let line = format!("const WORDS_A_LINE = {WORDS_A_LINE}u;\n");
    match words {
        true => [&half, &line, include_str!("wgsl/product_words_f16.wgsl")].concat(),
        false => [&half, include_str!("wgsl/product_store_f16.wgsl"), tile].concat(),
    }
}
