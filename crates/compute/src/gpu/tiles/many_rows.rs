//! The product of many rows: blocks of outputs and rows that go through workgroup memory, 32 of K at a time.
//!
//! Accumulators are added to totals every 256 of K, in the same order as for one row. With few rows the chunks of K are spread over
//! workgroups instead, and a second kernel adds their sums in order. The rows of the norm are a kernel of their own.

use super::Norm;
use super::pack::TileFormat;
use super::text::{Epilogue, LANES, Weights, head, norm_bindings, norm_functions};
use std::fmt::Write as _;

/// Elements of K that a workgroup takes at a time.
const DEPTH: u32 = 32;
/// Quads of a row of them in workgroup memory; two are unused, so that rows begin in different banks.
const STRIDE: u32 = DEPTH / 4 + 2;
/// Steps of a chunk of 256.
const STEPS: u32 = 256 / DEPTH;

/// How the work is cut, which decides speed and no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Outputs of a workgroup.
    pub(super) outputs: u32,
    /// Rows of a workgroup.
    pub(super) rows: u32,
    /// Outputs of a subgroup; two row tiles, so that a gated product has both in one.
    pub(super) warp_outputs: u32,
    /// Rows of a subgroup.
    pub(super) warp_rows: u32,
}

impl Block {
    fn warps(self) -> u32 {
        self.outputs / self.warp_outputs * (self.rows / self.warp_rows)
    }

    fn threads(self) -> u32 {
        self.warps() * LANES
    }
}

/// A kernel for many rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct ManyRows {
    pub(super) weights: Weights,
    pub(super) epilogue: Epilogue,
    pub(super) block: Block,
    /// Whether each chunk of K has workgroups of its own, whose sums go to a scratch buffer.
    pub(super) split: bool,
}

impl ManyRows {
    /// Workgroups for this many rows.
    pub(super) fn workgroups(&self, rows: u32) -> [u32; 3] {
        [self.blocks(), rows.div_ceil(self.block.rows), if self.split { self.weights.chunks() } else { 1 }]
    }

    /// Blocks of outputs.
    fn blocks(&self) -> u32 {
        (self.weights.tiles * 16).div_ceil(self.block.outputs)
    }

    /// Outputs of a row of the scratch buffer, in f32.
    fn scratch_stride(&self) -> u32 {
        self.blocks() * self.block.outputs
    }

    /// Bytes of the scratch buffer for this many rows: (chunk, row, output) in f32.
    pub(super) fn scratch_bytes(&self, rows: u32) -> u64 {
        let padded = u64::from(rows.next_multiple_of(self.block.rows));
        4 * u64::from(self.weights.chunks()) * padded * u64::from(self.scratch_stride())
    }

