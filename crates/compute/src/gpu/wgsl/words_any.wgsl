// Reading stored bytes from anywhere on. No word is touched that has none of the bytes.

fn word(at: u32) -> u32 {
    return joined(vec4<u32>(weights[at >> 2u]), vec4<u32>(weights[(at + 3u) >> 2u]), at).x;
}

fn four_words(at: u32) -> vec4<u32> {
    let i = at >> 2u;
    let low = vec4<u32>(weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u]);
    return joined(low, vec4<u32>(low.yzw, weights[(at + 15u) >> 2u]), at);
}
