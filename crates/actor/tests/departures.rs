//! Replays that are not what was recorded: they are told, the actor stays parked, and the state before the message is intact. Needs `DRIFTWOOD_MODELS`.

mod common;

use common::{SMOLLM2, guest, model_host, send, spawn};
use driftwood_actor::{Durability, Error, Limits, Message, StateFolder, ThawOptions};
use driftwood_store::{Base, Head, Journal, left_behind};
use std::path::Path;
use std::time::Duration;

const QUESTION: &str = "Name three colours.";
/// Kinds of records: a token, and logits by their hash.
const TOKEN: u8 = 1;
const LOGITS: u8 = 2;
/// A record's kind; how much fuel was used; what was answered.
const FUEL_AT: usize = 1;
const ANSWER_AT: usize = 9;

fn roomy() -> Limits {
    Limits { memory_bytes: 64 << 20, wall: Duration::from_secs(300), ..Limits::default() }
}

/// An actor at rest whose process died in the middle of its second message.
fn cut_off(root: &Path, module: &str) {
    let mut host = model_host(2);
    spawn(&mut host, "a", guest(module), roomy(), &[("model", SMOLLM2), ("max_tokens", "12"), ("temperature", "0.8"), ("seed", "3")])
        .unwrap();
    send(&mut host, "a", "Is the sea deep?").unwrap();
    let held = StateFolder::open(root).unwrap().create("a").unwrap();
    held.save(&mut host).unwrap();
    let calls = if module == "chat.wasm" { 24 } else { 12 };
    let message = Message { park_after_calls: Some(calls), ..Message::new("a", QUESTION) };
    assert!(matches!(host.send(message, &mut |_| {}), Err(Error::Parked { .. })));
}

/// Writes the journal again with a byte of the first record of a kind altered.
fn forge(root: &Path, kind: u8, at: usize) {
    let (journals, path) = (root.join("journals"), root.join("actors/a/head"));
    let base = Base { name: "a".into(), id: Head::read(&path).unwrap().identity.id, head: Head::hash_of(&path).unwrap() };
    let mut records = left_behind(&journals, &[], &base).unwrap().unwrap().records;
    records.iter_mut().find(|record| record[0] == kind).unwrap()[at] ^= 1;
    for file in std::fs::read_dir(&journals).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let stream = Journal::create(&journals, Durability::Process).unwrap().begin(&base).unwrap();
    for record in &records {
        stream.append(record).unwrap();
    }
}

#[test]
fn a_replay_that_departs_is_told_and_can_be_given_up() {
    let cases = [
        ("chat.wasm", TOKEN, FUEL_AT, "departed"),
        ("judge.wasm", LOGITS, FUEL_AT, "departed"),
        ("judge.wasm", LOGITS, ANSWER_AT, "other_logits"),
    ];
    for (module, kind, at, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        cut_off(folder.path(), module);
        forge(folder.path(), kind, at);
        let held = StateFolder::open(folder.path()).unwrap().hold("a").unwrap();
        let mut host = model_host(2);
        held.thaw_into(&mut host, ThawOptions { limits: roomy(), ..ThawOptions::default() }).unwrap();
        let before = host.state_hash("a").unwrap();
        for _ in 0..2 {
            let error = host.resume("a", None, &mut |_| {}).unwrap_err();
            assert_eq!(error.kind(), expected, "{module}: {error}");
            assert!(host.is_parked("a").unwrap(), "{module}: it may be tried again, elsewhere");
            assert_eq!(host.state_hash("a").unwrap(), before, "{module}");
        }
        assert_eq!(host.discard("a").unwrap(), 1);
        held.save(&mut host).unwrap();
        drop((held, host));
        let held = StateFolder::open(folder.path()).unwrap().hold("a").unwrap();
        assert!(!held.is_cut_off().unwrap(), "{module}: given up for good");
        let mut host = model_host(2);
        held.thaw_into(&mut host, ThawOptions { limits: roomy(), ..ThawOptions::default() }).unwrap();
        assert_eq!(host.state_hash("a").unwrap(), before, "{module}");
        send(&mut host, "a", QUESTION).unwrap();
    }
}
