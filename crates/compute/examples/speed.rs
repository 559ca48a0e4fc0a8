//! Prints how fast this machine multiplies: `cargo run --release -p driftwood-compute --example speed -- [threads] [simd] [n] [k]`.
//!
//! For each format: gigabytes of weights a second with one row of activations and with 8, and billions of multiply-adds a second with 256.

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
    let rows =
        [DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q4_K, DType::Q5_K, DType::Q6_K];
    let groups = [DType::U2, DType::U3, DType::U4, DType::U5, DType::U6, DType::U8];
    let fast = Cpu::new(threads, simd, Arithmetic::Fast);
    let all = rows.map(|dtype| (dtype, None)).into_iter().chain(groups.map(|dtype| (dtype, Some(64))));
    products(&fast, &all.map(|(dtype, group)| Weights::new(dtype, group, n, k)).collect::<Vec<_>>());
    products(
        &Cpu::new(threads, simd, Arithmetic::Exact),
        &[Weights::new(DType::Q4_1, None, n, k), Weights::new(DType::U4, Some(64), n, k)],
    );
    for tokens in [512, 4096] {
        attention(&Cpu::new(threads, simd, Arithmetic::Fast), tokens);
    }
}

/// How long it takes, in seconds.
fn seconds(f: impl FnOnce()) -> f64 {
    let began = Instant::now();
    f();
    began.elapsed().as_secs_f64()
}

/// The shortest of some runs, in seconds, after one to warm up.
fn shortest(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    (0..runs).map(|_| seconds(&mut f)).fold(f64::INFINITY, f64::min)
}

/// Matrices of one format, as a model has them: together more than a core's caches hold.
struct Weights {
    matrices: Vec<Matrix>,
    bytes: usize, // of one
}

impl Weights {
    fn new(dtype: DType, group: Option<usize>, n: usize, k: usize) -> Weights {
        let len = dtype.bytes_of(n * k).expect("whole blocks");
        let numbers = group.map_or(0, |group| n * k / group * 2); // scales, or biases: BF16
        let bytes: Vec<u8> = (0..len + 2 * numbers).map(|i| (8 + i * 31 % 51) as u8).collect();
        let count = (64 << 20) / bytes.len() + 1;
        let mut file = tempfile::tempfile().expect("a temporary file");
        (0..count).for_each(|_| file.write_all(&bytes).expect("room for it"));
        let region = Arc::new(Region::map_file(&file).expect("a mapping"));
        let view =
            |at: usize, dtype: DType, k: usize| View::new(&region, at, dtype, Shape::new(&[n, k]).expect("two extents")).expect("inside");
        let matrix = |at: usize| match group {
            None => view(at, dtype, k).into(),
            Some(group) => {
                let numbers = [at + len, at + len + numbers].map(|at| view(at, DType::BF16, k / group));
                let [scales, biases] = numbers;
                Matrix::grouped(view(at, dtype, k), scales, biases, group)
            }
        };
        Weights { matrices: (0..count).map(|i| matrix(i * bytes.len())).collect(), bytes: bytes.len() }
    }

    /// All of them, or some, times so many rows.
    fn multiply(&self, cpu: &Cpu, rows: usize, matrices: usize) {
        let (n, k) = (self.matrices[0].rows(), self.matrices[0].row_len());
        let mut x = Activations::new();
        x.resize(rows, k);
        x.f32_mut().iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32).sin());
        let mut out = vec![0.0; rows * n];
        for w in self.matrices.iter().take(matrices) {
            cpu.quantise(&mut x);
            cpu.matmul(w, &x, &mut out);
        }
    }
}

/// Formats are measured in turns, so that what else the machine does meets all of them.
fn products(cpu: &Cpu, all: &[Weights]) {
    let mut best = vec![[f64::INFINITY; 3]; all.len()]; // of one row, of 8, of 256
    for turn in 0..10 {
        for (weights, best) in all.iter().zip(&mut best) {
            best[0] = best[0].min(seconds(|| weights.multiply(cpu, 1, usize::MAX)));
            best[1] = best[1].min(seconds(|| weights.multiply(cpu, 8, usize::MAX)));
            if turn % 4 == 1 {
                best[2] = best[2].min(seconds(|| weights.multiply(cpu, 256, 2)));
            }
        }
    }
    for (weights, [one, eight, many]) in all.iter().zip(best) {
        let w = &weights.matrices[0];
        let format = w.group().map_or(w.weight().dtype().to_string(), |group| format!("{}/{group}", w.weight().dtype()));
        let gb_per_s = |seconds: f64| (weights.bytes * weights.matrices.len()) as f64 / seconds / 1e9;
        println!(
            "{format:>5} {:5?}: one row {:6.1} GB/s, {:6.1} us each; 8 rows {:6.1} GB/s; 256 rows {:7.1} G multiply-adds/s",
            cpu.arithmetic(),
            gb_per_s(one),
            one / weights.matrices.len() as f64 * 1e6,
            gb_per_s(eight),
            (2 * 256 * w.rows() * w.row_len()) as f64 / many / 1e9,
        );
    }
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
    let shape = AttendShape { heads: 9, kv_heads: 3, head_dim: 64, layer: 0, scale: 0.125, softcap: None, window: None, layout };
    let kv = OneBlock(vec![vec![0x31; layout.block_bytes()]; tokens.div_ceil(64)]);
    let time = |rows: usize| {
        let rows: Vec<Row> = (tokens - rows..tokens).map(|p| Row { session: 0, position: p as u32 }).collect();
        let q = vec![0.5; rows.len() * 9 * 64];
        let (mut out, mut scratch) = (q.clone(), AttendScratch::new());
        shortest(20, || cpu.attend(&shape, &rows, &q, &kv, &mut scratch, &mut out))
    };
    println!("attention at {tokens}: one row {:.1} us, 64 rows {:.1} us", time(1) * 1e6, time(64) * 1e6);
}