    /// The kernel: bindings w, (scales), x, count, then y or scratch.
    pub(super) fn text(&self) -> String {
        let mut bindings = self.weights.bindings();
        bindings.extend([("x", "read> x: array<vec4<f16>>"), ("count", "read> count: array<u32>")]);
        bindings.push(if self.split { ("scratch", "read_write> scratch: array<f32>") } else { self.epilogue.binding() });
        let Block { outputs, rows, .. } = self.block;
        let emit = if self.split { String::new() } else { self.epilogue.emit(self.weights.n) };
        let (first, steps) =
            if self.split { (format!("wg.z * {STEPS}u"), STEPS) } else { ("0u".to_owned(), self.weights.chunks() * STEPS) };
        format!(
            "{head}{spread}{emit}{memory}
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{
  let rows = count[0];
  let n0 = wg.y * {rows}u;
  if (n0 >= rows) {{ return; }}
  let warp = lid / 32u;
  let lane = lid % 32u;
  let m0 = wg.x * {outputs}u;
  let first = {first};
{declare}{load0}{store0}  workgroupBarrier();
  for (var step = 0u; step < {steps}u; step++) {{
  let now = step % 2u;
  let then = 1u - now;
  if (step + 1u < {steps}u) {{
{load}  }}
{multiply}  if (step + 1u < {steps}u) {{
{store}  }}
  workgroupBarrier();
  }}
{finish}}}
",
            head = head(&bindings),
            spread = self.weights.spread(),
            memory = self.memory(),
            threads = self.block.threads(),
            declare = self.declare(),
            load0 = self.load("first"),
            store0 = self.store("0u"),
            load = self.load("first + step + 1u"),
            multiply = self.multiply(),
            store = self.store("then"),
            finish = if self.split { self.finish_chunk() } else { self.finish() },
        )
    }

    fn memory(&self) -> String {
        let Block { outputs, rows, .. } = self.block;
        let mut text = format!("var<workgroup> sa: array<vec4<f16>, {}>;\n", 2 * outputs * STRIDE);
        let _ = writeln!(text, "var<workgroup> sb: array<vec4<f16>, {}>;", 2 * rows * STRIDE);
        if !self.split {
            let _ = writeln!(text, "var<workgroup> stage: array<f32, {}>;", self.block.warps() * 256);
        }
        text
    }

    /// Row tiles and tiles of 16 rows of a subgroup.
    fn warp_tiles(&self) -> (u32, u32) {
        (self.block.warp_outputs / 16, self.block.warp_rows / 16)
    }

    /// All (row tile, tile of rows) of a subgroup.
    fn each_tile(&self) -> impl Iterator<Item = (u32, u32)> {
        let (outputs, rows) = self.warp_tiles();
        (0..outputs).flat_map(move |i| (0..rows).map(move |j| (i, j)))
    }

    /// Reads of weights a thread makes each step: a lane's share of (row tile, 32 of K), or two quads of floats.
    fn weight_loads(&self) -> u32 {
        let per_tile = if self.weights.format == TileFormat::F16 { 2 * LANES } else { LANES };
        self.block.outputs / 16 * per_tile / self.block.threads()
    }

    /// Reads of eight elements of rows a thread makes each step.
    fn row_loads(&self) -> u32 {
        self.block.rows * (DEPTH / 8) / self.block.threads()
    }

    fn declare(&self) -> String {
        let columns = self.block.outputs / self.block.warp_outputs;
        let mut text = format!("  let wm = (warp % {columns}u) * {}u;\n", self.block.warp_outputs);
        let _ = writeln!(text, "  let wn = (warp / {columns}u) * {}u;", self.block.warp_rows);
        for (i, j) in self.each_tile() {
            let _ = writeln!(text, "  var acc{i}_{j} = coop_mat16x16<f32, C>();");
            if !self.split {
                let _ = writeln!(text, "  var total{i}_{j} = coop_mat16x16<f32, C>();");
            }
        }
        let (q, s) = match self.weights.format {
            TileFormat::F16 => ("vec4<f16>", "vec4<f16>"),
            TileFormat::Q4 => ("vec2<u32>", "u32"),
            TileFormat::Q8 => ("vec4<u32>", "vec2<u32>"),
        };
        for i in 0..self.weight_loads() {
            let _ = writeln!(text, "  var q{i}: {q};\n  var s{i}: {s};");
        }
        for i in 0..self.row_loads() {
            let _ = writeln!(text, "  var xa{i}: vec4<f16>;\n  var xb{i}: vec4<f16>;");
        }
        text
    }

    /// Reads a step's share of the weights and rows into registers. What lies outside repeats the last tile or row.
    fn load(&self, step: &str) -> String {
        let (threads, groups) = (self.block.threads(), self.weights.groups());
        let mut text = String::new();
        for i in 0..self.weight_loads() {
            let tile = |lanes: u32| format!("min(wg.x * {}u + id / {lanes}u, {}u)", self.block.outputs / 16, self.weights.tiles - 1);
            let _ = write!(text, "  {{ let id = lid + {}u; ", i * threads);
            let _ = if self.weights.format == TileFormat::F16 {
                let at = format!("(({} * {groups}u + {step}) * 64u + id % 64u) * 2u", tile(64));
                writeln!(text, "let at = {at}; q{i} = w[at]; s{i} = w[at + 1u]; }}")
            } else {
                let at = format!("{} * {groups}u + {step}", tile(32));
                writeln!(text, "let at = {at}; q{i} = w[at * 32u + id % 32u]; s{i} = sc[at * 16u + (id % 32u) / 2u]; }}")
            };
        }
        for i in 0..self.row_loads() {
            let at = format!("min(n0 + id / 4u, rows - 1u) * {}u + ({step}) * 8u + (id % 4u) * 2u", groups * 8);
            let _ = writeln!(text, "  {{ let id = lid + {}u; let at = {at}; xa{i} = x[at]; xb{i} = x[at + 1u]; }}", i * threads);
        }
        text
    }

    /// Puts it into workgroup memory.
    fn store(&self, buffer: &str) -> String {
        let (threads, Block { outputs, rows, .. }) = (self.block.threads(), self.block);
        let mut text = String::new();
        for i in 0..self.weight_loads() {
            let _ = write!(text, "  {{ let id = lid + {}u; ", i * threads);
            let base = |row: &str| format!("{buffer} * {}u + ({row}) * {STRIDE}u", outputs * STRIDE);
            let _ = if self.weights.format == TileFormat::F16 {
                let at = base("id / 64u * 16u + id % 32u / 2u");
                writeln!(text, "let at = {at} + id / 32u % 2u * 4u + id % 2u * 2u; sa[at] = q{i}; sa[at + 1u] = s{i}; }}")
            } else {
                let at = base("id / 32u * 16u + id % 32u / 2u");
                let _ = write!(text, "let z = spread(q{i}, s{i}); let at = {at} + id % 2u; ");
                writeln!(text, "sa[at] = z.a; sa[at + 2u] = z.b; sa[at + 4u] = z.c; sa[at + 6u] = z.d; }}")
            };
        }
        for i in 0..self.row_loads() {
            let at = format!("{buffer} * {}u + id / 4u * {STRIDE}u + id % 4u * 2u", rows * STRIDE);
            let _ = writeln!(text, "  {{ let id = lid + {}u; let at = {at}; sb[at] = xa{i}; sb[at + 1u] = xb{i}; }}", i * threads);
        }
        text
    }

    /// Multiplies what is in workgroup memory; the last step of a chunk adds it to the totals.
    fn multiply(&self) -> String {
        let (outputs, rows) = self.warp_tiles();
        let mut text = String::new();
        for t in 0..DEPTH / 16 {
            for i in 0..outputs {
                let at = format!("now * {}u + (wm + {}u) * {STRIDE}u + {}u", self.block.outputs * STRIDE, i * 16, t * 4);
                let _ = writeln!(text, "  let a{t}_{i} = coopLoadT<coop_mat16x16<f16, A>>(&sa[{at}], {STRIDE}u);");
            }
            for j in 0..rows {
                let at = format!("now * {}u + (wn + {}u) * {STRIDE}u + {}u", self.block.rows * STRIDE, j * 16, t * 4);
                let _ = writeln!(text, "  let b{t}_{j} = coopLoad<coop_mat16x16<f16, B>>(&sb[{at}], {STRIDE}u);");
            }
            for (i, j) in self.each_tile() {
                let _ = writeln!(text, "  acc{i}_{j} = coopMultiplyAdd(a{t}_{i}, b{t}_{j}, acc{i}_{j});");
            }
        }
        if !self.split {
            let _ = writeln!(text, "  if (step % {STEPS}u == {}u) {{", STEPS - 1);
            for (i, j) in self.each_tile() {
                let _ = writeln!(text, "  total{i}_{j} = total{i}_{j} + acc{i}_{j}; acc{i}_{j} = coop_mat16x16<f32, C>();");
            }
            text += "  }\n";
        }
        text
    }

    /// Stores a chunk's sums to the scratch buffer, which has room for surplus ones.
    fn finish_chunk(&self) -> String {
        let stride = self.scratch_stride();
        let mut text = format!("  let base = (wg.z * nwg.y * {}u + n0 + wn) * {stride}u + m0 + wm;\n", self.block.rows);
        for (i, j) in self.each_tile() {
            let _ = writeln!(text, "  coopStore(acc{i}_{j}, &scratch[base + {}u], {stride}u);", j * 16 * stride + i * 16);
        }
        text
    }

    /// Emits the totals, a tile at a time through workgroup memory, leaving out what lies outside.
    fn finish(&self) -> String {
        let (outputs, rows) = self.warp_tiles();
        let (n, m) = (self.weights.n, if self.epilogue.gated() { "(m0 + wm) / 2u" } else { "m0 + wm" });
        let mut text = String::new();
        let stage = |i: u32, j: u32| format!("  coopStore(total{i}_{j}, &stage[warp * 256u], 16u);\n  subgroupBarrier();\n");
        let element = |e: &str, i: u32, j: u32, value: &str| {
            format!(
                "  {{ let id = lane + 32u * {e}; let row = n0 + wn + {}u + id / 16u; let at = {m} + {}u + id % 16u;
    if (row < rows && at < {n}u) {{ emit(row, at, {value}); }} }}\n",
                j * 16,
                i * 16
            )
        };
        if self.epilogue.gated() {
            for (i, j) in (0..outputs / 2).flat_map(|i| (0..rows).map(move |j| (i, j))) {
                text += &stage(2 * i, j);
                (0..8).for_each(|e| text += &format!("  let g{i}_{j}_{e} = stage[warp * 256u + lane + {}u];\n", 32 * e));
                text += "  subgroupBarrier();\n";
                text += &stage(2 * i + 1, j);
                (0..8).for_each(|e| text += &element(&format!("{e}u"), i, j, &format!("g{i}_{j}_{e}, stage[warp * 256u + id]")));
                text += "  subgroupBarrier();\n";
            }
        } else {
            for (i, j) in self.each_tile() {
                text += &stage(i, j);
                let one = element("e", i, j, "stage[warp * 256u + id]");
                let _ = writeln!(text, "  for (var e = 0u; e < 8u; e++) {{\n{one}  }}\n  subgroupBarrier();");
            }
        }
        text
    }

    /// The kernel that adds the chunks of the scratch buffer in order, a thread an output: bindings scratch, count, y.
    pub(super) fn settle_text(&self) -> String {
        let bindings = [("scratch", "read> scratch: array<f32>"), ("count", "read> count: array<u32>"), self.epilogue.binding()];
        let (n, stride, chunks, rows) = (self.weights.n, self.scratch_stride(), self.weights.chunks(), self.block.rows);
        let (places, emit) = if self.epilogue.gated() {
            (vec!["i / 16u * 32u + i % 16u", "i / 16u * 32u + 16u + i % 16u"], "emit(wg.y, i, total0, total1);")
        } else {
            (vec!["i"], "emit(wg.y, i, total0);")
        };
        let mut sums = String::new();
        for (u, place) in places.iter().enumerate() {
            let _ = writeln!(sums, "  var total{u} = 0.0;\n  for (var c = 0u; c < {chunks}u; c++) {{");
            let _ = writeln!(sums, "    total{u} = total{u} + scratch[(c * padded + wg.y) * {stride}u + {place}];\n  }}");
        }
        format!(
            "{head}{emit_function}
@compute @workgroup_size({SETTLE_THREADS})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(global_invocation_id) id: vec3<u32>) {{
  let i = id.x;
  let padded = (nwg.y + {up}u) / {rows}u * {rows}u;
  if (wg.y >= count[0] || i >= {n}u) {{ return; }}
{sums}  {emit}
}}
",
            head = head(&bindings),
            emit_function = self.epilogue.emit(n),
            up = rows - 1,
        )
    }

    /// Workgroups of that kernel.
    pub(super) fn settle_workgroups(&self, rows: u32) -> [u32; 3] {
        [self.weights.n.div_ceil(SETTLE_THREADS), rows, 1]
    }
}

