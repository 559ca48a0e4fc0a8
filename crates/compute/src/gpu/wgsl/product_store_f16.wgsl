// Where rows are whole words.
fn store(row: u32, column: u32, sums: vec4<f32>) {
    let at = (params.c + row * params.n + column) >> 1u;
    c[at] = half_bits(sums.x) | (half_bits(sums.y) << 16u);
    if column + 2u < params.n {
        c[at + 1u] = half_bits(sums.z) | (half_bits(sums.w) << 16u);
    }
}
