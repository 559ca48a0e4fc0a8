fn scaled(w: u32, dm: vec2<f32>) -> vec4<f32> {
    return fma(vec4<f32>(low_nibbles(w)), dm.xxxx, dm.yyyy);
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 20u;
    let dm = unpack2x16float(word(at));
    let a = word(at + 4u);
    let b = word(at + 8u);
    let c = word(at + 12u);
    let e = word(at + 16u);
    return Unit(
        scaled(a, dm), scaled(b, dm), scaled(c, dm), scaled(e, dm),
        scaled(a >> 4u, dm), scaled(b >> 4u, dm), scaled(c >> 4u, dm), scaled(e >> 4u, dm),
    );
}
