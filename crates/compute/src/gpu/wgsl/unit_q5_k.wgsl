fn scaled(low: u32, high: u32, dm: vec2<f32>) -> vec4<f32> {
    let fifth = (bytes(high) & vec4<u32>(1u)) << vec4<u32>(4u);
    return fma(vec4<f32>(low_nibbles(low) | fifth), dm.xxxx, -dm.yyyy);
}

fn unit(row: u32, u: u32) -> Unit {
    let block = row + (u >> 3u) * 176u;
    let j = u & 7u;
    let dm = scale_min(block, j);
    let at = block + 48u + (j >> 1u) * 32u;
    let shift = vec4<u32>((j & 1u) * 4u);
    let a = four_words(at) >> shift;
    let b = four_words(at + 16u) >> shift;
    let c = four_words(block + 16u) >> vec4<u32>(j);
    let d = four_words(block + 32u) >> vec4<u32>(j);
    return Unit(
        scaled(a.x, c.x, dm), scaled(a.y, c.y, dm), scaled(a.z, c.z, dm), scaled(a.w, c.w, dm),
        scaled(b.x, d.x, dm), scaled(b.y, d.y, dm), scaled(b.z, d.z, dm), scaled(b.w, d.w, dm),
    );
}
