//! The text of the attention kernels through naga's validator, and on a device attention against f64 and against itself.

use super::attend_text::{Attend, Turn, rope_store_text};
use super::tests::{Random, cooperative, upload, validate};
use super::*;
use crate::gpu::{Binding, Dispatch, Gpu, GpuError, Heads, Pairs, Scores};
use half::f16;

const SHAPES: [(u32, u32, u32); 10] =
    [(9, 3, 64), (32, 8, 64), (4, 1, 256), (24, 8, 128), (16, 1, 256), (8, 8, 80), (16, 1, 48), (14, 2, 96), (4, 4, 96), (2, 1, 16)];

/// Ways to rotate heads: whether pairs stand side by side, how many of 8 are not turned, and whether they are normed and added to.
#[derive(Clone, Copy, Debug)]
struct Manner {
    interleaved: bool,
    unturned_of_8: u32,
    normed: bool,
    biased: bool,
}

const fn turned(interleaved: bool, unturned_of_8: u32, normed: bool, biased: bool) -> Manner {
    Manner { interleaved, unturned_of_8, normed, biased }
}

const MANNERS: [Manner; 6] = [
    turned(false, 0, false, false),
    turned(true, 0, true, false),
    turned(false, 0, true, false),
    turned(false, 2, false, false),
    turned(false, 0, false, true),
    turned(true, 5, true, true),
];

impl Manner {
    fn pairs(self, head_dim: u32) -> Pairs {
        Pairs { turned: head_dim / 2 - head_dim / 16 * self.unturned_of_8, interleaved: self.interleaved }
    }
}

#[test]
fn attention_kernels_are_valid() {
    for ((heads, kv_heads, head_dim), (window, softcap)) in SHAPES.into_iter().flat_map(|s| [(s, (0, None)), (s, (100, Some(50.0)))]) {
        let shape = Attend { heads, kv_heads, head_dim, scale: 0.125, softcap, window };
        let name = format!("{shape:?}");
        validate(&name, &shape.runs_text());
        validate(&name, &shape.ones_text());
        validate(&name, &shape.join_text(true));
        validate(&name, &shape.join_text(false));
        for manner in MANNERS {
            let (pairs, norm) = (manner.pairs(head_dim), manner.normed.then_some(Norm { eps: 1e-6 }));
            let turn = Turn { pairs, norm, biased: manner.biased };
            validate(&name, &rope_store_text(&shape, turn));
            if shape.fuses() {
                validate(&name, &shape.fused_text(turn));
                validate(&name, &shape.short_text(turn));
            }
        }
    }
}

/// What a model has none of costs nothing: neither tests nor constants of it are in its kernels.
#[test]
fn kernels_hold_nothing_that_a_model_lacks() {
    let plain = Attend { heads: 8, kv_heads: 2, head_dim: 64, scale: 0.125, softcap: None, window: 0 };
    let capped = Attend { softcap: Some(50.0), ..plain };
    let manner = |manner: Manner| Turn { pairs: manner.pairs(64), norm: None, biased: manner.biased };
    let texts = |shape: &Attend, turn: Turn| [shape.runs_text(), shape.ones_text(), shape.fused_text(turn), rope_store_text(shape, turn)];
    for text in texts(&plain, manner(MANNERS[0])) {
        assert!(!["capped", "bias", "|| i0_0", "i0_0 <"].iter().any(|part| text.contains(part)), "{text}");
    }
    assert!(
        texts(&capped, manner(MANNERS[0]))[..3].iter().all(|text| text.contains("= capped(sc[own") || text.contains(", capped(sc[own"))
    );
    assert!(texts(&plain, manner(MANNERS[3]))[2..].iter().all(|text| text.contains("|| i0_0 >= 24u")));
    assert!(texts(&plain, manner(MANNERS[4]))[2..].iter().all(|text| text.contains("+ bias[head0 * 64u")));
}

