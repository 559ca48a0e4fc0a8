// cap * tanh(x / cap), which is between -cap and cap. As on the CPU: 1 - 2 / (1 + exp(2 x)) is tanh x, also where exp is zero or infinite.

fn softcap_four(x: vec4<f32>, cap: f32) -> vec4<f32> {
    let y = x / cap;
    return cap * (1.0 - 2.0 / (1.0 + exp_four(y + y)));
}

fn softcap(x: f32, cap: f32) -> f32 {
    return softcap_four(vec4<f32>(x), cap).x;
}
