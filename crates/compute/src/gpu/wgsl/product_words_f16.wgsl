// Where rows are not whole words: an invocation has a word of the product. Of a word that is not all ours the other half stays.

fn element(at: u32) -> u32 {
    let row = at / params.n;
    let column = vec4<u32>(at % params.n);
    var sum = 0.0;
    for (var i = 0u; i < params.k; i++) {
        sum = fma(a_at(row, i), b_at(i, column).x, sum);
    }
    return half_bits(sum);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let word = (params.c >> 1u) + id.x + id.y * WORDS_A_LINE;
    let end = params.c + params.m * params.n;
    if word * 2u >= end {
        return;
    }
    var packed = c[word];
    if word * 2u >= params.c {
        packed = (packed & 0xffff0000u) | element(word * 2u - params.c);
    }
    if word * 2u + 1u < end {
        packed = (packed & 0xffffu) | (element(word * 2u + 1u - params.c) << 16u);
    }
    c[word] = packed;
}
