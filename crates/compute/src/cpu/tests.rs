//! Every kernel against a plain reference in f64, and bit for bit against itself: paths, threads, batches.

use super::*;
use crate::{Activations, AttendScratch, AttendShape, KV_BLOCK_TOKENS, KvDType, KvLayout, KvSource, Matrix, Row, store_kv_row};
use driftwood_region::{DType, Region, Shape, View};
use half::f16;
use std::io::Write;
use std::sync::Arc;

pub(crate) const WEIGHTS: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

/// A way to store a weight: rows of [`WEIGHTS`], or groups of so many unsigned integers with scales and biases of a dtype.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stored {
    dtype: DType,
    groups: Option<(usize, DType)>,
}

impl Stored {
    /// Rows of each dtype, and each width in each group, with numbers in dtypes that go round.
    fn all() -> Vec<Stored> {
        let rows = WEIGHTS.into_iter().map(|dtype| Stored { dtype, groups: None });
        let one_of_three = |i: usize| i % 3 == (i / 3 + i / 9) % 3;
        rows.chain(Self::groups().enumerate().filter(|(i, _)| one_of_three(*i)).map(|(_, stored)| stored)).collect()
    }

    /// Each width in each group with numbers in each dtype.
    fn groups() -> impl Iterator<Item = Stored> {
        let widths = [2, 3, 4, 5, 6, 8].into_iter().map(|bits| DType::unsigned(bits).unwrap());
        let numbers = [32, 64, 128].into_iter().flat_map(|group| [DType::F32, DType::F16, DType::BF16].map(|d| (group, d)));
        widths.flat_map(move |dtype| numbers.clone().map(move |n| Stored { dtype, groups: Some(n) }))
    }

    /// Elements that rows are a multiple of.
    fn block(self) -> usize {
        self.groups.map_or(self.dtype.block_len(), |(group, _)| group)
    }

    /// What the largest integer of a group is multiplied by to give about one.
    fn unit(self) -> f32 {
        1.0 / (1 << self.dtype.unsigned_bits().unwrap()) as f32
    }
}
/// What stands around every output, and must stay.
const SENTINEL: f32 = 1234.5;
const GUARD: usize = 19;

/// SplitMix64: the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / 8_388_608.0 - 1.0).collect()
    }

    /// Stored weights of about unit size: random bytes, with scales that are numbers.
    pub(crate) fn weights(&mut self, dtype: DType, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..dtype.bytes_of(len).unwrap()).map(|_| self.next() as u8).collect();
        let floats = self.floats(len);
        for (i, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
            let mut half = |at: usize, x: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
            let x = floats[i * dtype.block_len()];
            match dtype {
                DType::F32 => block.copy_from_slice(&x.to_le_bytes()),
                DType::F16 => half(0, x),
                DType::BF16 => block.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
                DType::Q8_0 => half(0, x / 127.0),
                DType::Q4_0 | DType::Q5_0 => half(0, x / 16.0),
                DType::Q4_1 | DType::Q5_1 => (half(0, x / 16.0), half(2, x * -0.4)).1,
                DType::Q4_K | DType::Q5_K => (half(0, x / 512.0), half(2, x / 300.0)).1,
                _ if dtype.unsigned_bits().is_some() => {}
                _ => half(208, x / 4096.0),
            }
        }
        bytes
    }
}

fn mapped(bytes: &[u8]) -> Arc<Region> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(Region::map_file(&file).unwrap())
}

pub(crate) fn view(dtype: DType, n: usize, k: usize, bytes: &[u8]) -> View {
    View::new(&mapped(bytes), 0, dtype, Shape::new(&[n, k]).unwrap()).unwrap()
}

fn matrix(dtype: DType, n: usize, k: usize, bytes: &[u8]) -> Matrix {
    view(dtype, n, k, bytes).into()
}

/// A weight of about unit size. The scales and biases of groups begin at odd places, as they may in a file.
fn random_matrix(random: &mut Random, stored: Stored, n: usize, k: usize) -> Matrix {
    let bytes = random.weights(stored.dtype, n * k);
    let Some((group, dtype)) = stored.groups else {
        return matrix(stored.dtype, n, k, &bytes);
    };
    let numbers: Vec<f32> = random.floats(2 * n * k / group).into_iter().map(|x| x * stored.unit()).collect();
    let numbers = floats_as(dtype, &numbers);
    grouped(stored, n, k, &bytes, &numbers[..numbers.len() / 2], &numbers[numbers.len() / 2..])
}

