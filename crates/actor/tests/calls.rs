//! Every host function with bad arguments, and the error that each must answer, on a tiny model.

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use driftwood_actor::{Error, Exactness, Existing, Host, ThawOptions};
use driftwood_compute::gpu::Gpu;
use tiny::{CONTEXT, Script, VOCABULARY, host, host_on, limits, spawn_caller};

const OUT_OF_BOUNDS: i32 = -1;
const BAD_ARGUMENT: i32 = -2;
const NO_SUCH_SESSION: i32 = -3;
const NO_SUCH_MODEL: i32 = -4;
const LIMIT: i32 = -5;
const CONTEXT_FULL: i32 = -6;
const TOKEN_LIMIT: i32 = -7;
const BAD_TEXT: i32 = -8;
const NOT_FOUND: i32 = -9;
const MODEL_ERROR: i32 = -11;

/// A pointer whose range wraps around, two free pages, and the end of memory.
const WILD: u32 = 0xffff_fff0;
const FREE: u32 = 131_072;
const END: u32 = 262_144;
/// An open session with four tokens, and one without any that holds eight.
const SESSION: u32 = 1;
const SMALL: u32 = 2;

struct Places {
    nope: u32,
    bad_text: u32,
    model: u32,
    sampler: u32,
    bias: u32,
    options: u32,
    stops: u32,
    foreign_token: u32,
    wild_range: u32,
}

fn setting_up(script: &mut Script) -> Places {
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
    let tokens = script.data(&words(&[1, 2, 3, 4]));
    let places = Places {
        nope: script.data(b"nope"),
        bad_text: script.data(b"\xff\xfe"),
        model: script.data(b"model"),
        sampler: script.data(&words(&[0, 0, 1f32.to_bits(), 0, 1f32.to_bits(), 0, 0, 64, 0])),
        bias: script.data(&words(&[VOCABULARY, 0])),
        options: script.data(&words(&[0, 8])),
        stops: script.data(&words(&[0, 0, FREE, 1])),
        foreign_token: script.data(&words(&[VOCABULARY])),
        wild_range: script.data(&words(&[WILD, 32])),
    };
    script.call("session_open", &[0, 0, 0, 0]).call("session_open", &[0, 0, 0, 8]).call("append", &[SESSION, tokens, 4]);
    places
}

