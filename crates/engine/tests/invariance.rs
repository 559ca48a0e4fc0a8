//! Results do not depend on company: chunks, batches, threads, SIMD paths, forks and rewinds give the same bits.

#[path = "common/models.rs"]
mod models;

use driftwood_compute::{Arithmetic, KvDType, Simd};
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Batch, Logits, Model, Session, SessionOptions, Work};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

/// The first `count` tokens of the golden prose.
fn prose(model: &Model, count: usize) -> Vec<u32> {
    let mut tokens = model.tokenizer().encode(&models::golden("prose.txt"), Special { add: true, parse: false });
    tokens.truncate(count);
    tokens
}

fn open_session(model: &Arc<Model>, kv: KvDType) -> Session {
    let config = model.config();
    let context_max = config.context_long_max.unwrap_or(config.context_max).min(2048);
    Session::open(model, SessionOptions { kv, context_max }).unwrap()
}

fn logits_of(batch: &mut Batch, session: &mut Session) -> Vec<u32> {
    let mut logits = vec![0.0; session.model().config().vocabulary];
    batch.step(&mut [Work::new(session, Logits::Last(&mut logits))]).unwrap();
    bits(&logits)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|l| l.is_finite()));
    logits.iter().map(|l| l.to_bits()).collect()
}

/// Logits after all tokens, evaluated at once in a fresh session.
fn at_once(model: &Arc<Model>, kv: KvDType, tokens: &[u32]) -> Vec<u32> {
    let mut session = open_session(model, kv);
    session.append(tokens).unwrap();
    logits_of(&mut Batch::new(model), &mut session)
}

fn in_chunks(model: &Arc<Model>, kv: KvDType, tokens: &[u32], chunk: usize) -> Vec<u32> {
    let (mut session, mut batch) = (open_session(model, kv), Batch::new(model));
    let (last, first) = tokens.split_last().unwrap();
    for part in first.chunks(chunk) {
        session.append(part).unwrap();
        batch.step(&mut [Work::new(&mut session, Logits::None)]).unwrap();
    }
    session.append(&[*last]).unwrap();
    logits_of(&mut batch, &mut session)
}

fn chunks_agree(file: &str, count: usize, chunk_sizes: &[usize]) {
    for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
        let model = models::open(file, 2, Simd::detect(), arithmetic);
        let tokens = prose(&model, count);
        for kv in [KvDType::F16, KvDType::F32, KvDType::Q8] {
            let expected = at_once(&model, kv, &tokens);
            for &chunk in chunk_sizes {
                assert_eq!(in_chunks(&model, kv, &tokens, chunk), expected, "{file} {arithmetic} kv {kv} in chunks of {chunk}");
            }
            if arithmetic == Arithmetic::Exact {
                break;
            }
        }
    }
}

#[test]
fn chunks_do_not_matter_for_smollm2() {
    chunks_agree(models::SMOLLM2, 150, &[1, 7, 64]);
}

#[test]
fn chunks_do_not_matter_for_gemma3_beyond_its_window() {
    chunks_agree(models::GEMMA3, 600, &[7, 64]);
}

#[test]
fn chunks_do_not_matter_for_any_family() {
    for file in models::FAMILIES {
        chunks_agree(file, 150, &[1, 7, 64]);
    }
}

#[test]
fn one_by_one_past_gemmas_window() {
    let model = models::open(models::GEMMA3, 2, Simd::detect(), Arithmetic::Fast);
    let tokens = prose(&model, 530);
    assert_eq!(in_chunks(&model, KvDType::F16, &tokens, 1), at_once(&model, KvDType::F16, &tokens));
}

#[test]
fn threads_and_simd_paths_do_not_matter() {
    let tiny = models::FAMILIES.map(|file| (file, 80));
    for (file, count) in [(models::SMOLLM2, 70), (models::GEMMA3, 45)].into_iter().chain(tiny) {
        let reference = models::open(file, 1, Simd::Portable, Arithmetic::Fast);
        let tokens = prose(&reference, count);
        let expected = at_once(&reference, KvDType::F16, &tokens);
        for simd in Simd::available() {
            for threads in [1, 2, 3] {
                let model = models::open(file, threads, simd, Arithmetic::Fast);
                assert_eq!(at_once(&model, KvDType::F16, &tokens), expected, "{file} {simd} {threads} threads at once");
                assert_eq!(in_chunks(&model, KvDType::F16, &tokens, 33), expected, "{file} {simd} {threads} threads in chunks");
            }
        }
    }
}

#[test]
fn a_batch_of_eight_is_eight_alone() {
    for file in [models::SMOLLM2, models::GEMMA3].into_iter().chain(models::FAMILIES) {
        let model = models::open(file, 2, Simd::detect(), Arithmetic::Fast);
        let tokens = prose(&model, 200);
        let parts: Vec<&[u32]> = (0..8).map(|i| &tokens[i * 3..i * 3 + 20 + i * 19]).collect();
        let mut sessions: Vec<_> = parts.iter().map(|_| open_session(&model, KvDType::F16)).collect();
        let mut batch = Batch::with_rows_per_pass(&model, 97);
        let mut logits = vec![vec![0.0; model.config().vocabulary]; 8];
        for (session, part) in sessions.iter_mut().zip(&parts) {
            session.append(part).unwrap();
        }
        let mut work: Vec<_> =
            sessions.iter_mut().zip(&mut logits).map(|(session, logits)| Work::new(session, Logits::Last(logits))).collect();
        batch.step(&mut work).unwrap();
        for (part, logits) in parts.iter().zip(&logits) {
            assert_eq!(bits(logits), at_once(&model, KvDType::F16, part), "{file}");
        }
    }
}

