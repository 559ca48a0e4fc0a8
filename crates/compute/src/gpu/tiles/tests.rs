//! Packing on the CPU, the text of all kernels through naga's validator, and on a device every product against f64 and against itself.

use super::pack::CHUNK;
use super::product::{many_rows_kernel, tuning};
use super::text::{Epilogue, Weights};
use super::*;
use crate::gpu::{Binding, Gpu, GpuError};
use crate::{Arithmetic, Cpu, Matrix, Simd};
use driftwood_region::{DType, Region, Shape, View};
use half::{bf16, f16};
use std::io::Write as _;
use std::sync::Arc;

const BLOCKS: [DType; 11] = [
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

/// SplitMix64: the same on every machine.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    pub(super) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// A matrix of random rows.
fn random_rows_of(random: &mut Random, dtype: DType, n: usize, k: usize) -> Matrix {
    let mut bytes: Vec<u8> = (0..dtype.bytes_of(k).unwrap() * n).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        let x = random.float();
        let mut half = |at: usize, x: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
        match dtype {
            DType::F32 => block.copy_from_slice(&x.to_le_bytes()),
            DType::F16 => half(0, x),
            DType::BF16 => block.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
            DType::Q8_0 => half(0, x / 127.0),
            DType::Q4_0 | DType::Q5_0 => half(0, x / 16.0),
            DType::Q4_1 | DType::Q5_1 => (half(0, x / 16.0), half(2, x * -0.4)).1,
            DType::Q4_K | DType::Q5_K => (half(0, x / 512.0), half(2, x / 300.0)).1,
            DType::Q6_K => half(208, x / 4096.0),
            _ => {}
        }
    }
    let region = mapped(&bytes);
    View::new(&region, 0, dtype, Shape::new(&[n, k]).unwrap()).unwrap().into()
}

fn mapped(bytes: &[u8]) -> Arc<Region> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(Region::map_file(&file).unwrap())
}

/// MLX's groups of elements, group length and floats, from the bytes of elements, scales and biases.
pub(super) fn grouped((dtype, group, float): (DType, usize, DType), (n, k): (usize, usize), parts: [&[u8]; 3]) -> Matrix {
    let region = mapped(&parts.concat());
    let view = |at: usize, dtype: DType, k: usize| View::new(&region, at, dtype, Shape::new(&[n, k]).unwrap()).unwrap();
    let scales_at = parts[0].len();
    let numbers = [scales_at, scales_at + parts[1].len()].map(|at| view(at, float, k / group));
    let [scales, biases] = numbers;
    Matrix::grouped(view(0, dtype, k), scales, biases, group)
}

fn float_bytes(float: DType, x: f32) -> Vec<u8> {
    match float {
        DType::F32 => x.to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        _ => bf16::from_f32(x).to_le_bytes().to_vec(),
    }
}

/// Random groups whose weights go from about -0.5 to 0.5, with a scale that is `size` times that.
fn random_groups(random: &mut Random, stored: (DType, usize, DType), (n, k): (usize, usize), size: f32) -> Matrix {
    let (dtype, group, float) = stored;
    let elements: Vec<u8> = (0..dtype.bytes_of(n * k).unwrap()).map(|_| random.next() as u8).collect();
    let step = 1.0 / ((1 << dtype.unsigned_bits().unwrap()) as f32 - 1.0);
    let mut floats = |centre: f32, spread: f32| -> Vec<u8> {
        (0..n * k / group).flat_map(|_| float_bytes(float, size * (centre + spread * random.float()))).collect()
    };
    let (scales, biases) = (floats(step, 0.3 * step), floats(-0.5, 0.02));
    grouped(stored, (n, k), [&elements, &scales, &biases])
}

/// A row as floats.
fn row_of(matrix: &Matrix, row: usize) -> Vec<f32> {
    let mut out = vec![0.0; matrix.row_len()];
    matrix.dequantise_row(row, &mut out);
    out
}

