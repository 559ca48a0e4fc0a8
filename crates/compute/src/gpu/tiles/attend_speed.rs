//! How long attention takes on this device, with the shape of a 1B model and others: a table, printed by an ignored test.

use super::speed::Clock;
use super::tests::{Random, cooperative, upload};
use super::*;
use crate::gpu::{Binding, Dispatch, Gpu, Heads, Pairs, Scores};
use std::sync::Arc;

/// Layers whose slots are apart, so that a cache does not hold them.
const LAYERS: usize = 4;
const ROWS_MAX: usize = 2048;
const BLOCKS_MAX: usize = 1024;

/// Sessions of one length, as many rows at the end of each.
#[derive(Clone, Copy)]
struct Step {
    sessions: usize,
    rows: usize,
    tokens: usize,
}

struct Bench {
    gpu: Arc<Gpu>,
    attention: TileAttention,
    kv: Vec<wgpu::Buffer>,
    q: wgpu::Buffer,
    qkv: wgpu::Buffer,
    rotations: wgpu::Buffer,
    scratch: wgpu::Buffer,
    out: wgpu::Buffer,
}

impl Bench {
    fn new(gpu: &Arc<Gpu>, heads: Heads) -> Bench {
        let attention = TileAttention::new(heads, Scores { scale: 0.125, softcap: None, window: None }).unwrap();
        let mut random = Random(1);
        let block: Vec<u32> = (0..1 << 20).map(|_| random.next() as u32 & 0xbbff_bbff).collect();
        let buffer = |bytes: usize| gpu.buffer("bench", bytes as u64).unwrap();
        let filled = |bytes: usize| {
            let buffer = buffer(bytes);
            for at in (0..bytes).step_by(4 << 20) {
                gpu.queue().write_buffer(&buffer, at as u64, &bytemuck::cast_slice(&block)[..(bytes - at).min(4 << 20)]);
            }
            gpu.wait().unwrap();
            buffer
        };
        let all = ((heads.heads + 2 * heads.kv_heads) * heads.head_dim) as usize;
        Bench {
            gpu: gpu.clone(),
            attention,
            kv: (0..LAYERS).map(|_| filled(BLOCKS_MAX * attention.slot_bytes())).collect(),
            q: filled(attention.q_bytes(ROWS_MAX)),
            qkv: filled(4 * ROWS_MAX * all),
            rotations: filled(4 * ROWS_MAX * heads.head_dim as usize),
            scratch: buffer(attention.scratch_bytes(1, BLOCKS_MAX) as usize),
            out: buffer(attention.out_bytes(ROWS_MAX)),
        }
    }

    fn places(&self, step: Step) -> wgpu::Buffer {
        let (rows, blocks) = (step.sessions * step.rows, step.tokens.div_ceil(64));
        let mut places = vec![rows as u32];
        for row in 0..rows {
            let (session, i) = (row / step.rows, row % step.rows);
            places.extend([(step.tokens - step.rows + i) as u32, (1 + 2 * rows + session * blocks) as u32]);
        }
        // Scattered, each slot once.
        places.extend((0..step.sessions * blocks).map(|i| (i * 513 % BLOCKS_MAX) as u32));
        upload(&self.gpu, bytemuck::cast_slice(&places))
    }

    fn attended<'a>(&'a self, layer: usize, places: &'a wgpu::Buffer) -> Attended<'a> {
        Attended { q: Binding::whole(&self.q), kv: Binding::whole(&self.kv[layer % LAYERS]), places: Binding::whole(places) }
    }

    fn rotation(&self) -> Rotation<'_> {
        let pairs = Pairs { turned: self.attention.shape.head_dim / 2, interleaved: false };
        Rotation { qkv: Binding::whole(&self.qkv), rotations: Binding::whole(&self.rotations), pairs, norms: None, bias: None }
    }

    fn rope_store(&self, step: Step, layer: usize) -> Dispatch {
        let places = self.places(step);
        let to = (Binding::whole(&self.q), Binding::whole(&self.kv[layer % LAYERS]));
        self.attention.rope_store(&self.gpu, step.sessions * step.rows, self.rotation(), Binding::whole(&places), to).unwrap()
    }

    fn ones(&self, step: Step, layer: usize) -> [Dispatch; 2] {
        let (places, rows) = (self.places(step), (step.sessions * step.rows) as u32);
        let ones = upload(&self.gpu, bytemuck::cast_slice(&std::iter::once(rows).chain(0..rows).collect::<Vec<_>>()));
        let [which, scratch, out] = [&ones, &self.scratch, &self.out].map(Binding::whole);
        let mut both = self.attention.ones(&self.gpu, self.attended(layer, &places), which, scratch, out).unwrap();
        (both[0].workgroups[0], both[0].workgroups[2], both[1].workgroups[1]) = (step.tokens.div_ceil(64) as u32, rows, rows);
        both
    }

    fn fused(&self, step: Step, layer: usize, short: bool) -> Vec<Dispatch> {
        let (places, rows) = (self.places(step), (step.sessions * step.rows) as u32);
        let from = Fused { rotation: self.rotation(), kv: Binding::whole(&self.kv[layer % LAYERS]), places: Binding::whole(&places) };
        let (scratch, out) = (Binding::whole(&self.scratch), Binding::whole(&self.out));
        if short {
            let mut all = self.attention.short_ones(&self.gpu, from, out).unwrap();
            all.workgroups[2] = rows;
            return vec![all];
        }
        let mut both = self.attention.fused_ones(&self.gpu, from, scratch, out).unwrap();
        (both[0].workgroups[0], both[0].workgroups[2], both[1].workgroups[1]) = (step.tokens.div_ceil(64) as u32, rows, rows);
        both.to_vec()
    }

    /// Rotation, then attention.
    fn apart(&self, step: Step, layer: usize) -> Vec<Dispatch> {
        std::iter::once(self.rope_store(step, layer)).chain(self.ones(step, layer)).collect()
    }

    fn runs(&self, step: Step, layer: usize) -> Dispatch {
        let (places, rows) = (self.places(step), step.sessions * step.rows);
        let each = |first: usize| [first as u32, (step.rows - first % step.rows).min(RUN_ROWS_MAX) as u32];
        let mut runs: Vec<u32> = (0..rows).step_by(step.rows.min(RUN_ROWS_MAX)).flat_map(each).collect();
        runs.insert(0, runs.len() as u32 / 2);
        let buffer = upload(&self.gpu, bytemuck::cast_slice(&runs));
        let (which, out) = (Binding::whole(&buffer), Binding::whole(&self.out));
        let mut dispatch = self.attention.runs(&self.gpu, self.attended(layer, &places), which, out).unwrap();
        dispatch.workgroups[0] = runs[0];
        dispatch
    }
}

