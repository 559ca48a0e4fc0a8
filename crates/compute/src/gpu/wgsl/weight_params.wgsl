// One part of a stored matrix: some of its rows, in a window of a buffer.
struct Params {
    // Where the part's first row begins in the window.
    offset_bytes: u32,
    row_bytes: u32,
    // Rows of the part, and the number of its first one in the whole matrix.
    rows: u32,
    first_row: u32,
    // Elements of a row.
    k: u32,
    // Rows of the whole matrix.
    n: u32,
    scale: f32,
    // Where scales and biases of the part's first row begin in their windows, if they stand apart.
    scales_offset_bytes: u32,
    biases_offset_bytes: u32,
}

@group(0) @binding(0) var<storage, read> params: Params;
// The number of rows, then what each has.
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<u32>;
