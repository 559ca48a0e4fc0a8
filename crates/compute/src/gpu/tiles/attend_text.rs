//! The text of the attention kernels.
//!
//! Scores, probabilities and products with values are made for 16 query rows and 64 tokens at a time. Elements of a cooperative matrix
//! belong to no lane in particular, so scores and products go through workgroup memory, where lane `2 r + h` has every second quad of row
//! `r`. What decides bits is shared by the kernels: [`Attend::softmax`], [`Attend::gain`] and the functions of [`Attend::functions`].
//! Maxima are those of unscaled scores, or of the hyperbolic tangents that capped ones are multiples of: no difference that reaches an
//! exponential could be contracted with the product before it.

use super::super::Pairs;
use super::Norm;
use super::text::{LANES, head};
use std::fmt::Write as _;

/// Tokens of a block.
pub(super) const TOKENS: u32 = 64;
/// Query rows of a tile.
pub(super) const TILE_ROWS: u32 = 16;
/// Quads of a row of scores or probabilities in workgroup memory; two are unused, so that rows begin in different banks.
const ROW: u32 = TOKENS / 4 + 2;
/// Quads of a tile of them.
const TILE: u32 = TILE_ROWS * ROW;
/// Subgroups of a workgroup at most, by the workgroup memory that all have.
const WARPS_MAX: u32 = 4;
/// Subgroups of a workgroup that rotates heads.
pub(super) const ROPE_WARPS: u32 = 4;
/// Quads of a row of a tile of 16 scores or sums in workgroup memory; one is unused, as above.
pub(super) const TILE_ROW: u32 = 5;
/// Quads of the tiles of the four subgroups of a block of a row that is alone.
pub(super) const ONE_SCORES: u32 = 4 * TILE_ROWS * TILE_ROW;
/// Threads of a workgroup for a block of a row that is alone.
pub(super) const ONE_THREADS: u32 = 4 * LANES;

/// The constants of an attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attend {
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    /// A multiple of 16.
    pub(super) head_dim: u32,
    pub(super) scale: f32,
    /// What bounds scaled scores.
    pub(super) softcap: Option<f32>,
    /// Positions that a row sees, its own included; 0 for all.
    pub(super) window: u32,
}

/// How heads are rotated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) pairs: Pairs,
    pub(super) norm: Option<Norm>,
    /// Whether something is added to them before anything else.
    pub(super) biased: bool,
}

impl Turn {
    /// Bindings qkv, rotations, places, (norms of q and k), (bias).
    pub(super) fn bindings(&self) -> Vec<(&'static str, &'static str)> {
        let mut bindings =
            vec![("qkv", "read> qkv: array<f32>"), ("rotations", "read> rotations: array<f32>"), ("places", "read> places: array<u32>")];
        if self.norm.is_some() {
            bindings.extend([("q_norm", "read> q_norm: array<f32>"), ("k_norm", "read> k_norm: array<f32>")]);
        }
        bindings.extend(self.biased.then_some(("bias", "read> bias: array<f32>")));
        bindings
    }
}