/// Rotation and attention of one row, in three dispatches, in two and in one.
#[test]
#[ignore = "needs a GPU with cooperative matrices; prints a table"]
#[allow(clippy::print_stdout, reason = "the table is what it is for")]
fn attend_fused_speed() {
    let gpu = cooperative();
    for (heads, kv_heads, head_dim) in [(32, 8, 64), (24, 8, 128), (4, 1, 256)] {
        let bench = Bench::new(&gpu, Heads { heads, kv_heads, head_dim });
        let clock = Clock::new(&gpu, vec![bench.runs(Step { sessions: 1, rows: 1024, tokens: 1024 }, 0)]);
        for tokens in [64, 128, 192, 256, 1024, 4096] {
            let step = Step { sessions: 1, rows: 1, tokens };
            let time = |one: &dyn Fn(usize) -> Vec<Dispatch>| clock.steady(&layers(one)) / 16.0;
            let (apart, fused) = (time(&|layer| bench.apart(step, layer)), time(&|layer| bench.fused(step, layer, false)));
            let blocks = time(&|layer| vec![bench.fused(step, layer, false)[0].clone()]);
            let short = match tokens.div_ceil(64) <= bench.attention.short_blocks() {
                true => format!("{:.2}", time(&|layer| bench.fused(step, layer, true))),
                false => "-".to_owned(),
            };
            println!("{heads}/{kv_heads}/{head_dim} {tokens}: apart {apart:.2}, fused {fused:.2} (blocks {blocks:.2}), short {short} us");
        }
    }
}

/// Sixteen layers.
fn layers(one: impl Fn(usize) -> Vec<Dispatch>) -> Vec<Dispatch> {
    (0..16).flat_map(one).collect()
}

#[test]
#[ignore = "needs a GPU with cooperative matrices; prints a table"]
#[allow(clippy::print_stdout, reason = "the table is what it is for")]
fn attend_speed() {
    let gpu = cooperative();
    let step = |sessions, rows, tokens| Step { sessions, rows, tokens };
    for (heads, kv_heads, head_dim) in [(32, 8, 64), (24, 8, 128), (4, 1, 256), (9, 3, 64)] {
        let bench = Bench::new(&gpu, Heads { heads, kv_heads, head_dim });
        let name = format!("{heads}/{kv_heads}/{head_dim}");
        let prefill = |layer| vec![bench.runs(step(1, 2048, 2048), layer)];
        let clock = Clock::new(&gpu, prefill(0));
        let time = |dispatches: Vec<Dispatch>| clock.steady(&dispatches) / 16.0;
        for step in [step(1, 1, 128), step(1, 1, 1024), step(1, 1, 4096), step(1, 1, 32768), step(64, 1, 1024)] {
            let rope = time(layers(|layer| vec![bench.rope_store(step, layer)]));
            let run = time(layers(|layer| vec![bench.runs(step, layer)]));
            let blocks = time(layers(|layer| vec![bench.ones(step, layer)[0].clone()]));
            let join = time(layers(|layer| vec![bench.ones(step, layer)[1].clone()]));
            let both = time(layers(|layer| bench.ones(step, layer).to_vec()));
            let Step { sessions, tokens, .. } = step;
            let gbytes = (sessions * tokens / 64 * bench.attention.slot_bytes()) as f64 / both / 1e3;
            println!(
                "{name} {sessions} alone of {tokens}: rope {rope:.2}, blocks {blocks:.2}, join {join:.2}, both {both:.2} us, \
                 {gbytes:.0} GB/s; as runs {run:.2}"
            );
        }
        for step in [step(1, 2048, 2048), step(1, 512, 512), step(1, 512, 8192), step(16, 16, 1024)] {
            let us = time(layers(|layer| vec![bench.runs(step, layer)]));
            let rope = time(layers(|layer| vec![bench.rope_store(step, layer)]));
            let pairs = step.sessions * step.rows * (2 * step.tokens - step.rows) / 2;
            let flops = 4.0 * pairs as f64 * f64::from(heads * head_dim);
            println!(
                "{name} {} sessions, {} rows of {}: {us:.1} us, {:.0} TFLOP/s; rope {rope:.1}",
                step.sessions,
                step.rows,
                step.tokens,
                flops / us / 1e6
            );
        }
    }
}