/// A matrix of every stored format with rows of about `k` elements, a name beside it.
fn every_format(n: usize, k: usize) -> Vec<(String, Matrix)> {
    let mut random = Random(7);
    let fitting = |block: usize| (k / block).max(1) * block + if block == 1 { 5 } else { 0 };
    let mut all: Vec<_> =
        BLOCKS.iter().map(|dtype| (dtype.to_string(), random_rows_of(&mut random, *dtype, n, fitting(dtype.block_len())))).collect();
    let floats = [DType::F32, DType::F16, DType::BF16];
    let groups = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| [32, 64, 128].map(|group| (DType::unsigned(bits).unwrap(), group)));
    for (i, (dtype, group)) in groups.enumerate() {
        // Each width meets each kind of float.
        let float = floats[(i + i / 3) % 3];
        let matrix = random_groups(&mut random, (dtype, group, float), (n, fitting(group)), 1.0);
        all.push((format!("{dtype} in groups of {group} with {float}"), matrix));
    }
    all
}

/// Tiles as a matrix again, (row tiles * 16, padded k): what the kernels multiply, rounded as they round.
fn unpack(packing: &Packing<'_>) -> Vec<Vec<f32>> {
    let tiles = packing.tiles();
    let (mut words, mut scales) = (vec![!0; tiles * packing.tile_words()], vec![!0; tiles * packing.tile_scale_words()]);
    packing.pack(0..tiles, 3, &mut words, &mut scales);
    let padded = packing.k().next_multiple_of(CHUNK);
    let half = |word: u32, at: u32| f16::from_bits((word >> (16 * at)) as u16).to_f32();
    let element = |row: usize, i: usize| {
        let (tile, r, group, e) = (row / 16, row % 16, i / 32, i % 32);
        let at = tile * padded / 32 + group;
        let (quad, inner) = (e / 4, e % 4);
        // Of a row's words: those of even quads stand before those of odd ones.
        let place = quad % 2 * 4 + quad / 2;
        let (q, scale) = match packing.format() {
            TileFormat::F16 => return half(words[at * 256 + e / 16 * 128 + r * 8 + e % 16 / 2], e as u32 % 2),
            TileFormat::Q4 => {
                let shift = place % 2 * 8 + inner / 2 * 4 + inner % 2 * 16;
                (words[at * 64 + r * 4 + place / 2] >> shift & 15, scales[at * 16 + r])
            }
            TileFormat::Q8 => {
                let shift = [0, 16, 8, 24][inner];
                (words[at * 128 + r * 8 + place] >> shift & 255, scales[at * 32 + r * 2 + e / 16])
            }
        };
        f16::from_f64(f64::from(q) * f64::from(half(scale, 0)) + f64::from(half(scale, 1))).to_f32()
    };
    (0..tiles * 16).map(|row| (0..padded).map(|i| element(row, i)).collect()).collect()
}

/// Compares row tiles with what was stored, `None` being padding: within three roundings to f16 of the largest of a group.
fn assert_packed(name: &str, packing: &Packing<'_>, stored: impl Fn(usize) -> Option<Vec<f32>>) {
    for (row, got) in unpack(packing).into_iter().enumerate() {
        let mut want = stored(row).unwrap_or_default();
        want.resize(got.len(), 0.0);
        for (group, (got, want)) in got.chunks(32).zip(want.chunks(32)).enumerate() {
            let size = want.iter().fold(0.0f32, |size, w| size.max(w.abs()));
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 3.0 * size / 1024.0, "{name}: row {row}, group {group}: {got} for {want}");
            }
        }
    }
}

#[test]
fn tiles_hold_what_rows_held() {
    for (name, stored) in every_format(37, 672) {
        let sources = [&stored];
        let packing = Packing::new(&sources, Arrange::Stacked).unwrap();
        assert_packed(&name, &packing, |row| (row < 37).then(|| row_of(&stored, row)));
    }
}

