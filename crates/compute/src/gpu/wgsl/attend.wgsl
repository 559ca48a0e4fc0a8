// out = softmax(SCALED) v, where s = q . k, for a slice of one head of a row. Tokens are taken four at a time, at absolute positions, with a running
// maximum and sum. A masked token takes no part: its neighbour is read in its place, and counts nothing.

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>; // (row, head, head_dim / 4)
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // (row, head, head_dim / 4)

const LEAST = -3.4028234e38;

fn scores(q0: u32, keys: vec4<u32>) -> vec4<f32> {
    var s = vec4<f32>(0.0);
    for (var i = 0u; i < params.head_dim / 4u; i++) {
        let a = load_four(keys.x, i);
        let b = load_four(keys.y, i);
        let c = load_four(keys.z, i);
        let d = load_four(keys.w, i);
        let x = q[q0 + i];
        s = fma(vec4<f32>(a.x, b.x, c.x, d.x), x.xxxx, s);
        s = fma(vec4<f32>(a.y, b.y, c.y, d.y), x.yyyy, s);
        s = fma(vec4<f32>(a.z, b.z, c.z, d.z), x.zzzz, s);
        s = fma(vec4<f32>(a.w, b.w, c.w, d.w), x.wwww, s);
    }
    return SCALED;
}

fn gained(o: vec4<f32>, keep: f32, p: vec4<f32>, values: vec4<u32>, i: u32) -> vec4<f32> {
    var sum = o * keep;
    sum = fma(load_four(values.x, i), p.xxxx, sum);
    sum = fma(load_four(values.y, i), p.yyyy, sum);
    sum = fma(load_four(values.z, i), p.zzzz, sum);
    return fma(load_four(values.w, i), p.wwww, sum);
}

@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let fours = params.head_dim / 4u;
    let slices = fours / SLICE;
    let row = id.y;
    let head = id.x / slices;
    if head >= params.heads || row >= places[0] {
        return;
    }
    let slice = (id.x % slices) * SLICE;
    let kv_head = head / (params.heads / params.kv_heads);
    let q0 = (row * params.heads + head) * fours;
    let position = places[1u + 2u * row];
    let table = places[2u + 2u * row];
    let start = select(0u, position + 1u - params.window, params.window != 0u && position >= params.window);
    var largest = LEAST;
    var sum = 0.0;
    DECLARE
    for (var t = start & ~3u; t <= position; t += 4u) {
        let tokens = vec4<u32>(t) + vec4<u32>(0u, 1u, 2u, 3u);
        let seen = clamp(tokens, vec4<u32>(start), vec4<u32>(position));
        let slot = places[table + t / 64u];
        let rows = (seen % vec4<u32>(64u)) * params.row_words;
        let s = select(vec4<f32>(LEAST), scores(q0, rows + kv_head_word(slot, 0u, kv_head)), tokens == seen);
        let now = max(largest, max(max(s.x, s.y), max(s.z, s.w)));
        let keep = exp_one(largest - now);
        let p = exp_four(s - now);
        largest = now;
        sum = fma(sum, keep, (p.x + p.z) + (p.y + p.w));
        let values = rows + kv_head_word(slot, 1u, kv_head);
        GAIN
    }
    let inverse = 1.0 / sum;
    STORE
}