/// Floats as they are stored in F32, F16 or BF16.
fn floats_as(dtype: DType, floats: &[f32]) -> Vec<u8> {
    let each = |x: &f32| match dtype {
        DType::F32 => x.to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
    };
    floats.iter().flat_map(each).collect()
}

/// A weight in groups. The numbers begin at odd places.
fn grouped(stored: Stored, n: usize, k: usize, weights: &[u8], scales: &[u8], biases: &[u8]) -> Matrix {
    let (group, dtype) = stored.groups.unwrap();
    let region = mapped(&[&[0; 2], scales, biases, weights].concat());
    let view = |at: usize, dtype: DType, k: usize| View::new(&region, at, dtype, Shape::new(&[n, k]).unwrap()).unwrap();
    let (scales_view, biases_view) = (view(2, dtype, k / group), view(2 + scales.len(), dtype, k / group));
    Matrix::grouped(view(2 + 2 * scales.len(), stored.dtype, k), scales_view, biases_view, group)
}

fn activations(cpu: &Cpu, rows: usize, k: usize, values: &[f32]) -> Activations {
    let mut x = Activations::new();
    x.resize(rows, k);
    x.f32_mut().copy_from_slice(values);
    cpu.quantise(&mut x);
    x
}

/// Calls `f` with an output between sentinels, and checks them and that every output was written with a number.
fn guarded(len: usize, f: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut all = vec![SENTINEL; len + 2 * GUARD];
    all[GUARD..GUARD + len].fill(f32::NAN);
    f(&mut all[GUARD..GUARD + len]);
    assert!(all[..GUARD].iter().chain(&all[GUARD + len..]).all(|x| *x == SENTINEL), "a sentinel was overwritten");
    assert!(all.iter().all(|x| x.is_finite()), "an output is no number");
    all[GUARD..GUARD + len].to_vec()
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// FNV-1a over the bits.
fn hash(x: &[f32]) -> u64 {
    let bytes = x.iter().flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Every path with every number of threads worth telling apart.
fn cpus(arithmetic: Arithmetic) -> Vec<Cpu> {
    let each = |simd| [1, 2, 3].map(|threads| Cpu::new(threads, simd, arithmetic));
    Simd::available().into_iter().flat_map(each).collect()
}

/// The product in f64, and the sum of magnitudes that errors are measured by.
fn reference(w: &Matrix, x: &[f32], rows: usize) -> Vec<(f64, f64)> {
    let (n, k) = (w.rows(), w.row_len());
    let mut floats = vec![0.0; n * k];
    floats.chunks_exact_mut(k).enumerate().for_each(|(i, row)| w.dequantise_row(i, row));
    let dot = |r: usize, i: usize| {
        let terms = (0..k).map(|j| f64::from(floats[i * k + j]) * f64::from(x[r * k + j]));
        terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
    };
    (0..rows).flat_map(|r| (0..n).map(move |i| (r, i))).map(|(r, i)| dot(r, i)).collect()
}

#[test]
fn products_are_right_on_every_path() {
    // Exact: rounding of f32 sums. Fast: besides, each activation is off by up to half a step of its block.
    for (arithmetic, tolerance) in [(Arithmetic::Exact, 1e-6), (Arithmetic::Fast, 8e-3)] {
        for stored in Stored::all() {
            let block = stored.block();
            for (rows, n, k) in
                [(1, 1, 1), (1, 33, 2), (2, 7, 3), (3, 16, 5), (4, 130, 1), (5, 33, 2), (17, 7, 9), (33, 16, 5), (9, 20, 37)]
            {
                let k = if block == 1 { 13 * k } else { block * k };
                let mut random = Random(rows as u64 * 1000 + k as u64);
                let w = random_matrix(&mut random, stored, n, k);
                let values = random.floats(rows * k);
                let exact = reference(&w, &values, rows);
                let mut first = None;
                for cpu in cpus(arithmetic) {
                    let x = activations(&cpu, rows, k, &values);
                    let out = guarded(rows * n, |out| cpu.matmul(&w, &x, out));
                    let error = out.iter().zip(&exact).map(|(o, (e, size))| (f64::from(*o) - e).abs() / size.max(1e-9)).fold(0.0, f64::max);
                    let what = format!("{stored:?} {arithmetic:?} {} x{} ({rows}, {n}, {k})", cpu.simd(), cpu.threads());
                    assert!(error <= tolerance, "{what}: off by {error}");
                    assert_eq!(&bits(&out), first.get_or_insert(bits(&out)), "{what}: other bits");
                }
            }
        }
    }
}

#[test]
fn products_do_not_depend_on_company() {
    for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
        for stored in Stored::all() {
            let (rows, n, k) = (23, 35, 1280);
            let mut random = Random(7);
            let w = random_matrix(&mut random, stored, n, k);
            let values = random.floats(rows * k);
            let cpu = Cpu::new(2, Simd::detect(), arithmetic);
            let all = guarded(rows * n, |out| cpu.matmul(&w, &activations(&cpu, rows, k, &values), out));
            for chunk in [1, 2, 3, 7, 16] {
                let parts = values.chunks(chunk * k).flat_map(|values| {
                    let rows = values.len() / k;
                    guarded(rows * n, |out| cpu.matmul(&w, &activations(&cpu, rows, k, values), out))
                });
                assert_eq!(bits(&parts.collect::<Vec<_>>()), bits(&all), "{stored:?} {arithmetic:?} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn the_chain_of_a_fast_product_is_the_documented_one() {
    let (n, k) = (5, 96);
    let mut random = Random(11);
    let bytes = random.weights(DType::Q4_1, n * k);
    let w = matrix(DType::Q4_1, n, k, &bytes);
    let cpu = Cpu::new(1, Simd::Portable, Arithmetic::Fast);
    let x = activations(&cpu, 1, k, &random.floats(k));
    let out = guarded(n, |out| cpu.matmul(&w, &x, out));
    for (i, out) in out.into_iter().enumerate() {
        let mut acc = 0.0f32;
        for (b, block) in w.weight().row(i).chunks_exact(20).enumerate() {
            let quants = &x.quants[b * 32..][..32];
            let nibble = |j: usize| i32::from(if j < 16 { block[4 + j] & 15 } else { block[4 + j - 16] >> 4 });
            let sum: i32 = (0..32).map(|j| nibble(j) * i32::from(quants[j])).sum();
            let total: i32 = quants.iter().map(|q| i32::from(*q)).sum();
            acc = (dequant::half_at(block, 0) * x.scales[b]).mul_add(sum as f32, acc);
            acc = dequant::half_at(block, 2).mul_add(x.scales[b] * total as f32, acc);
        }
        assert_eq!(out.to_bits(), acc.to_bits());
    }
}

#[test]
fn the_chain_of_groups_is_that_of_scales_and_minima() {
    for stored in Stored::groups() {
        let (n, k) = (3, 128 + 2 * stored.block());
        let mut random = Random(13);
        let w = random_matrix(&mut random, stored, n, k);
        let cpu = Cpu::new(1, Simd::detect(), Arithmetic::Fast);
        let x = activations(&cpu, 1, k, &random.floats(k));
        let out = guarded(n, |out| cpu.matmul(&w, &x, out));
        let (bits, group) = (stored.dtype.unsigned_bits().unwrap(), stored.block());
        let number = |view: &View, row: usize, group: usize| {
            let mut all = vec![0.0; view.shape().row_len()];
            crate::dequantise_row(view.dtype(), view.row(row), &mut all);
            all[group]
        };
        for (i, out) in out.into_iter().enumerate() {
            let row = w.weight().row(i);
            let q = |j: usize| (0..bits).map(|b| (j * bits + b, b)).map(|(at, b)| i32::from(row[at / 8] >> (at % 8) & 1) << b).sum::<i32>();
            let mut acc = 0.0f32;
            for b in 0..k / 32 {
                let quants = &x.quants[b * 32..][..32];
                let sum: i32 = (0..32).map(|j| q(b * 32 + j) * i32::from(quants[j])).sum();
                let total: i32 = quants.iter().map(|q| i32::from(*q)).sum();
                let (scale, bias) = (number(w.scales().unwrap(), i, b * 32 / group), number(w.biases().unwrap(), i, b * 32 / group));
                acc = (scale * x.scales[b]).mul_add(sum as f32, acc);
                acc = bias.mul_add(x.scales[b] * total as f32, acc);
            }
            assert_eq!(out.to_bits(), acc.to_bits(), "{stored:?}");
        }
    }
}

/// Rows in a mapping whose pages end with them: a read beyond ends the process.
fn up_to_a_page_end(from: &View) -> View {
    let page = rustix::param::page_size();
    let end = from.bytes().len().next_multiple_of(page);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0; end - from.bytes().len()]).unwrap();
    file.write_all(from.bytes()).unwrap();
    file.set_len((end + page) as u64).unwrap();
    let region = Arc::new(Region::map_file(&file).unwrap());
    file.set_len(end as u64).unwrap();
    View::new(&region, end - from.bytes().len(), from.dtype(), from.shape()).unwrap()
}

#[test]
fn nothing_is_read_beyond_the_last_row() {
    for stored in Stored::all().into_iter().filter(|s| s.dtype.is_quantised() || s.groups.is_some()) {
        for (n, blocks) in [(1, 1), (16, 1), (32, 9), (35, 3), (16, 16)] {
            let k = blocks * stored.block();
            let mut random = Random(n as u64);
            let w = random_matrix(&mut random, stored, n, k);
            let weight = up_to_a_page_end(w.weight());
            let at_the_end = match (w.scales(), w.biases(), w.group()) {
                (Some(scales), Some(biases), Some(group)) => {
                    Matrix::grouped(weight, up_to_a_page_end(scales), up_to_a_page_end(biases), group)
                }
                _ => weight.into(),
            };
            let values = random.floats(k);
            for simd in Simd::available() {
                let cpu = Cpu::new(1, simd, Arithmetic::Fast);
                let x = activations(&cpu, 1, k, &values);
                let [there, here] = [&at_the_end, &w].map(|w| bits(&guarded(n, |out| cpu.matmul(w, &x, out))));
                assert_eq!(there, here, "{stored:?} {simd} ({n}, {k})");
            }
        }
    }
}

#[test]
fn selected_rows_are_the_same_weights() {
    for stored in Stored::all() {
        let (n, k) = (21, stored.block().max(32) * 2);
        let mut random = Random(5);
        let w = random_matrix(&mut random, stored, n, k);
        let cpu = Cpu::new(1, Simd::detect(), Arithmetic::Fast);
        let x = activations(&cpu, 1, k, &random.floats(k));
        let all = guarded(n, |out| cpu.matmul(&w, &x, out));
        let some = w.select_rows(3..20);
        assert_eq!((some.rows(), some.group(), some.weight().bytes().as_ptr()), (17, w.group(), w.weight().row(3).as_ptr()));
        assert_eq!(bits(&guarded(17, |out| cpu.matmul(&some, &x, out))), bits(&all[3..20]), "{stored:?}");
    }
}

/// Multiplies with the largest activations of either sign.
fn does_not_saturate(w: &Matrix, which: &str) {
    let (n, k) = (w.rows(), w.row_len());
    for sign in [127.0, -127.0] {
        let values = vec![sign; k];
        let exact = reference(w, &values, 1);
        for simd in Simd::available() {
            let cpu = Cpu::new(1, simd, Arithmetic::Fast);
            let out = guarded(n, |out| cpu.matmul(w, &activations(&cpu, 1, k, &values), out));
            let right = out.iter().zip(&exact).all(|(o, (e, size))| (f64::from(*o) - e).abs() <= 1e-6 * size);
            assert!(right, "{which} {simd}: {out:?} {exact:?}");
        }
    }
}

#[test]
fn extreme_quants_do_not_saturate() {
    for dtype in WEIGHTS.into_iter().filter(|d| d.is_quantised()) {
        for fill in [0x00, 0x7f, 0x80, 0xff] {
            let (n, k) = (17, 256);
            let mut bytes = vec![fill; dtype.bytes_of(n * k).unwrap()];
            let one = f16::ONE.to_le_bytes();
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                let at = if dtype == DType::Q6_K { 208 } else { 0 };
                block[at..at + 2].copy_from_slice(&one);
                if matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K) {
                    block[2..4].copy_from_slice(&one);
                }
            }
            let w = matrix(dtype, n, k, &bytes);
            does_not_saturate(&w, &format!("{dtype} {fill:#x}"));
        }
    }
}

#[test]
fn extreme_groups_do_not_saturate() {
    for stored in Stored::groups() {
        let (_, dtype) = stored.groups.unwrap();
        for fill in [0x00, 0x55, 0x80, 0xff] {
            let (n, k) = (17, 128);
            let bytes = vec![fill; stored.dtype.bytes_of(n * k).unwrap()];
            let numbers = floats_as(dtype, &vec![-1.0; n * k / stored.block()]);
            let w = grouped(stored, n, k, &bytes, &numbers, &numbers);
            does_not_saturate(&w, &format!("{stored:?} {fill:#x}"));
        }
    }
}

#[test]
fn quantising_handles_zeros_and_tiny_values() {
    for simd in Simd::available() {
        let cpu = Cpu::new(1, simd, Arithmetic::Fast);
        let mut values = vec![0.0; 128];
        values[32..64].fill(1e-40);
        values[64..96].fill(-3e30);
        values[96] = 254.0;
        values[97] = 1.0; // half a step: to even
        values[98] = 3.0;
        let x = activations(&cpu, 1, 128, &values);
        assert_eq!(x.scales[..2], [0.0, 0.0], "{simd}");
        assert_eq!((x.quants[64], x.half_sums[2]), (-127, [-127 * 16; 2]), "{simd}");
        assert_eq!((x.scales[3], &x.quants[96..100]), (2.0, &[127, 0, 2, 0][..]), "{simd}");
        assert!(x.scaled_sums[..4].iter().all(|s| s.is_finite()));
    }
}

#[test]
fn elementwise_kernels_are_right_and_alike() {
    for len in [1, 15, 16, 33, 9001] {
        let mut random = Random(len as u64);
        let (x, y) = (random.floats(len), random.floats(len));
        let mut first = None;
        for cpu in cpus(Arithmetic::Fast) {
            let run = |f: &dyn Fn(&mut [f32])| {
                guarded(len, |out| {
                    out.copy_from_slice(&x);
                    f(out);
                })
            };
            let add = run(&|out| cpu.add(out, &y));
            let scale = run(&|out| cpu.scale(out, 0.3));
            let silu = run(&|out| cpu.silu_mul(out, &y));
            let gelu = run(&|out| cpu.gelu_tanh_mul(out, &y));
            let capped = run(&|out| cpu.softcap(out, 0.7));
            for i in 0..len {
                assert_eq!((add[i], scale[i]), (x[i] + y[i], x[i] * 0.3));
                assert_eq!((silu[i], gelu[i]), (math::silu(x[i]) * y[i], math::gelu_tanh(x[i]) * y[i]), "{}", cpu.simd());
                assert_eq!(capped[i], math::softcap(x[i], 0.7), "{}", cpu.simd());
            }
            let all = [add, scale, silu, gelu, capped].map(|v| bits(&v));
            assert_eq!(&all, first.get_or_insert(all.clone()), "{}", cpu.simd());
        }
    }
}

#[test]
fn a_row_is_added_to_each_row() {
    for (rows, k) in [(1, 1), (0, 5), (3, 7), (40, 576), (2, 9001)] {
        let mut random = Random(k as u64);
        let (x, row) = (random.floats(rows * k), random.floats(k));
        for cpu in cpus(Arithmetic::Fast) {
            let out = guarded(rows * k, |out| {
                out.copy_from_slice(&x);
                cpu.add_rows(out, &row);
            });
            assert!((0..rows * k).all(|i| out[i] == x[i] + row[i % k]), "{} ({rows}, {k})", cpu.simd());
        }
    }
}

#[test]
fn norms_are_right_and_alike() {
    for (rows, k) in [(1, 1), (3, 7), (2, 16), (5, 130), (40, 576)] {
        let mut random = Random(k as u64);
        let (x, weight) = (random.floats(rows * k), random.floats(k));
        let mut first = None;
        for cpu in cpus(Arithmetic::Fast) {
            let out = guarded(rows * k, |out| cpu.rms_norm(&x, &weight, 1e-5, out));
            for (row, out) in x.chunks_exact(k).zip(out.chunks_exact(k)) {
                let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / k as f64;
                for ((x, w), o) in row.iter().zip(&weight).zip(out) {
                    let exact = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*w);
                    assert!((f64::from(*o) - exact).abs() <= 1e-6, "{} ({rows}, {k})", cpu.simd());
                }
            }
            assert_eq!(&bits(&out), first.get_or_insert(bits(&out)), "{} x{}", cpu.simd(), cpu.threads());
            let alone = guarded(k, |out| cpu.rms_norm(&x[(rows - 1) * k..], &weight, 1e-5, out));
            assert_eq!(bits(&alone), bits(&out[(rows - 1) * k..]));
        }
    }
}

