//! The plain kernels against the CPU reference, between guard words, and bit for bit against themselves in other company.

use super::tests::gpu;
use super::*;
use crate::cpu::tests::{Random, WEIGHTS, bits, view};
use crate::{Activations, Arithmetic, AttendScratch, AttendShape, Cpu, KvDType, KvLayout, KvSource, Matrix, Row, Simd};
use crate::{dequantise_row, math, rope_half, rope_interleaved, store_kv_row};
use driftwood_region::{DType, Region, Shape, View};
use std::io::Write as _;
use std::sync::Arc;

/// What stands around every output, and must stay.
const SENTINEL: u32 = 0x1234_5678;
/// Guard words on either side; bindings begin at multiples of 256 bytes.
const GUARD: usize = 64;
const NAN: u32 = 0x7fc0_dead;

/// A device and the buffers of one test.
struct Bench {
    gpu: Arc<Gpu>,
}

/// Words between guards.
struct Guarded {
    buffer: Buffer,
    len: usize,
}

impl Guarded {
    fn binding(&self) -> Binding<'_> {
        Binding { buffer: &self.buffer, offset_bytes: 4 * GUARD as u64, bytes: 4 * self.len as u64 }
    }
}

impl Bench {
    fn new() -> Bench {
        Bench { gpu: gpu() }
    }

    fn words(&self, words: &[u32]) -> Buffer {
        let buffer = self.gpu.buffer("test", 4 * words.len() as u64).unwrap();
        self.gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(words));
        buffer
    }

    fn floats(&self, x: &[f32]) -> Buffer {
        self.words(bytemuck::cast_slice(x))
    }

    /// Bytes at an offset into a buffer that ends where they end.
    fn bytes(&self, offset: usize, bytes: &[u8]) -> Buffer {
        let mut all = vec![0xff; (offset + bytes.len()).next_multiple_of(4)];
        all[offset..][..bytes.len()].copy_from_slice(bytes);
        self.words(&all.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<_>>())
    }

    fn guarded(&self, inner: &[u32]) -> Guarded {
        let guard = [SENTINEL; GUARD];
        Guarded { buffer: self.words(&[&guard[..], inner, &guard].concat()), len: inner.len() }
    }

    /// An output of NaN between guards.
    fn out(&self, len: usize) -> Guarded {
        self.guarded(&vec![NAN; len])
    }

    fn run(&self, dispatches: impl IntoIterator<Item = RowDispatch>) {
        self.gpu.run(&dispatches.into_iter().map(|d| d.whole().clone()).collect::<Vec<_>>()).unwrap();
    }

    /// What is between the guards, which must be as they were.
    fn read_words(&self, out: &Guarded) -> Vec<u32> {
        let mut words = vec![0u32; out.len + 2 * GUARD];
        self.gpu.read(&out.buffer, 0, bytemuck::cast_slice_mut(&mut words)).unwrap();
        let inner = words[GUARD..GUARD + out.len].to_vec();
        assert!(words[..GUARD].iter().chain(&words[GUARD + out.len..]).all(|w| *w == SENTINEL), "a guard was overwritten");
        inner
    }

    /// As [`Bench::read_words`], and every one must be a number.
    fn read(&self, out: &Guarded) -> Vec<f32> {
        let floats: Vec<f32> = self.read_words(out).into_iter().map(f32::from_bits).collect();
        assert!(floats.iter().all(|x| x.is_finite()), "an output is no number");
        floats
    }
}

/// The kernels for more rows than a test has, so that invocations beyond its rows are there.
fn plain(bench: &Bench) -> Plain<'_> {
    Plain::new(&bench.gpu, 13)
}

fn off_by(got: &[f32], exact: &[f32], sizes: &[f32]) -> f32 {
    got.iter().zip(exact).zip(sizes).map(|((g, e), s)| (g - e).abs() / s.max(1e-9)).fold(0.0, f32::max)
}

/// For each output the sum of the magnitudes of its products.
fn magnitudes(dtype: DType, bytes: &[u8], (n, k): (usize, usize), x: &[f32]) -> Vec<f32> {
    let mut w = vec![0.0; n * k];
    w.chunks_exact_mut(k).zip(bytes.chunks_exact(bytes.len() / n)).for_each(|(w, bytes)| dequantise_row(dtype, bytes, w));
    let size = |x: &[f32], w: &[f32]| w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
    x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| size(x, w))).collect()
}

