// All three may lie in one buffer, which is then writable in every binding. Two elements share a word.
@group(0) @binding(1) var<storage, read_write> a: array<u32>; // (m, k)
@group(0) @binding(2) var<storage, read_write> b: array<u32>; // (k, n)
@group(0) @binding(3) var<storage, read_write> c: array<u32>; // (m, n)

fn a_at(row: u32, i: u32) -> f32 {
    let at = params.a + row * params.k + i;
    return unpack2x16float(a[at >> 1u] >> ((at & 1u) * 16u)).x;
}

fn b_one(at: u32) -> f32 {
    return unpack2x16float(b[at >> 1u] >> ((at & 1u) * 16u)).x;
}

fn b_at(i: u32, column: vec4<u32>) -> vec4<f32> {
    let at = column + params.b + i * params.n;
    return vec4<f32>(b_one(at.x), b_one(at.y), b_one(at.z), b_one(at.w));
}