#[rustfmt::skip] // a table
fn table(p: &Places) -> Vec<(&'static str, Vec<u32>, i32)> {
    let mut cases: Vec<(&str, Vec<u32>, i32)> = vec![
        ("receive", vec![WILD, 16], OUT_OF_BOUNDS), ("receive", vec![END, 1], OUT_OF_BOUNDS),
        ("reply", vec![WILD, 16], OUT_OF_BOUNDS), ("reply", vec![END - 1, 2], OUT_OF_BOUNDS),
        ("log", vec![4, FREE, 0], BAD_ARGUMENT), ("log", vec![0, WILD, 32], OUT_OF_BOUNDS), ("log", vec![0, p.bad_text, 2], BAD_TEXT),
        ("setting", vec![WILD, 32, 0, 0], OUT_OF_BOUNDS), ("setting", vec![p.bad_text, 2, 0, 0], BAD_TEXT),
        ("setting", vec![p.nope, 4, 0, 0], NOT_FOUND), ("setting", vec![p.model, 5, END, 1], OUT_OF_BOUNDS), ("setting", vec![p.model, 5, 0, 0], 4),
        ("random", vec![END, 1], OUT_OF_BOUNDS),
        ("model_info", vec![p.nope, 4, FREE], NO_SUCH_MODEL), ("model_info", vec![0, 0, FREE + 2], BAD_ARGUMENT),
        ("model_info", vec![0, 0, END - 12], OUT_OF_BOUNDS), ("model_info", vec![p.bad_text, 2, FREE], BAD_TEXT),
        ("tokenize", vec![0, 0, p.nope, 4, 4, 0, 0], BAD_ARGUMENT), ("tokenize", vec![0, 0, WILD, 32, 0, 0, 0], OUT_OF_BOUNDS),
        ("tokenize", vec![0, 0, p.bad_text, 2, 0, 0, 0], BAD_TEXT), ("tokenize", vec![0, 0, p.nope, 4, 0, FREE + 1, 1], BAD_ARGUMENT),
        ("tokenize", vec![0, 0, p.nope, 4, 0, FREE, 0x4000_0000], OUT_OF_BOUNDS), ("tokenize", vec![p.nope, 4, 0, 0, 0, 0, 0], NO_SUCH_MODEL),
        ("tokenize", vec![0, 0, p.nope, 4, 0, 0, 0], 4),
        ("detokenize", vec![0, 0, p.foreign_token, 1, 0, 0], BAD_ARGUMENT), ("detokenize", vec![0, 0, FREE + 2, 1, 0, 0], BAD_ARGUMENT),
        ("detokenize", vec![0, 0, FREE, 0xffff_ffff, 0, 0], OUT_OF_BOUNDS), ("detokenize", vec![0, 0, FREE, 1, END, 4], OUT_OF_BOUNDS),
        ("is_end", vec![p.nope, 4, 0], NO_SUCH_MODEL), ("is_end", vec![0, 0, 0xffff_ffff], 0), ("is_end", vec![0, 0, 263], 1),
        ("chat_template", vec![0, 0, p.nope, 4, 0, 0, 0], BAD_TEXT), ("chat_template", vec![0, 0, WILD, 32, 0, 0, 0], OUT_OF_BOUNDS),
        ("chat_template", vec![0, 0, p.nope, 4, 2, 0, 0], BAD_ARGUMENT), ("chat_template", vec![0, 0, p.nope, 4, 0, END, 9], OUT_OF_BOUNDS),
        ("session_open", vec![0, 0, 3, 0], BAD_ARGUMENT), ("session_open", vec![0, 0, 0, CONTEXT + 1], BAD_ARGUMENT),
        ("session_open", vec![p.nope, 4, 0, 0], NO_SUCH_MODEL), ("session_open", vec![WILD, 32, 0, 0], OUT_OF_BOUNDS),
        ("session_truncate", vec![SESSION, 5], BAD_ARGUMENT),
        ("session_tokens", vec![SESSION, 5, 0, 0], BAD_ARGUMENT), ("session_tokens", vec![SESSION, 0, WILD, 9], OUT_OF_BOUNDS),
        ("session_tokens", vec![SESSION, 0, FREE + 3, 1], BAD_ARGUMENT), ("session_tokens", vec![SESSION, 1, 0, 0], 3),
        ("set_sampler", vec![SESSION, WILD, 0, 0], OUT_OF_BOUNDS), ("set_sampler", vec![SESSION, p.sampler + 2, 0, 0], BAD_ARGUMENT),
        ("set_sampler", vec![SESSION, FREE, 0, 0], BAD_ARGUMENT), ("set_sampler", vec![SESSION, p.sampler, p.bias, 1], BAD_ARGUMENT),
        ("set_sampler", vec![SESSION, p.sampler, FREE, 1025], BAD_ARGUMENT), ("set_sampler", vec![SESSION, p.sampler, FREE, 0x2000_0000], OUT_OF_BOUNDS),
        ("set_sampler", vec![SESSION, p.sampler, 0, 0], 0),
        ("sample", vec![SESSION, FREE, VOCABULARY - 1], BAD_ARGUMENT), ("sample", vec![SESSION, WILD, VOCABULARY], OUT_OF_BOUNDS),
        ("sample", vec![SESSION, FREE + 1, VOCABULARY], BAD_ARGUMENT), ("sample", vec![SESSION, FREE, VOCABULARY], 0),
        ("decode", vec![SESSION, FREE, VOCABULARY + 1], BAD_ARGUMENT), ("decode", vec![SESSION, END - 4, VOCABULARY], OUT_OF_BOUNDS),
        ("decode", vec![SESSION, FREE + 2, VOCABULARY], BAD_ARGUMENT), ("decode", vec![SMALL, FREE, VOCABULARY], BAD_ARGUMENT),
        ("decode", vec![SESSION, FREE, VOCABULARY], 0),
        ("next", vec![SMALL], BAD_ARGUMENT),
        ("generate", vec![SESSION, WILD], OUT_OF_BOUNDS), ("generate", vec![SESSION, FREE + 2], BAD_ARGUMENT),
        ("generate", vec![SESSION, p.options], BAD_ARGUMENT), ("generate", vec![SESSION, p.stops], BAD_ARGUMENT),
        ("matmul", vec![WILD, FREE, FREE, 1, 1, 1], OUT_OF_BOUNDS), ("matmul", vec![FREE, FREE, FREE + 64, 0x10000, 0x10000, 1], OUT_OF_BOUNDS),
        ("matmul", vec![FREE, FREE, FREE, 4, 4, 4], BAD_ARGUMENT), ("matmul", vec![FREE, FREE + 2, FREE + 64, 1, 1, 1], BAD_ARGUMENT),
        ("dispatch", vec![0, 0, 0, 0, WILD], OUT_OF_BOUNDS), ("dispatch", vec![0, 0, 0, 0, END - 12], OUT_OF_BOUNDS),
        ("dispatch", vec![0, 0, 0, 0, FREE + 2], BAD_ARGUMENT), ("dispatch", vec![WILD, 32, 0, 0, FREE], OUT_OF_BOUNDS),
        ("dispatch", vec![FREE, 65_537, 0, 0, FREE], LIMIT), ("dispatch", vec![p.bad_text, 2, 0, 0, FREE], BAD_TEXT),
        ("dispatch", vec![0, 0, FREE, 9, FREE], LIMIT), ("dispatch", vec![0, 0, FREE, 0xffff_ffff, FREE], LIMIT),
        ("dispatch", vec![0, 0, FREE + 2, 1, FREE], BAD_ARGUMENT), ("dispatch", vec![0, 0, END - 8, 2, FREE], OUT_OF_BOUNDS),
        ("dispatch", vec![0, 0, p.wild_range, 1, FREE], OUT_OF_BOUNDS),
        ("matmul", vec![FREE, FREE, FREE + 64, 4, 4, 4], 0), ("matmul", vec![FREE, FREE, FREE + 4, 0, 9, 9], 0),
    ];
    for name in ["prefill", "append"] {
        cases.extend([
            (name, vec![SESSION, p.foreign_token, 1], BAD_ARGUMENT), (name, vec![SESSION, FREE + 1, 1], BAD_ARGUMENT),
            (name, vec![SESSION, FREE, 0x8000_0000], OUT_OF_BOUNDS), (name, vec![SMALL, FREE + 8192, 9], CONTEXT_FULL), (name, vec![SMALL, FREE, 0], 0),
        ]);
    }
    for name in ["session_close", "session_fork", "session_truncate", "session_length", "session_context", "session_tokens", "prefill",
        "append", "next"] {
        cases.extend([99, 0, 0xffff_ffff].map(|handle| (name, vec![handle, 0, 0], NO_SUCH_SESSION)));
    }
    cases.extend([
        ("decode", vec![99, FREE, VOCABULARY], NO_SUCH_SESSION), ("sample", vec![99, FREE, VOCABULARY], NO_SUCH_SESSION),
        ("set_sampler", vec![99, p.sampler, 0, 0], NO_SUCH_SESSION), ("generate", vec![99, FREE], NO_SUCH_SESSION),
    ]);
    cases
}

