// Two groups of 32, whose scales share a word.
const UNIT = 64u;

// x / 127, correctly rounded: 127 q is 128 q - q, and both differences are exact.
fn by_127(x: f32) -> f32 {
    let q = x / 127.0;
    let rest = (x - 128.0 * q) + q;
    return q + rest * (1.0 / 127.0);
}

// 1 / s, correctly rounded, for an s of eleven bits: its products with the halves of q are exact.
fn inverse(s: f32) -> f32 {
    let q = 1.0 / s;
    let high = bitcast<f32>(bitcast<u32>(q) & 0xfffff000u);
    let rest = (1.0 - high * s) - (q - high) * s;
    return fma(q, rest, q);
}

// Stores the quants of one group and returns the bits of its scale.
fn store_group(word: u32, row: u32, side: u32, head: u32, first: u32) -> u32 {
    let end = min(first + 32u, params.head_dim);
    var largest = 0.0;
    for (var e = first; e < end; e++) {
        largest = max(largest, abs(element(row, side, head, e)));
    }
    let bits = half_bits(min(by_127(largest), 65504.0));
    let scale = unpack2x16float(bits).x;
    var factor = 0.0;
    if bits != 0u {
        factor = inverse(scale);
    }
    for (var e = first; e < end; e += 4u) {
        var packed = 0u;
        for (var i = 0u; i < 4u; i++) {
            let quant = i32(clamp(round(element(row, side, head, e + i) * factor), -127.0, 127.0));
            packed |= (bitcast<u32>(quant) & 0xffu) << (8u * i);
        }
        kv[word + e / 4u] = packed;
    }
    return bits;
}

fn store(word: u32, row: u32, side: u32, head: u32, first: u32) {
    let low = store_group(word, row, side, head, first);
    let high = store_group(word, row, side, head, first + 32u);
    kv[word + params.head_dim / 4u + first / 64u] = low | (high << 16u);
}
