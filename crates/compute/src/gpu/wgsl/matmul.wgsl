// out[row][n] = sum over k of w[n][k] * x[row][k]. An invocation has one n and four rows (or one, where only one is left): the chain of
// each output is the same in both. Four partial sums, one for each k modulo four, then a tree.

@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>; // (row, k / 4)
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // (row, n)

fn total(a: vec4<f32>) -> f32 {
    return (a.x + a.z) + (a.y + a.w);
}

fn one_row(w: u32, row: u32, n: u32) {
    let x0 = row * (params.k / 4u);
    var a0 = vec4<f32>(0.0);
    for (var u = 0u; u < params.k / 32u; u++) {
        let w = unit(w, u);
        let i = u * 8u;
        a0 = fma(w[0], x[x0 + i], a0);
        a0 = fma(w[1], x[x0 + i + 1u], a0);
        a0 = fma(w[2], x[x0 + i + 2u], a0);
        a0 = fma(w[3], x[x0 + i + 3u], a0);
        a0 = fma(w[4], x[x0 + i + 4u], a0);
        a0 = fma(w[5], x[x0 + i + 5u], a0);
        a0 = fma(w[6], x[x0 + i + 6u], a0);
        a0 = fma(w[7], x[x0 + i + 7u], a0);
    }
    out[row * params.n + n] = total(a0);
}

struct Sums {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
}

fn add_four(s: Sums, w: vec4<f32>, at: vec4<u32>) -> Sums {
    return Sums(fma(w, x[at.x], s.a0), fma(w, x[at.y], s.a1), fma(w, x[at.z], s.a2), fma(w, x[at.w], s.a3));
}

fn four_rows(w: u32, first: u32, rows: u32, n: u32) {
    // Rows beyond the last repeat it, and their sums are dropped.
    let row = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(rows - 1u));
    let x0 = row * (params.k / 4u);
    var s = Sums(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    for (var u = 0u; u < params.k / 32u; u++) {
        let w = unit(w, u);
        let at = x0 + u * 8u;
        s = add_four(s, w[0], at);
        s = add_four(s, w[1], at + 1u);
        s = add_four(s, w[2], at + 2u);
        s = add_four(s, w[3], at + 3u);
        s = add_four(s, w[4], at + 4u);
        s = add_four(s, w[5], at + 5u);
        s = add_four(s, w[6], at + 6u);
        s = add_four(s, w[7], at + 7u);
    }
    out[row.x * params.n + n] = total(s.a0);
    out[row.y * params.n + n] = total(s.a1);
    if first + 2u < rows {
        out[row.z * params.n + n] = total(s.a2);
    }
    if first + 3u < rows {
        out[row.w * params.n + n] = total(s.a3);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let rows = step[0];
    let first = id.y * 4u;
    if id.x >= params.rows || first >= rows {
        return;
    }
    let w = params.offset_bytes + id.x * params.row_bytes;
    let n = params.first_row + id.x;
    if first + 1u == rows {
        one_row(w, first, n);
    } else {
        four_rows(w, first, rows, n);
    }
}
