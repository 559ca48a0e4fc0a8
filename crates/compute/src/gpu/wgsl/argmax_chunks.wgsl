@group(0) @binding(2) var<storage, read> x: array<u32>; // (row, n), the bits of f32
@group(0) @binding(3) var<storage, read_write> best: array<vec2<u32>>; // (row, chunk): order, index

// An integer that orders as the number does: NaN lowest, both zeros alike.
fn order(bits: u32) -> u32 {
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return 0u;
    }
    if magnitude == 0u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, bits > 0x80000000u);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let chunks = (params.n + params.chunk - 1u) / params.chunk;
    if id.x >= chunks || id.y >= step[0] {
        return;
    }
    let first = id.x * params.chunk;
    var largest = vec2<u32>(0u, first);
    for (var i = first; i < min(first + params.chunk, params.n); i++) {
        let o = order(x[id.y * params.n + i]);
        if o > largest.x {
            largest = vec2<u32>(o, i);
        }
    }
    best[id.y * chunks + id.x] = largest;
}
