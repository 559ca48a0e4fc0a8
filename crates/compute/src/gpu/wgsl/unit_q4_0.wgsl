fn centred(w: u32, d: f32) -> vec4<f32> {
    return (vec4<f32>(low_nibbles(w)) - 8.0) * d;
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 18u;
    let d = half(at);
    let q = four_words(at + 2u);
    return Unit(
        centred(q.x, d), centred(q.y, d), centred(q.z, d), centred(q.w, d),
        centred(q.x >> 4u, d), centred(q.y >> 4u, d), centred(q.z >> 4u, d), centred(q.w >> 4u, d),
    );
}
