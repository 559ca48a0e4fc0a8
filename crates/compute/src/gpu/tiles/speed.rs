//! How long products take on this device, with the shapes of a 1B model: a table, printed by an ignored test.
//!
//! A clock that idles is slow: before each figure a reference product keeps the device busy, and is timed again right after.

use super::product::tuning;
use super::tests::{Random, grouped};
use super::text::{Epilogue, Weights};
use super::*;
use crate::gpu::{Binding, Dispatch, Gpu, record};
use driftwood_region::DType;
use std::sync::Arc;
use std::time::Instant;

const LAYERS: usize = 16;
/// Name, row tiles, k, how many there are, whether it is gated, whether a norm precedes it.
const SHAPES: [(&str, u32, u32, usize, bool, bool); 5] = [
    ("q, k, v", 192, 2048, LAYERS, false, true),
    ("o", 128, 2048, LAYERS, false, false),
    ("gate, up", 1024, 2048, LAYERS, true, true),
    ("down", 128, 8192, LAYERS, false, false),
    ("head", 8016, 2048, 1, false, true),
];
const FORMATS: [TileFormat; 3] = [TileFormat::Q4, TileFormat::F16, TileFormat::Q8];

/// Times what a device does, by its own clock.
pub(super) struct Clock {
    gpu: Arc<Gpu>,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    reference: Vec<Dispatch>,
    pub(super) reference_us: f64,
}

impl Clock {
    pub(super) fn new(gpu: &Arc<Gpu>, reference: Vec<Dispatch>) -> Clock {
        let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: 2 };
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false });
        let queries = gpu.device().create_query_set(&descriptor);
        let mut clock = Clock { gpu: gpu.clone(), queries, resolved, reference, reference_us: f64::MAX };
        let start = Instant::now();
        while start.elapsed().as_millis() < 300 {
            clock.reference_us = clock.reference_us.min(clock.once(&clock.reference));
        }
        clock
    }

    /// Microseconds that the dispatches take, one after the other.
    fn once(&self, dispatches: &[Dispatch]) -> f64 {
        let mut encoder = self.gpu.encoder();
        let mark = |encoder: &mut wgpu::CommandEncoder, index| {
            let writes = wgpu::ComputePassTimestampWrites {
                query_set: &self.queries,
                beginning_of_pass_write_index: Some(index),
                end_of_pass_write_index: None,
            };
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) });
        };
        mark(&mut encoder, 0);
        record(&mut encoder, dispatches);
        mark(&mut encoder, 1);
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        self.gpu.submit(encoder).unwrap();
        let mut times = [0u64; 2];
        self.gpu.read(&self.resolved, 0, bytemuck::cast_slice_mut(&mut times)).unwrap();
        (times[1] - times[0]) as f64 * f64::from(self.gpu.queue().get_timestamp_period()) / 1000.0
    }

    /// The median of seven, at a steady clock: the best of a few tries, by the reference after it.
    pub(super) fn steady(&self, dispatches: &[Dispatch]) -> f64 {
        let mut best = (f64::MAX, f64::MAX);
        for _ in 0..6 {
            let start = Instant::now();
            while start.elapsed().as_millis() < 15 {
                self.once(&self.reference);
            }
            let mut times: Vec<f64> = (0..7).map(|_| (self.once(&self.reference), self.once(dispatches)).1).collect();
            times.sort_by(f64::total_cmp);
            let after = self.once(&self.reference);
            if after < best.0 {
                best = (after, times[3]);
            }
            if after < 1.05 * self.reference_us {
                break;
            }
        }
        best.1
    }
}

