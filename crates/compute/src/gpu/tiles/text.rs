//! Pieces of WGSL that several kernels share, so that the same text gives the same bits.

use super::pack::{CHUNK, TileFormat};
use super::{Activation, Norm};

/// Lanes of a subgroup. One makes one chunk's chain of multiply-adds.
pub(super) const LANES: u32 = 32;
/// Quads of four elements of a chunk.
pub(super) const CHUNK_QUADS: u32 = CHUNK as u32 / 4;

/// What a product is made of, constants in every kernel's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Weights {
    pub(super) format: TileFormat,
    /// Row tiles.
    pub(super) tiles: u32,
    /// Outputs of a row.
    pub(super) n: u32,
    /// Elements of a row.
    pub(super) k: u32,
}

impl Weights {
    /// Chunks of 256 of K.
    pub(super) fn chunks(&self) -> u32 {
        self.k.div_ceil(CHUNK as u32)
    }

    /// Groups of 32 of K, padding included.
    pub(super) fn groups(&self) -> u32 {
        self.chunks() * 8
    }

    /// The bindings of the weights.
    pub(super) fn bindings(&self) -> Vec<(&'static str, &'static str)> {
        match self.format {
            TileFormat::F16 => vec![("w", "read> w: array<vec4<f16>>")],
            TileFormat::Q4 => vec![("w", "read> w: array<vec2<u32>>"), ("sc", "read> sc: array<u32>")],
            TileFormat::Q8 => vec![("w", "read> w: array<vec4<u32>>"), ("sc", "read> sc: array<vec2<u32>>")],
        }
    }

    /// `spread(q, s)`: a lane's share of (16 rows, 32 of K), quads p, p + 2, p + 4 and p + 6 of row lane / 2, p = lane % 2. Nothing for floats.
    ///
    /// `0x6400 | q` is 1024 + q as f16, exactly; a nibble four bits higher gives 1024 + 16 q. Taking 1024 off is exact, and the
    /// one rounding is the `fma`'s.
    pub(super) fn spread(&self) -> &'static str {
        match self.format {
            TileFormat::F16 => "",
            TileFormat::Q4 => {
                "
struct Four { a: vec4<f16>, b: vec4<f16>, c: vec4<f16>, d: vec4<f16> }
fn halves(v: u32) -> vec2<f16> { return vec2<f16>(unpack2x16float(v | 0x64006400u)); }
fn low(v: u32, d: vec2<f16>, m: vec2<f16>) -> vec2<f16> { return fma(halves(v & 0x000f000fu) - vec2<f16>(1024.0h), d, m); }
fn high(v: u32, d: vec2<f16>, m: vec2<f16>) -> vec2<f16> {
  return fma(fma(halves(v & 0x00f000f0u), vec2<f16>(0.0625h), vec2<f16>(-64.0h)), d, m);
}
fn spread(q: vec2<u32>, s: u32) -> Four {
  let z = vec2<f16>(unpack2x16float(s));
  let d = vec2<f16>(z.x);
  let m = vec2<f16>(z.y);
  let v = q >> vec2<u32>(8u);
  return Four(vec4<f16>(low(q.x, d, m), high(q.x, d, m)), vec4<f16>(low(v.x, d, m), high(v.x, d, m)),
    vec4<f16>(low(q.y, d, m), high(q.y, d, m)), vec4<f16>(low(v.y, d, m), high(v.y, d, m)));
}
"
            }
            TileFormat::Q8 => {
                "
struct Four { a: vec4<f16>, b: vec4<f16>, c: vec4<f16>, d: vec4<f16> }
fn pair(v: u32, z: vec2<f16>) -> vec2<f16> {
  return fma(vec2<f16>(unpack2x16float((v & 0x00ff00ffu) | 0x64006400u)) - vec2<f16>(1024.0h), vec2<f16>(z.x), vec2<f16>(z.y));
}
fn quad(v: u32, z: vec2<f16>) -> vec4<f16> { return vec4<f16>(pair(v, z), pair(v >> 8u, z)); }
fn spread(q: vec4<u32>, s: vec2<u32>) -> Four {
  let y = vec2<f16>(unpack2x16float(s.x));
  let z = vec2<f16>(unpack2x16float(s.y));
  return Four(quad(q.x, y), quad(q.y, y), quad(q.z, z), quad(q.w, z));
}
"
            }
        }
    }
}

/// What happens to an output's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Epilogue {
    Store,
    Add,
    Gated(Activation),
}