#[test]
fn attentions_that_do_not_fit_are_refused() {
    let heads = |heads, kv_heads, head_dim| Heads { heads, kv_heads, head_dim };
    for (heads, scale, window, why) in [
        (heads(9, 2, 64), 0.1, None, "shared out"),
        (heads(9, 0, 64), 0.1, None, "shared out"),
        (heads(0, 3, 64), 0.1, None, "shared out"),
        (heads(34, 2, 64), 0.1, None, "17 query heads"),
        (heads(8, 2, 72), 0.1, None, "72 elements"),
        (heads(8, 2, 0), 0.1, None, "0 elements"),
        (heads(8, 2, 272), 0.1, None, "272 elements"),
        (heads(8, 2, 64), 0.0, None, "above zero"),
        (heads(8, 2, 64), f32::NAN, None, "above zero"),
        (heads(8, 2, 64), 0.1, Some(0), "above zero"),
    ] {
        let error = TileAttention::new(heads, Scores { scale, softcap: None, window }).unwrap_err();
        assert!(matches!(&error, GpuError::BadShape { .. }) && error.to_string().contains(why), "{error}");
    }
    for cap in [0.0, -50.0, f32::NAN, f32::INFINITY] {
        let error = TileAttention::new(heads(8, 2, 64), Scores { scale: 0.1, softcap: Some(cap), window: None }).unwrap_err();
        assert!(error.to_string().contains("a cap of"), "{error}");
    }
}

/// Scores of everything, without a cap.
const SCORES: Scores = Scores { scale: 0.1, softcap: None, window: None };

#[test]
fn attentions_that_leave_no_room_do_not_fuse() {
    let fuses = |(heads, kv_heads, head_dim)| {
        let attention = TileAttention::new(Heads { heads, kv_heads, head_dim }, SCORES).unwrap();
        attention.fuses().then(|| attention.short_blocks())
    };
    let shapes = [(32, 8, 64), (24, 8, 128), (4, 1, 256), (9, 1, 256)];
    assert_eq!(shapes.map(fuses), [Some(3), Some(2), Some(1), None]);
}

/// Bytes around every output, and what they and padding hold.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
/// How far an output may be from f64, as a share of the sum of its terms' magnitudes: probabilities and outputs are rounded to f16.
const TOLERANCE: f64 = 1.2e-3;

/// Sessions in scattered slots, and rows of them.
struct Scene {
    attention: TileAttention,
    /// Slots of each session, in order.
    tables: Vec<Vec<usize>>,
    /// Session and position of each row.
    rows: Vec<(usize, usize)>,
    /// (row, head, head_dim)
    q: Vec<f16>,
    /// (slot, k or v, kv_head, token, head_dim)
    kv: Vec<f16>,
}

impl Scene {
    /// Each session is (first position, number) of its rows. Slots that nobody has hold NaN, tokens after the last row large numbers.
    fn new(random: &mut Random, heads: Heads, (window, softcap): (Option<u32>, Option<f32>), sessions: &[(usize, usize)]) -> Scene {
        let scores = Scores { scale: 1.0 / (heads.head_dim as f32).sqrt(), softcap, window };
        let attention = TileAttention::new(heads, scores).unwrap();
        let used: usize = sessions.iter().map(|(first, rows)| (first + rows).div_ceil(64)).sum();
        let mut free: Vec<usize> = (0..used + 3).collect();
        let slot_len = attention.slot_bytes() / 2;
        let mut kv = vec![f16::NAN; (used + 3) * slot_len];
        let mut tables = Vec::new();
        for (first, rows) in sessions {
            let take = |_| free.swap_remove(random.next() as usize % free.len());
            let table: Vec<usize> = (0..(first + rows).div_ceil(64)).map(take).collect();
            for (block, slot) in table.iter().enumerate() {
                for (i, x) in kv[slot * slot_len..][..slot_len].iter_mut().enumerate() {
                    let token = block * 64 + i / heads.head_dim as usize % 64;
                    let size = if i < slot_len / 2 { 2.0 } else { 1.0 };
                    *x = f16::from_f32(if token < first + rows { size * random.float() } else { 1e4 });
                }
            }
            tables.push(table);
        }
        let rows: Vec<_> = sessions.iter().enumerate().flat_map(|(s, (first, n))| (0..*n).map(move |i| (s, first + i))).collect();
        let q = (0..rows.len() * attention.row_len()).map(|_| f16::from_f32(3.0 * random.float())).collect();
        Scene { attention, tables, rows, q, kv }
    }

