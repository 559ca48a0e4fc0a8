fn four(at: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(word(at)), unpack2x16float(word(at + 4u)));
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 64u;
    return Unit(four(at), four(at + 8u), four(at + 16u), four(at + 24u), four(at + 32u), four(at + 40u), four(at + 48u), four(at + 56u));
}

fn one(row: u32, i: u32) -> f32 {
    return half(row + i * 2u);
}
