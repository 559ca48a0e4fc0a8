//! On the GPU, too, every family answers as transformers does, results do not depend on company, and a session moves between devices.
//!
//! Where the GPU multiplies tiles, `cargo test -p driftwood-engine --test gpu -- --include-ignored` runs the families on tiles, too, and
//! `cargo test -p driftwood-compute --lib gpu -- --include-ignored` their kernels.

#[path = "common/expected.rs"]
mod expected;
#[path = "common/models.rs"]
mod models;

use driftwood_compute::gpu::Gpu;
use driftwood_compute::{Arithmetic, Cpu, KvDType, Simd};
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{
    Batch, Device, Logits, Model, RestoredBlock, RestoredSession, Sampler, SamplerParams, Session, SessionOptions, Work,
};
use expected::{CONTEXT_TOKENS, Expected, LOGIT_TOLERANCE, rows};
use std::sync::{Arc, LazyLock};

/// One model for all tests of this file: kernels are compiled once.
static SMOLLM2: LazyLock<Arc<Model>> = LazyLock::new(|| models::open_gpu(models::SMOLLM2, Arithmetic::Fast));

fn prose(count: usize) -> Vec<u32> {
    let mut tokens = SMOLLM2.tokenizer().encode(&models::golden("prose.txt"), Special { add: true, parse: false });
    tokens.truncate(count);
    tokens
}

fn open_session(model: &Arc<Model>, kv: KvDType) -> Session {
    Session::open(model, SessionOptions { kv, context_max: 512 }).unwrap()
}

fn logits_of(batch: &mut Batch, session: &mut Session) -> Vec<f32> {
    let mut logits = vec![f32::NAN; session.model().config().vocabulary];
    batch.step(&mut [Work::new(session, Logits::Last(&mut logits))]).unwrap();
    assert!(logits.iter().all(|l| l.is_finite()));
    logits
}

fn evaluated(batch: &mut Batch, kv: KvDType, tokens: &[u32], chunk: usize) -> (Session, Vec<f32>) {
    let mut session = open_session(&SMOLLM2, kv);
    let (last, first) = tokens.split_last().unwrap();
    for part in first.chunks(chunk) {
        session.append(part).unwrap();
        batch.step(&mut [Work::new(&mut session, Logits::None)]).unwrap();
    }
    session.append(&[*last]).unwrap();
    let logits = logits_of(batch, &mut session);
    (session, logits)
}

#[test]
fn chunks_do_not_matter_on_the_gpu() {
    let (tokens, mut batch) = (prose(75), Batch::new(&SMOLLM2));
    for kv in KvDType::ALL {
        let (_, expected) = evaluated(&mut batch, kv, &tokens, usize::MAX);
        for chunk in [64, 7] {
            assert!(evaluated(&mut batch, kv, &tokens, chunk).1 == expected, "kv {kv} in chunks of {chunk}");
        }
    }
    let (_, expected) = evaluated(&mut batch, KvDType::F16, &tokens[..10], usize::MAX);
    assert!(evaluated(&mut batch, KvDType::F16, &tokens[..10], 1).1 == expected, "token by token");
}

#[test]
fn a_batch_of_eight_is_eight_alone_on_the_gpu() {
    let (tokens, mut batch) = (prose(60), Batch::with_rows_per_pass(&SMOLLM2, 97));
    let parts: Vec<&[u32]> = (0..8).map(|i| &tokens[i..3 + i * 6]).collect();
    let mut sessions: Vec<_> = parts.iter().map(|_| open_session(&SMOLLM2, KvDType::F16)).collect();
    let mut logits = vec![vec![f32::NAN; SMOLLM2.config().vocabulary]; 8];
    for (session, part) in sessions.iter_mut().zip(&parts) {
        session.append(part).unwrap();
    }
    let mut work: Vec<_> = sessions.iter_mut().zip(&mut logits).map(|(session, l)| Work::new(session, Logits::Last(l))).collect();
    batch.step(&mut work).unwrap();
    for (part, logits) in parts.iter().zip(&logits) {
        assert!(*logits == evaluated(&mut batch, KvDType::F16, part, usize::MAX).1, "{} tokens", part.len());
    }
}