#[test]
fn plain_products_are_right_and_alike() {
    for (m, k, n) in [(1, 1, 1), (3, 5, 7), (4, 16, 33), (9, 0, 4), (17, 40, 48)] {
        let mut random = Random(n as u64);
        let (a, b) = (random.floats(m * k), random.floats(k * n));
        let mut first = None;
        for cpu in cpus(Arithmetic::Fast) {
            let c = guarded(m * n, |c| cpu.gemm_f32(&a, &b, c, m, k, n));
            for (i, c) in c.iter().enumerate() {
                let exact: f64 = (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[j * n + i % n])).sum();
                assert!((f64::from(*c) - exact).abs() <= 1e-5, "{} ({m}, {k}, {n})", cpu.simd());
            }
            assert_eq!(&bits(&c), first.get_or_insert(bits(&c)), "{}", cpu.simd());
        }
    }
}

/// Sessions of random KV. What is beyond a session's length is NaN wherever the type can say so.
struct Blocks {
    layout: KvLayout,
    sessions: Vec<Vec<Vec<u8>>>,
    rows: Vec<Vec<f32>>, // (session; token, k_or_v, kv_head, head_dim) as read back, for the layer 1
}

impl Blocks {
    fn new(layout: KvLayout, lens: &[usize]) -> Blocks {
        let mut random = Random(lens.len() as u64);
        let mut blocks = Blocks { layout, sessions: Vec::new(), rows: Vec::new() };
        for &len in lens {
            let mut session = vec![vec![0xffu8; layout.block_bytes()]; len.div_ceil(KV_BLOCK_TOKENS)];
            let mut rows = Vec::new();
            for token in 0..len {
                for (kv, head) in (0..2).flat_map(|kv| (0..layout.kv_heads).map(move |h| (kv, h))) {
                    let row = random.floats(layout.head_dim);
                    let at = layout.row_offset(1, kv, head, token % KV_BLOCK_TOKENS);
                    let bytes = &mut session[token / KV_BLOCK_TOKENS][at..at + layout.row_bytes()];
                    store_kv_row(layout.dtype, &row, bytes);
                    let start = rows.len();
                    rows.resize(start + layout.head_dim, 0.0);
                    crate::load_kv_row(layout.dtype, bytes, &mut rows[start..]);
                }
            }
            blocks.sessions.push(session);
            blocks.rows.push(rows);
        }
        blocks
    }

