//! Packing on the CPU, the text of all kernels through naga's validator, and on a device every product against f64 and against itself.

use super::pack::CHUNK;
use super::product::{many_rows_kernel, tuning};
use super::text::{Epilogue, Weights};
use super::*;
use crate::dequantise_row;
use crate::gpu::{Binding, Gpu, GpuError};
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
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// A matrix in memory: GGML's rows, or MLX's three parts.
enum Stored {
    Rows(View),
    Mlx { n: usize, k: usize, words: Vec<u8>, scales: Vec<u8>, biases: Vec<u8>, float: DType },
}

impl Stored {
    fn rows(random: &mut Random, dtype: DType, n: usize, k: usize) -> Stored {
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
                _ => half(208, x / 4096.0),
            }
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let region = Arc::new(Region::map_file(&file).unwrap());
        Stored::Rows(View::new(&region, 0, dtype, Shape::new(&[n, k]).unwrap()).unwrap())
    }

    fn mlx(random: &mut Random, float: DType, n: usize, k: usize) -> Stored {
        let words = (0..n * k / 2).map(|_| random.next() as u8).collect();
        let mut floats = |centre: f32| -> Vec<u8> {
            let bits = |x: f32| if float == DType::F16 { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() };
            (0..n * k / 64).flat_map(|_| bits(centre + 0.02 * random.float()).to_le_bytes()).collect()
        };
        let (scales, biases) = (floats(0.07), floats(-0.5));
        Stored::Mlx { n, k, words, scales, biases, float }
    }

    fn source(&self) -> TileSource<'_> {
        match self {
            Stored::Rows(view) => TileSource::Rows(view),
            Stored::Mlx { n, k, words, scales, biases, float } => {
                TileSource::Mlx4(Mlx4 { n: *n, k: *k, words, scales, biases, float: *float })
            }
        }
    }

    /// A row as floats.
    fn row(&self, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.source().k()];
        match self {
            Stored::Rows(view) => dequantise_row(view.dtype(), view.row(row), &mut out),
            Stored::Mlx { k, words, scales, biases, float, .. } => {
                let float = |parts: &[u8], at: usize| match float {
                    DType::F16 => f16::from_le_bytes([parts[2 * at], parts[2 * at + 1]]).to_f32(),
                    _ => bf16::from_le_bytes([parts[2 * at], parts[2 * at + 1]]).to_f32(),
                };
                for (i, x) in out.iter_mut().enumerate() {
                    let (nibble, group) = (words[(row * k + i) / 2] >> (i % 2 * 4) & 15, (row * k + i) / 64);
                    *x = f32::from(nibble) * float(scales, group) + float(biases, group);
                }
            }
        }
        out
    }
}

/// A matrix of every stored format, a name beside it.
fn every_format(n: usize, blocks: usize) -> Vec<(String, Stored)> {
    let mut random = Random(7);
    let mut all: Vec<_> = BLOCKS
        .iter()
        .map(|dtype| {
            (
                dtype.to_string(),
                Stored::rows(
                    &mut random,
                    *dtype,
                    n,
                    if dtype.is_quantised() {
                        blocks * 32 / 256 * 256 + if dtype.block_len() == 32 { 32 } else { 0 }
                    } else {
                        blocks * 32 + 5
                    },
                ),
            )
        })
        .collect();
    for float in [DType::F16, DType::BF16] {
        all.push((format!("MLX with {float}"), Stored::mlx(&mut random, float, n, (blocks / 2).max(1) * 64)));
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
    for (name, stored) in every_format(37, 20) {
        let sources = [stored.source()];
        let packing = Packing::new(&sources, Arrange::Stacked).unwrap();
        assert_packed(&name, &packing, |row| (row < 37).then(|| stored.row(row)));
    }
}

#[test]
fn exact_formats_lose_nothing() {
    let mut random = Random(3);
    for dtype in [DType::F16, DType::Q4_0, DType::Q8_0, DType::Q5_0] {
        let stored = Stored::rows(&mut random, dtype, 16, 256);
        let sources = [stored.source()];
        let packing = Packing::new(&sources, Arrange::Stacked).unwrap();
        for (row, got) in unpack(&packing).into_iter().enumerate() {
            let want: Vec<f32> = stored.row(row).into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
            assert_eq!(got, want, "{dtype} row {row}");
        }
    }
}

#[test]
fn matrices_are_stacked_and_interleaved() {
    let mut random = Random(5);
    let parts = [(DType::Q4_0, 21), (DType::Q6_K, 16), (DType::Q4_K, 7)].map(|(d, n)| Stored::rows(&mut random, d, n, 256));
    let sources = [parts[0].source(), parts[1].source(), parts[2].source()];
    let packing = Packing::new(&sources, Arrange::Stacked).unwrap();
    assert_eq!((packing.format(), packing.n(), packing.tiles()), (TileFormat::Q8, 44, 3));
    assert_packed("stacked", &packing, |row| {
        let (part, row) =
            [(0, row), (1, row.wrapping_sub(21)), (2, row.wrapping_sub(37))].into_iter().find(|(i, r)| *r < [21, 16, 7][*i])?;
        Some(parts[part].row(row))
    });
    let pair = [DType::BF16, DType::Q4_1].map(|d| Stored::rows(&mut random, d, 23, 96));
    let sources = [pair[0].source(), pair[1].source()];
    let packing = Packing::new(&sources, Arrange::Interleaved).unwrap();
    assert_eq!((packing.format(), packing.n(), packing.tiles()), (TileFormat::F16, 23, 4));
    assert_packed("interleaved", &packing, |row| {
        let inner = row / 32 * 16 + row % 16;
        (inner < 23).then(|| pair[row / 16 % 2].row(inner))
    });
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let mut random = Random(5);
    let [a, b, c] = [(8, 64), (9, 64), (8, 96)].map(|(n, k)| Stored::rows(&mut random, DType::F16, n, k));
    let refused = |sources: &[TileSource<'_>], arrange: Arrange, why: &str| {
        let error = Packing::new(sources, arrange).unwrap_err();
        assert!(matches!(&error, GpuError::BadShape { .. }) && error.to_string().contains(why), "{error}");
    };
    refused(&[], Arrange::Stacked, "there are none");
    refused(&[a.source(), c.source()], Arrange::Stacked, "different lengths");
    refused(&[a.source(), b.source()], Arrange::Interleaved, "its own shape");
    refused(&[a.source()], Arrange::Interleaved, "its own shape");
    let short = Mlx4 { n: 2, k: 64, words: &[0; 64], scales: &[0; 4], biases: &[0; 2], float: DType::BF16 };
    refused(&[TileSource::Mlx4(short)], Arrange::Stacked, "other lengths");
    refused(&[TileSource::Mlx4(Mlx4 { biases: &[0; 4], float: DType::F32, ..short })], Arrange::Stacked, "types");
    let integers = Stored::rows(&mut random, DType::U32, 2, 64);
    refused(&[integers.source()], Arrange::Stacked, "integers");
}

/// Parses and validates a kernel, as a device with everything would.
fn validate(name: &str, text: &str) {
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