#[test]
fn all_logits_of_a_prompt_are_those_of_its_prefixes_on_the_gpu() {
    let (tokens, mut batch, vocabulary) = (prose(70), Batch::new(&SMOLLM2), SMOLLM2.config().vocabulary);
    let mut session = open_session(&SMOLLM2, KvDType::F16);
    session.append(&tokens).unwrap();
    let mut all = vec![f32::NAN; tokens.len() * vocabulary];
    batch.step(&mut [Work::new(&mut session, Logits::All(&mut all))]).unwrap();
    for len in [1, 2, 64, 65, 70] {
        let (_, expected) = evaluated(&mut batch, KvDType::F16, &tokens[..len], usize::MAX);
        assert!(all[(len - 1) * vocabulary..len * vocabulary] == expected, "after {len} tokens");
    }
}

#[test]
fn forks_and_rewinds_change_no_bit_on_the_gpu() {
    let (tokens, mut batch) = (prose(70), Batch::new(&SMOLLM2));
    let (mut session, expected) = evaluated(&mut batch, KvDType::F16, &tokens, usize::MAX);
    let mut fork = session.fork();
    session.truncate(40).unwrap();
    session.append(&[5, 6, 7]).unwrap();
    let other = logits_of(&mut batch, &mut session);
    assert!(logits_of(&mut batch, &mut fork) == expected, "the fork is not what its parent became");
    session.truncate(40).unwrap();
    session.append(&tokens[40..]).unwrap();
    assert!(logits_of(&mut batch, &mut session) == expected && other != expected);
}

/// Tokens by [`Logits::Next`], or from the logits by the session's own sampler.
fn generated(batch: &mut Batch, session: &mut Session, count: usize, chosen_by_step: impl Fn(usize) -> bool) -> Vec<u32> {
    let mut tokens = Vec::new();
    for i in 0..count {
        let mut token = None;
        if chosen_by_step(i) {
            batch.step(&mut [Work::new(session, Logits::Next(&mut token))]).unwrap();
        } else {
            let logits = logits_of(batch, session);
            token = session.sample(&logits).ok();
        }
        let token = token.unwrap();
        session.append(&[token]).unwrap();
        tokens.push(token);
    }
    tokens
}

/// A device may choose tokens, and compute the next step before it is asked for: neither may show.
#[test]
fn tokens_that_the_step_chooses_are_those_of_its_logits() {
    let (tokens, mut batch) = (prose(50), Batch::new(&SMOLLM2));
    // The first is long enough to begin two blocks of KV on the way.
    for (temperature, count) in [(0.0, 90), (0.9, 20)] {
        let sampler = Sampler::new(SamplerParams { temperature, seed: 3, ..Default::default() }).unwrap();
        let mut start = open_session(&SMOLLM2, KvDType::F16);
        start.set_sampler(sampler);
        start.append(&tokens).unwrap();
        let mut run = |how: &dyn Fn(usize) -> bool| {
            let mut session = start.fork();
            let tokens = generated(&mut batch, &mut session, count, how);
            (tokens, logits_of(&mut batch, &mut session))
        };
        let expected = run(&|_| false);
        for (how, found) in [("chosen by the step", run(&|_| true)), ("in turns", run(&|i| i % 5 != 0))] {
            assert_eq!(found.0, expected.0, "tokens, {how}, at {temperature}");
            assert!(found.1 == expected.1, "logits, {how}, at {temperature}");
        }
    }
}

/// What was computed ahead is dropped when a session goes another way, or when others join it.
#[test]
fn steps_ahead_that_nobody_asks_for_change_nothing() {
    let (tokens, mut batch) = (prose(40), Batch::new(&SMOLLM2));
    let mut start = open_session(&SMOLLM2, KvDType::F16);
    start.append(&tokens).unwrap();
    let alone = generated(&mut batch, &mut start.fork(), 12, |_| false);
    let (mut one, mut two) = (start.fork(), start.fork());
    assert_eq!(generated(&mut batch, &mut one, 6, |_| true), alone[..6]);
    one.truncate(tokens.len() + 3).unwrap();
    one.append(&[9]).unwrap();
    let other = generated(&mut batch, &mut one, 3, |_| true);
    one.truncate(tokens.len()).unwrap();
    let mut chosen = vec![Vec::new(), Vec::new()];
    for _ in 0..12 {
        let mut next = [None; 2];
        let [first, second] = &mut next;
        batch.step(&mut [Work::new(&mut one, Logits::Next(first)), Work::new(&mut two, Logits::Next(second))]).unwrap();
        let next = next.map(Option::unwrap);
        one.append(&next[..1]).unwrap();
        two.append(&next[1..]).unwrap();
        chosen.iter_mut().zip(next).for_each(|(chosen, token)| chosen.push(token));
    }
    assert!(chosen == [alone.clone(), alone.clone()], "{chosen:?} together, {alone:?} alone");
    one.truncate(tokens.len() + 3).unwrap();
    one.append(&[9]).unwrap();
    assert!(generated(&mut batch, &mut one, 3, |i| i == 1) == other);
}