    fn places(&self) -> Vec<u32> {
        let mut starts = vec![1 + 2 * self.rows.len()];
        self.tables.iter().for_each(|table| starts.push(starts.last().unwrap() + table.len()));
        let rows = self.rows.iter().flat_map(|(session, position)| [*position as u32, starts[*session] as u32]);
        let tables = self.tables.iter().flatten().map(|slot| *slot as u32);
        std::iter::once(self.rows.len() as u32).chain(rows).chain(tables).collect()
    }

    /// The rows as runs of random lengths up to `most`.
    fn runs(&self, random: &mut Random, most: usize) -> Vec<u32> {
        let (mut runs, mut row) = (vec![0], 0);
        while row < self.rows.len() {
            let left = self.rows[row..].iter().take_while(|(session, _)| *session == self.rows[row].0).count();
            let rows = if most == RUN_ROWS_MAX { most } else { 1 + random.next() as usize % most };
            runs.extend([row as u32, rows.min(left) as u32]);
            row += rows.min(left);
            runs[0] += 1;
        }
        runs
    }

    /// One output in f64, and the sum of its terms' magnitudes.
    fn reference(&self, row: usize, head: usize) -> Vec<(f64, f64)> {
        let Attend { heads, kv_heads, head_dim, scale, softcap, window } = self.attention.shape;
        let (d, (session, position)) = (head_dim as usize, self.rows[row]);
        let start = if window == 0 { 0 } else { (position + 1).saturating_sub(window as usize) };
        let kv_head = head / (heads / kv_heads) as usize;
        let at = |token: usize, side: usize| {
            let slot = self.tables[session][token / 64];
            &self.kv[(((slot * 2 + side) * kv_heads as usize + kv_head) * 64 + token % 64) * d..][..d]
        };
        let q = &self.q[(row * heads as usize + head) * d..][..d];
        let dot = |k: &[f16]| q.iter().zip(k).map(|(q, k)| q.to_f64() * k.to_f64()).sum::<f64>() * f64::from(scale);
        let capped = |s: f64| softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh());
        let scores: Vec<f64> = (start..=position).map(|token| capped(dot(at(token, 0)))).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        let mut out = vec![(0.0, 0.0); d];
        for (token, score) in (start..).zip(&scores) {
            let p = (score - most).exp() / sum;
            for (out, v) in out.iter_mut().zip(at(token, 1)) {
                *out = (out.0 + p * v.to_f64(), out.1 + (p * v.to_f64()).abs());
            }
        }
        out
    }
}

/// What a scene needs on the device.
struct Staged<'a> {
    gpu: &'a Gpu,
    scene: &'a Scene,
    q: wgpu::Buffer,
    kv: wgpu::Buffer,
    places: wgpu::Buffer,
}