impl Epilogue {
    pub(super) fn gated(self) -> bool {
        matches!(self, Epilogue::Gated(_))
    }

    /// The binding of the output.
    pub(super) fn binding(self) -> (&'static str, &'static str) {
        if self.gated() { ("y", "read_write> y: array<f16>") } else { ("y", "read_write> y: array<f32>") }
    }

    /// `emit`: puts output `i` of a row where it belongs.
    pub(super) fn emit(self, n: u32) -> String {
        let Epilogue::Gated(activation) = self else {
            let old = if self == Epilogue::Add { "y[row * N + i] + " } else { "" };
            return format!("fn emit(row: u32, i: u32, v: f32) {{ y[row * N + i] = {old}v; }}\n").replace('N', &format!("{n}u"));
        };
        let act = match activation {
            Activation::Silu => "g / (1.0 + exp(-g))",
            // 0.5 (1 + tanh u) is 1 / (1 + exp(-2 u)).
            Activation::GeluTanh => "g / (1.0 + exp(-1.5957691216 * fma(0.044715 * g * g, g, g)))",
        };
        let stride = n.next_multiple_of(CHUNK as u32);
        format!(
            "fn emit(row: u32, i: u32, g: f32, u: f32) {{
  y[row * {stride}u + i] = f16(clamp(({act}) * u, -65504.0, 65504.0));
}}
"
        )
    }
}

/// A kernel's first lines: what it enables, and its bindings in order, each (name, rest of its declaration).
pub(super) fn head(bindings: &[(&str, &str)]) -> String {
    let mut text = "enable f16;\nenable wgpu_cooperative_matrix;\n".to_owned();
    for (index, (_, declaration)) in bindings.iter().enumerate() {
        text += &format!("@group(0) @binding({index}) var<storage, {declaration};\n");
    }
    text
}

/// The RMS norm in pieces: the order of its sum is that of chunks of 256, whatever kernel computes it.
pub(super) fn norm_functions(k: u32, norm: Norm) -> String {
    let quads = |name: &str, row: &str| {
        if k.is_multiple_of(4) {
            let at = format!("min(at, {}u)", k / 4 - 1);
            format!("select(vec4<f32>(), {name}[{row} * {}u + {at}], at < {}u)", k / 4, k / 4)
        } else {
            let one = |i: u32| format!("select(0.0, {name}[{row} * {k}u + min(4u * at + {i}u, {}u)], 4u * at + {i}u < {k}u)", k - 1);
            format!("vec4<f32>({}, {}, {}, {})", one(0), one(1), one(2), one(3))
        }
    };
    format!(
        "
fn residual_quad(row: u32, at: u32) -> vec4<f32> {{ return {residual}; }}
fn weight_quad(at: u32) -> vec4<f32> {{ return {weight}; }}
fn lane_squares(a: vec4<f32>, b: vec4<f32>) -> f32 {{
  return fma(b.w, b.w, fma(b.z, b.z, fma(b.y, b.y, fma(b.x, b.x, fma(a.w, a.w, fma(a.z, a.z, fma(a.y, a.y, a.x * a.x)))))));
}}
fn chunk_squares(a: vec4<f32>, b: vec4<f32>) -> f32 {{
  var s = lane_squares(a, b);
  s = s + subgroupShuffleXor(s, 16u);
  s = s + subgroupShuffleXor(s, 8u);
  s = s + subgroupShuffleXor(s, 4u);
  s = s + subgroupShuffleXor(s, 2u);
  return s + subgroupShuffleXor(s, 1u);
}}
fn rms_scale(squares: f32) -> f32 {{ return 1.0 / sqrt(squares / {k}.0 + {eps:?}); }}
fn normed(x: vec4<f32>, w: vec4<f32>, scale: f32) -> vec4<f16> {{
  return vec4<f16>(clamp(x * scale * w, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}}
",
        residual = quads("residual", "row"),
        weight = quads("norm", "0u"),
        eps = norm.eps,
    )
}

/// The bindings of the residual and the norm's weights.
pub(super) fn norm_bindings(k: u32) -> [(&'static str, &'static str); 2] {
    if k.is_multiple_of(4) {
        [("residual", "read> residual: array<vec4<f32>>"), ("norm", "read> norm: array<vec4<f32>>")]
    } else {
        [("residual", "read> residual: array<f32>"), ("norm", "read> norm: array<f32>")]
    }
}