impl Attend {
    /// Query heads of a KV head.
    pub(super) fn group(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Workgroups that share a run's KV head.
    pub(super) fn parts(&self) -> u32 {
        self.group().div_ceil(WARPS_MAX)
    }

    fn warps(&self) -> u32 {
        self.group().div_ceil(self.parts())
    }

    /// Elements of a head that go through workgroup memory at a time.
    fn width(&self) -> u32 {
        [64, 48, 32].into_iter().find(|width| self.head_dim.is_multiple_of(*width)).unwrap_or(16)
    }

    fn pieces(&self) -> u32 {
        self.head_dim / self.width()
    }

    /// Quads of a token's piece in workgroup memory; two are unused, as above.
    fn stride(&self) -> u32 {
        self.width() / 4 + 2
    }

    /// Quads of a head.
    pub(super) fn quads(&self) -> u32 {
        self.head_dim / 4
    }

    /// Quads of a token's piece that a lane has of its row.
    fn lane_quads(&self) -> u32 {
        self.width() / 8
    }

    /// Bytes of workgroup memory that a block of rows that are alone takes: 47 KiB for 16 heads of 256 elements, the most there are.
    pub(super) fn one_bytes(&self) -> u32 {
        8 * self.one_area() + 16 * ONE_SCORES + 2 * 4 * TOKENS
    }

    /// Quads of a slot of the scratch buffer: a head's sums, then its maximum and sum of probabilities.
    pub(super) fn slot_quads(&self) -> u32 {
        self.quads() + 1
    }

    /// The first position that a row at `position` sees. No function: naga takes none of its own for uniform.
    pub(super) fn start(&self, position: &str) -> String {
        if self.window == 0 { "0u".to_owned() } else { format!("({position} - min({position}, {}u))", self.window - 1) }
    }

    /// Functions whose bits all kernels share.
    pub(super) fn functions(&self) -> String {
        let log2_e = std::f64::consts::LOG2_E;
        let scale = f64::from(self.scale);
        // 1 - 2 / (1 + exp(2 x)) is tanh x, also where exp is zero or infinite.
        let capped = |cap: f32| {
            let twice = (2.0 * scale / f64::from(cap) * log2_e) as f32;
            format!(
                "fn capped(x: vec4<f32>) -> vec4<f32> {{ return fma(vec4<f32>(-2.0), 1.0 / (1.0 + exp2(x * {twice:?})), vec4<f32>(1.0)); }}\n"
            )
        };
        format!(
            "
const LEAST = -1e30;
struct Weights {{ most: f32, keep: f32, gain: f32 }}
fn weigh(m: f32, n: f32) -> Weights {{
  let most = max(m, n);
  return Weights(most, power(m - most), power(n - most));
}}
fn power(x: f32) -> f32 {{ return exp2(x * {factor:?}); }}
fn powers(x: vec4<f32>) -> vec4<f32> {{ return exp2(x * {factor:?}); }}
fn joined(o: vec4<f32>, ob: vec4<f32>, w: Weights) -> vec4<f32> {{ return fma(o, vec4<f32>(w.keep), ob * w.gain); }}
fn halves(x: vec4<f32>) -> vec4<f16> {{ return vec4<f16>(clamp(x, vec4<f32>(-65504.0), vec4<f32>(65504.0))); }}
fn block_of(slot: u32, side: u32, kv_head: u32) -> u32 {{ return ((slot * 2u + side) * {kv_heads}u + kv_head) * {block}u; }}
{capped}",
            factor = (self.softcap.map_or(scale, f64::from) * log2_e) as f32,
            capped = self.softcap.map(capped).unwrap_or_default(),
            kv_heads = self.kv_heads,
            block = TOKENS * self.quads(),
        )
    }

    /// Scores from workgroup memory, as maxima take them.
    fn scores(&self, at: &str) -> String {
        if self.softcap.is_some() { format!("capped(sc[{at}])") } else { format!("sc[{at}]") }
    }

    /// Workgroup memory: two pieces of keys or values, and of each subgroup scores (later sums) and probabilities.
    fn memory(&self, warps: u32) -> String {
        format!(
            "var<workgroup> kvs: array<vec4<f16>, {}>;
var<workgroup> sc: array<vec4<f32>, {}>;
var<workgroup> ps: array<vec4<f16>, {}>;
",
            2 * TOKENS * self.stride(),
            warps * TILE,
            warps * TILE
        )
    }

    /// From scores `c0` to `c3` to probabilities `pa0` to `pa3` as operand A, with the lane's row's maximum `mb` and sum `lb`.
    /// The row sees tokens `low` to `high` of the block.
    fn softmax(&self) -> String {
        let eight = |line: &dyn Fn(u32) -> String| (0..8).map(line).collect::<String>();
        let mut text = String::new();
        for n in 0..4 {
            let _ = writeln!(text, "  coopStoreT(c{n}, &sc[mine + {}u], {ROW}u);", n * 4);
        }
        text += "  subgroupBarrier();\n";
        text += &eight(&|i| format!("  var x{i} = {};\n", self.scores(&format!("own + {}u", 2 * i))));
        text += "  if (low > 0 || high < 63) {\n";
        text += &eight(&|i| {
            let t = format!("(quad + vec4<i32>({}))", 8 * i);
            format!("    x{i} = select(vec4<f32>(LEAST), x{i}, ({t} >= vec4<i32>(low)) & ({t} <= vec4<i32>(high)));\n")
        });
        text += "  }\n";
        text += "  var top = x0;\n";
        text += &(1..8).map(|i| format!("  top = max(top, x{i});\n")).collect::<String>();
        text += "  var mb = max(max(top.x, top.y), max(top.z, top.w));\n  mb = max(mb, subgroupShuffleXor(mb, 1u));\n";
        // Where a row sees nothing, everything is far below.
        text += "  let base = vec4<f32>(max(mb, 0.1 * LEAST));\n";
        text += &eight(&|i| format!("  x{i} = powers(x{i} - base);\n"));
        text += &eight(&|i| format!("  ps[own + {}u] = vec4<f16>(x{i});\n", 2 * i));
        for n in 0..4 {
            let _ = writeln!(text, "  let t{n} = x{} + x{};", 2 * n, 2 * n + 1);
        }
        let across = [0, 1, 2, 3].map(|n| format!("(t{n}.x + t{n}.y) + (t{n}.z + t{n}.w)")).join(", ");
        let _ = writeln!(text, "  var sums = vec4<f32>({across});");
        text += "  sums = sums + subgroupShuffleXor(sums, 1u);\n";
        text += "  let lb = ((sums.x + sums.y) + sums.z) + sums.w;\n  subgroupBarrier();\n";
        for t in 0..4 {
            let _ = writeln!(text, "  let pa{t} = coopLoadT<coop_mat16x16<f16, A>>(&ps[mine + {}u], {ROW}u);", t * 4);
        }
        text
    }

    /// The products of the probabilities with a piece of the values, left in the subgroup's `sc`. `value` is the pointer to and the stride
    /// of the tile of tokens 16 t and on, and of elements 16 n and on.
    fn gain(&self, value: &dyn Fn(u32, u32) -> (String, u32)) -> String {
        let mut text = "  {\n".to_owned();
        for n in 0..self.width() / 16 {
            let _ = writeln!(text, "  var v{n} = coop_mat16x16<f32, C>();");
            for t in 0..4 {
                let (at, stride) = value(t, n);
                let _ = writeln!(text, "  v{n} = coopMultiplyAdd(pa{t}, coopLoadT<coop_mat16x16<f16, B>>(&{at}, {stride}u), v{n});");
            }
        }
        for n in 0..self.width() / 16 {
            let _ = writeln!(text, "  coopStoreT(v{n}, &sc[mine + {}u], {ROW}u);", n * 4);
        }
        text + "  }\n  subgroupBarrier();\n"
    }

    /// Operand A: a run's queries, by way of where probabilities stand later. Surplus rows repeat the last.
    fn run_queries(&self) -> String {
        let (across, quads, mut text) = (self.width() / 4, self.quads(), String::new());
        for piece in 0..self.pieces() {
            for i in 0..TILE_ROWS * across / LANES {
                let id = format!("(lane + {}u)", i * LANES);
                let at = format!("((row0 + min({id} / {across}u, rows - 1u)) * {}u + head) * {quads}u", self.heads);
                let from = format!("q[{at} + {id} % {across}u + {}u]", piece * across);
                let _ = writeln!(text, "  ps[mine + {id} / {across}u * {ROW}u + {id} % {across}u] = {from};");
            }
            text += "  subgroupBarrier();\n";
            for t in 0..self.width() / 16 {
                let tile = piece * self.width() / 16 + t;
                let _ = writeln!(text, "  let qa{tile} = coopLoadT<coop_mat16x16<f16, A>>(&ps[mine + {}u], {ROW}u);", t * 4);
            }
            text += "  subgroupBarrier();\n";
        }
        text
    }

    /// Reads a thread's share of a piece of keys (side 0) or values into registers.
    fn load(&self, threads: u32, block: &str, piece: u32) -> String {
        let (across, mut text) = (self.width() / 4, String::new());
        for i in 0..(TOKENS * across).div_ceil(threads) {
            let id = share(i, threads, TOKENS * across);
            let at = format!("{block} + id / {across}u * {}u + id % {across}u + {}u", self.quads(), piece * across);
            let _ = writeln!(text, "  {{ let id = {id}; z{i} = kv[{at}]; }}");
        }
        text
    }

    /// Puts it into workgroup memory.
    fn store(&self, threads: u32, buffer: u32) -> String {
        let (across, mut text) = (self.width() / 4, String::new());
        for i in 0..(TOKENS * across).div_ceil(threads) {
            let at = format!("id / {across}u * {}u + id % {across}u + {}u", self.stride(), buffer * TOKENS * self.stride());
            let _ = writeln!(text, "  {{ let id = {}; kvs[{at}] = z{i}; }}", share(i, threads, TOKENS * across));
        }
        text
    }

    fn declare(&self, threads: u32) -> String {
        (0..(TOKENS * self.width() / 4).div_ceil(threads)).map(|i| format!("  var z{i}: vec4<f16>;\n")).collect()
    }

    /// A lane's place: `r` and `h`, the subgroup's tile `mine`, the lane's first quad in it, `own`, and that quad's tokens.
    fn places() -> String {
        format!(
            "  let r = lane / 2u;
  let h = lane % 2u;
  let mine = warp * {TILE}u;
  let own = mine + r * {ROW}u + h;
  let quad = vec4<i32>(i32(4u * h)) + vec4<i32>(0, 1, 2, 3);
"
        )
    }

    /// The kernel for runs of rows: bindings q, kv, places, runs, out. Long runs come first, that the last to finish be short.
    pub(super) fn runs_text(&self) -> String {
        let (warps, threads) = (self.warps(), self.warps() * LANES);
        let bindings = [
            ("q", "read> q: array<vec4<f16>>"),
            ("kv", "read> kv: array<vec4<f16>>"),
            ("places", "read> places: array<u32>"),
            ("runs", "read> runs: array<u32>"),
            ("out", "read_write> out: array<vec4<f16>>"),
        ];
        format!(
            "{head}{functions}{memory}
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{
  let count = runs[0];
  if (wg.x >= count) {{ return; }}
  let warp = lid / 32u;
  let lane = lid % 32u;
{places}  let run = count - 1u - wg.x;
  let row0 = runs[1u + 2u * run];
  let rows = runs[2u + 2u * run];
  let position0 = places[1u + 2u * row0];
  let table = places[2u + 2u * row0];
  let kv_head = wg.y / {parts}u;
  let head = min(kv_head * {group}u + wg.y % {parts}u * {warps}u + warp, kv_head * {group}u + {group_last}u);
  let position = position0 + min(r, rows - 1u);
  let start = i32({start});
  let first = {start0} / 64u;
  let last = (position0 + rows - 1u) / 64u;
{queries}{declare}  var m = LEAST;
  var l = 0.0;
  {{ let keys = block_of(places[table + first], 0u, kv_head);
{load0}  }}
{store0}  workgroupBarrier();
  for (var b = first; b <= last; b++) {{
{block}  }}
{finish}}}
",
            head = head(&bindings),
            functions = self.functions(),
            memory = self.memory(warps),
            places = Self::places(),
            start = self.start("position"),
            parts = self.parts(),
            group = self.group(),
            group_last = self.group() - 1,
            start0 = self.start("position0"),
            queries = self.run_queries(),
            declare = self.declare(threads) + &self.declare_sums(),
            load0 = self.load(threads, "keys", 0),
            store0 = self.store(threads, 0),
            block = self.run_block(threads),
            finish = self.run_finish(),
        )
    }

