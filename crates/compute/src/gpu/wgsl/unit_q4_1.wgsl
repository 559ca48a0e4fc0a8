fn scaled(w: u32, dm: vec2<f32>) -> vec4<f32> {
    return fma(vec4<f32>(low_nibbles(w)), dm.xxxx, dm.yyyy);
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 20u;
    let dm = unpack2x16float(word(at));
    let q = four_words(at + 4u);
    return Unit(
        scaled(q.x, dm), scaled(q.y, dm), scaled(q.z, dm), scaled(q.w, dm),
        scaled(q.x >> 4u, dm), scaled(q.y >> 4u, dm), scaled(q.z >> 4u, dm), scaled(q.w >> 4u, dm),
    );
}