/// A device that binds at most two thirds of a matrix.
fn narrow(bench: &Bench, dtype: DType, (n, k): (u32, u32)) -> GpuInfo {
    let row_bytes = dtype.bytes_of(k as usize).unwrap() as u64;
    let align = bench.gpu.info().binding_align_bytes;
    let binding_bytes_max = align + 4 + row_bytes * u64::from((2 * n / 3).max(1));
    GpuInfo { binding_bytes_max, ..bench.gpu.info().clone() }
}

/// A matrix in two parts, as for such a device.
fn two_parts<'a>(bench: &Bench, dtype: DType, (n, k): (u32, u32), buffer: &'a Buffer, offset: u64) -> Weight<'a> {
    let weight = Weight::new(&narrow(bench, dtype, (n, k)), dtype, (n, k), buffer, offset).unwrap();
    assert!(n == 1 || weight.parts.len() == 2, "{n} rows in {} parts", weight.parts.len());
    weight
}

/// The product of the rows given.
fn matmul(bench: &Bench, plain: Plain<'_>, weight: &Weight<'_>, rows: usize, x: &[f32]) -> Vec<f32> {
    let (step, x) = (bench.words(&[rows as u32]), bench.floats(x));
    let out = bench.out(rows * weight.n as usize);
    bench.run(plain.matmul(weight, Binding::whole(&step), Binding::whole(&x), out.binding()).unwrap());
    bench.read(&out)
}

#[test]
fn products_are_those_of_the_cpu_whatever_the_company() {
    let bench = Bench::new();
    let cpu = Cpu::new(1, Simd::Portable, Arithmetic::Exact);
    for (i, dtype) in WEIGHTS.into_iter().enumerate() {
        let block = dtype.block_len();
        let ks = if block == 1 { [1, 37, 64] } else { [block, 2 * block, 5 * block] };
        for ((rows, n), k) in [(1, 1), (9, 67), (3, 3)].into_iter().zip(ks).chain([((4, 67), ks[2]), ((2, 70), ks[1])]) {
            let mut random = Random((i * 1000 + n * 10 + rows) as u64);
            let (stored, values) = (random.weights(dtype, n * k), random.floats(rows * k));
            let what = format!("{dtype} ({rows}, {n}, {k})");
            let mut x = Activations::new();
            x.resize(rows, k);
            x.f32_mut().copy_from_slice(&values);
            cpu.quantise(&mut x);
            let mut exact = vec![0.0; rows * n];
            cpu.matmul(&view(dtype, n, k, &stored).into(), &x, &mut exact);
            // Files place tensors at multiples of 32; a window may leave any even offset.
            let offset = if dtype == DType::F32 { 36 } else { 34 + 32 * (i % 2) + i % 3 * 2 };
            let buffer = bench.bytes(offset, &stored);
            let shape = (n as u32, k as u32);
            let whole = Weight::new(bench.gpu.info(), dtype, shape, &buffer, offset as u64).unwrap();
            let got = matmul(&bench, plain(&bench), &whole, rows, &values);
            let error = off_by(&got, &exact, &magnitudes(dtype, &stored, (n, k), &values));
            assert!(error <= 1e-5, "{what}: off by {error}");
            let mut unshared = plain(&bench);
            unshared.shared = false;
            assert_eq!(bits(&matmul(&bench, unshared, &whole, rows, &values)), bits(&got), "{what}: without subgroups");
            let parts = two_parts(&bench, dtype, shape, &buffer, offset as u64);
            assert_eq!(bits(&matmul(&bench, plain(&bench), &parts, rows, &values)), bits(&got), "{what}: in parts");
            for chunk in [1, 2] {
                let alone =
                    values.chunks(chunk * k).flat_map(|x| matmul(&bench, plain(&bench), &whole, x.len() / k, x)).collect::<Vec<_>>();
                assert_eq!(bits(&alone), bits(&got), "{what}: {chunk} at a time");
            }
        }
    }
}

