//! The text of the attention kernels for a step in which every row is alone, in a session of its own: they rotate the queries of their KV
//! head themselves, and the row's key and value too, which they put among those of its last block.
//!
//! The pieces are those of `attend_text.rs`, and so are the bits.

use super::attend_text::{
    Attend, BOUNDED, ONE_SCORES, ONE_THREADS, TILE_ROW, TOKENS, Turn, one_place, rope_angles, rope_norm, rope_read, rope_write,
};
use super::one_row::WORKGROUP_BYTES;
use super::text::{LANES, head};
use std::fmt::Write as _;

/// Blocks of a row that a workgroup has all at once, at most.
const TEAMS_MAX: u32 = 4;

/// The row's own token, if it is in block `b`: what was read of it may be old or new, and nobody uses it.
const HOLE: &str = "  let hole = select(64u, position % 64u, b == position / 64u);\n";

impl Attend {
    /// Bytes of the rotated heads of a KV head, its key and its value in workgroup memory.
    fn roped_bytes(&self) -> u32 {
        2 * (self.group() + 2) * self.head_dim
    }

    /// Whether workgroup memory takes a block and the rotated heads.
    pub(super) fn fuses(&self) -> bool {
        self.one_bytes() + self.roped_bytes() <= WORKGROUP_BYTES
    }

    /// Blocks of a row that a workgroup has all at once.
    pub(super) fn teams(&self) -> u32 {
        ((WORKGROUP_BYTES - self.roped_bytes()) / self.one_bytes()).clamp(1, TEAMS_MAX)
    }

    /// Bindings qkv, rotations, places, (norms of q and k), (bias), kv, then `last`.
    fn fused_bindings(&self, turn: Turn, last: (&'static str, &'static str)) -> Vec<(&'static str, &'static str)> {
        let mut bindings = turn.bindings();
        bindings.extend([("kv", "read_write> kv: array<vec4<f16>>"), last]);
        bindings
    }

    /// Functions and workgroup memory for so many blocks at a time.
    fn fused_head(&self, turn: Turn, teams: u32, last: (&'static str, &'static str)) -> String {
        format!(
            "{}{}{BOUNDED}{}var<workgroup> roped: array<f16, {}>;
fn fresh(at: u32) -> vec4<f16> {{ return vec4<f16>(roped[4u * at], roped[4u * at + 1u], roped[4u * at + 2u], roped[4u * at + 3u]); }}
",
            head(&self.fused_bindings(turn, last)),
            self.functions(),
            self.one_memory(teams),
            (self.group() + 2) * self.head_dim,
        )
    }

    /// Heads that a subgroup rotates.
    fn turns(&self, teams: u32) -> u32 {
        (self.group() + 2).div_ceil(teams * ONE_THREADS / LANES)
    }

    /// Asks for the heads to rotate: the group's, then key and value.
    fn turn_read(&self, turn: Turn, teams: u32) -> String {
        let Attend { heads, kv_heads, head_dim, .. } = *self;
        let (group, all, mut text) = (self.group(), heads + 2 * kv_heads, String::new());
        for n in 0..self.turns(teams) {
            let other = format!("{heads}u + (which{n} - {group}u) * {kv_heads}u + kv_head");
            let _ = writeln!(
                text,
                "  let which{n} = min(index / 32u + {}u, {}u);
  let head{n} = select({other}, kv_head * {group}u + which{n}, which{n} < {group}u);
  let is_value{n} = which{n} > {group}u;
  let base{n} = (row * {all}u + head{n}) * {head_dim}u;",
                n * teams * ONE_THREADS / LANES,
                group + 1
            );
            text += &rope_read(self, turn, n);
        }
        text
    }

    /// Rotates them into workgroup memory, and has each thread take its share of the queries.
    fn turn_write(&self, turn: Turn, teams: u32) -> String {
        let mut text = String::new();
        for n in 0..self.turns(teams) {
            text += &turn.norm.map(|norm| rope_norm(self, norm, n)).unwrap_or_default();
            let to = format!("roped[which{n} * {}u +", self.head_dim);
            text += &rope_write(self, turn, n, &format!("{to} to_x] = x;\n    {to} to_y] = y;"));
        }
        text += "  workgroupBarrier();\n";
        (0..self.query_quads()).for_each(|i| text += &format!("  let q{i} = fresh({});\n", self.query(i)));
        text
    }

