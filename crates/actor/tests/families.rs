//! Every family in every container through an actor: its guest sees the engine's logits, which are transformers', and they are the same
//! bits after freeze and thaw and in a fork.

#[path = "../../engine/tests/common/expected.rs"]
mod expected;
#[path = "../../engine/tests/common/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;

use driftwood_actor::{Existing, Host, HostOptions, Message, ThawOptions};
use driftwood_compute::{Arithmetic, Cpu, KvDType, Simd};
use driftwood_engine::{Batch, Logits, Model, Session, SessionOptions, Work};
use expected::{CONTEXT_TOKENS, Expected, LOGIT_TOLERANCE, rows};
use std::path::PathBuf;
use std::sync::Arc;
use tiny::Script;

/// Where the guest has logits.
const LOGITS_AT: u32 = 131_072;
/// The guest's first session.
const SESSION: u32 = 1;
/// Tokens that the arguments of one call hold.
const TOKENS_PER_CALL: usize = 9;
/// `DW_KV_F32`.
const KV_F32: u32 = 1;

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(2, Simd::detect(), Arithmetic::Exact))
}

/// A host whose model `tiny` lies at `path`.
fn host(path: PathBuf) -> Host {
    Host::new(HostOptions { device: cpu().into(), models: Box::new(move |_| Ok(path.clone())) }).unwrap()
}

/// Has the guest append tokens and reply the logits that follow.
fn talk(host: &mut Host, name: &str, script: &mut Script, tokens: &[u32], vocabulary: usize) -> Vec<f32> {
    for part in tokens.chunks(TOKENS_PER_CALL) {
        let at = script.data(&bytes(part));
        script.call("append", &[SESSION, at, part.len() as u32]);
    }
    script.call("decode", &[SESSION, LOGITS_AT, vocabulary as u32]).call("reply", &[LOGITS_AT, 4 * vocabulary as u32]);
    let reply = host.send(Message::new(name, script.message()), &mut |_| {}).unwrap().reply;
    let answers = script.answers(&reply);
    assert!(answers.iter().all(|answer| *answer >= 0), "{name}: {answers:?}");
    reply.as_chunks::<4>().0[..vocabulary].iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn bytes(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Logits after all tokens, from the engine alone.
fn alone(model: &Arc<Model>, tokens: &[u32]) -> Vec<f32> {
    let mut session = Session::open(model, SessionOptions { kv: KvDType::F32, context_max: CONTEXT_TOKENS }).unwrap();
    let mut logits = vec![0.0; model.config().vocabulary];
    session.append(tokens).unwrap();
    Batch::new(model).step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
    logits
}

#[test]
fn a_guest_sees_the_engines_logits_before_and_after_a_rest() {
    let folder = tempfile::tempdir().unwrap();
    for (id, container) in rows() {
        let what = format!("{id} {container}");
        let path = models::path(&format!("tiny/{id}/{container}"));
        let (expected, model) = (Expected::read(id), Model::open("tiny", &path, cpu()).unwrap());
        let (prompt, tokens, positions) = expected.with_logits().last().unwrap();
        let vocabulary = model.config().vocabulary;
        let (first, rest) = tokens.split_at(tokens.len() / 2);

        let mut host = host(path.clone());
        tiny::spawn_caller(&mut host, "a");
        let mut open = Script::default();
        open.call("session_open", &[0, 0, KV_F32, CONTEXT_TOKENS as u32]);
        assert_eq!(bits(&talk(&mut host, "a", &mut open, first, vocabulary)), bits(&alone(&model, first)), "{what}");

        let file = folder.path().join(what.replace('/', "-"));
        host.freeze("a", &file, Existing::Refuse).unwrap();
        host.fork("a", "forked").unwrap();
        let mut other = self::host(path);
        other.thaw(&file, "thawed", ThawOptions { limits: tiny::limits(), ..ThawOptions::default() }).unwrap();

        let last = alone(&model, &tokens);
        let through = talk(&mut host, "a", &mut Script::default(), rest, vocabulary);
        let references = expected.logits(expected.json["containers"][container].as_str().unwrap(), prompt);
        assert_eq!(positions.last(), Some(&(tokens.len() - 1)));
        for (got, reference) in through.iter().zip(&references[references.len() - vocabulary..]) {
            assert!((got - reference).abs() <= LOGIT_TOLERANCE, "{what}: a logit is {got}, transformers' {reference}");
        }
        assert_eq!(bits(&through), bits(&last), "{what}");
        assert_eq!(bits(&talk(&mut host, "forked", &mut Script::default(), rest, vocabulary)), bits(&last), "{what} forked");
        assert_eq!(bits(&talk(&mut other, "thawed", &mut Script::default(), rest, vocabulary)), bits(&last), "{what} thawed");
    }
}
