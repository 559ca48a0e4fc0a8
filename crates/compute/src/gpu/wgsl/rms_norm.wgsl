// out = x / sqrt(mean(x^2) + eps) * weight for each head of each row. An invocation has 32 elements of the output and sums the squares
// of its head for itself, always in one order.

struct Params {
    // Elements that are normed together, and how many times a row has them.
    n: u32,
    heads: u32,
    eps: f32,
}

@group(0) @binding(0) var<storage, read> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<f32>; // (row, head, n)
@group(0) @binding(3) var<storage, read> weight: array<f32>; // (n)
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // (row, head, n)

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let slices = (params.n + 31u) / 32u;
    let head = id.x / slices;
    if head >= params.heads || id.y >= step[0] {
        return;
    }
    let at = (id.y * params.heads + head) * params.n;
    var squares = vec4<f32>(0.0);
    var i = 0u;
    for (; i + 4u <= params.n; i += 4u) {
        let v = vec4<f32>(x[at + i], x[at + i + 1u], x[at + i + 2u], x[at + i + 3u]);
        squares = fma(v, v, squares);
    }
    for (; i < params.n; i++) {
        squares.x = fma(x[at + i], x[at + i], squares.x);
    }
    let mean = ((squares.x + squares.z) + (squares.y + squares.w)) / f32(params.n);
    let factor = 1.0 / sqrt(mean + params.eps);
    let first = (id.x % slices) * 32u;
    for (var j = first; j < min(first + 32u, params.n); j++) {
        out[at + j] = (x[at + j] * factor) * weight[j];
    }
}