    fn row(&self, session: usize, token: usize, kv: usize, head: usize) -> &[f32] {
        let dim = self.layout.head_dim;
        &self.rows[session][((token * 2 + kv) * self.layout.kv_heads + head) * dim..][..dim]
    }
}

impl KvSource for Blocks {
    fn block(&self, session: u32, block: u32) -> &[u8] {
        &self.sessions[session as usize][block as usize]
    }
}

/// Softmax attention in f64.
fn attend_plainly(shape: &AttendShape, rows: &[Row], q: &[f32], kv: &Blocks) -> Vec<f64> {
    let dim = shape.head_dim;
    let mut out = Vec::new();
    for (r, row) in rows.iter().enumerate() {
        for head in 0..shape.heads {
            let (kv_head, q) = (head / (shape.heads / shape.kv_heads), &q[(r * shape.heads + head) * dim..][..dim]);
            let end = row.position as usize + 1;
            let start = shape.window.map_or(0, |w| end.saturating_sub(w));
            let key = |t: usize| kv.row(row.session as usize, t, 0, kv_head);
            let dot = |t: usize| key(t).iter().zip(q).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>() * f64::from(shape.scale);
            let capped = |s: f64| shape.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh());
            let p: Vec<f64> = (start..end).map(|t| capped(dot(t)).exp()).collect();
            let sum: f64 = p.iter().sum();
            let value =
                |d: usize| (start..end).map(|t| p[t - start] * f64::from(kv.row(row.session as usize, t, 1, kv_head)[d])).sum::<f64>();
            out.extend((0..dim).map(|d| value(d) / sum));
        }
    }
    out
}

