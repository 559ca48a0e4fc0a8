fn four(w: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 64u;
    let a = four_words(at);
    let b = four_words(at + 16u);
    let c = four_words(at + 32u);
    let d = four_words(at + 48u);
    return Unit(four(a.xy), four(a.zw), four(b.xy), four(b.zw), four(c.xy), four(c.zw), four(d.xy), four(d.zw));
}

fn one(row: u32, i: u32) -> f32 {
    return bitcast<f32>(short(row + i * 2u) << 16u);
}
