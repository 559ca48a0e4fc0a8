fn four(at: u32) -> vec4<f32> {
    let w = vec2<u32>(word(at), word(at + 4u));
    return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 64u;
    return Unit(four(at), four(at + 8u), four(at + 16u), four(at + 24u), four(at + 32u), four(at + 40u), four(at + 48u), four(at + 56u));
}

fn one(row: u32, i: u32) -> f32 {
    return bitcast<f32>(short(row + i * 2u) << 16u);
}