    /// A lane's sums over values.
    fn declare_sums(&self) -> String {
        let all = (0..self.pieces()).flat_map(|piece| (0..self.lane_quads()).map(move |i| (piece, i)));
        all.map(|(piece, i)| format!("  var o{piece}_{i} = vec4<f32>();\n")).collect()
    }

    /// One block of a run: pieces of keys, then of values; while one is used the next is read.
    fn run_block(&self, threads: u32) -> String {
        let (pieces, stride) = (self.pieces(), self.stride());
        let mut text = "  let slot = places[table + b];
  let keys = block_of(places[table + min(b + 1u, last)], 0u, kv_head);
  let values = block_of(slot, 1u, kv_head);
  let now = block_of(slot, 0u, kv_head);
  let low = start - i32(64u * b);
  let high = i32(position) - i32(64u * b);
"
        .to_owned();
        (0..4).for_each(|n| text += &format!("  var c{n} = coop_mat16x16<f32, C>();\n"));
        for piece in 0..pieces {
            let base = piece % 2 * TOKENS * stride;
            text += &if piece + 1 < pieces { self.load(threads, "now", piece + 1) } else { self.load(threads, "values", 0) };
            for (t, n) in (0..self.width() / 16).flat_map(|t| (0..4).map(move |n| (t, n))) {
                let key = format!("coopLoad<coop_mat16x16<f16, B>>(&kvs[{}u], {stride}u)", base + n * 16 * stride + t * 4);
                let _ = writeln!(text, "  c{n} = coopMultiplyAdd(qa{}, {key}, c{n});", piece * self.width() / 16 + t);
            }
            text += &self.store(threads, (piece + 1) % 2);
            text += "  workgroupBarrier();\n";
        }
        text += &self.softmax();
        text += "  let w = weigh(m, mb);\n  m = w.most;\n  l = fma(l, w.keep, lb * w.gain);\n";
        for piece in 0..pieces {
            let buffer = (pieces + piece) % 2;
            text += &if piece + 1 < pieces { self.load(threads, "values", piece + 1) } else { self.load(threads, "keys", 0) };
            text += &self.gain(&|t, n| (format!("kvs[{}u]", (buffer * TOKENS + t * 16) * stride + n * 4), stride));
            for i in 0..self.lane_quads() {
                let _ = writeln!(text, "  o{piece}_{i} = joined(o{piece}_{i}, sc[own + {}u], w);", 2 * i);
            }
            text += &self.store(threads, (pieces + piece + 1) % 2);
            text += "  workgroupBarrier();\n";
        }
        text
    }