    /// Stores the row's key and value, if this workgroup is to.
    fn keep(&self, condition: &str, slot: &str) -> String {
        let (quads, group) = (self.quads(), self.group());
        format!(
            "  if ({condition} && index < {}u) {{
    kv[block_of({slot}, index / {quads}u, kv_head) + position % 64u * {quads}u + index % {quads}u] = fresh(index + {}u);
  }}
",
            2 * quads,
            group * quads
        )
    }

    /// The kernel for one block of a row: bindings qkv, rotations, places, (norms of q and k), (bias), kv, scratch.
    pub(super) fn fused_text(&self, turn: Turn) -> String {
        format!(
            "{head}
@compute @workgroup_size({ONE_THREADS})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) index: u32) {{
  let count = nwg.z;
  let row = wg.z;
  let team = 0u;
  let lid = index;
  let lane = lid % 32u;
  let kv_head = wg.y;
{read}  let position = places[1u + 2u * row];
  let b = {start} / 64u + wg.x;
  let table = places[2u + 2u * row];
  if (b > position / 64u) {{ return; }}
{angles}  let slot = places[table + b];
{place}{load}{write}{keep}{hole}{bounds}{scores}{softmax}{gains}}}
",
            head = self.fused_head(turn, 1, ("scratch", "read_write> scratch: array<vec4<f32>>")),
            start = self.start("position"),
            read = self.turn_read(turn, 1),
            angles = rope_angles(self.head_dim),
            place = one_place(self.one_area()),
            load = self.one_load(),
            write = self.turn_write(turn, 1),
            keep = self.keep("b == position / 64u", "slot"),
            hole = HOLE,
            bounds = self.one_bounds(),
            scores = self.one_scores(true),
            softmax = self.one_softmax(true),
            gains = self.one_leave(),
        )
    }

    /// The kernel for all blocks of a row, a workgroup a KV head, its teams a block each: bindings qkv, rotations, places,
    /// (norms of q and k), (bias), kv, out. A team that has no block repeats the last.
    pub(super) fn short_text(&self, turn: Turn) -> String {
        let teams = self.teams();
        format!(
            "{head}
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {{
  let row = wg.z;
  let team = index / {ONE_THREADS}u;
  let lid = index % {ONE_THREADS}u;
  let lane = lid % 32u;
  let kv_head = wg.y;
{read}  let position = places[1u + 2u * row];
  let table = places[2u + 2u * row];
  let first = {start} / 64u;
  let last = position / 64u;
  if (last - first >= {teams}u) {{ return; }}
{angles}  let b = min(first + team, last);
  let slot = places[table + b];
  let slot_last = places[table + last];
{place}{load}{write}{keep}{hole}{bounds}{scores}{softmax}{gains}{join}}}
",
            head = self.fused_head(turn, teams, ("out", "read_write> out: array<vec4<f16>>")),
            threads = teams * ONE_THREADS,
            start = self.start("position"),
            read = self.turn_read(turn, teams),
            angles = rope_angles(self.head_dim),
            place = one_place(self.one_area()),
            load = self.one_load(),
            write = self.turn_write(turn, teams),
            keep = self.keep("true", "slot_last"),
            hole = HOLE,
            bounds = self.one_bounds(),
            scores = self.one_scores(true),
            softmax = self.one_softmax(true),
            gains = self.one_gains(),
            join = self.short_join(teams),
        )
    }

    /// Joins the teams' sums over values in order, and writes the row's heads: a tile after the other, by the first team.
    fn short_join(&self, teams: u32) -> String {
        let (padded, quads, group) = (super::padded_len((self.heads * self.head_dim) as usize) / 4, self.quads(), self.group());
        let mut text = format!("  let to = row * {padded}u + (kv_head * {group}u + r) * {quads}u + h;\n  var m = LEAST;\n  var l = 0.0;\n");
        (0..teams).for_each(|t| text += &format!("  var w{t} = Weights();\n"));
        text += "  if (team == 0u) {\n";
        for t in 0..teams {
            let at = format!("{}u + r", t * TOKENS);
            let _ = writeln!(
                text,
                "    if (first + {t}u <= last) {{
      w{t} = weigh(m, top_of({at}));
      m = w{t}.most;
      l = fma(l, w{t}.keep, sum_of({at}) * w{t}.gain);
    }}"
            );
        }
        text += "  }\n";
        text += "  let inverse = 1.0 / l;\n";
        for j in 0..self.value_tiles() {
            if j > 0 {
                text += "  workgroupBarrier();\n";
            }
            let _ = writeln!(
                text,
                "  coopStoreT(o{j}, &sc[mine], {TILE_ROW}u);
  workgroupBarrier();
  if (team == 0u && r < {group}u) {{
    var a = vec4<f32>();
    var z = vec4<f32>();"
            );
            for t in 0..teams {
                let part = |x: &str, i: u32| format!("{x} = joined({x}, sc[own + {}u], w{t});", t * ONE_SCORES + 2 * i);
                let _ = writeln!(text, "    if (first + {t}u <= last) {{ {} {} }}", part("a", 0), part("z", 1));
            }
            let _ = writeln!(text, "    out[to + e{j}] = halves(a * inverse);\n    out[to + e{j} + 2u] = halves(z * inverse);\n  }}");
        }
        text
    }
}
