@group(0) @binding(0) var<storage, read> draws: array<Draw>; // (row)
@group(0) @binding(1) var<storage, read> logits: array<f32>; // (row, n)
@group(0) @binding(2) var<storage, read_write> best: array<vec2<u32>>; // (row, slice): key, token

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let d = draws[wg.y];
    var key = -3.4028235e38;
    var place = NONE;
    for (var i = wg.x * SLICE + lid; i < min((wg.x + 1u) * SLICE, N); i += 256u) {
        var k = logits[wg.y * N + i];
        if d.inverse_temperature != 0.0 && k >= -3.4028235e38 {
            k = fma(k, d.inverse_temperature, gumbel(d, i));
        }
        if beats(k, i, key, place) {
            key = k;
            place = i;
        }
    }
    keys[lid] = key;
    places[lid] = place;
    reduce(lid);
    if lid == 0u {
        best[wg.y * SLICES + wg.x] = vec2<u32>(bitcast<u32>(keys[0]), places[0]);
    }
}