/// MLX's three tensors in one file, from any byte on, with some rows of another tensor before the elements.
fn groups(random: &mut Random, (dtype, group, float): (DType, usize, DType), odd: usize, n: usize, k: usize) -> Matrix {
    let count = n * k / group;
    let numbers = random.floats(2 * count).into_iter().flat_map(|x| match float {
        DType::F32 => (x / 16.0).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(x / 16.0).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(x / 16.0).to_le_bytes().to_vec(),
    });
    let row_bytes = dtype.bytes_of(k).unwrap();
    let elements = (0..(n + 3) * row_bytes).map(|_| random.next() as u8).collect::<Vec<_>>();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0xff; odd].into_iter().chain(numbers).chain(elements).collect::<Vec<_>>()).unwrap();
    let region = Arc::new(Region::map_file(&file).unwrap());
    let view = |at: usize, dtype: DType, n: usize, k: usize| View::new(&region, at, dtype, Shape::new(&[n, k]).unwrap()).unwrap();
    let numbers_bytes = count * float.block_bytes();
    let [scales, biases] = [0, 1].map(|i| view(odd + i * numbers_bytes, float, n, k / group));
    let elements = view(odd + 2 * numbers_bytes, dtype, n + 3, k).rows(3..n + 3);
    Matrix::grouped(elements, scales, biases, group)
}

/// Such a matrix as kernels take it, from the bytes of its file.
fn grouped<'a>(info: &GpuInfo, matrix: &Matrix, file: &'a Buffer) -> Weight<'a> {
    let (elements, scales, biases) = (matrix.weight(), matrix.scales().unwrap(), matrix.biases().unwrap());
    let place = |view: &View| (file, view.offset_bytes() as u64);
    let shape = (matrix.rows() as u32, matrix.row_len() as u32);
    let groups = Groups { group: matrix.group().unwrap() as u32, dtype: scales.dtype(), scales: place(scales), biases: place(biases) };
    Weight::new(info, elements.dtype(), shape, file, elements.offset_bytes() as u64).unwrap().with_groups(info, groups)
}

#[test]
fn groups_of_every_width_are_multiplied_as_they_are() {
    let bench = Bench::new();
    let cpu = Cpu::new(1, Simd::Portable, Arithmetic::Exact);
    let floats = [DType::F32, DType::F16, DType::BF16];
    let cases = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| [32, 64, 128].map(|group| (bits, group)));
    for (i, (bits_a_weight, group)) in cases.enumerate() {
        let (dtype, float, (rows, n), k) = (DType::unsigned(bits_a_weight).unwrap(), floats[i % 3], [(5, 67), (1, 3)][i % 2], 3 * group);
        let what = format!("{dtype} in groups of {group} with {float}");
        let mut random = Random(i as u64);
        let matrix = groups(&mut random, (dtype, group, float), 256 + i / 3, n, k);
        let mut x = Activations::new();
        x.resize(rows, k);
        x.f32_mut().copy_from_slice(&random.floats(rows * k));
        cpu.quantise(&mut x);
        let mut exact = vec![0.0; rows * n];
        cpu.matmul(&matrix, &x, &mut exact);
        let mut w = vec![0.0; n * k];
        w.chunks_exact_mut(k).enumerate().for_each(|(row, w)| matrix.dequantise_row(row, w));
        let (file, values) = (View::whole(matrix.weight().region()).unwrap(), x.f32());
        let buffer = bench.bytes(0, file.bytes());
        let whole = grouped(bench.gpu.info(), &matrix, &buffer);
        let got = matmul(&bench, plain(&bench), &whole, rows, values);
        let stored = w.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let error = off_by(&got, &exact, &magnitudes(DType::F32, &stored, (n, k), values));
        assert!(error <= 1e-5, "{what}: off by {error}");
        let parts = grouped(&narrow(&bench, dtype, (n as u32, k as u32)), &matrix, &buffer);
        assert_eq!(parts.parts.len(), 2, "{what}");
        assert_eq!(bits(&matmul(&bench, plain(&bench), &parts, rows, values)), bits(&got), "{what}: in parts");
        let alone = values.chunks(k).flat_map(|x| matmul(&bench, plain(&bench), &whole, 1, x)).collect::<Vec<_>>();
        assert_eq!(bits(&alone), bits(&got), "{what}: alone");
        let tokens = [n as u32 - 1, 0, 1];
        let step = bench.words(&[&[3], &tokens[..]].concat());
        let out = bench.out(3 * k);
        bench.run(plain(&bench).embed(&parts, Binding::whole(&step), 1.0, out.binding()).unwrap());
        let wanted = tokens.iter().flat_map(|token| &w[*token as usize * k..][..k]);
        for (got, want) in bench.read(&out).iter().zip(wanted) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{what}: {got} for {want}");
        }
    }
}

