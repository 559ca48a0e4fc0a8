fn four(at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(four_words(at));
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 128u;
    return Unit(four(at), four(at + 16u), four(at + 32u), four(at + 48u), four(at + 64u), four(at + 80u), four(at + 96u), four(at + 112u));
}

fn one(row: u32, i: u32) -> f32 {
    return bitcast<f32>(word(row + i * 4u));
}