/// Threads of the kernel that adds chunks.
const SETTLE_THREADS: u32 = 128;
/// Subgroups that norm a row.
const NORM_WARPS: u32 = 8;

/// The kernel that norms rows, a workgroup each: bindings residual, norm, count, y (f16, rows padded to 256).
pub(super) fn norm_rows_text(k: u32, norm: Norm) -> String {
    let [residual, weight] = norm_bindings(k);
    let bindings = [residual, weight, ("count", "read> count: array<u32>"), ("y", "read_write> y: array<vec4<f16>>")];
    let chunks = k.div_ceil(256);
    format!(
        "{head}{functions}
var<workgroup> squares: array<f32, {chunks}>;
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{
  let row = min(wg.x, count[0] - 1u);
  let warp = lid / 32u;
  let lane = lid % 32u;
  for (var c = warp; c < {chunks}u; c += {NORM_WARPS}u) {{
    let at = c * 64u + lane * 2u;
    let s = chunk_squares(residual_quad(row, at), residual_quad(row, at + 1u));
    if (lane == 0u) {{ squares[c] = s; }}
  }}
  workgroupBarrier();
  var total = 0.0;
  for (var c = 0u; c < {chunks}u; c++) {{ total = total + squares[c]; }}
  let scale = rms_scale(total);
  for (var at = lid; at < {quads}u; at += {threads}u) {{
    y[row * {quads}u + at] = normed(residual_quad(row, at), weight_quad(at), scale);
  }}
}}
",
        head = head(&bindings),
        functions = norm_functions(k, norm),
        threads = NORM_WARPS * LANES,
        quads = chunks * 64,
    )
}
