// Elementary functions of our own, as on the CPU: drivers' versions differ. Below -87 exp is zero, above 88 infinite.

fn exp_four(x: vec4<f32>) -> vec4<f32> {
    // At 89 the power of two below is infinite, at -88 it is zero.
    let bounded = select(select(x, vec4<f32>(-88.0), x < vec4<f32>(-87.0)), vec4<f32>(89.0), x > vec4<f32>(88.0));
    let whole = round(bounded * 1.44269504);
    // ln 2 in two parts (Cephes' expf), the first exact in a few bits.
    var r = fma(whole, vec4<f32>(-0.693359375), bounded);
    r = fma(whole, vec4<f32>(2.12194440e-4), r);
    // Cephes' expf polynomial for |r| <= ln(2) / 2.
    var p = vec4<f32>(1.9875691e-4);
    p = fma(p, r, vec4<f32>(1.3981999e-3));
    p = fma(p, r, vec4<f32>(8.333452e-3));
    p = fma(p, r, vec4<f32>(4.1665796e-2));
    p = fma(p, r, vec4<f32>(1.6666665e-1));
    p = fma(p, r, vec4<f32>(0.5));
    p = fma(r * r, p, r) + 1.0;
    return p * bitcast<vec4<f32>>(vec4<u32>(vec4<i32>(whole) + 127) << vec4<u32>(23u));
}

fn exp_one(x: f32) -> f32 {
    return exp_four(vec4<f32>(x)).x;
}

fn silu(x: f32) -> f32 {
    return x / (1.0 + exp_one(-x));
}

fn gelu_tanh(x: f32) -> f32 {
    // (1 + tanh u) / 2 is 1 / (1 + exp(-2 u)).
    let cubic = fma((x * x) * x, 0.044715, x);
    return x / (1.0 + exp_one(cubic * -1.595769));
}
