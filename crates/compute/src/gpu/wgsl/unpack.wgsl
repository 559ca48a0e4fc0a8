// Stored numbers, unpacked. `unit` of a format gives 32 elements of a row, from element 32 * u on, as eight vectors of four.

alias Unit = array<vec4<f32>, 8>;

fn short(at: u32) -> u32 {
    return (weights[at >> 2u] >> ((at & 2u) * 8u)) & 0xffffu;
}

fn half(at: u32) -> f32 {
    return unpack2x16float(short(at)).x;
}

// The four bytes of a word, each with the higher ones above it.
fn bytes(w: u32) -> vec4<u32> {
    return vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u);
}

fn low_nibbles(w: u32) -> vec4<u32> {
    return bytes(w) & vec4<u32>(15u);
}

fn signed_bytes(w: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(w) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// Four fifth bits, from bit `shift` on, where they belong.
fn fifth_bits(packed: u32, shift: u32) -> vec4<u32> {
    return ((vec4<u32>(packed) >> (vec4<u32>(0u, 1u, 2u, 3u) + shift)) & vec4<u32>(1u)) << vec4<u32>(4u);
}
