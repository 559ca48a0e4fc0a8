//! Prints how fast this machine multiplies: `cargo run --release -p driftwood-compute --example speed -- [threads] [simd] [n] [k]`.
//!
//! For each format: gigabytes of weights a second with one row of activations, and billions of multiply-adds a second with 256.

#![allow(clippy::print_stdout)] // it is a program

use driftwood_compute::{Activations, Arithmetic, AttendScratch, AttendShape, Cpu, KvDType, KvLayout, KvSource, Matrix, Row, Simd};
use driftwood_region::{DType, Region, Shape, View};
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(2, |a| a.parse().expect("a number of threads"));
    let simd = args.next().map_or(Simd::detect(), |a| a.parse().expect("a SIMD path"));
    let n = args.next().map_or(1536, |a| a.parse().expect("rows of weights"));
    let k = args.next().map_or(1536, |a| a.parse().expect("elements of a row"));
    println!("{simd}, {threads} threads, weights ({n}, {k})");
    let formats =
        [DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q4_K, DType::Q5_K, DType::Q6_K];
    for dtype in formats {
        product(&Cpu::new(threads, simd, Arithmetic::Fast), dtype, n, k);
    }
    product(&Cpu::new(threads, simd, Arithmetic::Exact), DType::Q4_1, n, k);
    for tokens in [512, 4096] {
        attention(&Cpu::new(threads, simd, Arithmetic::Fast), tokens);
    }
}

/// The shortest of some runs, in seconds, after one to warm up.
fn seconds(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    let times = (0..runs).map(|_| {
        let began = Instant::now();
        f();
        began.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn product(cpu: &Cpu, dtype: DType, n: usize, k: usize) {
    // Several matrices in turn, as a model has them: more than a core's caches hold.
    let bytes: Vec<u8> = (0..dtype.bytes_of(n * k).expect("whole blocks")).map(|i| (8 + i * 31 % 51) as u8).collect();
    let matrices = (64 << 20) / bytes.len() + 1;
    let mut file = tempfile::tempfile().expect("a temporary file");
    (0..matrices).for_each(|_| file.write_all(&bytes).expect("room for it"));
    let region = Arc::new(Region::map_file(&file).expect("a mapping"));
    let shape = Shape::new(&[n, k]).expect("two extents");
    let view = |i: usize| View::new(&region, i * bytes.len(), dtype, shape).expect("inside");
    let views: Vec<Matrix> = (0..matrices).map(|i| view(i).into()).collect();
    let time = |rows: usize, matrices: usize, runs: usize| {
        let mut x = Activations::new();
        x.resize(rows, k);
        x.f32_mut().iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32).sin());
        let mut out = vec![0.0; rows * n];
        seconds(runs, || {
            for w in &views[..matrices] {
                cpu.quantise(&mut x);
                cpu.matmul(w, &x, &mut out);
            }
        })
    };
    let (one, many) = (time(1, matrices, 10), time(256, 2, 5));
    let gb_per_s = (bytes.len() * matrices) as f64 / one / 1e9;
    let gops = (2 * 256 * n * k) as f64 / many / 1e9;
    println!(
        "{dtype:>5} {:5?}: one row {gb_per_s:6.1} GB/s, {:6.1} us each; 256 rows {gops:7.1} G multiply-adds/s",
        cpu.arithmetic(),
        one / matrices as f64 * 1e6
    );
}

/// One block of KV, everywhere.
struct OneBlock(Vec<Vec<u8>>);

impl KvSource for OneBlock {
    fn block(&self, _session: u32, block: u32) -> &[u8] {
        &self.0[block as usize]
    }
}

fn attention(cpu: &Cpu, tokens: usize) {
    let layout = KvLayout { layers: 1, kv_heads: 3, head_dim: 64, dtype: KvDType::F16 };
    let shape = AttendShape { heads: 9, kv_heads: 3, head_dim: 64, layer: 0, scale: 0.125, window: None, layout };
    let kv = OneBlock(vec![vec![0x31; layout.block_bytes()]; tokens.div_ceil(64)]);
    let time = |rows: usize| {
        let rows: Vec<Row> = (tokens - rows..tokens).map(|p| Row { session: 0, position: p as u32 }).collect();
        let q = vec![0.5; rows.len() * 9 * 64];
        let (mut out, mut scratch) = (q.clone(), AttendScratch::new());
        seconds(20, || cpu.attend(&shape, &rows, &q, &kv, &mut scratch, &mut out))
    };
    println!("attention at {tokens}: one row {:.1} us, 64 rows {:.1} us", time(1) * 1e6, time(64) * 1e6);
}
