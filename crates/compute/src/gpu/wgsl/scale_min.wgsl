// The scale and minimum of sub-block `j` of a Q4_K or Q5_K block at `at`: six bits each, in twelve packed bytes.
fn scale_min(at: u32, j: u32) -> vec2<f32> {
    let dm = unpack2x16float(word(at));
    let shift = (j & 3u) * 8u;
    let first = word(at + 4u) >> shift;
    let second = word(at + 8u) >> shift;
    let third = word(at + 12u) >> shift;
    let near = vec2<u32>(first, second) & vec2<u32>(63u);
    let far = vec2<u32>((third & 15u) | ((first >> 2u) & 48u), ((third >> 4u) & 15u) | ((second >> 2u) & 48u));
    return dm * vec2<f32>(select(far, near, j < 4u));
}
