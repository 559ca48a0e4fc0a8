// out = x / sqrt(mean(x^2) + eps) * weight for each head of each row. An invocation has 16 elements of the output and sums the squares
// of its head for itself, always in one order.

struct Params {
    // Elements that are normed together, and how many times a row has them.
    n: u32,
    heads: u32,
    eps: f32,
}

@group(0) @binding(0) var<storage, read> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<Element>; // (row, head, n)
@group(0) @binding(3) var<storage, read> weight: array<Element>; // (n)
@group(0) @binding(4) var<storage, read_write> out: array<Element>; // (row, head, n)

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let slices = (params.n + 15u) / 16u;
    let head = id.x / slices;
    if head >= params.heads || id.y >= step[0] {
        return;
    }
    let elements = params.n / WIDTH;
    let at = (id.y * params.heads + head) * elements;
    var squares = Element(0.0);
    for (var i = 0u; i < elements; i++) {
        squares = fma(x[at + i], x[at + i], squares);
    }
    let factor = 1.0 / sqrt(total(squares) / f32(params.n) + params.eps);
    let first = (id.x % slices) * 16u / WIDTH;
    for (var i = first; i < min(first + 16u / WIDTH, elements); i++) {
        out[at + i] = (x[at + i] * factor) * weight[i];
    }
}