/// What a session holds, restored on another model of the same file.
fn moved(session: &Session, to: &Arc<Model>) -> Session {
    let at_rest = session.at_rest().unwrap();
    let layout = session.kv_layout();
    let rows = session.evaluated();
    assert!(at_rest.blocks().len() == 0 && rows < 64, "one block is enough here");
    let block = at_rest.tail().unwrap();
    let row_bytes = layout.row_bytes();
    let tiles = (0..layout.layers * 2 * layout.kv_heads).map(|tile| tile * 64 * row_bytes);
    let tail: Vec<u8> = tiles.flat_map(|at| block.bytes()[at..at + rows * row_bytes].to_vec()).collect();
    let parts = RestoredSession {
        options: SessionOptions { kv: layout.dtype, context_max: 512 },
        tokens: session.tokens(),
        evaluated: rows,
        blocks: Vec::<RestoredBlock>::new(),
        tail: &tail,
        sampler: session.sampler().clone(),
        numerics: &session.numerics_id(),
    };
    Session::restore(to, parts).unwrap()
}

#[test]
fn a_session_moves_between_cpu_and_gpu() {
    let cpu = models::open(models::SMOLLM2, 2, Simd::detect(), Arithmetic::Exact);
    let gpu = models::open_gpu(models::SMOLLM2, Arithmetic::Exact);
    let (tokens, next) = (prose(40), 28);
    let session_on = |model: &Arc<Model>| {
        let mut session = open_session(model, KvDType::F32);
        session.append(&tokens).unwrap();
        logits_of(&mut Batch::new(model), &mut session);
        session
    };
    let continued = |mut session: Session| {
        session.append(&[next]).unwrap();
        logits_of(&mut Batch::new(&session.model().clone()), &mut session)
    };
    let (on_cpu, on_gpu) = (session_on(&cpu), session_on(&gpu));
    let expected = continued(on_cpu.fork());
    for (from, to) in [(&on_cpu, &gpu), (&on_gpu, &cpu)] {
        let moved = moved(from, to);
        assert_eq!(moved.numerics_id(), format!("{}+{}", from.numerics_id(), to.numerics_id(KvDType::F32)));
        let got = continued(moved);
        let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 0.01, "{worst} off after moving to {:?}", to.device().gpu);
    }
    let stayed = continued(moved(&on_gpu, &gpu));
    assert!(stayed == continued(on_gpu), "on one device a move changes no bit");
}

#[test]
fn the_numerics_id_names_gpu_and_driver() {
    let id = SMOLLM2.numerics_id(KvDType::F16);
    assert!(id.starts_with("gpu-") && id.ends_with("/fast/kv-f16") && !id.contains(' ') && !id.contains('+'), "{id}");
}

/// What somebody has against logits, beside transformers'.
type Judge = fn(&[f32], &[f32]) -> Option<String>;

/// As near as the CPU's.
const NEAR: Judge = |got, want| {
    let most = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, |most: f32, x| if x <= most { most } else { x });
    (most.is_nan() || most > LOGIT_TOLERANCE).then(|| format!("differs by {most}"))
};

/// As near as half floats are, on average.
const NEAR_ON_TILES: Judge = |got, want| {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let apart = squares(&mut got.iter().zip(want).map(|(a, b)| a - b));
    let share = (apart / squares(&mut want.iter().copied())).sqrt();
    (share.is_nan() || share > TILES_SHARE_MAX).then(|| format!("off by {share:.4} of their size"))
};

