@group(0) @binding(0) var<storage, read> best: array<vec2<u32>>; // (row, slice): key, token
@group(0) @binding(1) var<storage, read_write> chosen: array<u32>; // (row)
@group(0) @binding(2) var<storage, read_write> tokens: array<u32>; // rows, then the token of each

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    var key = -3.4028235e38;
    var place = NONE;
    if lid < SLICES {
        let b = best[wg.y * SLICES + lid];
        key = bitcast<f32>(b.x);
        place = b.y;
    }
    keys[lid] = key;
    places[lid] = place;
    reduce(lid);
    if lid == 0u {
        chosen[wg.y] = places[0];
        tokens[1u + wg.y] = places[0];
    }
}