fn attend(cpu: &Cpu, shape: &AttendShape, rows: &[Row], q: &[f32], kv: &Blocks) -> Vec<f32> {
    guarded(q.len(), |out| cpu.attend(shape, rows, q, kv, &mut AttendScratch::new(), out))
}

#[test]
fn attention_is_right_and_does_not_depend_on_company() {
    let cases =
        [(9, 3, 64, KvDType::F16), (4, 1, 256, KvDType::Q8), (2, 2, 16, KvDType::F32), (5, 1, 48, KvDType::Q8), (7, 1, 80, KvDType::F16)];
    for ((heads, kv_heads, head_dim, dtype), window) in cases.into_iter().flat_map(|c| [None, Some(1), Some(70), Some(512)].map(|w| (c, w)))
    {
        let layout = KvLayout { layers: 2, kv_heads, head_dim, dtype };
        let shape = AttendShape { heads, kv_heads, head_dim, layer: 1, scale: 0.3, softcap: window.map(|_| 1.5), window, layout };
        let kv = Blocks::new(layout, &[40, 1100, 1]);
        let mut rows: Vec<Row> = (29..40).map(|position| Row { session: 0, position }).collect();
        rows.push(Row { session: 2, position: 0 });
        rows.extend([3, 63, 64, 500, 511, 512, 513, 1023, 1024, 1099].map(|position| Row { session: 1, position }));
        let q = Random(3).floats(rows.len() * heads * head_dim);
        let exact = attend_plainly(&shape, &rows, &q, &kv);
        let mut first = None;
        for cpu in cpus(Arithmetic::Fast) {
            let what = format!("{heads}/{kv_heads} {head_dim} {dtype} {window:?} {} x{}", cpu.simd(), cpu.threads());
            let out = attend(&cpu, &shape, &rows, &q, &kv);
            let error = out.iter().zip(&exact).map(|(o, e)| (f64::from(*o) - e).abs()).fold(0.0, f64::max);
            assert!(error <= 2e-6, "{what}: off by {error}");
            assert_eq!(&bits(&out), first.get_or_insert(bits(&out)), "{what}: other bits");
            for chunk in [1, 3] {
                let width = chunk * heads * head_dim;
                let parts = rows.chunks(chunk).zip(q.chunks(width)).flat_map(|(rows, q)| attend(&cpu, &shape, rows, q, &kv));
                assert_eq!(bits(&parts.collect::<Vec<_>>()), bits(&out), "{what}: {chunk} at a time");
            }
        }
    }
}