/// Each tiny model on one device, for one arithmetic and KV type.
struct Families {
    gpu: Arc<Gpu>,
    arithmetic: Arithmetic,
    kv: KvDType,
    context_max: usize,
}

impl Families {
    fn new(arithmetic: Arithmetic, kv: KvDType) -> Families {
        let gpu = Gpu::open(None).expect("tests of the GPU need a Vulkan driver");
        Families { gpu, arithmetic, kv, context_max: CONTEXT_TOKENS }
    }

    fn open(&self, id: &str, container: &str) -> Arc<Model> {
        let cpu = Arc::new(Cpu::new(2, Simd::detect(), self.arithmetic));
        let device = Device { cpu, gpu: Some(self.gpu.clone()) };
        Model::open(id, &models::path(&format!("tiny/{id}/{container}")), device).unwrap_or_else(|e| panic!("{id} {container}: {e}"))
    }

    fn session(&self, model: &Arc<Model>) -> Session {
        Session::open(model, SessionOptions { kv: self.kv, context_max: self.context_max }).unwrap()
    }

    /// Logits of every position, (position, vocabulary), evaluated in chunks of so many tokens.
    fn evaluated(&self, model: &Arc<Model>, ids: &[u32], chunk: usize) -> Vec<f32> {
        let (mut session, mut batch) = (self.session(model), Batch::new(model));
        let parts = ids.chunks(chunk).map(|part| {
            let mut logits = vec![f32::NAN; part.len() * model.config().vocabulary];
            session.append(part).unwrap();
            batch.step(&mut [Work::new(&mut session, Logits::All(&mut logits))]).unwrap();
            logits
        });
        parts.collect::<Vec<_>>().concat()
    }

    /// What `judge` has against a model's logits and transformers', or how the bits depend on chunks.
    fn faults(&self, (id, container): (&str, &str), judge: Judge) -> Vec<String> {
        let expected = Expected::read(id);
        self.faults_in((id, container), expected.json["containers"][container].as_str().unwrap(), judge)
    }

    /// The same against one set of transformers' logits, for the prompts that it has.
    fn faults_in(&self, (id, container): (&str, &str), set: &str, judge: Judge) -> Vec<String> {
        let (model, expected) = (self.open(id, container), Expected::read(id));
        let (vocabulary, mut faults) = (model.config().vocabulary, Vec::new());
        for (prompt, ids, positions) in expected.with_logits().filter(|(prompt, ..)| expected.has(set, prompt)) {
            let at_once = self.evaluated(&model, &ids, ids.len());
            let got: Vec<f32> = positions.iter().flat_map(|position| &at_once[position * vocabulary..][..vocabulary]).copied().collect();
            faults.extend(judge(&got, &expected.logits(set, prompt)).map(|why| format!("{id} {container}, prompt {prompt}: {why}")));
            for chunk in [1, 7] {
                if self.evaluated(&model, &ids, chunk) != at_once {
                    faults.push(format!("{id} {container}, prompt {prompt}: other bits in chunks of {chunk}"));
                }
            }
        }
        faults
    }

    /// Whether the tokens that steps choose are those of their logits: caps come before the choice.
    fn chooses_from_its_logits(&self, id: &str, container: &str) -> bool {
        let (model, expected) = (self.open(id, container), Expected::read(id));
        let (_, ids, _) = expected.with_logits().next().unwrap();
        let mut batch = Batch::new(&model);
        [0.0, 0.9].into_iter().all(|temperature| {
            let mut start = self.session(&model);
            start.set_sampler(Sampler::new(SamplerParams { temperature, seed: 5, ..Default::default() }).unwrap());
            start.append(&ids).unwrap();
            let [by_logits, by_step] = [false, true].map(|step| generated(&mut batch, &mut start.fork(), 12, |_| step));
            by_logits == by_step
        })
    }
}