impl<'a> Staged<'a> {
    fn new(gpu: &'a Gpu, scene: &'a Scene) -> Staged<'a> {
        let bytes = |halves: &[f16]| upload(gpu, bytemuck::cast_slice(halves));
        Staged { gpu, scene, q: bytes(&scene.q), kv: bytes(&scene.kv), places: upload(gpu, bytemuck::cast_slice(&scene.places())) }
    }

    fn attended(&self) -> Attended<'_> {
        Attended { q: Binding::whole(&self.q), kv: Binding::whole(&self.kv), places: Binding::whole(&self.places) }
    }

    /// Runs what `dispatches` makes for an output between guards, and gives its bits, padding left out: (row, heads * head_dim).
    fn outputs(&self, dispatches: impl FnOnce(Binding<'_>) -> Vec<Dispatch>) -> Vec<u16> {
        let bytes = self.scene.attention.out_bytes(self.scene.rows.len());
        let out = upload(self.gpu, &vec![GUARD_BYTE; bytes + 2 * GUARD]);
        self.gpu.run(&dispatches(Binding { buffer: &out, offset_bytes: GUARD as u64, bytes: bytes as u64 })).unwrap();
        let mut after = vec![0; bytes + 2 * GUARD];
        self.gpu.read(&out, 0, &mut after).unwrap();
        let untouched = |bytes: &[u8]| bytes.iter().all(|b| *b == GUARD_BYTE);
        assert!(untouched(&after[..GUARD]) && untouched(&after[GUARD + bytes..]), "bytes around the output were written");
        let len = self.scene.attention.row_len();
        let rows = after[GUARD..GUARD + bytes].chunks(2 * padded_len(len));
        rows.flat_map(|row| {
            assert!(untouched(&row[2 * len..]), "padding was written");
            row[..2 * len].as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>()
        })
        .collect()
    }

    fn runs(&self, runs: &[u32]) -> Vec<u16> {
        let buffer = upload(self.gpu, bytemuck::cast_slice(runs));
        self.outputs(|out| {
            let mut dispatch = self.scene.attention.runs(self.gpu, self.attended(), Binding::whole(&buffer), out).unwrap();
            // One workgroup too many has nothing to do.
            dispatch.workgroups[0] = runs[0] + 1;
            vec![dispatch]
        })
    }

    fn ones(&self) -> Vec<u16> {
        let (attention, rows) = (&self.scene.attention, self.scene.rows.len());
        let ones: Vec<u32> = std::iter::once(rows as u32).chain((0..rows as u32).rev()).collect();
        let blocks = self.scene.rows.iter().map(|(_, position)| attention.blocks(*position)).max().unwrap();
        let scratch = self.gpu.buffer("scratch", attention.scratch_bytes(rows, blocks)).unwrap();
        let buffer = upload(self.gpu, bytemuck::cast_slice(&ones));
        self.outputs(|out| {
            let (which, scratch) = (Binding::whole(&buffer), Binding::whole(&scratch));
            let mut dispatches = attention.ones(self.gpu, self.attended(), which, scratch, out).unwrap();
            (dispatches[0].workgroups[0], dispatches[0].workgroups[2]) = (blocks as u32 + 1, rows as u32 + 1);
            dispatches[1].workgroups[1] = rows as u32 + 1;
            dispatches.to_vec()
        })
    }
}

/// What rotation takes, random.
struct Heads32 {
    qkv: wgpu::Buffer,
    rotations: wgpu::Buffer,
    norms: [wgpu::Buffer; 2],
    bias: wgpu::Buffer,
}

impl Heads32 {
    fn new(gpu: &Gpu, random: &mut Random, scene: &Scene) -> Heads32 {
        let Attend { heads, kv_heads, head_dim, .. } = scene.attention.shape;
        let positions = scene.rows.iter().map(|(_, position)| position + 1).max().unwrap_or(1);
        let mut floats = |n: usize, size: f32| {
            let floats: Vec<f32> = (0..n * head_dim as usize).map(|_| size * random.float()).collect();
            upload(gpu, bytemuck::cast_slice(&floats))
        };
        let qkv = floats(scene.rows.len() * (heads + 2 * kv_heads) as usize, 4.0);
        let bias = floats((heads + 2 * kv_heads) as usize, 4.0);
        Heads32 { qkv, rotations: floats(positions, 1.0), norms: [floats(1, 2.0), floats(1, 2.0)], bias }
    }

    fn rotation(&self, manner: Manner, head_dim: u32) -> Rotation<'_> {
        let [q, k] = self.norms.each_ref().map(Binding::whole);
        let norms = manner.normed.then_some(HeadNorms { q, k, norm: Norm { eps: 1e-6 } });
        let bias = manner.biased.then_some(Binding::whole(&self.bias));
        let (qkv, rotations) = (Binding::whole(&self.qkv), Binding::whole(&self.rotations));
        Rotation { qkv, rotations, pairs: manner.pairs(head_dim), norms, bias }
    }
}