/// The bits of every kernel, fixed: the same on every machine.
fn golden_hashes(cpu: &Cpu) -> Vec<(String, u64)> {
    let mut hashes = Vec::new();
    let (rows, n, k) = (6, 37, 1280);
    let groups = [(DType::U2, 32, DType::F32), (DType::U3, 64, DType::F16), (DType::U4, 64, DType::BF16)];
    let more_groups = [(DType::U5, 128, DType::F32), (DType::U6, 32, DType::F16), (DType::U8, 64, DType::BF16)];
    let groups = groups.into_iter().chain(more_groups).map(|(dtype, group, d)| Stored { dtype, groups: Some((group, d)) });
    for stored in WEIGHTS.into_iter().map(|dtype| Stored { dtype, groups: None }).chain(groups) {
        let dtype = stored.dtype;
        let mut random = Random(dtype.block_bytes() as u64);
        let w = random_matrix(&mut random, stored, n, k);
        let x = activations(cpu, rows, k, &random.floats(rows * k));
        hashes.push((dtype.to_string(), hash(&guarded(rows * n, |out| cpu.matmul(&w, &x, out)))));
    }
    let mut random = Random(1);
    let (x, y) = (random.floats(3 * 100), random.floats(3 * 100));
    let wide: Vec<f32> = x.iter().map(|x| x * 20.0).collect();
    let copied = |f: &dyn Fn(&mut [f32])| {
        let mut out = wide.clone();
        f(&mut out);
        hash(&out)
    };
    hashes.push(("rms_norm".into(), hash(&guarded(300, |out| cpu.rms_norm(&x, &y[..100], 1e-6, out)))));
    hashes.push(("silu_mul".into(), copied(&|out| cpu.silu_mul(out, &y))));
    hashes.push(("gelu_tanh_mul".into(), copied(&|out| cpu.gelu_tanh_mul(out, &y))));
    hashes.push(("gemm".into(), hash(&guarded(100, |out| cpu.gemm_f32(&x, &y, out, 10, 30, 10)))));
    let angle = |pair: u32| 2999.0 * libm::pow(10_000.0, -2.0 * f64::from(pair) / 64.0);
    let cos_sin = (0..32).map(|pair| libm::cos(angle(pair)) as f32).chain((0..32).map(|pair| libm::sin(angle(pair)) as f32));
    hashes.push(("rope".into(), hash(&cos_sin.collect::<Vec<f32>>())));
    for dtype in KvDType::ALL {
        let layout = KvLayout { layers: 2, kv_heads: 2, head_dim: 64, dtype };
        let shape = AttendShape { heads: 6, kv_heads: 2, head_dim: 64, layer: 1, scale: 0.125, softcap: None, window: Some(900), layout };
        let kv = Blocks::new(layout, &[1100]);
        let rows = [5, 600, 1099].map(|position| Row { session: 0, position });
        let q: Vec<f32> = random.floats(3 * 6 * 64).iter().map(|x| x * 3.0).collect();
        hashes.push((format!("attend {dtype}"), hash(&attend(cpu, &shape, &rows, &q, &kv))));
    }
    hashes
}

