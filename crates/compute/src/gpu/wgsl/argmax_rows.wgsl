@group(0) @binding(2) var<storage, read> best: array<vec2<u32>>; // (row, chunk): order, index
@group(0) @binding(3) var<storage, read_write> out: array<u32>; // (row)

@compute @workgroup_size(1)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.y >= step[0] {
        return;
    }
    let chunks = (params.n + params.chunk - 1u) / params.chunk;
    var largest = vec2<u32>(0u, 0u);
    for (var i = 0u; i < chunks; i++) {
        let candidate = best[id.y * chunks + i];
        if candidate.x > largest.x {
            largest = candidate;
        }
    }
    out[id.y] = largest.y;
}
