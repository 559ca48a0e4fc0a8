// Reading stored bytes where blocks begin at multiples of two. Nothing behind the four bytes is touched.

fn word(at: u32) -> u32 {
    let low = weights[at >> 2u];
    let high = weights[(at + 2u) >> 2u];
    return select(low, (low >> 16u) | (high << 16u), (at & 2u) != 0u);
}
