//! `tests/fixtures/step1.safetensors`: a portable snapshot that the first version of the format wrote. It is never written anew.
//!
//! It is the guest `call_any` after one message, [`prepared`], on the tiny model of seed 1.

#[path = "common/tiny.rs"]
mod tiny;

use driftwood_actor::{Exactness, Existing, Host, StateFolder, ThawOptions};
use driftwood_snapshot::Snapshot;
use std::path::{Path, PathBuf};
use tiny::Script;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/step1.safetensors")
}

/// What the actor was told: 72 tokens in session 1, evaluated, and a fork of it that is cut to 40 and has one more.
fn prepared(host: &mut Host, name: &str) {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut script = Script::default();
    let greedy = script.data(&words(&[0, 0, 1f32.to_bits(), 0, 1f32.to_bits(), 0, 0, 64, 0]));
    script.call("session_open", &[0, 0, 0, 0]).call("set_sampler", &[1, greedy, 0, 0]);
    for first in (0..72).step_by(8) {
        let tokens = script.data(&words(&(first..first + 8).map(|token| 3 * token + 1).collect::<Vec<u32>>()));
        script.call("prefill", &[1, tokens, 8]);
    }
    script.call("session_fork", &[1]).call("session_truncate", &[2, 40]).call("next", &[2]);
    let answers = script.run(host, name).unwrap();
    assert!(matches!(answers[..], [.., 72, 2, 0, token] if token >= 0), "{answers:?}");
}

/// The next tokens of both sessions.
fn next(host: &mut Host, name: &str) -> Vec<i32> {
    let mut script = Script::default();
    for _ in 0..5 {
        script.call("next", &[1]).call("next", &[2]);
    }
    script.run(host, name).unwrap()
}

#[test]
fn a_snapshot_of_the_first_version_goes_on() {
    let file = Snapshot::open(&fixture()).unwrap();
    file.verify_all(2).unwrap();
    assert!(std::fs::metadata(fixture()).unwrap().len() < 200_000);
    let mut host = tiny::host(1);
    tiny::spawn_caller(&mut host, "fresh");
    prepared(&mut host, "fresh");

    let root = tempfile::tempdir().unwrap();
    let state = StateFolder::open(root.path()).unwrap();
    let held = state.import(&fixture(), "old").unwrap();
    let report = held.thaw_into(&mut host, ThawOptions { limits: tiny::limits(), ..ThawOptions::default() }).unwrap();
    assert_eq!((report.restored_tokens, report.recomputed_tokens), (72 + 40, 0));
    assert_eq!(report.identity.parent, Some(file.manifest().identity.id));
    held.save(&mut host).unwrap();
    let again = root.path().join("again.safetensors");
    held.export(&again, Existing::Refuse).unwrap();
    let again = Snapshot::open(&again).unwrap();
    assert_eq!(again.manifest().pools, file.manifest().pools, "the KV came through the store as it was");
    if report.exactness == Exactness::SameBits {
        assert_eq!(next(&mut host, "old"), next(&mut host, "fresh"));
    }
    assert_eq!(host.info("old").unwrap().messages_handled, 2);
}
