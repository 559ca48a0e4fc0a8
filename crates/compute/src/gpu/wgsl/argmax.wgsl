// The largest of each row, in two passes: of each chunk, then of the chunks. The lowest index wins ties, NaN never wins.

struct Params {
    // Elements of a row, and of a chunk.
    n: u32,
    chunk: u32,
}

@group(0) @binding(0) var<storage, read> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
