// out[row][n] = sum over k of w[n][k] * x[row][k]. An invocation has one n and four rows (or one, where only one is left): the chain of
// each output is the same in both. Four partial sums, one for each k modulo four, then a tree. Where subgroups have eight lanes or more,
// eight lanes load 32 elements of x together and hand them round: on a CPU a load costs more than all that is done with it.

@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>; // (row, k / 4)
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // (row, n)

fn total(a: vec4<f32>) -> f32 {
    return (a.x + a.z) + (a.y + a.w);
}

fn one_row(w: u32, row: u32, lane: u32) -> vec4<f32> {
    let x0 = row * (params.k / 4u) + lane;
    var a0 = vec4<f32>(0.0);
    for (var u = 0u; u < params.k / 32u; u++) {
        let w = unit(w, u);
        let at = x0 + u * 8u;
        let y = x[at];
        GAIN_ONE
    }
    return a0;
}

struct Four {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
}

fn gain(s: Four, w: vec4<f32>, y0: vec4<f32>, y1: vec4<f32>, y2: vec4<f32>, y3: vec4<f32>) -> Four {
    return Four(fma(w, y0, s.a0), fma(w, y1, s.a1), fma(w, y2, s.a2), fma(w, y3, s.a3));
}

fn four_rows(w: u32, first: u32, rows: u32, lane: u32) -> Four {
    // Rows beyond the last repeat it, and their sums are dropped.
    let row = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(rows - 1u));
    let x0 = row * (params.k / 4u) + lane;
    var s = Four(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    for (var u = 0u; u < params.k / 32u; u++) {
        let w = unit(w, u);
        let at = x0 + u * 8u;
        let y0 = x[at.x];
        let y1 = x[at.y];
        let y2 = x[at.z];
        let y3 = x[at.w];
        GAIN_FOUR
    }
    return s;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>LANE_ARGUMENT) {
    let rows = step[0];
    let first = id.y * 4u;
    if first >= rows {
        return;
    }
    let lane = LANE;
    let w = params.offset_bytes + min(id.x, params.rows - 1u) * params.row_bytes;
    let at = first * params.n + params.first_row + id.x;
    if first + 1u == rows {
        let s = one_row(w, first, lane);
        if id.x < params.rows {
            out[at] = total(s);
        }
        return;
    }
    let s = four_rows(w, first, rows, lane);
    if id.x >= params.rows {
        return;
    }
    out[at] = total(s.a0);
    out[at + params.n] = total(s.a1);
    if first + 2u < rows {
        out[at + 2u * params.n] = total(s.a2);
    }
    if first + 3u < rows {
        out[at + 3u * params.n] = total(s.a3);
    }
}