#[test]
fn all_logits_are_those_of_each_prefix() {
    let model = models::open(models::SMOLLM2, 2, Simd::detect(), Arithmetic::Fast);
    let (tokens, vocabulary) = (prose(&model, 70), model.config().vocabulary);
    let mut session = open_session(&model, KvDType::F16);
    session.append(&tokens).unwrap();
    let mut all = vec![0.0; tokens.len() * vocabulary];
    Batch::with_rows_per_pass(&model, 32).step(&mut [Work::new(&mut session, Logits::All(&mut all))]).unwrap();
    for (index, logits) in all.chunks(vocabulary).enumerate().step_by(23) {
        assert_eq!(bits(logits), at_once(&model, KvDType::F16, &tokens[..=index]));
    }
}

#[test]
fn errors_leave_a_session_as_it_was() {
    let model = models::open(models::SMOLLM2, 1, Simd::detect(), Arithmetic::Fast);
    let mut session = Session::open(&model, SessionOptions { kv: KvDType::F16, context_max: 4 }).unwrap();
    let mut batch = Batch::new(&model);
    let mut logits = vec![0.0; model.config().vocabulary];
    let error = |e: Result<(), driftwood_engine::Error>| e.unwrap_err().to_string();
    assert!(error(batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))])).contains("no tokens yet"));
    assert!(error(session.append(&[1, 2, 3, 4, 5])).contains("context full: 5 tokens do not fit in 4"));
    assert!(error(session.append(&[49_152])).contains("outside the vocabulary"));
    assert!(error(session.truncate(1)).contains("cannot truncate to 1"));
    assert!(session.tokens().is_empty());
    assert!(Session::open(&model, SessionOptions { kv: KvDType::F16, context_max: 8193 }).is_err());
}

/// What a session can live through.
#[derive(Clone, Debug)]
enum Event {
    Append(usize),
    Step,
    StepAll,
    Fork,
    Truncate(usize),
    Reread,
    Switch(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1usize..80).prop_map(Event::Append),
        3 => Just(Event::Step),
        2 => Just(Event::StepAll),
        2 => Just(Event::Fork),
        2 => (0usize..200).prop_map(Event::Truncate),
        1 => Just(Event::Reread),
        2 => (0usize..4).prop_map(Event::Switch),
    ];
    prop::collection::vec(event, 4..24)
}

static MODELS: LazyLock<Vec<Arc<Model>>> = LazyLock::new(|| {
    let files = [models::SMOLLM2].into_iter().chain(models::FAMILIES);
    files.map(|file| models::open(file, 2, Simd::detect(), Arithmetic::Fast)).collect()
});
/// Bits of logits, by the model's index and the tokens.
type Known = HashMap<(usize, Vec<u32>), Vec<u32>>;
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// What a fresh session says after these tokens, on the model of this index.
fn expected(model: usize, tokens: &[u32]) -> Vec<u32> {
    let key = (model, tokens.to_vec());
    let known = KNOWN.lock().unwrap().get(&key).cloned();
    known.unwrap_or_else(|| {
        let logits = at_once(&MODELS[model], KvDType::F16, tokens);
        KNOWN.lock().unwrap().insert(key, logits.clone());
        logits
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_life_gives_the_bits_of_a_fresh_one(events in events(), seed in 0usize..50, which in 0..MODELS.len()) {
        let model = &MODELS[which];
        let text = prose(model, 1200);
        let (mut batch, mut sessions, mut current) = (Batch::new(model), vec![open_session(model, KvDType::F16)], 0);
        for event in events {
            let count = sessions.len();
            let session = &mut sessions[current];
            match event {
                Event::Append(n) => {
                    let from = (seed * 13 + session.tokens().len() * 7 + current * 31) % 1000;
                    session.append(&text[from..from + n.min(session.room())]).unwrap();
                }
                Event::Step if !session.tokens().is_empty() => {
                    let got = logits_of(&mut batch, session);
                    prop_assert!(got == expected(which, session.tokens()), "after a step");
                }
                Event::StepAll => {
                    let mut work: Vec<_> = sessions.iter_mut().map(|s| Work::new(s, Logits::None)).collect();
                    batch.step(&mut work).unwrap();
                }
                Event::Fork if count < 4 => {
                    let fork = session.fork();
                    sessions.push(fork);
                }
                Event::Truncate(n) => session.truncate(n.min(session.tokens().len())).unwrap(),
                Event::Reread if !session.tokens().is_empty() => {
                    let twice = (logits_of(&mut batch, session), logits_of(&mut batch, session));
                    prop_assert!(twice.0 == twice.1, "the last token again");
                }
                Event::Switch(to) => current = to % count,
                _ => {}
            }
        }
        for session in sessions.iter_mut().filter(|s| !s.tokens().is_empty()) {
            prop_assert!(logits_of(&mut batch, session) == expected(which, session.tokens()), "at the end");
        }
    }
}
