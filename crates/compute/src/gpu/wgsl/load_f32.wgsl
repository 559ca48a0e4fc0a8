fn load_four(row: u32, i: u32) -> vec4<f32> {
    let at = row + 4u * i;
    return bitcast<vec4<f32>>(vec4<u32>(kv[at], kv[at + 1u], kv[at + 2u], kv[at + 3u]));
}