/// Ways to rotate, store and attend to rows that are alone.
#[derive(Clone, Copy, Debug)]
enum Way {
    Apart,
    Fused,
    Short,
}

impl Staged<'_> {
    /// The outputs and the slots after a step whose rows are all alone.
    fn step(&self, way: Way, rotation: Rotation<'_>) -> (Vec<u16>, Vec<u16>) {
        let (gpu, attention, rows) = (self.gpu, &self.scene.attention, self.scene.rows.len() as u32);
        let blocks = self.scene.rows.iter().map(|(_, position)| attention.blocks(*position)).max().unwrap();
        gpu.queue().write_buffer(&self.kv, 0, bytemuck::cast_slice(&self.scene.kv));
        let scratch = gpu.buffer("scratch", attention.scratch_bytes(rows as usize, blocks)).unwrap();
        let ones = upload(gpu, bytemuck::cast_slice(&std::iter::once(rows).chain(0..rows).collect::<Vec<_>>()));
        let Attended { q, kv, places } = self.attended();
        let (fused, scratch) = (Fused { rotation, kv, places }, Binding::whole(&scratch));
        let sized = |mut both: [Dispatch; 2]| {
            (both[0].workgroups[0], both[0].workgroups[2], both[1].workgroups[1]) = (blocks as u32 + 1, rows, rows);
            both.to_vec()
        };
        let out = self.outputs(|out| match way {
            Way::Apart => {
                let mut all = vec![attention.rope_store(gpu, rows as usize, rotation, places, (q, kv)).unwrap()];
                all.extend(sized(attention.ones(gpu, self.attended(), Binding::whole(&ones), scratch, out).unwrap()));
                all
            }
            Way::Fused => sized(attention.fused_ones(gpu, fused, scratch, out).unwrap()),
            Way::Short => {
                let mut dispatch = attention.short_ones(gpu, fused, out).unwrap();
                dispatch.workgroups[2] = rows;
                vec![dispatch]
            }
        });
        let mut after = vec![0; self.scene.kv.len()];
        gpu.read(&self.kv, 0, bytemuck::cast_slice_mut(&mut after)).unwrap();
        (out, after)
    }
}

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn attend_fused_has_the_same_bits() {
    let gpu = cooperative();
    let mut random = Random(31);
    for (i, (heads, kv_heads, head_dim)) in SHAPES.into_iter().enumerate() {
        for (j, (window, few)) in [(None, false), (Some(100), false), (None, true), (Some(1), true)].into_iter().enumerate() {
            let (manner, softcap) = (MANNERS[(i + j) % MANNERS.len()], [None, Some(1.5)][(i + j) % 2]);
            let heads = Heads { heads, kv_heads, head_dim };
            let some = |window| TileAttention::new(heads, Scores { window, ..SCORES }).unwrap();
            // Positions at the edges of blocks, as far as a short attention goes or further.
            let most = if few && window.is_none() { 64 * some(window).short_blocks() } else { 3000 };
            let firsts = [0, 1, 63, 64, 127, 128, 130, 191, 64 * 5, random.next() as usize % 3000].map(|first| (first.min(most - 1), 1));
            let scene = Scene::new(&mut random, heads, (window, softcap), &firsts);
            if !scene.attention.fuses() {
                continue;
            }
            let (staged, inputs) = (Staged::new(&gpu, &scene), Heads32::new(&gpu, &mut random, &scene));
            let rotation = inputs.rotation(manner, head_dim);
            let want = staged.step(Way::Apart, rotation);
            assert_ne!(want.1, bytemuck::cast_slice::<f16, u16>(&scene.kv), "nothing was stored");
            let ways = if few { &[Way::Fused, Way::Short][..] } else { &[Way::Fused] };
            for way in ways {
                let got = staged.step(*way, rotation);
                for (what, got, want) in [("outputs", &got.0, &want.0), ("slots", &got.1, &want.1)] {
                    let at: Vec<usize> = (0..want.len()).filter(|i| got[*i] != want[*i]).collect();
                    let (shape, first) = (scene.attention.shape, at.first());
                    assert!(at.is_empty(), "{shape:?} {manner:?} {way:?}: {} {what} differ, first {first:?}", at.len());
                }
            }
        }
    }
}

