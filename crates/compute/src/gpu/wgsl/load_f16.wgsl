fn load_four(row: u32, i: u32) -> vec4<f32> {
    let at = row + 2u * i;
    return vec4<f32>(unpack2x16float(kv[at]), unpack2x16float(kv[at + 1u]));
}
