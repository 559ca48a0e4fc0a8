// x[i] = f(x[i], y[i]) for every element of every row.

struct Params {
    // Elements of a row.
    n: u32,
    scale: f32,
}

@group(0) @binding(0) var<storage, read> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>; // (row, n)
