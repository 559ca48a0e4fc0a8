fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 34u;
    let d = half(at);
    let q = at + 2u;
    return Unit(
        signed_bytes(word(q)) * d, signed_bytes(word(q + 4u)) * d, signed_bytes(word(q + 8u)) * d, signed_bytes(word(q + 12u)) * d,
        signed_bytes(word(q + 16u)) * d, signed_bytes(word(q + 20u)) * d, signed_bytes(word(q + 24u)) * d, signed_bytes(word(q + 28u)) * d,
    );
}
