//! An actor that is frozen in the middle of a reply, in whichever host call, and goes on in another process with another state folder.
//!
//! Some calls of a short reply for every change; every call of one of 200 tokens with `DRIFTWOOD_SOAK=1`.

use crate::support::{Home, SMOLLM2, models};
use driftwood_actor::{Error, Existing, Host, HostOptions, Limits, Message, Outcome, SpawnSpec};
use driftwood_compute::{Arithmetic, Cpu, Simd};
use std::path::Path;
use std::sync::Arc;

const QUESTION: &str = "Write a short poem about the sea.";

fn soaks() -> bool {
    std::env::var_os("DRIFTWOOD_SOAK").is_some()
}

/// A host in this process, with an actor that has had a turn.
fn talked(guest: &str, settings: &[(&str, &str)]) -> Host {
    let device = Arc::new(Cpu::new(2, Simd::detect(), Arithmetic::Fast)).into();
    let file = models().join(SMOLLM2.1);
    let mut host = Host::new(HostOptions { device, models: Box::new(move |_| Ok(file.clone())) }).unwrap();
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../guest/wasm/{guest}.wasm"));
    let settings = settings.iter().chain([&("model", SMOLLM2.0)]).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let module = std::fs::read(module).unwrap().into();
    host.spawn(SpawnSpec { name: "a".into(), module, settings, limits: Limits::default(), models: Vec::new() }).unwrap();
    host.send(Message::new("a", "Is the sea deep?"), &mut |_| {}).unwrap();
    host
}

/// Parks a fork in its n-th call and freezes it there; or what came of the message, if it has fewer calls.
fn frozen(host: &mut Host, calls: u64, file: &Path) -> Option<Outcome> {
    host.fork("a", "cut").unwrap();
    let message = Message { park_after_calls: Some(calls), ..Message::new("cut", QUESTION) };
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

fn goes_on_elsewhere(guest: &str, settings: &[(&str, &str)], step: u64) {
    let mut host = talked(guest, settings);
    let folder = tempfile::tempdir().unwrap();
    let whole = frozen(&mut host, u64::MAX, Path::new("")).unwrap();
    let paths = Simd::available();
    let mut calls = 1;
    loop {
        let file = folder.path().join("cut");
        if frozen(&mut host, calls, &file).is_some() {
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
        calls += step;
    }
    assert!(calls > 10, "{calls}");
}

#[test]
fn a_chat_that_was_frozen_in_mid_token_goes_on_elsewhere() {
    let (tokens, step) = if soaks() { ("200", 1) } else { ("8", 9) };
    goes_on_elsewhere("chat", &[("max_tokens", tokens), ("temperature", "0.8"), ("seed", "3")], step);
}

#[test]
fn a_judge_that_was_frozen_before_its_logits_goes_on_elsewhere() {
    goes_on_elsewhere("judge", &[("temperature", "0.5")], if soaks() { 1 } else { 4 });
}
