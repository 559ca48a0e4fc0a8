// Reading stored bytes where every block begins at a multiple of four.

fn word(at: u32) -> u32 {
    return weights[at >> 2u];
}
