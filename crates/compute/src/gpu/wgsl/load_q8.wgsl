@group(0) @binding(3) var<storage, read> kv: array<u32>;

// Elements 4 * i and on of the stored row that begins at a word.
fn load_four(row: u32, i: u32) -> vec4<f32> {
    let scales = unpack2x16float(kv[row + params.head_dim / 4u + i / 16u]);
    let scale = select(scales.x, scales.y, (i & 8u) != 0u);
    let quants = bitcast<vec4<i32>>(vec4<u32>(kv[row + i]) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
    return vec4<f32>(quants) * scale;
}