#[test]
fn bits_are_the_same_on_every_machine() {
    for (arithmetic, golden) in [(Arithmetic::Fast, GOLDEN_FAST), (Arithmetic::Exact, GOLDEN_EXACT)] {
        for simd in Simd::available() {
            let hashes = golden_hashes(&Cpu::new(2, simd, arithmetic));
            let listing: Vec<String> = hashes.iter().map(|(name, h)| format!("    (\"{name}\", {h:#018x}),")).collect();
            let same = hashes.iter().map(|(name, h)| (name.as_str(), *h)).eq(golden.iter().copied());
            assert!(same, "{arithmetic:?} {simd}: a change of bits needs a new KERNEL_VERSION and this table:\n{}", listing.join("\n"));
        }
    }
}

const GOLDEN_FAST: &[(&str, u64)] = &[
    ("F32", 0x559dce4bd1b3e84e),
    ("F16", 0x9874ef301c685926),
    ("BF16", 0xe82618be6265a32e),
    ("Q8_0", 0x0db16c92d1e839da),
    ("Q4_0", 0xc97258cf78fa3c73),
    ("Q4_1", 0xea6bd4779665d594),
    ("Q5_0", 0x174d30cb67924c61),
    ("Q5_1", 0xa3c12be7d2396dde),
    ("Q4_K", 0x2cc24385c061df1b),
    ("Q5_K", 0x5d5c0d745a66f99a),
    ("Q6_K", 0x90d69e80eec4eec3),
    ("U2", 0x4eb9e8874911875e),
    ("U3", 0x08467ff176512af4),
    ("U4", 0x8a53db7332068a13),
    ("U5", 0xa32b6210f3b23b90),
    ("U6", 0xa3b5c02e5fd6767a),
    ("U8", 0xf0224e6ca6559f2b),
    ("rms_norm", 0x5cb1ce9e58f4d3ec),
    ("silu_mul", 0xb60195cf816ca4d2),
    ("gelu_tanh_mul", 0x176c9cd8077255f1),
    ("gemm", 0x0ef5ddad2a7f23e1),
    ("rope", 0xa679193cc649ce8e),
    ("attend f16", 0x5efa16a0061f1b2c),
    ("attend f32", 0x7751f4c67047344a),
    ("attend q8", 0x9b5e8de5342d696b),
];
const GOLDEN_EXACT: &[(&str, u64)] = &[
    ("F32", 0x559dce4bd1b3e84e),
    ("F16", 0x9874ef301c685926),
    ("BF16", 0xe82618be6265a32e),
    ("Q8_0", 0x8027a06c11ada7f1),
    ("Q4_0", 0x6f71045cb73909fd),
    ("Q4_1", 0xbe22f536b976d049),
    ("Q5_0", 0x77831f1b6ee7f123),
    ("Q5_1", 0x9e570eed3b6d7374),
    ("Q4_K", 0x93b35e48318a8f75),
    ("Q5_K", 0x640031f6e84c7274),
    ("Q6_K", 0x4a789ad46067d564),
    ("U2", 0xa30b44e33ea62c55),
    ("U3", 0x746a574b9d836503),
    ("U4", 0x474b10489ca34ae9),
    ("U5", 0xd2df333a36c1b3a2),
    ("U6", 0xf1cc357dcb977fa6),
    ("U8", 0x19f7f867d261427d),
    ("rms_norm", 0x5cb1ce9e58f4d3ec),
    ("silu_mul", 0xb60195cf816ca4d2),
    ("gelu_tanh_mul", 0x176c9cd8077255f1),
    ("gemm", 0x0ef5ddad2a7f23e1),
    ("rope", 0xa679193cc649ce8e),
    ("attend f16", 0x5efa16a0061f1b2c),
    ("attend f32", 0x7751f4c67047344a),
    ("attend q8", 0x9b5e8de5342d696b),
];
