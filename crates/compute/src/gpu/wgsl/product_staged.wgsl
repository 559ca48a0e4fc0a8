// A workgroup has 32 rows and 32 columns, an invocation two of each; 32 of k at a time go through workgroup memory. Sums are the same
// chains along k as without it.

var<workgroup> left: array<f32, 1056>; // (row, k), rows 33 apart
var<workgroup> right: array<f32, 1024>; // (k, column)

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let row0 = wg.y * 32u;
    let column0 = wg.x * 32u;
    var s = vec4<f32>(0.0);
    for (var i0 = 0u; i0 < params.k; i0 += 32u) {
        for (var e = lid; e < 1024u; e += 256u) {
            let at = vec2<u32>(e / 32u, e % 32u);
            // What is beyond an edge repeats what is at it; products beyond the last of k are left out below, sums beyond m and n dropped.
            left[at.x * 33u + at.y] = a_at(min(row0 + at.x, params.m - 1u), min(i0 + at.y, params.k - 1u));
            right[e] = b[params.b + min(i0 + at.x, params.k - 1u) * params.n + min(column0 + at.y, params.n - 1u)];
        }
        workgroupBarrier();
        for (var i = 0u; i < min(32u, params.k - i0); i++) {
            let x = vec2<f32>(left[id.y * 33u + i], left[(id.y + 16u) * 33u + i]);
            let y = vec2<f32>(right[i * 32u + id.x], right[i * 32u + id.x + 16u]);
            s = fma(x.xxyy, y.xyxy, s);
        }
        workgroupBarrier();
    }
    for (var e = 0u; e < 4u; e++) {
        let row = row0 + id.y + 16u * (e / 2u);
        let column = column0 + id.x + 16u * (e % 2u);
        if row < params.m && column < params.n {
            c[params.c + row * params.n + column] = s[e];
        }
    }
}
