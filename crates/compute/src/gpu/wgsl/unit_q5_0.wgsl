fn centred(w: u32, high: u32, shift: u32, d: f32) -> vec4<f32> {
    return (vec4<f32>(low_nibbles(w) | fifth_bits(high, shift)) - 16.0) * d;
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 22u;
    let d = half(at);
    let h = word(at + 2u);
    let a = word(at + 6u);
    let b = word(at + 10u);
    let c = word(at + 14u);
    let e = word(at + 18u);
    return Unit(
        centred(a, h, 0u, d), centred(b, h, 4u, d), centred(c, h, 8u, d), centred(e, h, 12u, d),
        centred(a >> 4u, h, 16u, d), centred(b >> 4u, h, 20u, d), centred(c >> 4u, h, 24u, d), centred(e >> 4u, h, 28u, d),
    );
}
