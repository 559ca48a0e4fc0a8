const UNIT = 1u;

fn store(word: u32, row: u32, side: u32, head: u32, first: u32) {
    kv[word + first] = bitcast<u32>(element(row, side, head, first));
}
