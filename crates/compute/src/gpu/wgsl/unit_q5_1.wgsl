fn scaled(w: u32, high: u32, shift: u32, dm: vec2<f32>) -> vec4<f32> {
    return fma(vec4<f32>(low_nibbles(w) | fifth_bits(high, shift)), dm.xxxx, dm.yyyy);
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 24u;
    let dm = unpack2x16float(word(at));
    let h = word(at + 4u);
    let q = four_words(at + 8u);
    return Unit(
        scaled(q.x, h, 0u, dm), scaled(q.y, h, 4u, dm), scaled(q.z, h, 8u, dm), scaled(q.w, h, 12u, dm),
        scaled(q.x >> 4u, h, 16u, dm), scaled(q.y >> 4u, h, 20u, dm), scaled(q.z >> 4u, h, 24u, dm), scaled(q.w >> 4u, h, 28u, dm),
    );
}
