//! An actor that is frozen in the middle of a reply, in whichever host call, and goes on in another process with another state folder.
//!
//! Some calls of a short reply for every change; with `DRIFTWOOD_SOAK=1` every call of a chat's of 200 tokens and of a judge's, and every ninth of a
//! guest's that reads the logits of 200 tokens. On a machine with many cores `DRIFTWOOD_SOAK_PART=I/N` takes the i-th of n parts of the calls.

#![allow(clippy::print_stdout, reason = "how far a soak has come")]

use crate::support::{Home, SMOLLM2, models};
use driftwood_actor::{Error, Existing, Host, HostOptions, Limits, Message, Outcome, SpawnSpec};
use driftwood_compute::{Arithmetic, Cpu, Simd};
use std::path::Path;
use std::sync::Arc;

const FIRST: &str = "Is the sea deep?";
/// What a model takes more than 200 tokens for.
const QUESTION: &str = "Write a long story about an old sailor and the sea.";

fn soaks() -> bool {
    std::env::var_os("DRIFTWOOD_SOAK").is_some()
}

/// Which part of the calls this process takes, and of how many.
fn part() -> (u64, u64) {
    let Ok(part) = std::env::var("DRIFTWOOD_SOAK_PART") else { return (0, 1) };
    let (index, count) = part.split_once('/').expect("DRIFTWOOD_SOAK_PART is like 3/8");
    (index.parse().unwrap(), count.parse().unwrap())
}

/// An actor and its two messages: the second one is cut.
struct Case<'a> {
    guest: &'a str,
    settings: &'a [(&'a str, &'a str)],
    messages: [Vec<u8>; 2],
}

/// A host in this process, with an actor that has had a turn.
fn talked(case: &Case<'_>) -> Host {
    let Case { guest, settings, .. } = case;
    let device = Arc::new(Cpu::new(2, Simd::detect(), Arithmetic::Fast)).into();
    let file = models().join(SMOLLM2.1);
    let mut host = Host::new(HostOptions { device, models: Box::new(move |_| Ok(file.clone())) }).unwrap();
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../guest/wasm/{guest}.wasm"));
    let settings = settings.iter().chain([&("model", SMOLLM2.0)]).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let module = std::fs::read(module).unwrap().into();
    host.spawn(SpawnSpec { name: "a".into(), module, settings, limits: Limits::default(), models: Vec::new() }).unwrap();
    host.send(Message::new("a", case.messages[0].clone()), &mut |_| {}).unwrap();
    host
}

/// Parks a fork in its n-th call and freezes it there; or what came of the message, if it has fewer calls.
fn frozen(host: &mut Host, message: &[u8], calls: u64, file: &Path) -> Option<Outcome> {
    host.fork("a", "cut").unwrap();
    let message = Message { park_after_calls: Some(calls), ..Message::new("cut", message) };
    let sent = host.send(message, &mut |_| {});
    let done = match sent {
        Ok(outcome) => Some(outcome),
        Err(Error::Parked { .. }) => {
            host.freeze("cut", file, Existing::Refuse).unwrap();
            None
        }
        Err(other) => panic!("call {calls}: {other}"),
    };
    host.remove("cut").unwrap();
    done
}

/// Cuts a reply in each `step`-th call. Answers how many tokens it has.
fn goes_on_elsewhere(case: &Case<'_>, step: u64) -> usize {
    let mut host = talked(case);
    let folder = tempfile::tempdir().unwrap();
    let whole = frozen(&mut host, &case.messages[1], u64::MAX, Path::new("")).unwrap();
    let paths = Simd::available();
    let (index, parts) = part();
    let mut calls = 1 + index * step;
    loop {
        let file = folder.path().join("cut");
        if frozen(&mut host, &case.messages[1], calls, &file).is_some() {
            break;
        }
        // Each tenth on every path that this machine can be forced to.
        let on = if (calls / step).is_multiple_of(10) { &paths[..] } else { &[Simd::detect()] };
        for simd in on {
            let home = Home::new();
            let simd = simd.to_string();
            home.run(&["thaw", file.to_str().unwrap(), "--as", "b", "--simd", &simd]);
            let resumed = home.json(&["actor", "resume", "b", "--json", "--simd", &simd]);
            assert_eq!(resumed["resumed"], 1, "call {calls} on {simd}");
            assert_eq!(resumed["reply"], String::from_utf8_lossy(&whole.reply).as_ref(), "call {calls} on {simd}");
            assert_eq!(resumed["tokens"], serde_json::json!(whole.tokens), "call {calls} on {simd}");
            let nothing = home.json(&["actor", "resume", "b", "--json"]);
            assert_eq!(nothing["resumed"], 0, "call {calls} on {simd}");
        }
        std::fs::remove_file(&file).unwrap();
        calls += parts * step;
    }
    assert!(calls > 10, "{calls}");
    println!("{} calls, part {index} of {parts}", calls - 1);
    whole.tokens.len()
}

#[test]
fn a_chat_that_was_frozen_in_mid_token_goes_on_elsewhere() {
    let (tokens, step) = if soaks() { (200, 1) } else { (8, 9) };
    let tokens_text = tokens.to_string();
    let settings = [("max_tokens", &*tokens_text), ("temperature", "0.8"), ("seed", "3")];
    let case = Case { guest: "chat", settings: &settings, messages: [FIRST, QUESTION].map(Vec::from) };
    assert_eq!(goes_on_elsewhere(&case, step), tokens);
}

#[test]
fn a_judge_that_was_frozen_before_its_logits_goes_on_elsewhere() {
    let case = Case { guest: "judge", settings: &[("temperature", "0.5")], messages: [FIRST, QUESTION].map(Vec::from) };
    goes_on_elsewhere(&case, if soaks() { 1 } else { 4 });
}

/// The benches' guest (`guest/bench/bench.wat`) reads the raw logits of every token: it opens a session, and then takes tokens.
#[test]
fn a_guest_that_was_frozen_between_its_logits_goes_on_elsewhere() {
    let (tokens, step) = if soaks() { (200, 9) } else { (6, 5) }; // four calls a token: each kind in turn
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let case = Case { guest: "bench", settings: &[], messages: [words(&[0, 4, 504, 2177, 314, 253]), words(&[2, tokens, 1])] };
    goes_on_elsewhere(&case, step);
}
