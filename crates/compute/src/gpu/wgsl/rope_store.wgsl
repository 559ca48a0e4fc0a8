// Turns queries and keys, and stores keys and values. An invocation has UNIT elements of one head of a row, which are whole words.

@group(0) @binding(2) var<storage, read> cos_sin: array<f32>; // (row, cos or sin, head_dim / 2)
@group(0) @binding(3) var<storage, read> q: array<f32>; // (row, head, head_dim)
@group(0) @binding(4) var<storage, read> k: array<f32>; // (row, kv_head, head_dim)
@group(0) @binding(5) var<storage, read> v: array<f32>; // (row, kv_head, head_dim)
@group(0) @binding(6) var<storage, read_write> turned: array<f32>; // (row, head, head_dim)
@group(0) @binding(7) var<storage, read_write> kv: array<u32>;

// The index in its head of a pair's first element and of its second. PAIRS are turned, at the beginning of a head.
fn pair(i: u32) -> vec2<u32> {
    return select(vec2<u32>(i, i + PAIRS), vec2<u32>(2u * i, 2u * i + 1u), params.interleaved != 0u);
}

// Element `e` (in half-split order) of a turned head.
fn turn(row: u32, e: u32, first: f32, second: f32) -> f32 {
    let angle = row * params.head_dim + e % PAIRS;
    let c = cos_sin[angle];
    let s = cos_sin[angle + params.head_dim / 2u];
    return select(fma(first, s, second * c), fma(first, c, -(second * s)), e < PAIRS);
}

fn turned_query(row: u32, head: u32, e: u32) -> f32 {
    let base = (row * params.heads + head) * params.head_dim;
    if e >= 2u * PAIRS {
        return q[base + e];
    }
    let at = vec2<u32>(base) + pair(e % PAIRS);
    return turn(row, e, q[at.x], q[at.y]);
}

// Element `e` of a key, turned, or of a value.
fn element(row: u32, side: u32, head: u32, e: u32) -> f32 {
    let base = (row * params.kv_heads + head) * params.head_dim;
    if side == 1u {
        return v[base + e];
    }
    if e >= 2u * PAIRS {
        return k[base + e];
    }
    let at = vec2<u32>(base) + pair(e % PAIRS);
    return turn(row, e, k[at.x], k[at.y]);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let units = (params.head_dim + UNIT - 1u) / UNIT;
    let row = id.y;
    let head = id.x / units;
    let first = (id.x % units) * UNIT;
    if head >= params.heads + 2u * params.kv_heads || row >= places[0] {
        return;
    }
    if head < params.heads {
        for (var e = first; e < min(first + UNIT, params.head_dim); e++) {
            turned[(row * params.heads + head) * params.head_dim + e] = turned_query(row, head, e);
        }
        return;
    }
    let side = (head - params.heads) / params.kv_heads;
    let kv_head = (head - params.heads) % params.kv_heads;
    let position = places[1u + 2u * row];
    let slot = places[places[2u + 2u * row] + position / 64u];
    store(kv_head_word(slot, side, kv_head) + (position % 64u) * params.row_words, row, side, kv_head, first);
}