/// Float kernels: as near to transformers as the CPU's.
#[test]
fn families_answer_as_transformers_on_the_gpu() {
    let families = Families::new(Arithmetic::Exact, KvDType::F32);
    let faults: Vec<_> = rows().flat_map(|row| families.faults(row, NEAR)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// MLX's tensors are read as they are: a copy in floats would be several times as long as the file.
#[test]
fn groups_are_not_unpacked_on_the_gpu() {
    let families = Families::new(Arithmetic::Exact, KvDType::F32);
    for container in ["mlx-4-64", "mlx-3-32", "mlx-8-32"] {
        let model = families.open("llama", container);
        families.evaluated(&model, &[1, 2, 3], 3);
        let (copied, weights) = (model.residence(KvDType::F32).copied_weight_bytes, model.file_bytes());
        let most = if families.gpu.info().unified { weights / 8 } else { weights };
        assert!(copied < most, "{container}: {copied} bytes copied of {weights}");
    }
}

/// How far logits on tiles may be from transformers', on average, as a share of their size: weights and activations are half floats.
const TILES_SHARE_MAX: f64 = 0.03;

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn families_on_tiles_are_near_transformers() {
    let families = Families::new(Arithmetic::Fast, KvDType::F16);
    assert!(families.gpu.info().cooperative, "{:?} multiplies no tiles", families.gpu.info());
    let mut faults = Vec::new();
    for (id, container) in rows() {
        if families.open(id, container).logits_device().is_none() {
            faults.push(format!("{id} {container}: not on tiles"));
        }
        faults.extend(families.faults((id, container), NEAR_ON_TILES));
        if !families.chooses_from_its_logits(id, container) {
            faults.push(format!("{id} {container}: steps choose other tokens than their logits say"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// transformers has the long factors for a text that is longer than the original context, the engine for a session that may become so.
fn long_faults(arithmetic: Arithmetic, kv: KvDType, judge: Judge) -> Vec<String> {
    let families = Families { context_max: 256, ..Families::new(arithmetic, kv) };
    let faults = families.faults_in(("phi4-mini", "bf16"), "long", judge);
    let short = Families { context_max: CONTEXT_TOKENS, ..families };
    assert_eq!(short.faults_in(("phi4-mini", "bf16"), "long", judge).len(), 1, "a short session has the long factors, too");
    faults
}

#[test]
fn a_long_session_has_the_long_factors_on_the_gpu() {
    assert_eq!(long_faults(Arithmetic::Exact, KvDType::F32, NEAR), [""; 0]);
}

#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn a_long_session_has_the_long_factors_on_tiles() {
    assert_eq!(long_faults(Arithmetic::Fast, KvDType::F16, NEAR_ON_TILES), [""; 0]);
}

/// Sessions with long contexts and others take the same steps without a difference to either.
#[test]
#[ignore = "needs a GPU with cooperative matrices"]
fn long_and_other_sessions_go_side_by_side_on_tiles() {
    side_by_side(&Families::new(Arithmetic::Fast, KvDType::F16));
}

#[test]
fn long_and_other_sessions_go_side_by_side_on_the_gpu() {
    side_by_side(&Families::new(Arithmetic::Exact, KvDType::F32));
}

fn side_by_side(families: &Families) {
    let (model, expected) = (families.open("phi4-mini", "bf16"), Expected::read("phi4-mini"));
    let (_, ids, _) = expected.with_logits().last().unwrap();
    let mut batch = Batch::new(&model);
    let mut sessions = [CONTEXT_TOKENS, 256, CONTEXT_TOKENS, 256].map(|context_max| {
        let mut session = Session::open(&model, SessionOptions { kv: families.kv, context_max }).unwrap();
        session.append(&ids).unwrap();
        session
    });
    let [alone, alone_long] = [0, 1].map(|i| generated(&mut batch, &mut sessions[i].fork(), 12, |_| true));
    assert_ne!(alone, alone_long);
    let mut tokens = [const { Vec::new() }; 4];
    for _ in 0..12 {
        let mut next = [None; 4];
        let mut work: Vec<_> = sessions.iter_mut().zip(&mut next).map(|(session, next)| Work::new(session, Logits::Next(next))).collect();
        batch.step(&mut work).unwrap();
        drop(work);
        for ((session, tokens), next) in sessions.iter_mut().zip(&mut tokens).zip(next) {
            tokens.push(next.unwrap());
            session.append(&[next.unwrap()]).unwrap();
        }
    }
    assert_eq!(tokens, [alone.clone(), alone_long.clone(), alone, alone_long]);
}

#[test]
fn steps_of_capped_models_choose_from_capped_logits_on_the_gpu() {
    let families = Families::new(Arithmetic::Exact, KvDType::F32);
    assert!(families.chooses_from_its_logits("gemma2", "bf16"));
}
