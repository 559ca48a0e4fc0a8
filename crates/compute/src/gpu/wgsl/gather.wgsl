// out[i] = x[wanted[i]], for the rows that are wanted.

struct Params {
    // Elements of a row.
    n: u32,
}

@group(0) @binding(0) var<storage, read> params: Params;
@group(0) @binding(1) var<storage, read> wanted: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<f32>; // (row, n)
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // (wanted, n)

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.n || id.y >= wanted[0] {
        return;
    }
    out[id.y * params.n + id.x] = x[wanted[1u + id.y] * params.n + id.x];
}
