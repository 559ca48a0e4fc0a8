//! The product of one row: each subgroup makes the chains of whole chunks, which meet in workgroup memory and are added in order.
//!
//! The row stands in all 16 columns of operand B, read with a stride of zero. Weights are read straight into registers, all of a chunk at
//! once, and those of the next chunk as soon as a register is free. Four and eight bits go through workgroup memory to become operand A.
//!
//! naga's `subgroupBarrier` names no workgroup memory, so what it orders there is the driver's doing; the tests compare every bit.
//! Operands in workgroup memory must begin at multiples of 16 bytes, so all arrays there are as long as a multiple of 16 bytes.

use super::Norm;
use super::pack::TileFormat;
use super::text::{CHUNK_QUADS, Epilogue, LANES, Weights, head, norm_bindings, norm_functions};
use std::fmt::Write as _;

/// Workgroup memory that every device with cooperative matrices has.
pub(super) const WORKGROUP_BYTES: u32 = 48 << 10;
/// The choices that decide speed and no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuning {
    /// Row tiles of a subgroup, which share loads of B: 1 or 2.
    pub(super) together: u32,
    /// Row tiles that other subgroups of the workgroup compute meanwhile, this one's included.
    pub(super) across: u32,
    /// Subgroups of a workgroup at most. Many leave few registers to each.
    pub(super) warps_max: u32,
    /// Workgroups at most; each loops over its share of the row tiles.
    pub(super) workgroups_max: u32,
    /// Elements of K that go through workgroup memory at a time, at most.
    pub(super) depth_max: u32,
    /// Whether all of operand B stays in registers, where it is the same for all row tiles.
    pub(super) keep_row: bool,
}

impl Tuning {
    /// Row tiles that a workgroup computes at a time.
    fn tiles(&self) -> u32 {
        self.together * self.across
    }
}

/// Operand A on its way through workgroup memory.
#[derive(Clone, Copy, Debug)]
struct Area {
    /// Elements of K that go at a time: 32 or 64.
    depth: u32,
    /// Areas that a subgroup uses in turn.
    buffers: u32,
}

impl Area {
    /// Quads of a row; two are unused, so that rows begin in different banks.
    fn stride(self) -> u32 {
        self.depth / 4 + 2
    }

    /// Quads of 16 rows.
    fn quads(self) -> u32 {
        16 * self.stride()
    }
}

/// Depths and buffers, from the fastest to the smallest.
const AREAS: [(u32, u32); 5] = [(128, 1), (64, 2), (64, 1), (32, 2), (32, 1)];

/// A kernel for one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct OneRow {
    weights: Weights,
    norm: Option<Norm>,
    epilogue: Epilogue,
    tuning: Tuning,
    area: Area,
    /// Subgroups that share the chunks of a row tile.
    warps: u32,
    /// How often each takes a chunk of a row tile.
    rounds: u32,
}

impl OneRow {
    pub(super) fn new(weights: Weights, norm: Option<Norm>, epilogue: Epilogue, tuning: Tuning) -> OneRow {
        let mut kernel =
            OneRow { weights, norm, epilogue, tuning, area: Area { depth: 32, buffers: 1 }, warps: 1, rounds: weights.chunks() };
        for rounds in 1..=weights.chunks() {
            (kernel.rounds, kernel.warps) = (rounds, weights.chunks().div_ceil(rounds));
            let fits = |area: &Area| OneRow { area: *area, ..kernel }.workgroup_bytes() <= WORKGROUP_BYTES;
            let areas = AREAS.map(|(depth, buffers)| Area { depth, buffers });
            let area = areas
                .into_iter()
                .filter(|area| area.depth <= tuning.depth_max)
                .find(fits)
                .filter(|_| kernel.warps * tuning.across <= tuning.warps_max);
            if let Some(area) = area {
                kernel.area = area;
                break;
            }
        }
        kernel
    }

    /// Workgroups of the dispatch.
    pub(super) fn workgroups(&self) -> u32 {
        self.groups().min(self.tuning.workgroups_max)
    }

    /// Groups of row tiles, of which a workgroup has one at a time.
    fn groups(&self) -> u32 {
        self.weights.tiles.div_ceil(self.tuning.tiles())
    }