    /// Writes a run's rows.
    fn run_finish(&self) -> String {
        let padded = super::padded_len((self.heads * self.head_dim) as usize) / 4;
        let mut text = "  if (r < rows) {\n  let inverse = 1.0 / l;\n".to_owned();
        let _ = writeln!(text, "  let to = (row0 + r) * {padded}u + head * {}u + h;", self.quads());
        for (piece, i) in (0..self.pieces()).flat_map(|piece| (0..self.lane_quads()).map(move |i| (piece, i))) {
            let _ = writeln!(text, "  out[to + {}u] = halves(o{piece}_{i} * inverse);", piece * self.width() / 4 + 2 * i);
        }
        text + "  }\n"
    }

    /// The kernel for one block of rows that are alone: bindings q, kv, places, ones, scratch. A subgroup scores 16 of the tokens,
    /// and then sums every fourth tile of the values' elements; keys and values are asked for before anything else.
    pub(super) fn ones_text(&self) -> String {
        let bindings = [
            ("q", "read> q: array<vec4<f16>>"),
            ("kv", "read> kv: array<vec4<f16>>"),
            ("places", "read> places: array<u32>"),
            ("ones", "read> ones: array<u32>"),
            ("scratch", "read_write> scratch: array<vec4<f32>>"),
        ];
        format!(
            "{head}{functions}{memory}
@compute @workgroup_size({ONE_THREADS})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{
  let count = ones[0];
  if (wg.z >= count) {{ return; }}
  let row = ones[1u + wg.z];
  let position = places[1u + 2u * row];
  let b = {start} / 64u + wg.x;
  if (b > position / 64u) {{ return; }}
  let team = 0u;
  let kv_head = wg.y;
  let slot = places[places[2u + 2u * row] + b];
{place}{queries}{load}{bounds}{scores}{softmax}{gains}}}
",
            head = head(&bindings),
            functions = self.functions(),
            memory = self.one_memory(1),
            start = self.start("position"),
            place = one_place(self.one_area()),
            queries = self.one_queries(),
            load = self.one_load(),
            bounds = self.one_bounds(),
            scores = self.one_scores(false),
            softmax = self.one_softmax(false),
            gains = self.one_leave(),
        )
    }

    /// Workgroup memory for so many blocks of rows that are alone, and what finds a row's maximum and sum there.
    pub(super) fn one_memory(&self, teams: u32) -> String {
        format!(
            "
var<workgroup> kvs: array<vec4<f16>, {}>;
var<workgroup> sc: array<vec4<f32>, {}>;
var<workgroup> tops: array<f32, {stats}>;
var<workgroup> sums: array<f32, {stats}>;
fn top_of(at: u32) -> f32 {{ return max(max(tops[at], tops[at + 16u]), max(tops[at + 32u], tops[at + 48u])); }}
fn sum_of(at: u32) -> f32 {{ return ((sums[at] + sums[at + 16u]) + sums[at + 32u]) + sums[at + 48u]; }}
",
            teams * self.one_area(),
            teams * ONE_SCORES,
            stats = teams * TOKENS,
        )
    }

    /// Quads of a group's queries or probabilities, then of a block's keys or values.
    pub(super) fn one_area(&self) -> u32 {
        self.one_queries_quads() + TOKENS * self.row()
    }

    fn one_queries_quads(&self) -> u32 {
        self.group() * self.row().max(ROW)
    }

    /// Which tokens of block `b` the row sees.
    pub(super) fn one_bounds(&self) -> String {
        format!(
            "  let low = vec4<i32>(i32({}) - i32(64u * b));\n  let high = vec4<i32>(i32(position) - i32(64u * b));\n",
            self.start("position")
        )
    }

    /// Tiles of a value's elements that a subgroup has for rows that are alone.
    pub(super) fn value_tiles(&self) -> u32 {
        (self.head_dim / 16).div_ceil(4)
    }

    /// Quads of a token in workgroup memory for rows that are alone; two are unused, as above.
    pub(super) fn row(&self) -> u32 {
        self.quads() + 2
    }

    /// Quads of a block's keys that a thread loads for rows that are alone, and of its values.
    fn one_quads(&self) -> u32 {
        TOKENS * self.quads() / ONE_THREADS
    }

    /// Asks for the queries.
    fn one_queries(&self) -> String {
        let queries = format!("  let queries = (row * {}u + kv_head * {}u) * {}u;\n", self.heads, self.group(), self.quads());
        (0..self.query_quads()).fold(queries, |text, i| text + &format!("  let q{i} = q[queries + {}];\n", self.query(i)))
    }

    /// Asks for the keys and values of the block in a slot.
    pub(super) fn one_load(&self) -> String {
        let mut text = String::new();
        for (side, name) in ["k", "v"].into_iter().enumerate() {
            for i in 0..self.one_quads() {
                let _ = writeln!(text, "  let {name}{i} = kv[block_of(slot, {side}u, kv_head) + lid + {}u];", i * ONE_THREADS);
            }
        }
        text
    }

    /// Quads of a group's queries that a thread loads for rows that are alone.
    pub(super) fn query_quads(&self) -> u32 {
        (self.group() * self.quads()).div_ceil(ONE_THREADS)
    }

    pub(super) fn query(&self, i: u32) -> String {
        share(i, ONE_THREADS, self.group() * self.quads())
    }

    /// Puts keys (`k`) or values behind the queries. What is `fused` takes token `hole`'s from the rotated heads instead.
    fn one_store(&self, name: &str, fused: bool) -> String {
        let (quads, row, first) = (self.quads(), self.row(), self.one_queries_quads());
        let mut text = String::new();
        for i in 0..self.one_quads() {
            let id = format!("(lid + {}u)", i * ONE_THREADS);
            let put = format!("kvs[area + {id} / {quads}u * {row}u + {id} % {quads}u + {first}u] = {name}{i};");
            let _ = match fused {
                true => writeln!(text, "  if ({id} / {quads}u != hole) {{ {put} }}"),
                false => writeln!(text, "  {put}"),
            };
        }
        if fused {
            let new = (self.group() + u32::from(name == "v")) * quads;
            let put = format!("kvs[area + hole * {row}u + lid + {first}u] = fresh(lid + {new}u);");
            let _ = writeln!(text, "  if (lid < {quads}u && hole < {TOKENS}u) {{ {put} }}");
        }
        text
    }

    /// A subgroup's scores; surplus rows of a tile of queries are keys. Values take the keys' place later, and probabilities that of the
    /// queries: nobody reads those after the first barrier of the softmax.
    pub(super) fn one_scores(&self, fused: bool) -> String {
        let (quads, row, mut text) = (self.quads(), self.row(), String::new());
        for i in 0..self.query_quads() {
            let _ = writeln!(text, "  {{ let id = {}; kvs[area + id / {quads}u * {row}u + id % {quads}u] = q{i}; }}", self.query(i));
        }
        text += &self.one_store("k", fused);
        text += "  workgroupBarrier();\n  var c = coop_mat16x16<f32, C>();\n";
        for t in 0..self.head_dim / 16 {
            let query = format!("coopLoadT<coop_mat16x16<f16, A>>(&kvs[area + {}u], {row}u)", t * 4);
            let at = format!("area + warp * {}u + {}u", 16 * row, self.one_queries_quads() + t * 4);
            let _ = writeln!(text, "  c = coopMultiplyAdd({query}, coopLoad<coop_mat16x16<f16, B>>(&kvs[{at}], {row}u), c);");
        }
        text + &format!("  coopStoreT(c, &sc[mine], {TILE_ROW}u);\n  subgroupBarrier();\n")
    }

    /// From scores to the probabilities of all subgroups; values are in workgroup memory from here on.
    pub(super) fn one_softmax(&self, fused: bool) -> String {
        ONE_SOFTMAX
            .replace("VALUES", &self.one_store("v", fused))
            .replace("GROUP", &format!("{}u", self.group()))
            .replace("SCORES_LOW", &self.scores("own"))
            .replace("SCORES_HIGH", &self.scores("own + 2u"))
    }

    /// Sums of a block over values, to the scratch buffer.
    pub(super) fn one_leave(&self) -> String {
        let (heads, group, quads) = (self.heads, self.group(), self.quads());
        let mut text = format!(
            "  let to = ((wg.x * count + wg.z) * {heads}u + kv_head * {group}u + r) * {slot}u;
  if (r < {group}u && h == 0u && warp == 0u) {{ scratch[to + {quads}u] = vec4<f32>(top_of(stats + r), sum_of(stats + r), 0.0, 0.0); }}
",
            slot = self.slot_quads()
        );
        text += &self.one_gains();
        for j in 0..self.value_tiles() {
            let _ = writeln!(
                text,
                "  coopStoreT(o{j}, &sc[mine], {TILE_ROW}u);
  subgroupBarrier();
  if (r < {group}u) {{
    scratch[to + e{j} + h] = sc[own];
    scratch[to + e{j} + h + 2u] = sc[own + 2u];
  }}
  subgroupBarrier();"
            );
        }
        text
    }

    /// Sums of a block over values; surplus tiles repeat the last.
    pub(super) fn one_gains(&self) -> String {
        let (tiles, row, mut text) = (self.head_dim / 16, self.row(), String::new());
        for t in 0..4 {
            let _ = writeln!(text, "  let pa{t} = coopLoadT<coop_mat16x16<f16, A>>(&kvs[area + {}u], {ROW}u);", t * 4);
        }
        for j in 0..self.value_tiles() {
            let _ = writeln!(text, "  let e{j} = min(warp + {}u, {}u) * 4u;\n  var o{j} = coop_mat16x16<f32, C>();", 4 * j, tiles - 1);
            for t in 0..4 {
                let at = format!("area + e{j} + {}u", self.one_queries_quads() + t * 16 * row);
                let _ = writeln!(text, "  o{j} = coopMultiplyAdd(pa{t}, coopLoadT<coop_mat16x16<f16, B>>(&kvs[{at}], {row}u), o{j});");
            }
        }
        text
    }

    /// Reads a lane's block of the 32 from one on, and a thread's element of all of them. What lies behind the last block counts nothing.
    fn join_read(&self, declare: &str, from: &str) -> String {
        let at = |block: &str| format!("(min({from} + {block}, blocks - 1u) * step + which) * {}u", 4 * self.slot_quads());
        let stats = format!("scratch[{} + {}u", at("lane"), self.head_dim);
        let mut text = format!("  {declare}_top = select(LEAST, {stats}], {from} + lane < blocks);\n  {declare}_sum = {stats} + 1u];\n");
        (0..LANES).for_each(|i| text += &format!("  {declare}_o{i} = scratch[{} + element];\n", at(&format!("{i}u"))));
        text
    }

    /// The kernel that joins the blocks of rows that are alone, a thread an element: bindings scratch, places, ones, out. A lane weighs a
    /// block: the maximum of all before it is the same in whatever order it is found.
    /// Without `listed` all rows are alone, there is no binding that says which, and there is no workgroup too many.
    pub(super) fn join_text(&self, listed: bool) -> String {
        let mut bindings = vec![("scratch", "read> scratch: array<f32>"), ("places", "read> places: array<u32>")];
        bindings.extend(listed.then_some(("ones", "read> ones: array<u32>")));
        bindings.push(("out", "read_write> out: array<f16>"));
        let (count, row) = if listed { ("ones[0]", "ones[1u + wg.y]") } else { ("nwg.y", "wg.y") };
        let (mut gain, mut scan) = (String::new(), String::new());
        let mut rotate = "  now_top = then_top;\n  now_sum = then_sum;\n".to_owned();
        for i in 0..LANES {
            let _ = writeln!(gain, "  {{ let w = weights[mine + {i}u]; l = fma(l, w.x, w.z * w.y); o = fma(o, w.x, now_o{i} * w.y); }}");
            let _ = writeln!(rotate, "  now_o{i} = then_o{i};");
        }
        for by in [1, 2, 4, 8, 16] {
            let _ = writeln!(scan, "  {{ let up = subgroupShuffleUp(most, {by}u); most = max(most, select(LEAST, up, lane >= {by}u)); }}");
        }
        format!(
            "{head}{functions}
var<workgroup> weights: array<vec4<f32>, {threads}>;
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{
  let count = {count};
  if (wg.y >= count) {{ return; }}
  let lane = lid % 32u;
  let mine = lid - lane;
  let element = min(lid, {head_dim}u - 1u);
  let row = {row};
  let position = places[1u + 2u * row];
  let blocks = position / 64u - {start} / 64u + 1u;
  let step = count * {heads}u;
  let which = wg.y * {heads}u + wg.x;
  var m = LEAST;
  var l = 0.0;
  var o = 0.0;
{first}  for (var b = 0u; b < blocks; b += 32u) {{
{next}  var most = max(m, now_top);
{scan}  let before = select(subgroupShuffleUp(most, 1u), m, lane == 0u);
  weights[lid] = vec4<f32>(power(before - most), power(now_top - most), now_sum, 0.0);
  m = subgroupShuffle(most, 31u);
  subgroupBarrier();
{gain}  subgroupBarrier();
{rotate}  }}
  let inverse = 1.0 / l;
  if (lid < {head_dim}u) {{ out[row * {padded}u + wg.x * {head_dim}u + lid] = f16(clamp(o * inverse, -65504.0, 65504.0)); }}
}}
",
            head = head(&bindings),
            functions = self.functions(),
            start = self.start("position"),
            head_dim = self.head_dim,
            threads = self.head_dim.next_multiple_of(LANES),
            heads = self.heads,
            first = self.join_read("var now", "0u"),
            next = self.join_read("let then", "(b + 32u)"),
            padded = super::padded_len((self.heads * self.head_dim) as usize),
        )
    }
}

