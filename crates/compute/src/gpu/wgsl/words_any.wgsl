// Reading stored bytes where blocks begin at multiples of two. No word is touched that has none of the bytes.

fn joined(low: vec4<u32>, high: vec4<u32>, at: u32) -> vec4<u32> {
    return select(low, (low >> vec4<u32>(16u)) | (high << vec4<u32>(16u)), (at & 2u) != 0u);
}

fn word(at: u32) -> u32 {
    return joined(vec4<u32>(weights[at >> 2u]), vec4<u32>(weights[(at + 2u) >> 2u]), at).x;
}

fn four_words(at: u32) -> vec4<u32> {
    let i = at >> 2u;
    let low = vec4<u32>(weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u]);
    return joined(low, vec4<u32>(low.yzw, weights[(at + 14u) >> 2u]), at);
}
