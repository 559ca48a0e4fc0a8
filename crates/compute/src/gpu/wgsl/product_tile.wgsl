@compute @workgroup_size(8, 4)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let first = id.x * 4u;
    let row = id.y * 8u;
    if first >= params.n || row >= params.m {
        return;
    }
    // What is beyond the last row or column repeats it, and is dropped.
    let column = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.n - 1u));
    let low = min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.m - 1u));
    let high = min(vec4<u32>(row) + vec4<u32>(4u, 5u, 6u, 7u), vec4<u32>(params.m - 1u));
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    for (var i = 0u; i < params.k; i++) {
        let v = b_at(i, column);
        s0 = fma(vec4<f32>(a_at(low.x, i)), v, s0);
        s1 = fma(vec4<f32>(a_at(low.y, i)), v, s1);
        s2 = fma(vec4<f32>(a_at(low.z, i)), v, s2);
        s3 = fma(vec4<f32>(a_at(low.w, i)), v, s3);
        s4 = fma(vec4<f32>(a_at(high.x, i)), v, s4);
        s5 = fma(vec4<f32>(a_at(high.y, i)), v, s5);
        s6 = fma(vec4<f32>(a_at(high.z, i)), v, s6);
        s7 = fma(vec4<f32>(a_at(high.w, i)), v, s7);
    }
    store(low.x, first, s0);
    store(low.y, first, s1);
    store(low.z, first, s2);
    store(low.w, first, s3);
    store(high.x, first, s4);
    store(high.y, first, s5);
    store(high.z, first, s6);
    store(high.w, first, s7);
}
