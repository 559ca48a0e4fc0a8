@group(0) @binding(3) var<storage, read> kv: array<vec2<u32>>;

// Elements 4 * i and on of the stored row that begins at a word.
fn load_four(row: u32, i: u32) -> vec4<f32> {
    let pairs = kv[row / 2u + i];
    return vec4<f32>(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
}
