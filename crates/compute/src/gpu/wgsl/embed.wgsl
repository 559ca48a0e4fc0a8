// out[row] = weights[tokens[row]] * scale. An invocation has 32 elements; tokens of other parts are left alone.

@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // (row, k / 4)

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.k / 32u || id.y >= step[0] {
        return;
    }
    let row = step[1u + id.y] - params.first_row;
    if row >= params.rows {
        return;
    }
    let w = unit(params.offset_bytes + row * params.row_bytes, id.x);
    let at = id.y * (params.k / 4u) + id.x * 8u;
    out[at] = w[0] * params.scale;
    out[at + 1u] = w[1] * params.scale;
    out[at + 2u] = w[2] * params.scale;
    out[at + 3u] = w[3] * params.scale;
    out[at + 4u] = w[4] * params.scale;
    out[at + 5u] = w[5] * params.scale;
    out[at + 6u] = w[6] * params.scale;
    out[at + 7u] = w[7] * params.scale;
}
