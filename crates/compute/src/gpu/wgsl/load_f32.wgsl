@group(0) @binding(3) var<storage, read> kv: array<vec4<f32>>;

// Elements 4 * i and on of the stored row that begins at a word.
fn load_four(row: u32, i: u32) -> vec4<f32> {
    return kv[row / 4u + i];
}
