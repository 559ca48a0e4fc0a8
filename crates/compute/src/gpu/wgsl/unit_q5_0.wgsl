fn centred(w: u32, high: u32, shift: u32, d: f32) -> vec4<f32> {
    return (vec4<f32>(low_nibbles(w) | fifth_bits(high, shift)) - 16.0) * d;
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 22u;
    let d = half(at);
    let h = word(at + 2u);
    let q = four_words(at + 6u);
    return Unit(
        centred(q.x, h, 0u, d), centred(q.y, h, 4u, d), centred(q.z, h, 8u, d), centred(q.w, h, 12u, d),
        centred(q.x >> 4u, h, 16u, d), centred(q.y >> 4u, h, 20u, d), centred(q.z >> 4u, h, 24u, d), centred(q.w >> 4u, h, 28u, d),
    );
}