/// A matrix of random bits, as large as they are on a device.
fn matrix(gpu: &Gpu, format: TileFormat, (tiles, k, gated): (u32, u32, bool)) -> TileMatrix {
    let mut random = Random(1);
    let block: Vec<u32> = (0..1 << 20).map(|_| random.next() as u32 & 0xbbff_bbff).collect();
    let filled = |bytes: u64| {
        let buffer = gpu.buffer("random", bytes).unwrap();
        for at in (0..bytes).step_by(4 << 20) {
            let part = (bytes - at).min(4 << 20) as usize;
            gpu.queue().write_buffer(&buffer, at, &bytemuck::cast_slice(&block)[..part]);
        }
        gpu.wait().unwrap();
        buffer
    };
    let groups = u64::from(tiles) * u64::from(k) / 32;
    let (bytes, scale_bytes) = match format {
        TileFormat::Q4 => (256, 64),
        TileFormat::Q8 => (512, 128),
        TileFormat::F16 => (1024, 0),
    };
    let scales = (scale_bytes > 0).then(|| filled(groups * scale_bytes));
    let shape = Weights { format, tiles, n: if gated { tiles * 8 } else { tiles * 16 }, k };
    TileMatrix { weights: filled(groups * bytes), scales, arrange: if gated { Arrange::Interleaved } else { Arrange::Stacked }, shape }
}

/// A whole token's matrices, and rows and outputs to go with them.
struct Bench {
    gpu: Arc<Gpu>,
    matrices: Vec<Vec<TileMatrix>>,
    x: wgpu::Buffer,
    residual: wgpu::Buffer,
    norm: wgpu::Buffer,
    y: wgpu::Buffer,
    count: wgpu::Buffer,
    scratch: wgpu::Buffer,
}

impl Bench {
    fn new(gpu: &Arc<Gpu>, format: TileFormat) -> Bench {
        let all = |(_, tiles, k, count, gated, _)| (0..count).map(|_| matrix(gpu, format, (tiles, k, gated))).collect();
        let buffer = |bytes: u64| gpu.buffer("bench", bytes).unwrap();
        let matrices = SHAPES.map(all).into();
        let (residual, y) = (buffer(4 << 20), buffer(4 * 128_256 * 64 + (1 << 26)));
        Bench {
            gpu: gpu.clone(),
            matrices,
            x: buffer(1 << 26),
            residual,
            norm: buffer(1 << 20),
            y,
            count: buffer(4),
            scratch: buffer(1 << 28),
        }
    }

    fn one_row(&self, shape: usize) -> Vec<Dispatch> {
        let (_, _, _, _, gated, normed) = SHAPES[shape];
        let epilogue = if gated { Epilogue::Gated(Activation::Silu) } else { Epilogue::Store };
        let each = |matrix: &TileMatrix| {
            let mut bindings: Vec<_> = std::iter::once(&matrix.weights).chain(&matrix.scales).map(Binding::whole).collect();
            bindings.extend(if normed { vec![&self.residual, &self.norm] } else { vec![&self.x] }.into_iter().map(Binding::whole));
            bindings.push(Binding::whole(&self.y));
            let tuning = tuning(matrix.shape, epilogue);
            matrix.one_row_tuned(&self.gpu, normed.then_some(Norm { eps: 1e-5 }), (epilogue, tuning), &bindings).unwrap()
        };
        self.matrices[shape].iter().flat_map(each).collect()
    }

    fn many_rows(&self, shape: usize, rows: u32) -> Vec<Dispatch> {
        let y = Binding::whole(&self.y);
        self.gpu.queue().write_buffer(&self.count, 0, &rows.to_le_bytes());
        let many = Many { most: rows as usize, count: Binding::whole(&self.count), scratch: Binding::whole(&self.scratch) };
        let output = if SHAPES[shape].4 { Output::Gated(y, Activation::Silu) } else { Output::Store(y) };
        let each =
            |matrix: &TileMatrix| matrix.product(&self.gpu, Rows::Many(many), Input::Halves(Binding::whole(&self.x)), output).unwrap();
        self.matrices[shape].iter().flat_map(each).collect()
    }

