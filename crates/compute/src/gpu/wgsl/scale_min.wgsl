// The scale and minimum of sub-block `j` of a Q4_K or Q5_K block at `at`: six bits each, in twelve packed bytes.
fn scale_min(at: u32, j: u32) -> vec2<f32> {
    let head = four_words(at);
    let packed = head.yzw >> vec3<u32>((j & 3u) * 8u);
    let near = packed.xy & vec2<u32>(63u);
    let far = ((vec2<u32>(packed.z) >> vec2<u32>(0u, 4u)) & vec2<u32>(15u)) | ((packed.xy >> vec2<u32>(2u)) & vec2<u32>(48u));
    return unpack2x16float(head.x) * vec2<f32>(select(far, near, j < 4u));
}