/// [`Attend::softmax`] where a subgroup has 16 of the tokens: maxima and sums meet in workgroup memory.
const ONE_SOFTMAX: &str = "  var x0 = select(vec4<f32>(LEAST), SCORES_LOW, (quad >= low) & (quad <= high));
  var x1 = select(vec4<f32>(LEAST), SCORES_HIGH, (quad + vec4<i32>(8) >= low) & (quad + vec4<i32>(8) <= high));
  let top = max(x0, x1);
  var most = max(max(top.x, top.y), max(top.z, top.w));
  most = max(most, subgroupShuffleXor(most, 1u));
  if (h == 0u) { tops[stats + warp * 16u + r] = most; }
  workgroupBarrier();
  let base = vec4<f32>(max(top_of(stats + r), 0.1 * LEAST));
  x0 = powers(x0 - base);
  x1 = powers(x1 - base);
  if (r < GROUP) {
    kvs[area + r * 18u + warp * 4u + h] = vec4<f16>(x0);
    kvs[area + r * 18u + warp * 4u + h + 2u] = vec4<f16>(x1);
  }
  let t = x0 + x1;
  var sum = (t.x + t.y) + (t.z + t.w);
  sum = sum + subgroupShuffleXor(sum, 1u);
  if (h == 0u) { sums[stats + warp * 16u + r] = sum; }