#[test]
fn bad_calls_answer_their_errors() {
    check_table(host(1));
}

#[test]
fn with_a_gpu_bad_calls_answer_the_same() {
    let mut host = host(1);
    host.set_gpu(Gpu::open(None).expect("this test needs a Vulkan driver: apt install mesa-vulkan-drivers"));
    check_table(host);
}

fn check_table(mut host: Host) {
    spawn_caller(&mut host, "a");
    let mut script = Script::default();
    let cases = table(&setting_up(&mut script));
    let first = script.len();
    for (name, arguments, _) in &cases {
        script.call(name, arguments);
    }
    let answers = script.run(&mut host, "a").unwrap();
    for ((name, arguments, expected), answer) in cases.iter().zip(&answers[first..]) {
        assert_eq!(answer, expected, "{name} {arguments:x?}");
    }
}

/// A host with an actor that has sessions 1 and 2: a fork, sharing 70 of its 80 tokens.
fn with_sessions(seed: u32) -> Host {
    with_sessions_in(host(seed))
}

fn with_sessions_in(mut host: Host) -> Host {
    spawn_caller(&mut host, "a");
    let mut script = Script::default();
    let tokens = script.data(&[5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0]);
    script.call("session_open", &[0, 0, 0, 0]).call("prefill", &[SESSION, FREE, 70]).call("session_fork", &[SESSION]);
    script.call("prefill", &[SESSION, FREE, 10]).call("append", &[2, tokens, 3]).call("random", &[FREE, 8]);
    let answers = script.run(&mut host, "a").unwrap();
    assert_eq!(answers[1..], [1, 70, 2, 80, 73, 0]);
    host
}