/// Scales become half floats, which end at both ends.
#[test]
fn scales_beyond_half_floats_are_not_taken() {
    let mut random = Random(9);
    for (float, size, expected) in [
        (DType::F32, 1.0, Ok(TileFormat::Q4)),
        (DType::BF16, 5e-4, Ok(TileFormat::F16)),
        (DType::F32, 0.0, Ok(TileFormat::Q4)),
        (DType::BF16, 1e6, Err("more than half floats hold")),
        (DType::F32, f32::NAN, Err("more than half floats hold")),
        (DType::F16, f32::INFINITY, Err("more than half floats hold")),
    ] {
        let stored = random_groups(&mut random, (DType::U4, 64, float), (16, 256), size);
        let sources = [&stored];
        match (Packing::new(&sources, Arrange::Stacked), expected) {
            (Ok(packing), Ok(format)) => {
                assert_eq!(packing.format(), format, "{float} {size}");
                assert_packed(&format!("{float} {size}"), &packing, |row| Some(row_of(&stored, row)));
            }
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{float} {size}: {error}"),
            (got, _) => panic!("{float} {size}: {got:?}"),
        }
    }
}

/// Fused tensors are read by the rows of their parts.
#[test]
fn selected_rows_are_packed_alike() {
    let mut random = Random(15);
    let whole = random_groups(&mut random, (DType::U3, 32, DType::BF16), (40, 96), 1.0);
    let parts = [0..7, 7..23, 23..40].map(|rows| whole.select_rows(rows));
    let packed = |sources: &[&Matrix]| unpack(&Packing::new(sources, Arrange::Stacked).unwrap());
    assert_eq!(packed(&parts.each_ref()), packed(&[&whole]));
}

#[test]
fn exact_formats_lose_nothing() {
    let mut random = Random(3);
    for dtype in [DType::F16, DType::Q4_0, DType::Q8_0, DType::Q5_0] {
        let stored = random_rows_of(&mut random, dtype, 16, 256);
        let sources = [&stored];
        let packing = Packing::new(&sources, Arrange::Stacked).unwrap();
        for (row, got) in unpack(&packing).into_iter().enumerate() {
            let want: Vec<f32> = row_of(&stored, row).into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
            assert_eq!(got, want, "{dtype} row {row}");
        }
    }
}

#[test]
fn matrices_are_stacked_and_interleaved() {
    let mut random = Random(5);
    let parts = [(DType::Q4_0, 21), (DType::Q6_K, 16), (DType::Q4_K, 7)].map(|(d, n)| random_rows_of(&mut random, d, n, 256));
    let sources = parts.each_ref();
    let packing = Packing::new(&sources, Arrange::Stacked).unwrap();
    assert_eq!((packing.format(), packing.n(), packing.tiles()), (TileFormat::Q8, 44, 3));
    assert_packed("stacked", &packing, |row| {
        let (part, row) =
            [(0, row), (1, row.wrapping_sub(21)), (2, row.wrapping_sub(37))].into_iter().find(|(i, r)| *r < [21, 16, 7][*i])?;
        Some(row_of(&parts[part], row))
    });
    let pair = [DType::BF16, DType::Q4_1].map(|d| random_rows_of(&mut random, d, 23, 96));
    let sources = pair.each_ref();
    let packing = Packing::new(&sources, Arrange::Interleaved).unwrap();
    assert_eq!((packing.format(), packing.n(), packing.tiles()), (TileFormat::F16, 23, 4));
    assert_packed("interleaved", &packing, |row| {
        let inner = row / 32 * 16 + row % 16;
        (inner < 23).then(|| row_of(&pair[row / 16 % 2], inner))
    });
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let mut random = Random(5);
    let [a, b, c] = [(8, 64), (9, 64), (8, 96)].map(|(n, k)| random_rows_of(&mut random, DType::F16, n, k));
    let refused = |sources: &[&Matrix], arrange: Arrange, why: &str| {
        let error = Packing::new(sources, arrange).unwrap_err();
        assert!(matches!(&error, GpuError::BadShape { .. }) && error.to_string().contains(why), "{error}");
    };
    refused(&[], Arrange::Stacked, "there are none");
    refused(&[&a, &c], Arrange::Stacked, "different lengths");
    refused(&[&a, &b], Arrange::Interleaved, "its own shape");
    refused(&[&a], Arrange::Interleaved, "its own shape");
    let integers = random_rows_of(&mut random, DType::U32, 2, 64);
    refused(&[&integers], Arrange::Stacked, "integers");
}

