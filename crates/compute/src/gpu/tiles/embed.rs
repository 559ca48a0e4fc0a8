//! Rows of an embedding that is stored as tiles, as it is where it also makes the logits.

use super::super::{Binding, Dispatch, Gpu, GpuError, KernelSource};
use super::pack::TileFormat;
use super::text::{Weights, head};
use super::upload::TileMatrix;

/// Invocations of a workgroup.
const THREADS: u32 = 64;

impl TileMatrix {
    /// `out[row] = weights[tokens[row]] * scale`, f32 (row, k), for up to `most` rows. `tokens` are u32: how many, then one for each row.
    /// The number of rows is the dispatch's second extent.
    ///
    /// # Errors
    /// If k is not a multiple of 4, if there are more rows than workgroups, or if the driver refuses.
    pub fn embed(&self, gpu: &Gpu, most: usize, tokens: Binding<'_>, scale: f32, out: Binding<'_>) -> Result<Dispatch, GpuError> {
        if !self.k().is_multiple_of(4) || (out.bytes as usize) < 4 * self.k() * most {
            return Err(GpuError::BadShape { why: format!("{} elements of {most} rows do not fit the output", self.k()) });
        }
        let limit = gpu.info().workgroups_max;
        if most as u64 > u64::from(limit) {
            return Err(GpuError::BeyondLimit { what: "workgroups of a dispatch", asked: most as u64, limit: limit.into() });
        }
        let kernel = gpu.kernel("embed", KernelSource::Trusted(&text(self.shape, scale)))?;
        let mut bindings: Vec<_> = std::iter::once(&self.weights).chain(&self.scales).map(Binding::whole).collect();
        bindings.extend([tokens, out]);
        let workgroups = (2 * self.shape.groups()).div_ceil(THREADS);
        Ok(gpu.dispatch(&kernel, &bindings, [workgroups, most as u32, 1]))
    }
}

/// The kernel: an invocation has four quads of 32 elements, those that a lane has in a product. Bindings w, (scales), tokens, y.
pub(super) fn text(weights: Weights, scale: f32) -> String {
    let mut bindings = weights.bindings();
    bindings.extend([("tokens", "read> tokens: array<u32>"), ("y", "read_write> y: array<vec4<f32>>")]);
    let (groups, quads) = (weights.groups(), weights.k / 4);
    let load = match weights.format {
        TileFormat::F16 => {
            "  let at = ((tile * GROUPSu + group) * 2u) * 64u + row * 4u + side;
  put(out, first, w[at]); put(out, first + 2u, w[at + 2u]); put(out, first + 4u, w[at + 64u]); put(out, first + 6u, w[at + 66u]);"
        }
        TileFormat::Q4 | TileFormat::Q8 => {
            "  let at = (tile * GROUPSu + group) * 16u + row;
  let z = spread(w[at * 2u + side], sc[at]);
  put(out, first, z.a); put(out, first + 2u, z.b); put(out, first + 4u, z.c); put(out, first + 6u, z.d);"
        }
    };
    format!(
        "{head}{spread}
fn put(out: u32, quad: u32, v: vec4<f16>) {{
  if (quad < {quads}u) {{ y[out + quad] = vec4<f32>(v) * {scale:?}; }}
}}
@compute @workgroup_size({THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
  if (id.x >= {last}u || id.y >= tokens[0]) {{ return; }}
  let token = min(tokens[1u + id.y], {most}u);
  let tile = token / 16u;
  let row = token % 16u;
  let group = id.x / 2u;
  let side = id.x % 2u;
  let first = group * 8u + side;
  let out = id.y * {quads}u;
{load}
}}
",
        head = head(&bindings),
        spread = weights.spread(),
        last = 2 * groups,
        most = weights.n.max(1) - 1,
        load = load.replace("GROUPS", &groups.to_string()),
    )
}
