// The index of the largest key of each row, the lowest at ties; a key is the logit, or the logit over the temperature plus Gumbel noise,
// which makes the largest a draw from the softmax (Gumbel, 1954). Two kernels of the same text: of slices, then of the slices' bests.

struct Draw {
    // 0 for the largest logit itself.
    inverse_temperature: f32,
    seed_low: u32,
    seed_high: u32,
    draw: u32,
}

const NONE = 0xffffffffu;
var<workgroup> keys: array<f32, 256>;
var<workgroup> places: array<u32, 256>;

// MurmurHash3's finaliser (Appleby, 2011).
fn mixed(x: u32) -> u32 {
    var h = (x ^ (x >> 16u)) * 0x85ebca6bu;
    h = (h ^ (h >> 13u)) * 0xc2b2ae35u;
    return h ^ (h >> 16u);
}

fn gumbel(d: Draw, token: u32) -> f32 {
    let h = mixed(mixed(mixed(mixed(d.seed_high) ^ d.seed_low) ^ d.draw) ^ token);
    // 23 bits and a half: never 0, never 1.
    let unit = (f32(h >> 9u) + 0.5) * 1.1920929e-7;
    return -log(-log(unit));
}

// Whether (a, at) comes before (b, bt): NaN never does.
fn beats(a: f32, at: u32, b: f32, bt: u32) -> bool {
    return a > b || (a == b && at < bt);
}

// Leaves the best of the workgroup in place 0.
fn reduce(lid: u32) {
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if lid < half && beats(keys[lid + half], places[lid + half], keys[lid], places[lid]) {
            keys[lid] = keys[lid + half];
            places[lid] = places[lid + half];
        }
        workgroupBarrier();
    }
}