/// Parses and validates a kernel, as a device with everything would.
pub(super) fn validate(name: &str, text: &str) {
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{name}: {}\n{text}", e.emit_to_string(text)));
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    validator.validate(&module).unwrap_or_else(|e| panic!("{name}: {}\n{text}", e.emit_to_string(text)));
}

#[test]
fn every_kernel_is_valid() {
    let epilogues = [Epilogue::Store, Epilogue::Add, Epilogue::Gated(Activation::Silu), Epilogue::Gated(Activation::GeluTanh)];
    for (format, epilogue) in [TileFormat::F16, TileFormat::Q4, TileFormat::Q8].into_iter().flat_map(|f| epilogues.map(|e| (f, e))) {
        for (tiles, k) in [(128, 2048), (1024, 2048), (8016, 2048), (128, 8192), (3, 301), (896, 14336), (2, 32), (768, 4096)] {
            let weights = Weights { format, tiles, n: if epilogue.gated() { tiles * 8 - 3 } else { tiles * 16 - 3 }, k };
            let name = format!("{weights:?} {epilogue:?}");
            for norm in [None, Some(Norm { eps: 1e-5 })] {
                let kernel = one_row::OneRow::new(weights, norm, epilogue, tuning(weights, epilogue));
                validate(&name, &kernel.text());
            }
            for most in [2, 17, 64, 300, 4096] {
                let kernel = many_rows_kernel(weights, epilogue, most);
                validate(&name, &kernel.text());
                validate(&name, &kernel.settle_text());
            }
            validate(&name, &many_rows::norm_rows_text(k, Norm { eps: 1e-6 }));
        }
    }
}

/// Bytes around every output, and what they hold.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
/// How far a product may be from f64, as a share of the sum of its terms' magnitudes: sums in f32 whose products are truncated.
const TOLERANCE: f64 = 4e-6;
/// How far a gated output may be: f16, after exp and a division in f32.
const GATED_TOLERANCE: f64 = 1.5e-3;

pub(super) fn cooperative() -> Arc<Gpu> {
    let gpu = Gpu::open(None).unwrap();
    assert!(gpu.info().cooperative, "{:?} has no cooperative matrices", gpu.info());
    gpu
}

/// What a product does with its values.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Store,
    Add,
    Gated(Activation),
}

/// A product under test: weights on the device, and rows.
struct Trial<'a> {
    gpu: &'a Gpu,
    matrix: TileMatrix,
    kind: Kind,
    /// (row, padded k)
    x: Vec<f16>,
    rows: usize,
}

impl Trial<'_> {
    fn stride(&self) -> usize {
        if matches!(self.kind, Kind::Gated(_)) { padded_len(self.matrix.n()) } else { self.matrix.n() }
    }

    fn out_bytes(&self, rows: usize) -> usize {
        rows * self.stride() * if matches!(self.kind, Kind::Gated(_)) { 2 } else { 4 }
    }

    /// What stands in an output before the product.
    fn before(&self, rows: usize) -> Vec<u8> {
        match self.kind {
            Kind::Gated(_) => vec![0; self.out_bytes(rows)],
            Kind::Store => vec![0xff; self.out_bytes(rows)],
            Kind::Add => (0..rows * self.stride()).flat_map(|i| ((i % 977) as f32 / 97.0).to_le_bytes()).collect(),
        }
    }

    /// The outputs of rows from `first` on, (row, stride), in f32. `None` multiplies one row alone, else there may be `most`.
    fn run(&self, first: usize, rows: usize, most: Option<usize>) -> Vec<f32> {
        let room = most.unwrap_or(1);
        let mut x = self.x[first * padded_len(self.matrix.k())..].to_vec();
        x.truncate(rows * padded_len(self.matrix.k()));
        x.resize(room * padded_len(self.matrix.k()), f16::NAN);
        let x = upload(self.gpu, bytemuck::cast_slice(&x));
        self.run_input(rows, most, Input::Halves(Binding::whole(&x)))
    }

    fn run_input(&self, rows: usize, most: Option<usize>, input: Input<'_>) -> Vec<f32> {
        let room = most.unwrap_or(1);
        let guard = [GUARD_BYTE; GUARD];
        let before = [&guard[..], &self.before(room), &guard].concat();
        let out = upload(self.gpu, &before);
        let to = Binding { buffer: &out, offset_bytes: GUARD as u64, bytes: self.out_bytes(room) as u64 };
        let count = upload(self.gpu, &(rows as u32).to_le_bytes());
        let scratch = self.gpu.buffer("scratch", self.matrix.scratch_bytes(room).max(4)).unwrap();
        let many = |most| Rows::Many(Many { most, count: Binding::whole(&count), scratch: Binding::whole(&scratch) });
        let output = match self.kind {
            Kind::Store => Output::Store(to),
            Kind::Add => Output::Add(to),
            Kind::Gated(activation) => Output::Gated(to, activation),
        };
        let dispatches = self.matrix.product(self.gpu, most.map_or(Rows::One, many), input, output).unwrap();
        self.gpu.run(&dispatches).unwrap();
        let mut after = vec![0; before.len()];
        self.gpu.read(&out, 0, &mut after).unwrap();
        let end = GUARD + self.out_bytes(rows);
        assert!(after[..GUARD] == before[..GUARD] && after[end..] == before[end..], "bytes around {rows} rows were written");
        match self.kind {
            Kind::Gated(_) => after[GUARD..end].as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            _ => after[GUARD..end].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }
}

