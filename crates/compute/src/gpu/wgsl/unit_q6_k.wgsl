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
    let shift = vec4<u32>((quarter >> 1u) * 4u);
    let a = four_words(low) >> shift;
    let b = four_words(low + 16u) >> shift;
    let c = four_words(high) >> vec4<u32>(quarter * 2u);
    let d = four_words(high + 16u) >> vec4<u32>(quarter * 2u);
    // A scale for each sixteen elements.
    let s = half(block + 208u) * signed_bytes(short(block + 192u + 2u * j)).xy;
    return Unit(
        centred(a.x, c.x, s.x), centred(a.y, c.y, s.x), centred(a.z, c.z, s.x), centred(a.w, c.w, s.x),
        centred(b.x, d.x, s.y), centred(b.y, d.y, s.y), centred(b.z, d.z, s.y), centred(b.w, d.w, s.y),
    );
}
