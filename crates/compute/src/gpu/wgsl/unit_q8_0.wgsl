fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 34u;
    let d = half(at);
    let a = four_words(at + 2u);
    let b = four_words(at + 18u);
    return Unit(
        signed_bytes(a.x) * d, signed_bytes(a.y) * d, signed_bytes(a.z) * d, signed_bytes(a.w) * d,
        signed_bytes(b.x) * d, signed_bytes(b.y) * d, signed_bytes(b.z) * d, signed_bytes(b.w) * d,
    );
}
