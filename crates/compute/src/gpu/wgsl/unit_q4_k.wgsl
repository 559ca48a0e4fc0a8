fn scaled(w: u32, dm: vec2<f32>) -> vec4<f32> {
    return fma(vec4<f32>(low_nibbles(w)), dm.xxxx, -dm.yyyy);
}

fn unit(row: u32, u: u32) -> Unit {
    let block = row + (u >> 3u) * 144u;
    let j = u & 7u;
    let dm = scale_min(block, j);
    let q = block + 16u + (j >> 1u) * 32u;
    let s = (j & 1u) * 4u;
    return Unit(
        scaled(word(q) >> s, dm), scaled(word(q + 4u) >> s, dm), scaled(word(q + 8u) >> s, dm), scaled(word(q + 12u) >> s, dm),
        scaled(word(q + 16u) >> s, dm), scaled(word(q + 20u) >> s, dm), scaled(word(q + 24u) >> s, dm), scaled(word(q + 28u) >> s, dm),
    );
}