pub(super) fn upload(gpu: &Gpu, bytes: &[u8]) -> wgpu::Buffer {
    let padded = [bytes, &[0; 3][..(4 - bytes.len() % 4) % 4]].concat();
    let buffer = gpu.buffer("test", padded.len() as u64).unwrap();
    gpu.queue().write_buffer(&buffer, 0, &padded);
    buffer
}

/// Random f16 rows, with zeros in the padding.
fn random_rows(random: &mut Random, rows: usize, k: usize) -> Vec<f16> {
    let row = |_| (0..padded_len(k)).map(|i| if i < k { f16::from_f32(random.float()) } else { f16::ZERO }).collect::<Vec<_>>();
    (0..rows).flat_map(row).collect()
}

/// A product in f64 of the very weights that the tiles hold, and the sum of magnitudes.
fn dot(w: &[f32], x: &[f16]) -> (f64, f64) {
    let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * x.to_f64());
    terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
}

fn activate(activation: Activation, g: f64) -> f64 {
    match activation {
        Activation::Silu => g / (1.0 + (-g).exp()),
        Activation::GeluTanh => 0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh()),
    }
}

/// Compares some rows of a trial with f64.
fn assert_right(matrix: &str, trial: &Trial<'_>, weights: &[Vec<f32>], got: &[f32]) {
    let (stride, padded, n) = (trial.stride(), padded_len(trial.matrix.k()), trial.matrix.n());
    for row in (0..trial.rows).filter(|row| row % 41 == 0) {
        let x = &trial.x[row * padded..][..padded];
        for i in 0..n {
            let got = f64::from(got[row * stride + i]);
            let (want, allowed) = match trial.kind {
                Kind::Store | Kind::Add => {
                    let (value, size) = dot(&weights[i], x);
                    let old = if trial.kind == Kind::Add { f64::from(((row * stride + i) % 977) as f32 / 97.0) } else { 0.0 };
                    (value + old, TOLERANCE * (size + old))
                }
                Kind::Gated(activation) => {
                    let [(g, g_size), (u, u_size)] = [0, 16].map(|to| dot(&weights[i / 16 * 32 + to + i % 16], x));
                    let gate = activate(activation, g);
                    // The gate's slope is at most 1.13.
                    let inherited = TOLERANCE * (1.13 * g_size * u.abs() + u_size * gate.abs());
                    (gate * u, GATED_TOLERANCE * ((gate * u).abs() + 0.01) + inherited)
                }
            };
            assert!((got - want).abs() <= allowed, "{matrix} {:?}, row {row}, output {i}: {got} for {want} +- {allowed}", trial.kind);
        }
        assert!(got[row * stride..][n..stride].iter().all(|x| *x == 0.0), "padding was written");
    }
}

