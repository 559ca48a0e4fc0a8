fn centred(w: u32, d: f32) -> vec4<f32> {
    return (vec4<f32>(low_nibbles(w)) - 8.0) * d;
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 18u;
    let d = half(at);
    let a = word(at + 2u);
    let b = word(at + 6u);
    let c = word(at + 10u);
    let e = word(at + 14u);
    return Unit(
        centred(a, d), centred(b, d), centred(c, d), centred(e, d),
        centred(a >> 4u, d), centred(b >> 4u, d), centred(c >> 4u, d), centred(e >> 4u, d),
    );
}