#[test]
fn embeddings_are_the_stored_rows() {
    let bench = Bench::new();
    for dtype in WEIGHTS {
        let (n, k) = (11, if dtype.block_len() == 1 { 67 } else { dtype.block_len() * 3 });
        let stored = Random(k as u64).weights(dtype, n * k);
        let offset = 36;
        let buffer = bench.bytes(offset, &stored);
        let weight = two_parts(&bench, dtype, (n as u32, k as u32), &buffer, offset as u64);
        let step = bench.words(&[5, 10, 0, 6, 7, 10]);
        let out = bench.out(5 * k);
        bench.run(plain(&bench).embed(&weight, Binding::whole(&step), 3.0, out.binding()).unwrap());
        let got = bench.read(&out);
        for (token, got) in [10, 0, 6, 7, 10].into_iter().zip(got.chunks_exact(k)) {
            let mut row = vec![0.0; k];
            dequantise_row(dtype, &stored[token * (stored.len() / n)..][..stored.len() / n], &mut row);
            for (got, x) in got.iter().zip(row) {
                assert!((got - x * 3.0).abs() <= 1e-5, "{dtype}: {got} for {x}");
            }
        }
    }
}

#[test]
fn norms_are_those_of_the_cpu() {
    let bench = Bench::new();
    let cpu = Cpu::new(1, Simd::Portable, Arithmetic::Exact);
    for (rows, heads, n) in [(1, 1, 1), (3, 2, 67), (9, 1, 3), (2, 3, 64), (4, 1, 576)] {
        let mut random = Random(n as u64);
        let (x, weight) = (random.floats(rows * heads * n), random.floats(n));
        let mut exact = vec![0.0; x.len()];
        cpu.rms_norm(&x, &weight, 1e-5, &mut exact);
        let norm = |rows: usize, x: &[f32]| {
            let (step, x, weight) = (bench.words(&[rows as u32]), bench.floats(x), bench.floats(&weight));
            let out = bench.out(rows * heads * n);
            let [step, x, weight] = [&step, &x, &weight].map(Binding::whole);
            bench.run([plain(&bench).rms_norm((heads as u32, n as u32), step, x, weight, 1e-5, out.binding()).unwrap()]);
            bench.read(&out)
        };
        let got = norm(rows, &x);
        assert!(off_by(&got, &exact, &vec![1.0; got.len()]) <= 1e-5, "({rows}, {heads}, {n})");
        assert_eq!(bits(&norm(1, &x[..heads * n])), bits(&got[..heads * n]));
    }
}

#[test]
fn elementwise_kernels_are_those_of_the_cpu() {
    let bench = Bench::new();
    for (rows, n) in [(1, 1), (3, 67), (9, 130)] {
        let mut random = Random(n as u64);
        let x: Vec<f32> = random.floats(rows * n).iter().map(|x| x * 30.0).collect();
        let y = random.floats(rows * n);
        let (step, other) = (bench.words(&[rows as u32]), bench.floats(&y));
        let (step, other) = (Binding::whole(&step), Binding::whole(&other));
        let run = |make: &dyn Fn(Binding<'_>) -> RowDispatch| {
            let out = bench.guarded(bytemuck::cast_slice(&x));
            bench.run([make(out.binding())]);
            bench.read(&out)
        };
        let each = |what| run(&|x| plain(&bench).each(what, n as u32, step, x, other).unwrap());
        let (add, silu, gelu) = (each(Each::Add), each(Each::SiluMul), each(Each::GeluTanhMul));
        let scaled = run(&|x| plain(&bench).scale(n as u32, step, x, 0.3).unwrap());
        let (rows_added, capped) = (each(Each::AddRow), run(&|x| plain(&bench).softcap(n as u32, step, x, 5.0).unwrap()));
        for i in 0..rows * n {
            assert_eq!((add[i], scaled[i], rows_added[i]), (x[i] + y[i], x[i] * 0.3, x[i] + y[i % n]));
            assert!((capped[i] - math::softcap(x[i], 5.0)).abs() <= 1e-5, "{} capped: {}", x[i], capped[i]);
            for (got, exact) in [(silu[i], math::silu(x[i]) * y[i]), (gelu[i], math::gelu_tanh(x[i]) * y[i])] {
                // Where e^u is far from 1, the rounding of u counts u times; a device may not fuse.
                assert!((got - exact).abs() <= 2e-5 * exact.abs() + 1e-30, "{}: {got} {exact}", x[i]);
            }
        }
    }
}