    fn token(&self, one: impl Fn(usize) -> Vec<Dispatch>) -> Vec<Dispatch> {
        let shapes: Vec<_> = (0..SHAPES.len()).map(one).collect();
        let mut all = Vec::new();
        for layer in 0..LAYERS {
            for shape in &shapes[..4] {
                let each = shape.len() / LAYERS;
                all.extend_from_slice(&shape[layer * each..][..each]);
            }
        }
        all.extend_from_slice(&shapes[4]);
        all
    }
}

#[test]
#[ignore = "needs a GPU with cooperative matrices; prints a table"]
#[allow(clippy::print_stdout, reason = "the table is what it is for")]
fn tiles_speed() {
    let gpu = Gpu::open(None).unwrap();
    assert!(gpu.info().cooperative);
    println!("{:?}", gpu.info());
    for format in FORMATS {
        let bench = Bench::new(&gpu, format);
        let clock = Clock::new(&gpu, bench.one_row(2));
        println!("{format:?}: reference {:.1} us", clock.reference_us);
        for (shape, (name, tiles, k, count, ..)) in SHAPES.into_iter().enumerate() {
            let us = clock.steady(&bench.one_row(shape)) / count as f64;
            println!("{format:?} {name} {}x{k}: {us:.2} us, {:.0} GB/s", tiles * 16, bench.matrices[shape][0].bytes() as f64 / us / 1e3);
        }
        println!("{format:?} whole token: {:.1} us", clock.steady(&bench.token(|shape| bench.one_row(shape))));
        for rows in [2, 16, 64] {
            let us: Vec<_> = (0..5).map(|s| clock.steady(&bench.many_rows(s, rows)) / SHAPES[s].3 as f64).collect();
            let token = clock.steady(&bench.token(|shape| bench.many_rows(shape, rows)));
            println!("{format:?} {rows} rows: {us:.1?} us, whole step {token:.1} us");
        }
        for rows in [256, 2048] {
            let us: Vec<_> = (0..4).map(|s| clock.steady(&bench.many_rows(s, rows)) / LAYERS as f64).collect();
            let flops = |s: usize| 2.0 * f64::from(rows * 16 * SHAPES[s].1) * f64::from(SHAPES[s].2);
            let tera: Vec<_> = us.iter().enumerate().map(|(s, us)| flops(s) / us / 1e6).collect();
            println!("{format:?} {rows} rows: {us:.1?} us, {tera:.0?} TFLOP/s");
        }
    }
}

#[test]
#[ignore = "needs a GPU; prints how long weights take to pack and to send"]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn packing_speed() {
    let gpu = Gpu::open(None).unwrap();
    let (n, k) = (1 << 17, 2048);
    let words: Vec<u8> = (0..n * k / 2).map(|i| (i * 37) as u8).collect();
    let parts: Vec<u8> = (0..n * k / 64).flat_map(|i| [(i * 5) as u8, 0x3c]).collect();
    let matrix = grouped((DType::U4, 64, DType::BF16), (n, k), [&words, &parts, &parts]);
    let sources = [&matrix];
    let packing = Packing::new(&sources, Arrange::Stacked).unwrap();
    let (mut weights, mut scales) =
        (vec![1; packing.tiles() * packing.tile_words()], vec![1; packing.tiles() * packing.tile_scale_words()]);
    let threads = std::thread::available_parallelism().unwrap().get();
    for _ in 0..3 {
        let start = Instant::now();
        packing.pack(0..packing.tiles(), threads, &mut weights, &mut scales);
        let seconds = start.elapsed().as_secs_f64();
        let gb = (words.len() + 2 * parts.len()) as f64 / 1e9;
        println!("packing {gb:.2} GB of MLX's 4 bits on {threads} threads: {:.1} ms, {:.2} GB/s", seconds * 1e3, gb / seconds);
        let start = Instant::now();
        let matrix = TileMatrix::upload(&gpu, &mut Staging::default(), &sources, Arrange::Stacked).unwrap();
        gpu.wait().unwrap();
        println!("the same, sent to the device as {} bytes: {:.1} ms", matrix.bytes(), start.elapsed().as_secs_f64() * 1e3);
    }
}
