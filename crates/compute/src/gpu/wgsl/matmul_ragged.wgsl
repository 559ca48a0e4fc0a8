// out[row][n] = sum over k of w[n][k] * x[row][k] for float weights and any k: element by element, an invocation an output.

@group(0) @binding(3) var<storage, read> x: array<f32>; // (row, k)
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // (row, n)

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.rows || id.y >= step[0] {
        return;
    }
    let w = params.offset_bytes + id.x * params.row_bytes;
    var sum = 0.0;
    for (var i = 0u; i < params.k; i++) {
        sum = fma(one(w, i), x[id.y * params.k + i], sum);
    }
    out[id.y * params.n + params.first_row + id.x] = sum;
}