#[test]
fn activations_keep_their_limits() {
    let bench = Bench::new();
    let x = [-1e9, -100.0, -88.5, -87.0, 0.0, 87.5, 88.5, 1e9f32];
    let (step, ones) = (bench.words(&[1]), bench.floats(&[1.0; 8]));
    for (what, exact) in [(Each::SiluMul, x.map(math::silu)), (Each::GeluTanhMul, x.map(math::gelu_tanh))] {
        let out = bench.guarded(bytemuck::cast_slice(&x));
        bench.run([plain(&bench).each(what, 8, Binding::whole(&step), out.binding(), Binding::whole(&ones)).unwrap()]);
        for (got, exact) in bench.read(&out).into_iter().zip(exact) {
            assert!((got - exact).abs() <= 2e-5 * exact.abs() + 1e-30, "{what:?}: {got} {exact}");
        }
    }
    let out = bench.guarded(bytemuck::cast_slice(&x));
    bench.run([plain(&bench).softcap(8, Binding::whole(&step), out.binding(), 30.0).unwrap()]);
    let capped = bench.read(&out);
    assert_eq!([capped[0], capped[4], capped[7]], [-30.0, 0.0, 30.0]);
}

#[test]
fn wanted_rows_are_copied_and_their_largest_found() {
    let bench = Bench::new();
    let n = 700;
    let mut logits = Random(5).floats(4 * n);
    logits[n + 3] = f32::NAN;
    (logits[n + 600], logits[n + 261], logits[n + 262]) = (9.0, 9.0, 9.0);
    logits[2 * n..3 * n].fill(f32::NAN);
    logits[3 * n..].fill(f32::NEG_INFINITY);
    (logits[3 * n], logits[3 * n + 1]) = (f32::NAN, f32::NAN);
    let (wanted, x) = (bench.words(&[3, 3, 1, 2]), bench.floats(&logits));
    let (wanted, x) = (Binding::whole(&wanted), Binding::whole(&x));
    let rows = bench.out(3 * n);
    let scratch = bench.out(plain(&bench).argmax_scratch_bytes(n as u32) as usize / 4);
    let out = bench.out(3);
    bench.run([plain(&bench).gather(n as u32, wanted, x, rows.binding()).unwrap()]);
    bench.run(plain(&bench).argmax(n as u32, wanted, rows.binding(), scratch.binding(), out.binding()).unwrap());
    assert_eq!(bench.read_words(&out), [2, 261, 0]);
    bench.read_words(&scratch);
    let copied = [3, 1, 2].into_iter().flat_map(|r| bits(&logits[r * n..][..n])).collect::<Vec<_>>();
    assert_eq!(bench.read_words(&rows), copied);
    let zeros = bench.floats(&[-1.0, -0.0, 0.0]);
    let (step, out) = (bench.words(&[1]), bench.out(1));
    bench.run(plain(&bench).argmax(3, Binding::whole(&step), Binding::whole(&zeros), scratch.binding(), out.binding()).unwrap());
    assert_eq!(bench.read_words(&out), [1], "both zeros are alike");
}

/// Sessions' blocks in slots of two layers, as the engine lays them out; unwritten bytes are NaN where the type can say so.
struct Slots {
    layout: KvLayout,
    tables: Vec<Vec<u32>>,
    bytes: Vec<u8>,
}