/// One matrix in every company: each row's bits are the same.
fn assert_same_in_company(matrix: &str, trial: &Trial<'_>, weights: &[Vec<f32>]) {
    let all = trial.run(0, trial.rows, Some(trial.rows));
    assert_right(matrix, trial, weights, &all);
    // What is added to depends on the row's place, which is 0 for a row alone.
    let stride = trial.stride();
    let same = |name: &str, got: &[f32], first: usize| {
        let differ = got.iter().zip(&all[first * stride..]).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differ, 0, "{matrix} {:?}, {name}: {differ} of {} differ", trial.kind, got.len());
    };
    for (rows, most) in [(1, 2), (2, 2), (16, 16), (17, 20), (33, 64), (64, 64), (64, 100)] {
        if rows <= trial.rows {
            same(&format!("{rows} of {most}"), &trial.run(0, rows, Some(most)), 0);
        }
    }
    for row in if trial.kind == Kind::Add { vec![0] } else { vec![0, 1, trial.rows / 2, trial.rows - 1] } {
        same(&format!("row {row} alone"), &trial.run(row, 1, None), row);
    }
}

fn trial_of<'a>(gpu: &'a Gpu, sources: &[&Matrix], kind: Kind, rows: usize) -> (Trial<'a>, Vec<Vec<f32>>) {
    let arrange = if matches!(kind, Kind::Gated(_)) { Arrange::Interleaved } else { Arrange::Stacked };
    let matrix = TileMatrix::upload(gpu, &mut Staging::default(), sources, arrange).unwrap();
    let weights = unpack(&Packing::new(sources, arrange).unwrap());
    let x = random_rows(&mut Random(11), rows, matrix.k());
    (Trial { gpu, matrix, kind, x, rows }, weights)
}

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn products_of_every_format_are_right_in_every_company() {
    let gpu = cooperative();
    for (name, stored) in every_format(203, 1056) {
        for kind in [Kind::Store, Kind::Add, Kind::Gated(Activation::Silu), Kind::Gated(Activation::GeluTanh)] {
            let sources = [&stored, &stored];
            let sources = if matches!(kind, Kind::Gated(_)) { &sources[..] } else { &sources[..1] };
            let (trial, weights) = trial_of(&gpu, sources, kind, 300);
            assert_same_in_company(&name, &trial, &weights);
        }
    }
}

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn products_of_every_shape_are_right_in_every_company() {
    let gpu = cooperative();
    let mut random = Random(13);
    for (n, k) in [(1, 32), (16, 256), (17, 2048), (100, 4096 + 288), (40, 8960), (24, 14336), (9001, 64), (20000, 512)] {
        let kinds = [Kind::Store, Kind::Add, Kind::Gated(Activation::Silu)];
        let all = [DType::F16, DType::Q4_0, DType::Q8_0].into_iter().enumerate().flat_map(|(i, d)| kinds.map(|kind| (i, d, kind)));
        // Wide matrices are cut in more ways.
        for (_, dtype, kind) in all.filter(|(i, _, kind)| n > 5000 || kinds[*i] == *kind) {
            let stored = [0, 1].map(|_| random_rows_of(&mut random, dtype, n, k));
            let sources = stored.each_ref();
            let sources = if matches!(kind, Kind::Gated(_)) { &sources[..] } else { &sources[..1] };
            let (trial, weights) = trial_of(&gpu, sources, kind, 150);
            assert_same_in_company(&format!("{n}x{k} {dtype}"), &trial, &weights);
        }
    }
}

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn a_norm_before_a_product_is_the_norm_of_rows() {
    let gpu = cooperative();
    let mut random = Random(17);
    for (k, n, kind) in [
        (2048, 96, Kind::Store),
        (256, 96, Kind::Store),
        (512, 96, Kind::Store),
        (1024, 96, Kind::Store),
        (260, 16, Kind::Store),
        (2052, 16, Kind::Store),
        (4096, 16, Kind::Store),
        (304, 50, Kind::Store),
        (301, 50, Kind::Store),
        (5120, 33, Kind::Add),
        (576, 40, Kind::Gated(Activation::Silu)),
    ] {
        let (rows, norm) = (5, Norm { eps: 1e-5 });
        let residual: Vec<f32> = (0..rows * k).map(|_| 3.0 * random.float()).collect();
        let weight: Vec<f32> = (0..k).map(|_| 1.0 + 0.1 * random.float()).collect();
        let (all, weight_buffer) = (upload(&gpu, bytemuck::cast_slice(&residual)), upload(&gpu, bytemuck::cast_slice(&weight)));
        let from = |residual| Normed { residual: Binding::whole(residual), weight: Binding::whole(&weight_buffer), norm };
        let to = upload(&gpu, &vec![0xff; rows * padded_len(k) * 2]);
        let count = upload(&gpu, &(rows as u32).to_le_bytes());
        gpu.run(&[norm_rows(&gpu, k, from(&all), (rows, Binding::whole(&count)), Binding::whole(&to)).unwrap()]).unwrap();
        let mut halves = vec![f16::ZERO; rows * padded_len(k)];
        gpu.read(&to, 0, bytemuck::cast_slice_mut(&mut halves)).unwrap();
        let (cpu, mut want) = (Cpu::new(1, Simd::detect(), Arithmetic::Exact), vec![0.0; k]);
        for (row, halves) in halves.chunks(padded_len(k)).enumerate() {
            cpu.rms_norm(&residual[row * k..][..k], &weight, norm.eps, &mut want);
            let near = |(got, want): (&f16, &f32)| (got.to_f32() - want).abs() <= want.abs() / 1900.0 + 1e-7;
            assert!(halves.iter().zip(&want).all(near), "row {row} of {k}");
            assert!(halves[k..].iter().all(|x| x.to_bits() == 0), "padding of {k}");
        }
        let stored = [0, 1].map(|_| random_rows_of(&mut random, if k % 32 == 0 { DType::Q4_0 } else { DType::BF16 }, n, k));
        let sources = stored.each_ref();
        let sources = if matches!(kind, Kind::Gated(_)) { &sources[..] } else { &sources[..1] };
        let (mut trial, _) = trial_of(&gpu, sources, kind, rows);
        trial.x = halves;
        let alone = upload(&gpu, bytemuck::cast_slice(&residual[..k]));
        let fused = trial.run_input(1, None, Input::Normed(from(&alone)));
        let apart = trial.run(0, 1, None);
        let among = trial.run(0, rows, Some(rows));
        let bits = |x: &[f32]| x[..trial.stride()].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&apart), bits(&among), "{k} {kind:?}: alone and among");
        assert_eq!(bits(&fused), bits(&apart), "{k} {kind:?}: fused and apart");
    }
}

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn what_does_not_fit_is_refused() {
    let gpu = cooperative();
    let stored = random_rows_of(&mut Random(1), DType::F16, 32, 64);
    let matrix = TileMatrix::upload(&gpu, &mut Staging::default(), &[&stored], Arrange::Stacked).unwrap();
    let (short, long) = (gpu.buffer("short", 64).unwrap(), gpu.buffer("long", 4096).unwrap());
    let (short, long) = (Binding::whole(&short), Binding::whole(&long));
    let norm = Norm { eps: 1e-5 };
    let many = |most| Rows::Many(Many { most, count: long, scratch: long });
    let normed = Input::Normed(Normed { residual: long, weight: long, norm });
    for (rows, input, output, why) in [
        (Rows::One, Input::Halves(short), Output::Store(long), "the rows"),
        (Rows::One, Input::Halves(long), Output::Store(short), "the output"),
        (Rows::One, Input::Halves(long), Output::Gated(long, Activation::Silu), "interleaved"),
        (Rows::One, Input::Normed(Normed { residual: short, weight: long, norm }), Output::Store(long), "the residual"),
        (many(2), normed, Output::Store(long), "a kernel of their own"),
        (many(0), Input::Halves(long), Output::Store(long), "at least one row"),
    ] {
        let error = matrix.product(&gpu, rows, input, output).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}