/// Generates with both sessions; the tokens and random bytes that come.
fn go_on(host: &mut Host, name: &str) -> Vec<i32> {
    let mut script = Script::default();
    for _ in 0..4 {
        script.call("next", &[1]).call("next", &[2]);
    }
    script.call("random", &[FREE + 64, 4]).call("reply", &[FREE + 64, 4]);
    script.run(host, name).unwrap()
}

#[test]
fn kv_freezes_thaws_and_forks_exactly() {
    let mut host = with_sessions(1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    host.freeze("a", &file, Existing::Refuse).unwrap();
    host.fork("a", "forked").unwrap();
    let expected = go_on(&mut host, "a");
    assert_eq!(go_on(&mut host, "forked"), expected);
    let mut other = self::host(1);
    let report = other.thaw(&file, "b", ThawOptions { limits: limits(), ..ThawOptions::default() }).unwrap();
    assert_eq!((report.restored_tokens, report.recomputed_tokens, report.exactness), (150, 0, Exactness::SameBits));
    let sessions = other.info("b").unwrap().sessions;
    assert!(sessions.iter().all(|s| s.kv_shared_bytes > 0), "the block in common is still shared: {sessions:?}");
    assert_eq!(go_on(&mut other, "b"), expected);
    assert_eq!(other.state_hash("b").unwrap(), host.state_hash("a").unwrap());
}

#[test]
fn another_model_is_refused_or_prefilled_again() {
    let mut host = with_sessions(1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    host.freeze("a", &file, Existing::Refuse).unwrap();
    let options = |reprefill| ThawOptions { limits: limits(), reprefill, ..ThawOptions::default() };
    let mut other = self::host(2);
    assert!(matches!(other.thaw(&file, "b", options(false)), Err(Error::OtherModel { .. })));
    let report = other.thaw(&file, "b", options(true)).unwrap();
    assert_eq!((report.restored_tokens, report.recomputed_tokens, report.exactness), (0, 153, Exactness::Recomputed));
    let mut fresh = with_sessions(2);
    let (expected, got) = (go_on(&mut fresh, "a"), go_on(&mut other, "b"));
    assert_eq!(got[..8], expected[..8], "as if it had always been on this model");
}

/// The message that finds the GPU lost hears of it; in the next one the sessions go on, as if nothing had happened.
#[test]
fn sessions_outlive_a_lost_gpu() {
    let gpu = || Gpu::open(None).expect("this test needs a Vulkan driver: apt install mesa-vulkan-drivers");
    let expected = go_on(&mut with_sessions_in(host_on(&[("tiny", 1)], Some(gpu()))), "a");
    let lost = gpu();
    let mut host = with_sessions_in(host_on(&[("tiny", 1)], Some(lost.clone())));
    lost.device().destroy();
    let mut next = Script::default();
    assert_eq!(next.call("next", &[SESSION]).run(&mut host, "a").unwrap(), [MODEL_ERROR]);
    assert!(lost.is_lost());
    assert_eq!(go_on(&mut host, "a"), expected);
}

#[test]
fn limits_answer_their_errors() {
    let mut host = with_sessions(1);
    let mut script = Script::default();
    for _ in 0..5 {
        script.call("session_open", &[0, 0, 0, 0]);
    }
    assert_eq!(script.run(&mut host, "a").unwrap(), [3, 4, 5, 6, LIMIT]);
    let mut script = Script::default();
    for _ in 0..40 {
        script.call("session_truncate", &[SESSION, 0]).call("prefill", &[SESSION, FREE + 4096, 70]);
    }
    let answers = script.run(&mut host, "a").unwrap();
    assert_eq!((answers[1], answers[79]), (70, TOKEN_LIMIT), "70 * 28 = 1960 tokens fit in 2000");
}
