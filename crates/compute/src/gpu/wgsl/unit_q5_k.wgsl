fn scaled(low: u32, high: u32, dm: vec2<f32>) -> vec4<f32> {
    let fifth = (bytes(high) & vec4<u32>(1u)) << vec4<u32>(4u);
    return fma(vec4<f32>(low_nibbles(low) | fifth), dm.xxxx, -dm.yyyy);
}

fn unit(row: u32, u: u32) -> Unit {
    let block = row + (u >> 3u) * 176u;
    let j = u & 7u;
    let dm = scale_min(block, j);
    let h = block + 16u;
    let q = block + 48u + (j >> 1u) * 32u;
    let s = (j & 1u) * 4u;
    return Unit(
        scaled(word(q) >> s, word(h) >> j, dm), scaled(word(q + 4u) >> s, word(h + 4u) >> j, dm),
        scaled(word(q + 8u) >> s, word(h + 8u) >> j, dm), scaled(word(q + 12u) >> s, word(h + 12u) >> j, dm),
        scaled(word(q + 16u) >> s, word(h + 16u) >> j, dm), scaled(word(q + 20u) >> s, word(h + 20u) >> j, dm),
        scaled(word(q + 24u) >> s, word(h + 24u) >> j, dm), scaled(word(q + 28u) >> s, word(h + 28u) >> j, dm),
    );
}
