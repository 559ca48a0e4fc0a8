// The nearest f16, to even at ties: drivers may round `pack2x16float` as they like.
fn half_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude >= 0x47800000u {
        // NaN stays quiet.
        let nan = 0x7e00u | ((magnitude >> 13u) & 0x3ffu);
        return sign | select(0x7c00u, nan, magnitude > 0x7f800000u);
    }
    if magnitude < 0x38800000u {
        // Adding a half leaves a whole number of 2^-24.
        return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u);
    }
    return sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u);
}
