const UNIT = 2u;

fn store(word: u32, row: u32, side: u32, head: u32, first: u32) {
    let low = half_bits(element(row, side, head, first));
    let high = half_bits(element(row, side, head, first + 1u));
    kv[word + first / 2u] = low | (high << 16u);
}
