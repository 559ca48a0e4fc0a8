// Reading stored bytes where every block begins at a multiple of four.

fn word(at: u32) -> u32 {
    return weights[at >> 2u];
}

fn four_words(at: u32) -> vec4<u32> {
    let i = at >> 2u;
    return vec4<u32>(weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u]);
}
