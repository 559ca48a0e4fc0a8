// c = a * b of f32; 8 rows and 4 columns an invocation. The bindings are windows: `sizes` says where in each its matrix begins.

@group(0) @binding(0) var<storage, read_write> a: array<f32>;
@group(0) @binding(1) var<storage, read_write> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read> sizes: array<u32, 8>; // m, k, n, then where a, b and c begin

const COLUMNS_APART: u32 = 8u;

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let m = sizes[0];
    let k = sizes[1];
    let n = sizes[2];
    let row = group.y * 64u + local.y * 8u;
    let column = group.x * 32u + local.x;
    let rows_lo = min(row + vec4(0u, 1u, 2u, 3u), vec4(m - 1u));
    let rows_hi = min(row + vec4(4u, 5u, 6u, 7u), vec4(m - 1u));
    let columns = min(column + vec4(0u, 1u, 2u, 3u) * COLUMNS_APART, vec4(n - 1u));
    var a_lo = sizes[3] + rows_lo * k;
    var a_hi = sizes[3] + rows_hi * k;
    var b_at = sizes[4] + columns;
    var sum: array<vec4<f32>, 8>;
    for (var i = 0u; i < k; i++) {
        let right = vec4(b[b_at.x], b[b_at.y], b[b_at.z], b[b_at.w]);
        sum[0] = fma(vec4(a[a_lo.x]), right, sum[0]);
        sum[1] = fma(vec4(a[a_lo.y]), right, sum[1]);
        sum[2] = fma(vec4(a[a_lo.z]), right, sum[2]);
        sum[3] = fma(vec4(a[a_lo.w]), right, sum[3]);
        sum[4] = fma(vec4(a[a_hi.x]), right, sum[4]);
        sum[5] = fma(vec4(a[a_hi.y]), right, sum[5]);
        sum[6] = fma(vec4(a[a_hi.z]), right, sum[6]);
        sum[7] = fma(vec4(a[a_hi.w]), right, sum[7]);
        a_lo += vec4(1u);
        a_hi += vec4(1u);
        b_at += vec4(n);
    }
    for (var r = 0u; r < 8u; r++) {
        for (var q = 0u; q < 4u; q++) {
            let at = vec2(row + r, column + q * COLUMNS_APART);
            if (at.x < m && at.y < n) {
                c[sizes[5] + at.x * n + at.y] = sum[r][q];
            }
        }
    }
}