fn assert_right(name: &str, scene: &Scene, got: &[u16]) {
    let Attend { heads, head_dim, .. } = scene.attention.shape;
    let (heads, d) = (heads as usize, head_dim as usize);
    for (row, head) in (0..scene.rows.len()).step_by(3).map(|row| (row, row % heads)) {
        let got = &got[(row * heads + head) * d..][..d];
        for (i, ((want, size), got)) in scene.reference(row, head).into_iter().zip(got).enumerate() {
            let got = f16::from_bits(*got).to_f64();
            let near = (got - want).abs() <= TOLERANCE * size + 1e-4;
            assert!(near, "{name}, row {row} {:?}, head {head}, element {i}: {got} for {want}", scene.rows[row]);
        }
    }
}

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn attend_is_right_in_runs_and_alone() {
    let gpu = cooperative();
    let mut random = Random(23);
    for (heads, kv_heads, head_dim) in SHAPES {
        for (window, softcap) in [(None, None), (Some(1), None), (Some(100), Some(1.5)), (Some(512), None), (None, Some(0.7))] {
            let mut some = |most: u64| random.next() as usize % most as usize;
            let sessions = [(0, 1 + some(40)), (some(3000), 1 + some(40)), (some(200), 7), (40 + some(24), 30), (some(1000), 1)];
            let scene = Scene::new(&mut random, Heads { heads, kv_heads, head_dim }, (window, softcap), &sessions);
            let name = format!("{:?} {sessions:?}", scene.attention.shape);
            let staged = Staged::new(&gpu, &scene);
            let whole = staged.runs(&scene.runs(&mut random, RUN_ROWS_MAX));
            assert_right(&name, &scene, &whole);
            let ragged = staged.runs(&scene.runs(&mut random, 5));
            let others = [("ragged runs", ragged), ("ones", staged.ones())];
            for (other, got) in others {
                let differ = got.iter().zip(&whole).filter(|(a, b)| a != b).count();
                assert_eq!(differ, 0, "{name}, {other}: {differ} of {} differ", got.len());
            }
        }
    }
}

/// Rotation by f64: queries, keys and values as they should be stored, each (row, head, head_dim).
fn rotated(
    shape: &Attend,
    (qkv, positions): (&[f32], &[usize]),
    rotations: &[f32],
    pairs: Pairs,
    norms: Option<(&[f32], &[f32])>,
    bias: Option<&[f32]>,
) -> Vec<f64> {
    let (d, all) = (shape.head_dim as usize, (shape.heads + 2 * shape.kv_heads) as usize);
    let mut out = Vec::new();
    for (at, head) in qkv.chunks(d).enumerate() {
        let (position, which) = (positions[at / all], at % all);
        let added = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[which * d + i]));
        let mut x: Vec<f64> = head.iter().enumerate().map(|(i, x)| f64::from(*x) + added(i)).collect();
        if which >= (shape.heads + shape.kv_heads) as usize {
            out.extend(x);
            continue;
        }
        if let Some((q, k)) = norms {
            let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + 1e-6).sqrt();
            let weights = if which < shape.heads as usize { q } else { k };
            x.iter_mut().zip(weights).for_each(|(x, w)| *x *= factor * f64::from(*w));
        }
        let turned = pairs.turned as usize;
        let pair = |i: usize| if pairs.interleaved { (x[2 * i], x[2 * i + 1]) } else { (x[i], x[i + turned]) };
        let turn = |i: usize| (f64::from(rotations[position * d + i]), f64::from(rotations[position * d + d / 2 + i]));
        out.extend((0..turned).map(|i| pair(i).0 * turn(i).0 - pair(i).1 * turn(i).1));
        out.extend((0..turned).map(|i| pair(i).0 * turn(i).1 + pair(i).1 * turn(i).0));
        out.extend(&x[2 * turned..]);
    }
    out.into_iter().map(|x| x.clamp(-65504.0, 65504.0)).collect()
}