impl Slots {
    fn new(layout: KvLayout, lens: &[usize]) -> Slots {
        let blocks: Vec<usize> = lens.iter().map(|len| len.div_ceil(64)).collect();
        let all = blocks.iter().sum::<usize>() as u32;
        // Slots are given out in no order: 5 and the number of slots have no common divisor here.
        assert!(!all.is_multiple_of(5));
        let mut next = (0..all).map(|i| (i * 5 + 2) % all);
        let tables = blocks.iter().map(|n| next.by_ref().take(*n).collect()).collect();
        Slots { layout, tables, bytes: vec![0xff; all as usize * layout.block_bytes()] }
    }

    fn row_at(&self, session: usize, token: usize, kv: usize, head: usize) -> usize {
        self.tables[session][token / 64] as usize * self.layout.block_bytes() + self.layout.row_offset(1, kv, head, token % 64)
    }

    fn store(&mut self, session: usize, token: usize, kv: usize, head: usize, row: &[f32]) {
        let at = self.row_at(session, token, kv, head);
        store_kv_row(self.layout.dtype, row, &mut self.bytes[at..at + self.layout.row_bytes()]);
    }

    fn fill(mut self, lens: &[usize]) -> Slots {
        let (mut random, kv_heads) = (Random(lens.len() as u64), self.layout.kv_heads);
        for (session, len) in lens.iter().enumerate() {
            for token in 0..*len {
                for (kv, head) in (0..2).flat_map(|kv| (0..kv_heads).map(move |h| (kv, h))) {
                    let row = random.floats(self.layout.head_dim);
                    self.store(session, token, kv, head, &row);
                }
            }
        }
        self
    }

    fn words(&self) -> Vec<u32> {
        self.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The step buffer of some rows.
    fn places(&self, rows: &[Row]) -> Vec<u32> {
        let first = |session: usize| 1 + 2 * rows.len() + self.tables[..session].iter().map(Vec::len).sum::<usize>();
        let each = rows.iter().flat_map(|r| [r.position, first(r.session as usize) as u32]);
        [rows.len() as u32].into_iter().chain(each).chain(self.tables.iter().flatten().copied()).collect()
    }

    fn binding<'a>(&self, binding: Binding<'a>) -> KvBinding<'a> {
        let layout = &self.layout;
        let first_bytes = layout.row_offset(1, 0, 0, 0) as u32;
        KvBinding { binding, dtype: layout.dtype, first_bytes, slot_bytes: layout.block_bytes() as u32 }
    }
}

impl KvSource for Slots {
    fn block(&self, session: u32, block: u32) -> &[u8] {
        &self.bytes[self.tables[session as usize][block as usize] as usize * self.layout.block_bytes()..][..self.layout.block_bytes()]
    }
}

const KV_SHAPES: [(usize, usize, usize, KvDType); 7] = [
    (9, 3, 64, KvDType::F16),
    (4, 1, 256, KvDType::Q8),
    (2, 2, 16, KvDType::F32),
    (5, 1, 48, KvDType::Q8),
    (3, 1, 80, KvDType::F16),
    (4, 2, 64, KvDType::Q8),
    (2, 1, 128, KvDType::F32),
];

#[test]
fn attention_is_that_of_the_cpu_whatever_the_company() {
    let bench = Bench::new();
    let cpu = Cpu::new(1, Simd::Portable, Arithmetic::Exact);
    let lens = [40, 330, 1];
    for (i, (heads, kv_heads, head_dim, dtype)) in KV_SHAPES.into_iter().enumerate() {
        let layout = KvLayout { layers: 2, kv_heads, head_dim, dtype };
        let slots = Slots::new(layout, &lens).fill(&lens);
        let buffer = bench.words(&slots.words());
        let mut rows = vec![Row { session: 0, position: 39 }, Row { session: 2, position: 0 }];
        rows.extend([3, 63, 64, 200, 328, 329].map(|position| Row { session: 1, position }));
        let q: Vec<f32> = Random(3).floats(rows.len() * heads * head_dim).iter().map(|x| x * 2.0).collect();
        for (window, softcap) in [(None, None), (Some([1, 70, 3][i % 3]), None), (None, Some(2.0))] {
            let shape = AttendShape { heads, kv_heads, head_dim, layer: 1, scale: 0.3, softcap, window, layout };
            let mut exact = vec![0.0; q.len()];
            cpu.attend(&shape, &rows, &q, &slots, &mut AttendScratch::new(), &mut exact);
            let attend = |rows: &[Row], q: &[f32]| {
                let (places, q) = (bench.words(&slots.places(rows)), bench.floats(q));
                let out = bench.out(rows.len() * heads * head_dim);
                let shape = Heads { heads: heads as u32, kv_heads: kv_heads as u32, head_dim: head_dim as u32 };
                let kv = slots.binding(Binding::whole(&buffer));
                let (places, q) = (Binding::whole(&places), Binding::whole(&q));
                let scores = Scores { scale: 0.3, softcap, window: window.map(|w| w as u32) };
                bench.run([plain(&bench).attend(shape, scores, places, q, kv, out.binding()).unwrap()]);
                bench.read(&out)
            };
            let what = format!("{heads}/{kv_heads} {head_dim} {dtype} {window:?} {softcap:?}");
            let got = attend(&rows, &q);
            let error = off_by(&got, &exact, &vec![1.0; got.len()]);
            assert!(error <= 1e-5, "{what}: off by {error}");
            let width = 3 * heads * head_dim;
            let parts = rows.chunks(3).zip(q.chunks(width)).flat_map(|(rows, q)| attend(rows, q)).collect::<Vec<_>>();
            assert_eq!(bits(&parts), bits(&got), "{what}: three at a time");
        }
    }
}

