// MLX's groups: unsigned integers as one stream of bits, and floats by which each GROUP of them is scaled, and to which it is added. All
// begin at any byte: MLX does not pad the header of its files.

@group(0) @binding(SCALE_BINDING) var<storage, read> scales: array<u32>;
@group(0) @binding(BIAS_BINDING) var<storage, read> biases: array<u32>;

// Four integers, the first in the lowest bits.
fn four(packed: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(packed) >> vec4<u32>(0u, BITS, 2u * BITS, 3u * BITS)) & vec4<u32>((1u << BITS) - 1u));
}

// The bits of a float, with others above them if it is a short one.
fn scale_bits(at: u32) -> u32 {
    return joined(vec4<u32>(scales[at >> 2u]), vec4<u32>(scales[(at + FLOAT_BYTES - 1u) >> 2u]), at).x;
}

fn bias_bits(at: u32) -> u32 {
    return joined(vec4<u32>(biases[at >> 2u]), vec4<u32>(biases[(at + FLOAT_BYTES - 1u) >> 2u]), at).x;
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row + u * 4u * BITS;
    // Rows lie one behind the other, and so do their groups.
    let group = (at - params.offset_bytes) / (GROUP / 8u * BITS);
    let s = vec4<f32>(number(scale_bits(params.scales_offset_bytes + group * FLOAT_BYTES)));
    let b = vec4<f32>(number(bias_bits(params.biases_offset_bytes + group * FLOAT_BYTES)));
    WORDS
    return Unit(
        QUADS
    );
}
