// All three may lie in one buffer, which is then writable in every binding.
@group(0) @binding(1) var<storage, read_write> a: array<f32>; // (m, k)
@group(0) @binding(2) var<storage, read_write> b: array<f32>; // (k, n)
@group(0) @binding(3) var<storage, read_write> c: array<f32>; // (m, n)

fn a_at(row: u32, i: u32) -> f32 {
    return a[params.a + row * params.k + i];
}

fn b_at(i: u32, column: vec4<u32>) -> vec4<f32> {
    let at = params.b + i * params.n;
    return vec4<f32>(b[at + column.x], b[at + column.y], b[at + column.z], b[at + column.w]);
}

fn store(row: u32, column: u32, sums: vec4<f32>) {
    let at = params.c + row * params.n + column;
    for (var i = 0u; i < min(4u, params.n - column); i++) {
        c[at + i] = sums[i];
    }
}