/// More than the scene of the rotation has.
const POSITIONS: usize = 256;

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn attend_rotates_and_stores() {
    let gpu = cooperative();
    let mut random = Random(29);
    for ((heads, kv_heads, head_dim), manner) in SHAPES.into_iter().flat_map(|s| MANNERS.map(|how| (s, how))) {
        let scene = Scene::new(&mut random, Heads { heads, kv_heads, head_dim }, (None, None), &[(70, 5), (0, 9), (127, 2)]);
        let (attention, shape, rows, d) = (scene.attention, scene.attention.shape, scene.rows.len(), head_dim as usize);
        let all = (heads + 2 * kv_heads) as usize;
        let mut floats = |n: usize, size: f32| (0..n).map(|_| size * random.float()).collect::<Vec<_>>();
        let (mut qkv, rotations) = (floats(rows * all * d, 4.0), floats(POSITIONS * d, 1.0));
        qkv[all * d - 1] = 1e6;
        let (q_norm, k_norm, bias) = (floats(d, 2.0), floats(d, 2.0), floats(all * d, 4.0));
        let buffers = [&qkv, &rotations, &q_norm, &k_norm, &bias].map(|x| upload(&gpu, bytemuck::cast_slice(x)));
        let places = upload(&gpu, bytemuck::cast_slice(&scene.places()));
        let q = upload(&gpu, &vec![GUARD_BYTE; attention.q_bytes(rows + 1)]);
        let kv = upload(&gpu, &vec![GUARD_BYTE; 2 * scene.kv.len()]);
        let [qkv_all, rotations_all, q_weights, k_weights, bias_all] = buffers.each_ref().map(Binding::whole);
        let norms = manner.normed.then_some(HeadNorms { q: q_weights, k: k_weights, norm: Norm { eps: 1e-6 } });
        let (pairs, added) = (manner.pairs(head_dim), manner.biased.then_some(bias_all));
        let from = Rotation { qkv: qkv_all, rotations: rotations_all, pairs, norms, bias: added };
        let to = (Binding::whole(&q), Binding::whole(&kv));
        let mut dispatch = attention.rope_store(&gpu, rows, from, Binding::whole(&places), to).unwrap();
        dispatch.workgroups[1] += 1;
        gpu.run(&[dispatch]).unwrap();
        let guard = f16::from_bits(u16::from_le_bytes([GUARD_BYTE; 2])).to_f64();
        let (mut want_q, mut want_kv) = (vec![guard; attention.q_bytes(rows + 1) / 2], vec![guard; scene.kv.len()]);
        let positions: Vec<usize> = scene.rows.iter().map(|(_, position)| *position).collect();
        let norms = manner.normed.then_some((&q_norm[..], &k_norm[..]));
        let want = rotated(&shape, (&qkv, &positions), &rotations, pairs, norms, manner.biased.then_some(&bias));
        for (at, head) in want.chunks(d).enumerate() {
            let (row, which, (heads, kv_heads)) = (at / all, at % all, (heads as usize, kv_heads as usize));
            if which < heads {
                want_q[(row * heads + which) * d..][..d].copy_from_slice(head);
                continue;
            }
            let (session, position) = scene.rows[row];
            let (side, kv_head) = ((which - heads) / kv_heads, (which - heads) % kv_heads);
            let slot = scene.tables[session][position / 64];
            want_kv[(((slot * 2 + side) * kv_heads + kv_head) * 64 + position % 64) * d..][..d].copy_from_slice(head);
        }
        for (name, buffer, want) in [("q", &q, want_q), ("kv", &kv, want_kv)] {
            let mut got = vec![f16::ZERO; want.len()];
            gpu.read(buffer, 0, bytemuck::cast_slice_mut(&mut got)).unwrap();
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let near = (got.to_f64() - want).abs() <= want.abs() / 1900.0 + 1e-5;
                assert!(near, "{shape:?} {manner:?}: {name} {i}: {got} for {want}");
            }
        }
    }
}