VALUES  workgroupBarrier();
";

/// A thread's place in its team of a block: the subgroup `warp`, its tile in `sc`, the lane's row and quads, the team's memory.
pub(super) fn one_place(area: u32) -> String {
    format!(
        "  let warp = lid / 32u;
  let r = lid % 32u / 2u;
  let h = lid % 2u;
  let area = team * {area}u;
  let stats = team * {TOKENS}u;
  let mine = team * {ONE_SCORES}u + warp * {tile}u;
  let own = mine + r * {TILE_ROW}u + h;
  let quad = vec4<i32>(i32(16u * warp + 4u * h)) + vec4<i32>(0, 1, 2, 3);
",
        tile = TILE_ROWS * TILE_ROW,
    )
}

/// The number of a thread's `i`th piece of work of `all`; where they are no multiple of the threads the last is done again.
fn share(i: u32, threads: u32, all: u32) -> String {
    match (i + 1) * threads <= all {
        true => format!("lid + {}u", i * threads),
        false => format!("min(lid + {}u, {}u)", i * threads, all - 1),
    }
}

/// The kernel that rotates queries and keys, normed first if need be, and stores keys and values: bindings qkv, rotations, places,
/// (norms of q and k), (bias), q, kv.
pub(super) fn rope_store_text(shape: &Attend, turn: Turn) -> String {
    let mut bindings = turn.bindings();
    bindings.extend([("q", "read_write> q: array<f16>"), ("kv", "read_write> kv: array<f16>")]);
    let Attend { heads, kv_heads, head_dim, .. } = *shape;
    let all = heads + 2 * kv_heads;
    let store = format!(
        "if (head0 < {heads}u) {{
      q[(row * {heads}u + head0) * {head_dim}u + to_x] = x;
      q[(row * {heads}u + head0) * {head_dim}u + to_y] = y;
    }} else {{
      kv[to + to_x] = x;
      kv[to + to_y] = y;
    }}"
    );
    format!(
        "{head}{functions}
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{
  let row = wg.y;
  if (row >= places[0]) {{ return; }}
  let lane = lid % 32u;
  let head0 = min(wg.x * {ROPE_WARPS}u + lid / 32u, {all_last}u);
  let base0 = (row * {all}u + head0) * {head_dim}u;
  let position = places[1u + 2u * row];
  let slot = places[places[2u + 2u * row] + position / 64u];
  let side = (max(head0, {heads}u) - {heads}u) / {kv_heads}u;
  let kv_head = (max(head0, {heads}u) - {heads}u) % {kv_heads}u;
  let is_value0 = side == 1u;
  let to = ((slot * 2u + side) * {kv_heads}u + kv_head) * {block}u + position % 64u * {head_dim}u;
{read}{normed}{write}}}
",
        head = head(&bindings),
        functions = BOUNDED,
        threads = ROPE_WARPS * LANES,
        all_last = all - 1,
        block = TOKENS * head_dim,
        read = rope_read(shape, turn, 0) + &rope_angles(head_dim),
        normed = turn.norm.map(|norm| rope_norm(shape, norm, 0)).unwrap_or_default(),
        write = rope_write(shape, turn, 0, &store),
    )
}

