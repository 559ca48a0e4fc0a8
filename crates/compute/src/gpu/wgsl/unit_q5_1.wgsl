fn scaled(w: u32, high: u32, shift: u32, dm: vec2<f32>) -> vec4<f32> {
    return fma(vec4<f32>(low_nibbles(w) | fifth_bits(high, shift)), dm.xxxx, dm.yyyy);
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 24u;
    let dm = unpack2x16float(word(at));
    let h = word(at + 4u);
    let a = word(at + 8u);
    let b = word(at + 12u);
    let c = word(at + 16u);
    let e = word(at + 20u);
    return Unit(
        scaled(a, h, 0u, dm), scaled(b, h, 4u, dm), scaled(c, h, 8u, dm), scaled(e, h, 12u, dm),
        scaled(a >> 4u, h, 16u, dm), scaled(b >> 4u, h, 20u, dm), scaled(c >> 4u, h, 24u, dm), scaled(e >> 4u, h, 28u, dm),
    );
}