/// Values of every size, the extremes of f16 among them.
fn wild(random: &mut Random, len: usize) -> Vec<f32> {
    let scales = [1.0, 1e-8, 6e-5, 3000.0, 1e-3, 65519.9, 0.0, 1e30];
    let floats = random.floats(len);
    floats.iter().enumerate().map(|(i, x)| x * scales[i / 32 % scales.len()]).collect()
}

/// Turns and stores rows on the GPU; returns the queries and all slots.
fn rope_store(bench: &Bench, slots: &Slots, heads: Heads, pairs: Pairs, rows: &[Row], operands: [&[f32]; 4]) -> (Vec<u32>, Vec<u32>) {
    let places = bench.words(&slots.places(rows));
    let [cos_sin, q, k, v] = operands.map(|x| bench.floats(x));
    let (turned, kv) = (bench.out(operands[1].len()), bench.guarded(&slots.words()));
    let [cos_sin, q, k, v] = [&cos_sin, &q, &k, &v].map(Binding::whole);
    let binding = slots.binding(kv.binding());
    let plain = plain(bench);
    bench.run([plain.rope_store(heads, pairs, Binding::whole(&places), cos_sin, [q, k, v], turned.binding(), binding).unwrap()]);
    (bench.read_words(&turned), bench.read_words(&kv))
}

#[test]
fn keys_and_values_are_stored_as_on_the_cpu_to_the_bit() {
    let bench = Bench::new();
    for (heads, kv_heads, dim, dtype) in KV_SHAPES {
        let layout = KvLayout { layers: 2, kv_heads, head_dim: dim, dtype };
        let lens = [40, 200, 1];
        let rows = [(0, 7), (1, 63), (1, 64), (1, 65), (2, 0), (1, 129)].map(|(session, position)| Row { session, position });
        let shape = Heads { heads: heads as u32, kv_heads: kv_heads as u32, head_dim: dim as u32 };
        let mut random = Random(dim as u64);
        let q = random.floats(rows.len() * heads * dim);
        let [k, v] = [0, 1].map(|_| wild(&mut random, rows.len() * kv_heads * dim));
        for (interleaved, turned) in [(false, dim / 2), (true, dim / 2), (false, dim / 2 - 3), (true, 1)] {
            // Powers of two: their products are exact, so that a device that fuses rounds as the CPU does.
            let power = |i: usize| [1.0, -0.5, 0.25, -1.0, 0.125][i % 5];
            let tables: Vec<Vec<f32>> = (0..rows.len()).map(|row| (0..dim).map(|i| power(i + 2 * row)).collect()).collect();
            let turn = |row: usize, head: &[f32]| {
                let (cos, sin) = tables[row].split_at(dim / 2);
                let mut out = head.to_vec();
                if interleaved {
                    rope_interleaved(head, &mut out, cos, sin, turned)
                } else {
                    rope_half(&mut out, cos, sin, turned)
                }
                out
            };
            let mut slots = Slots::new(layout, &lens);
            let pairs = Pairs { turned: turned as u32, interleaved };
            let (queries, stored) = rope_store(&bench, &slots, shape, pairs, &rows, [&tables.concat(), &q, &k, &v]);
            let queries: Vec<f32> = queries.into_iter().map(f32::from_bits).collect();
            let exact: Vec<f32> = q.chunks_exact(dim).enumerate().flat_map(|(i, head)| turn(i / heads, head)).collect();
            assert!(off_by(&queries, &exact, &vec![1.0; exact.len()]) <= 1e-6, "{dim} {dtype} {pairs:?}");
            for (i, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
                let (row, head) = (rows[i / kv_heads], i % kv_heads);
                slots.store(row.session as usize, row.position as usize, 0, head, &turn(i / kv_heads, k));
                slots.store(row.session as usize, row.position as usize, 1, head, v);
            }
            let wrong = stored.iter().zip(slots.words()).position(|(a, b)| *a != b);
            let at = wrong.map(|i| format!("word {i}: {:#x} for {:#x}", stored[i], slots.words()[i]));
            assert_eq!(at, None, "{heads}/{kv_heads} {dim} {dtype} {pairs:?}");
        }
    }
}

