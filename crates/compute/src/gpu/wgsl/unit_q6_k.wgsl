fn centred(low: u32, high: u32, d: f32) -> vec4<f32> {
    let pairs = (bytes(high) & vec4<u32>(3u)) << vec4<u32>(4u);
    return (vec4<f32>(low_nibbles(low) | pairs) - 32.0) * d;
}

fn unit(row: u32, u: u32) -> Unit {
    let block = row + (u >> 3u) * 210u;
    let j = u & 7u;
    let quarter = j & 3u;
    let low = block + (j >> 2u) * 64u + (quarter & 1u) * 32u;
    let high = block + 128u + (j >> 2u) * 32u;
    let s = (quarter >> 1u) * 4u;
    let t = quarter * 2u;
    // A scale for each sixteen elements.
    let scales = half(block + 208u) * signed_bytes(short(block + 192u + 2u * j)).xy;
    return Unit(
        centred(word(low) >> s, word(high) >> t, scales.x), centred(word(low + 4u) >> s, word(high + 4u) >> t, scales.x),
        centred(word(low + 8u) >> s, word(high + 8u) >> t, scales.x), centred(word(low + 12u) >> s, word(high + 12u) >> t, scales.x),
        centred(word(low + 16u) >> s, word(high + 16u) >> t, scales.y), centred(word(low + 20u) >> s, word(high + 20u) >> t, scales.y),
        centred(word(low + 24u) >> s, word(high + 24u) >> t, scales.y), centred(word(low + 28u) >> s, word(high + 28u) >> t, scales.y),
    );
}