    fn looped(&self) -> bool {
        self.workgroups() < self.groups()
    }

    /// Sums of chunks that a workgroup keeps for one group of row tiles, in f32.
    fn part_len(&self) -> u32 {
        self.rounds * self.warps * self.tuning.tiles() * 16
    }

    fn workgroup_bytes(&self) -> u32 {
        let parts = self.part_len() * if self.looped() { 2 } else { 1 };
        8 * (self.area_quads() + self.warps * CHUNK_QUADS) + 4 * (parts + (self.rounds * self.warps).next_multiple_of(4))
    }

    /// Quads of operand A of all subgroups. Floats need none.
    fn area_quads(&self) -> u32 {
        if self.weights.format == TileFormat::F16 { 0 } else { self.warps * self.tuning.across * self.area.buffers * self.area.quads() }
    }

    /// The kernel: bindings w, (scales), then x or (residual, norm), then y.
    pub(super) fn text(&self) -> String {
        let mut bindings = self.weights.bindings();
        match self.norm {
            Some(_) => bindings.extend(norm_bindings(self.weights.k)),
            None => bindings.push(("x", "read> x: array<vec4<f16>>")),
        }
        bindings.push(self.epilogue.binding());
        let norm = self.norm.map(|norm| norm_functions(self.weights.k, norm)).unwrap_or_default();
        let (groups, stride) = (self.groups(), if self.looped() { self.part_len() } else { 0 });
        format!(
            "{head}{spread}{norm}{emit}{memory}
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{
  let warp = lid / 32u;
  let lane = lid % 32u;
  let part_of_k = warp % {warps}u;
  let side = warp / {warps}u * {together}u;
{first}{prologue}
  let count = ({last}u - wg.x) / nwg.x + 1u;
  for (var i = 0u; i < count; i++) {{
  let group = wg.x + i * nwg.x;
  let next = min(group + nwg.x, {last}u);
  let slot = (i % 2u) * {stride}u;
{items}  workgroupBarrier();
{sum}  }}
}}
",
            head = head(&bindings),
            spread = self.weights.spread(),
            emit = self.epilogue.emit(self.weights.n),
            memory = self.memory(),
            threads = self.warps * self.tuning.across * LANES,
            warps = self.warps,
            together = self.tuning.together,
            first = self.first_loads(),
            prologue = self.prologue(),
            last = groups - 1,
            items = self.items(),
            sum = self.sum(),
        )
    }

    /// Workgroup memory: the row's chunks, operand A on its way, sums of chunks, and the norm's sums.
    fn memory(&self) -> String {
        let parts = self.part_len() * if self.looped() { 2 } else { 1 };
        let mut text = format!("var<workgroup> xs: array<vec4<f16>, {}>;\n", self.warps * CHUNK_QUADS);
        if self.area_quads() > 0 {
            let _ = writeln!(text, "var<workgroup> area: array<vec4<f16>, {}>;", self.area_quads());
        }
        let _ = writeln!(text, "var<workgroup> part: array<f32, {parts}>;");
        if self.norm.is_some() {
            // Operands are loaded from multiples of 16 bytes, wherever a compiler puts these.
            let _ = writeln!(text, "var<workgroup> squares: array<f32, {}>;", (self.rounds * self.warps).next_multiple_of(4));
        }
        text
    }

    /// The chunk that a subgroup takes in a round. Surplus ones repeat the last and stay out of the sum.
    fn chunk(&self, round: u32) -> String {
        let index = format!("{}u + part_of_k", round * self.warps);
        if self.rounds * self.warps > self.weights.chunks() { format!("min({index}, {}u)", self.weights.chunks() - 1) } else { index }
    }

    /// Where the weights of an item begin, in groups of 32 of K.
    fn origin(&self, group: &str, round: u32) -> String {
        let mut text = String::new();
        for u in 0..self.tuning.together {
            let tile = format!("min({group} * {}u + side + {u}u, {}u)", self.tuning.tiles(), self.weights.tiles - 1);
            let _ = writeln!(text, "  let to{u} = {tile} * {}u + ({}) * 8u;", self.weights.groups(), self.chunk(round));
        }
        text
    }

    /// Loads piece `t` of an item for row tile `u` of those together: 32 of K, or 16 of floats.
    fn load(&self, u: u32, t: u32, declare: &str) -> String {
        match self.weights.format {
            TileFormat::F16 => format!("  {declare}a{u}_{t} = coopLoadT<coop_mat16x16<f16, A>>(&w[(to{u} * 2u + {t}u) * 64u], 4u);\n"),
            _ => format!(
                "  {declare}q{u}_{t} = w[(to{u} + {t}u) * 32u + lane];\n  {declare}s{u}_{t} = sc[(to{u} + {t}u) * 16u + lane / 2u];\n"
            ),
        }
    }

    /// Pieces of a chunk.
    fn pieces(&self) -> u32 {
        if self.weights.format == TileFormat::F16 { 16 } else { 8 }
    }

    /// Loads the lane's two quads of the chunk that the subgroup takes in a round.
    fn load_row(&self, round: u32) -> String {
        let at = format!("  {{ let at = ({}) * 64u + lane * 2u; ", self.chunk(round));
        at + match self.norm {
            None => "xa = x[at]; xb = x[at + 1u]; }\n",
            Some(_) => "xa = residual_quad(0u, at); xb = residual_quad(0u, at + 1u); na = weight_quad(at); nb = weight_quad(at + 1u); }\n",
        }
    }

    /// Puts them into workgroup memory, where all lanes find them as operand B.
    fn place_row(&self) -> &'static str {
        match self.norm {
            None => "  { let at = part_of_k * 64u + lane * 2u; xs[at] = xa; xs[at + 1u] = xb; }\n  workgroupBarrier();\n",
            Some(_) => {
                "  { let at = part_of_k * 64u + lane * 2u; xs[at] = normed(xa, na, scale); xs[at + 1u] = normed(xb, nb, scale); }
  workgroupBarrier();\n"
            }
        }
    }

    /// Weights are asked for before anything else.
    fn first_loads(&self) -> String {
        let mut text = self.origin("wg.x", 0);
        for u in 0..self.tuning.together {
            (0..self.pieces()).for_each(|t| text += &self.load(u, t, "var "));
        }
        text += if self.norm.is_some() {
            "  var xa: vec4<f32>; var xb: vec4<f32>; var na: vec4<f32>; var nb: vec4<f32>;\n"
        } else {
            "  var xa: vec4<f16>; var xb: vec4<f16>;\n"
        };
        text
    }

    /// The norm's scale, and the row if it stays the same for all items.
    fn prologue(&self) -> String {
        let mut text = String::new();
        if self.norm.is_some() {
            for round in (0..self.rounds).rev() {
                text += &self.load_row(round);
                let slot = round * self.warps;
                let _ = writeln!(text, "  {{ let s = chunk_squares(xa, xb); if (lane == 0u) {{ squares[{slot}u + part_of_k] = s; }} }}");
            }
            let chunks = self.weights.chunks();
            let _ = writeln!(text, "  workgroupBarrier();\n  var total = 0.0;");
            let _ = writeln!(text, "  for (var c = 0u; c < {chunks}u; c++) {{ total = total + squares[c]; }}");
            text += "  let scale = rms_scale(total);\n";
        } else {
            text += &self.load_row(0);
        }
        if self.rounds == 1 {
            text += self.place_row();
        }
        if self.keeps_row() {
            (0..256 / self.depth()).for_each(|step| text += &self.load_b(step));
        }
        text
    }

    /// All items of a group of row tiles, in order.
    fn items(&self) -> String {
        let next = |round: u32| match round + 1 {
            more if more < self.rounds => Some(("group", more)),
            _ => self.looped().then_some(("next", 0)),
        };
        (0..self.rounds).map(|round| self.item(round, next(round))).collect()
    }

    /// One item: its chains, and on the way the loads of the next.
    fn item(&self, round: u32, next: Option<(&str, u32)>) -> String {
        let mut text = "  {\n".to_owned();
        if self.rounds > 1 {
            text += "  workgroupBarrier();\n";
            text += self.place_row();
        }
        if let Some((group, round)) = next {
            text += &self.origin(group, round);
            if self.rounds > 1 {
                text += &self.load_row(round);
            }
        }
        for u in 0..self.tuning.together {
            let _ = writeln!(text, "  var acc{u} = coop_mat16x16<f32, C>();");
        }
        for step in 0..256 / self.depth() {
            text += &self.step(step, next.is_some());
        }
        for u in 0..self.tuning.together {
            let at = format!("(({}u + part_of_k) * {}u + side + {u}u) * 16u", round * self.warps, self.tuning.tiles());
            // All columns are the same: they may fall on each other.
            let _ = writeln!(text, "  coopStore(acc{u}, &part[slot + {at}], 0u);");
        }
        text + "  }\n"
    }

    /// Elements of K of a step.
    fn depth(&self) -> u32 {
        if self.weights.format == TileFormat::F16 { 64 } else { self.area.depth }
    }

    /// One step along K.
    fn step(&self, step: u32, more: bool) -> String {
        let mut text = if self.keeps_row() { String::new() } else { self.load_b(step) };
        for u in 0..self.tuning.together {
            text += &if self.weights.format == TileFormat::F16 { self.float_step(step, u, more) } else { self.bits_step(step, u, more) };
        }
        text
    }

    /// Loads operand B of a step.
    fn load_b(&self, step: u32) -> String {
        let mut text = String::new();
        for t in 0..self.depth() / 16 {
            let at = step * self.depth() / 4 + t * 4;
            let _ = writeln!(text, "  let b{step}_{t} = coopLoad<coop_mat16x16<f16, B>>(&xs[part_of_k * 64u + {at}u], 0u);");
        }
        text
    }

    fn keeps_row(&self) -> bool {
        self.tuning.keep_row && self.rounds == 1
    }

    fn float_step(&self, step: u32, u: u32, more: bool) -> String {
        let mut text = String::new();
        for t in 0..4 {
            let piece = step * 4 + t;
            let _ = writeln!(text, "  acc{u} = coopMultiplyAdd(a{u}_{piece}, b{step}_{t}, acc{u});");
            if more {
                text += &self.load(u, piece, "");
            }
        }
        text
    }

    fn bits_step(&self, step: u32, u: u32, more: bool) -> String {
        let Area { depth, buffers } = self.area;
        let (stride, buffer) = (self.area.stride(), (step * self.tuning.together + u) % buffers);
        let base = format!("(warp * {buffers}u + {buffer}u) * {}u", self.area.quads());
        let mut text = String::new();
        for group in 0..depth / 32 {
            let piece = step * (depth / 32) + group;
            let _ = writeln!(
                text,
                "  {{ let z = spread(q{u}_{piece}, s{u}_{piece}); let at = {base} + (lane / 2u) * {stride}u + lane % 2u + {}u;
    area[at] = z.a; area[at + 2u] = z.b; area[at + 4u] = z.c; area[at + 6u] = z.d; }}",
                group * 8
            );
            if more {
                text += &self.load(u, piece, "");
            }
        }
        text += "  subgroupBarrier();\n";
        for t in 0..depth / 16 {
            let a = format!("coopLoadT<coop_mat16x16<f16, A>>(&area[{base} + {}u], {stride}u)", t * 4);
            let _ = writeln!(text, "  acc{u} = coopMultiplyAdd({a}, b{step}_{t}, acc{u});");
        }
        if buffers == 1 {
            text += "  subgroupBarrier();\n";
        }
        text
    }

    /// Adds the chunks in order, a thread an output.
    fn sum(&self) -> String {
        let (tiles, chunks, n) = (self.tuning.tiles(), self.weights.chunks(), self.weights.n);
        let (outputs, place, emit) = if self.epilogue.gated() {
            (8 * tiles, "lid / 16u * 32u + lid % 16u", "emit(0u, at, total0, total1)")
        } else {
            (16 * tiles, "lid", "emit(0u, at, total0)")
        };
        let mut text = format!("  if (lid < {outputs}u) {{\n");
        for u in 0..if self.epilogue.gated() { 2 } else { 1 } {
            let part = format!("part[slot + c * {}u + {}u + {place}]", 16 * tiles, 16 * u);
            let _ = writeln!(text, "  var total{u} = 0.0;\n  for (var c = 0u; c < {chunks}u; c++) {{ total{u} = total{u} + {part}; }}");
        }
        let _ = writeln!(text, "  let at = group * {outputs}u + lid;\n  if (at < {n}u) {{ {emit}; }}\n  }}");
        text
    }
}