/// A guest's product, with its three matrices at odd places in one buffer.
fn product(bench: &Bench, half: bool, (m, k, n): (usize, usize, usize), gap: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    let firsts = [gap, 2 * gap + m * k, 3 * gap + m * k + k * n];
    let c_end = firsts[2] + m * n;
    let mut all = vec![SENTINEL as f32; (c_end + gap).next_multiple_of(2)];
    all[firsts[0]..][..m * k].copy_from_slice(a);
    all[firsts[1]..][..k * n].copy_from_slice(b);
    all[firsts[2]..c_end].fill(f32::NAN);
    let halves = |all: &[f32]| -> Vec<u32> {
        let half = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
        all.chunks_exact(2).map(|p| half(p[0]) | half(p[1]) << 16).collect()
    };
    let before = if half { halves(&all) } else { bits(&all) };
    let run = |staged| {
        let memory = bench.guarded(&before);
        let (shape, windows) = ((m as u32, k as u32, n as u32), [memory.binding(); 3]);
        let product = Product { half, staged, shape, windows, firsts: firsts.map(|f| f as u32) };
        bench.gpu.run(&[Plain::product(&bench.gpu, &product).unwrap()]).unwrap();
        bench.read_words(&memory)
    };
    let after = run(false);
    assert!(run(true) == after, "through workgroup memory: ({m}, {k}, {n}), half: {half}");
    let unpack = |words: &[u32]| -> Vec<f32> {
        let halves = words.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]).map(|h| half::f16::from_bits(h).to_f32());
        if half { halves.collect() } else { words.iter().map(|w| f32::from_bits(*w)).collect() }
    };
    let (before, after) = (unpack(&before), unpack(&after));
    let untouched = (0..after.len()).filter(|i| !(firsts[2]..c_end).contains(i)).all(|i| before[i].to_bits() == after[i].to_bits());
    assert!(untouched, "something beside the product was written: ({m}, {k}, {n}), half: {half}");
    after[firsts[2]..c_end].to_vec()
}

#[test]
fn guests_products_are_right_and_stay_in_their_range() {
    let bench = Bench::new();
    for (m, k, n) in [(1, 1, 1), (3, 5, 7), (8, 16, 4), (9, 3, 67), (17, 40, 50), (2, 0, 3), (13, 7, 6)] {
        let mut random = Random(n as u64);
        let round = |x: Vec<f32>| -> Vec<f32> { x.into_iter().map(|x| half::f16::from_f32(x).to_f32()).collect() };
        let (a, b) = (round(random.floats(m * k)), round(random.floats(k * n)));
        let exact = |i: usize| (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[j * n + i % n])).sum::<f64>();
        for (half, gap) in [(false, 0), (false, 3), (true, 0), (true, 2), (true, 3)] {
            let tolerance = if half { 6e-4 } else { 1e-6 };
            for (i, c) in product(&bench, half, (m, k, n), gap, &a, &b).into_iter().enumerate() {
                let size = (k as f64).max(1.0);
                assert!((f64::from(c) - exact(i)).abs() <= tolerance * size, "({m}, {k}, {n}) half: {half}: {c} {}", exact(i));
            }
        }
    }
}