/// What is stored: no infinities.
pub(super) const BOUNDED: &str = "fn bounded(x: f32) -> f16 { return f16(clamp(x, -65504.0, 65504.0)); }\n";

/// The places in a head of the elements of pair `i`. Behind the pairs that are turned, those are paired that are not, in the same way.
fn rope_places(shape: &Attend, pairs: Pairs, i: &str) -> [String; 2] {
    let (half, turned) = (shape.head_dim / 2, pairs.turned);
    let (first, second) =
        if pairs.interleaved { (format!("2u * {i}"), format!("2u * {i} + 1u")) } else { (i.to_owned(), format!("{i} + {turned}u")) };
    match turned < half {
        true => [(first, turned), (second, half)].map(|(at, rest)| format!("select({i} + {rest}u, {at}, {i} < {turned}u)")),
        false => [first, second],
    }
}

/// Pairs that a lane has of its subgroup's `n`th head, `head{n}`, which begins at `base{n}`: indices, whether they are its own, and values.
pub(super) fn rope_read(shape: &Attend, turn: Turn, n: u32) -> String {
    let (pairs, mut text) = (shape.head_dim / 2, String::new());
    let value = |at: &str| {
        let bias = if turn.biased { format!(" + bias[head{n} * {}u + {at}]", shape.head_dim) } else { String::new() };
        format!("qkv[base{n} + {at}]{bias}")
    };
    for p in 0..pairs.div_ceil(LANES) {
        let (from, i) = (32 * p, format!("i{n}_{p}"));
        let _ = writeln!(text, "  let live{n}_{p} = lane + {from}u < {pairs}u;\n  let {i} = min(lane + {from}u, {}u);", pairs - 1);
        let [a, b] = rope_places(shape, turn.pairs, &i);
        let _ = writeln!(text, "  let a{n}_{p} = {a};\n  let b{n}_{p} = {b};");
        let _ = writeln!(text, "  var x{n}_{p} = {};\n  var y{n}_{p} = {};", value(&format!("a{n}_{p}")), value(&format!("b{n}_{p}")));
    }
    text
}

