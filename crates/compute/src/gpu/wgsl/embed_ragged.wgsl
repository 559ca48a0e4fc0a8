// out[row] = weights[tokens[row]] * scale for float weights and any k: an invocation an element.

@group(0) @binding(3) var<storage, read_write> out: array<f32>; // (row, k)

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.k || id.y >= step[0] {
        return;
    }
    let row = step[1u + id.y] - params.first_row;
    if row >= params.rows {
        return;
    }
    out[id.y * params.k + id.x] = one(params.offset_bytes + row * params.row_bytes, id.x) * params.scale;
}
