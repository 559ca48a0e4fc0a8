fn scaled(w: u32, dm: vec2<f32>) -> vec4<f32> {
    return fma(vec4<f32>(low_nibbles(w)), dm.xxxx, -dm.yyyy);
}

fn unit(row: u32, u: u32) -> Unit {
    let block = row + (u >> 3u) * 144u;
    let j = u & 7u;
    let dm = scale_min(block, j);
    let at = block + 16u + (j >> 1u) * 32u;
    let shift = vec4<u32>((j & 1u) * 4u);
    let a = four_words(at) >> shift;
    let b = four_words(at + 16u) >> shift;
    return Unit(
        scaled(a.x, dm), scaled(a.y, dm), scaled(a.z, dm), scaled(a.w, dm),
        scaled(b.x, dm), scaled(b.y, dm), scaled(b.z, dm), scaled(b.w, dm),
    );
}