/// Norms head `head{n}`, unless `is_value{n}`.
pub(super) fn rope_norm(shape: &Attend, norm: Norm, n: u32) -> String {
    let (pairs, mut text) = (shape.head_dim / 2, format!("  var s{n} = 0.0;\n"));
    for at in (0..pairs.div_ceil(LANES)).map(|p| format!("{n}_{p}")) {
        let _ = writeln!(text, "  s{n} = select(s{n}, fma(y{at}, y{at}, fma(x{at}, x{at}, s{n})), live{at});");
    }
    (0..5).for_each(|i| text += &format!("  s{n} = s{n} + subgroupShuffleXor(s{n}, {}u);\n", 16 >> i));
    let _ = writeln!(text, "  let factor{n} = 1.0 / sqrt(s{n} / {}.0 + {:?});", shape.head_dim, norm.eps);
    for (p, x) in (0..pairs.div_ceil(LANES)).flat_map(|p| [(p, "x"), (p, "y")]) {
        let (at, x) = (if x == "x" { format!("a{n}_{p}") } else { format!("b{n}_{p}") }, format!("{x}{n}_{p}"));
        let weight = format!("select(k_norm[{at}], q_norm[{at}], head{n} < {}u)", shape.heads);
        let _ = writeln!(text, "  {x} = select({x} * factor{n} * {weight}, {x}, is_value{n});");
    }
    text
}

/// The angles of a lane's pairs.
pub(super) fn rope_angles(head_dim: u32) -> String {
    let (pairs, mut text) = (head_dim / 2, String::new());
    for p in 0..pairs.div_ceil(LANES) {
        let _ = writeln!(text, "  let cos{p} = rotations[position * {head_dim}u + i0_{p}];");
        let _ = writeln!(text, "  let sin{p} = rotations[position * {head_dim}u + {pairs}u + i0_{p}];");
    }
    text
}

/// Rotates what is turned, unless `is_value{n}`, and does `store` with elements `x` and `y` of the head's places `to_x` and `to_y`.
pub(super) fn rope_write(shape: &Attend, turn: Turn, n: u32, store: &str) -> String {
    let (pairs, mut text) = (shape.head_dim / 2, String::new());
    for p in 0..pairs.div_ceil(LANES) {
        let (at, i) = (format!("{n}_{p}"), format!("i{n}_{p}"));
        let [first, second] = rope_places(shape, Pairs { interleaved: false, ..turn.pairs }, &i);
        let rest = if turn.pairs.turned < pairs { format!(" || {i} >= {}u", turn.pairs.turned) } else { String::new() };
        let _ = writeln!(
            text,
            "  if (live{at}) {{
    let x = bounded(select(fma(x{at}, cos{p}, -(y{at} * sin{p})), x{at}, is_value{n}{rest}));
    let y = bounded(select(fma(x{at}, sin{p}, y{at} * cos{p}), y{at}, is_value{n}{rest}));
    let to_x = select({first}, a{at}, is_value{n});
    let to_y = select({second}, b{at}, is_value{n});
    {store}
  }}"
        );
    }
    text
}
