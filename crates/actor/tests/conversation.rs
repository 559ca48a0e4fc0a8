//! Conversations on a real model: freeze and thaw, forks, company, limits and interruptions. Needs `DRIFTWOOD_MODELS`.

mod common;

use common::{GEMMA3, SMOLLM2, bare_host, guest, model_host, send, settings, spawn, tight};
use driftwood_actor::{Error, Event, Exactness, Existing, Host, Limits, Message, Outcome, StateFolder, ThawOptions};
use std::time::Duration;

const TURNS: [&str; 3] = ["My name is Ada. Say hello.", "Name three colours.", "What is my name?"];

fn roomy() -> Limits {
    Limits { memory_bytes: 64 << 20, wall: Duration::from_secs(300), ..Limits::default() }
}

fn chat_settings() -> [(&'static str, &'static str); 4] {
    [("model", SMOLLM2), ("max_tokens", "24"), ("temperature", "0.7"), ("seed", "7")]
}

fn chatting(name: &str) -> Host {
    let mut host = model_host(2);
    spawn(&mut host, name, guest("chat.wasm"), roomy(), &chat_settings()).unwrap();
    host
}

fn talk(host: &mut Host, name: &str, text: &str) -> Outcome {
    let outcome = send(host, name, text).unwrap();
    assert!(!outcome.tokens.is_empty() && !outcome.reply.is_empty());
    outcome
}

fn same(a: &Outcome, b: &Outcome) {
    assert_eq!((&a.tokens, String::from_utf8_lossy(&a.reply)), (&b.tokens, String::from_utf8_lossy(&b.reply)));
}

#[test]
fn three_turns_frozen_after_the_second() {
    let mut host = chatting("a");
    let first = talk(&mut host, "a", TURNS[0]);
    assert_eq!(first.restored_tokens, 0);
    let second = talk(&mut host, "a", TURNS[1]);
    assert!(second.restored_tokens > 0 && second.prefilled_tokens < second.restored_tokens, "{second:?}");

    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = here.path().join("a.safetensors");
    host.freeze("a", &file, Existing::Refuse).unwrap();
    host.fork("a", "forked").unwrap();
    let state = host.state_hash("a").unwrap();
    let third = talk(&mut host, "a", TURNS[2]);
    same(&talk(&mut host, "forked", TURNS[2]), &third);

    let held = StateFolder::open(there.path()).unwrap().import(&file, "b").unwrap();
    let mut other = model_host(1);
    let options = ThawOptions { limits: roomy(), ..ThawOptions::default() };
    let report = held.thaw_into(&mut other, options.clone()).unwrap();
    assert_eq!((report.recomputed_tokens, &report.exactness), (0, &Exactness::SameBits));
    assert!(report.restored_tokens > 0);
    assert_eq!(other.state_hash("b").unwrap(), state);
    let thawed = talk(&mut other, "b", TURNS[2]);
    same(&thawed, &third);
    assert_eq!(thawed.restored_tokens, report.restored_tokens);
    assert_eq!(other.state_hash("b").unwrap(), host.state_hash("a").unwrap());

    // The actor of the file, once more, in its own folder and after a save there.
    held.save(&mut other).unwrap();
    let mut again = model_host(2);
    held.thaw_into(&mut again, options).unwrap();
    same(&talk(&mut again, "b", TURNS[1]), &talk(&mut host, "a", TURNS[1]));
}

#[test]
fn a_batch_of_eight_is_as_if_alone() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut host = model_host(2);
    for name in names {
        spawn(&mut host, name, guest("chat.wasm"), roomy(), &chat_settings()).unwrap();
    }
    let question = |name: &str| format!("Tell me a word that begins with {name}.");
    let messages = names.iter().map(|name| Message::new(*name, question(name))).collect();
    let together = host.deliver(messages, &mut |_, _| {});
    let mut alone = model_host(1);
    for (name, outcome) in names.iter().zip(together) {
        spawn(&mut alone, name, guest("chat.wasm"), roomy(), &chat_settings()).unwrap();
        same(&outcome.unwrap(), &talk(&mut alone, name, &question(name)));
    }
}

#[test]
fn failures_in_mid_conversation_leave_it_as_it_was() {
    let mut host = chatting("a");
    talk(&mut host, "a", TURNS[0]);
    let before = host.state_hash("a").unwrap();
    let cases = [
        (Limits { fuel: 20_000, ..roomy() }, "limit_fuel"),
        (Limits { wall: Duration::from_millis(1), ..roomy() }, "limit_wall"),
        (Limits { kv_bytes: 1 << 20, ..roomy() }, "limit_kv"),
    ];
    for (limits, kind) in cases {
        let error = host.send(Message { limits: Some(limits), ..Message::new("a", TURNS[1]) }, &mut |_| {});
        match error {
            Err(error) => {
                assert_eq!(error.kind(), kind, "{error}");
                assert_eq!(host.state_hash("a").unwrap(), before, "{kind}");
            }
            Ok(outcome) => panic!("{kind}: {}", String::from_utf8_lossy(&outcome.reply)),
        }
    }
    let mut fresh = chatting("b");
    talk(&mut fresh, "b", TURNS[0]);
    same(&talk(&mut host, "a", TURNS[1]), &talk(&mut fresh, "b", TURNS[1]));
}

#[test]
fn an_interruption_ends_the_reply_and_keeps_the_turn() {
    let mut host = chatting("a");
    let interrupt = host.interrupt_handle();
    let message = Message { settings: settings(&[("max_tokens", "200")]), ..Message::new("a", TURNS[0]) };
    let mut parts = 0;
    let outcome = host.send(message, &mut |event| {
        if let Event::Reply(_) = event {
            parts += 1;
            interrupt.set();
        }
    });
    assert!((1..=3).contains(&outcome.unwrap().tokens.len()), "{parts} parts");
    assert_eq!(host.info("a").unwrap().messages_handled, 1);
    talk(&mut host, "a", TURNS[1]);
}

#[test]
fn guests_without_end_meet_their_limits() {
    let mut host = model_host(2);
    let limits = Limits { tokens: 50, ..roomy() };
    spawn(&mut host, "g", guest("generate_without_end"), limits, &[("model", SMOLLM2)]).unwrap();
    let outcome = send(&mut host, "g", "x").unwrap();
    assert_eq!((outcome.tokens.len(), String::from_utf8_lossy(&outcome.reply).trim()), (50, "50 5"));
    spawn(&mut host, "s", guest("many_sessions"), Limits { sessions: 3, ..roomy() }, &[("model", SMOLLM2)]).unwrap();
    assert_eq!(common::reply(&mut host, "s", "x").trim(), "3 5");
    spawn(&mut host, "w", guest("wild_pointers"), roomy(), &[("model", SMOLLM2)]).unwrap();
    send(&mut host, "w", "x").unwrap();
}

#[test]
fn a_model_that_is_not_granted_cannot_be_used() {
    let mut host = model_host(1);
    spawn(&mut host, "a", guest("chat.wasm"), roomy(), &[("model", "other")]).unwrap();
    let error = host.send(Message { settings: settings(&[("model", SMOLLM2)]), ..Message::new("a", "x") }, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), "guest_failed", "{error}");
    let missing = send(&mut host, "a", "x").unwrap_err();
    assert_eq!(missing.kind(), "no_such_model", "{missing}");

    let mut host = chatting("a");
    talk(&mut host, "a", TURNS[0]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    host.freeze("a", &file, Existing::Refuse).unwrap();
    let other = ThawOptions { models: vec!["another".into()], limits: roomy(), ..ThawOptions::default() };
    assert!(matches!(host.thaw(&file, "b", other), Err(Error::NoSuchModel { .. })));
    assert!(bare_host().thaw(&file, "b", ThawOptions { limits: tight(), ..ThawOptions::default() }).is_err());
}

#[test]
fn judge_and_matmul_run() {
    let mut host = model_host(2);
    for name in ["judge", "matmul", "echo", "c_example"] {
        spawn(&mut host, name.replace('_', "-").as_str(), guest(&format!("{name}.wasm")), roomy(), &[("model", SMOLLM2)]).unwrap();
        let text = if name == "matmul" { "" } else { "Is the sky blue?" };
        let outcome = send(&mut host, &name.replace('_', "-"), text).unwrap();
        assert!(!outcome.reply.is_empty(), "{name}");
    }
}

/// The hashes of the full blocks of KV of the open session.
fn block_hashes(host: &mut Host, name: &str) -> Vec<driftwood_snapshot::Hash> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    host.freeze(name, &file, Existing::Refuse).unwrap();
    let manifest = driftwood_snapshot::inspect(&file).unwrap().manifest;
    let open = manifest.sessions.iter().find(|s| s.state.handle == 1).unwrap();
    open.blocks.iter().map(|&block| manifest.pools[open.state.pool as usize].block_hashes[block as usize]).collect()
}

#[test]
fn a_conversation_changes_its_model_and_comes_back() {
    let mut host = chatting("a");
    let story: String = (1..=14)
        .map(|day| format!("On day {day} the tide left a grey piece of driftwood on the beach, and a child carried it home. "))
        .collect();
    talk(&mut host, "a", &format!("My name is Ada. {story} Say hello."));
    talk(&mut host, "a", TURNS[1]);
    let (before, identity) = (host.info("a").unwrap(), host.info("a").unwrap().identity);
    let (evaluated, hashes) = (before.sessions[0].evaluated, block_hashes(&mut host, "a"));
    assert!(evaluated > 400, "{evaluated}");

    let left = host.swap_model("a", GEMMA3, false, &mut |_| {}).unwrap();
    assert_eq!((left.told, left.restored_tokens), (true, 0));
    assert!(left.recomputed_tokens > 300, "the whole transcript: {left:?}");
    let there = talk(&mut host, "a", TURNS[2]);
    assert!(there.prefilled_tokens < 40, "the transcript is read already: {there:?}");
    assert_eq!(host.info("a").unwrap().sessions[0].model, GEMMA3);

    // Kept, and woken by another host.
    let root = tempfile::tempdir().unwrap();
    let state = StateFolder::open(root.path()).unwrap();
    let folder = state.create("a").unwrap();
    folder.save(&mut host).unwrap();
    let mut other = model_host(2);
    folder.thaw_into(&mut other, ThawOptions { limits: roomy(), ..ThawOptions::default() }).unwrap();
    for host in [&mut host, &mut other] {
        let back = host.swap_model("a", SMOLLM2, false, &mut |_| {}).unwrap();
        assert_eq!(back.restored_tokens, evaluated, "{back:?}");
        assert!(back.recomputed_tokens < 80, "one turn: {back:?}");
        assert_eq!(block_hashes(host, "a")[..hashes.len()], hashes, "the earlier context has the same bytes");
        let info = host.info("a").unwrap();
        assert_eq!((&info.identity, info.messages_handled), (&identity, 3));
    }
    same(&talk(&mut host, "a", TURNS[0]), &talk(&mut other, "a", TURNS[0]));
}

#[test]
fn chat_finds_out_by_itself_and_refuses_what_does_not_fit() {
    let mut host = model_host(2);
    let limits = Limits { tokens: 1 << 16, ..roomy() };
    let settings = [("model", GEMMA3), ("max_tokens", "8"), ("temperature", "0"), ("context_max", "16384")];
    spawn(&mut host, "a", guest("chat.wasm"), limits, &settings).unwrap();
    talk(&mut host, "a", TURNS[0]);
    let before = host.state_hash("a").unwrap();
    let error = host.swap_model("a", SMOLLM2, false, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), "guest_failed", "its context is shorter than the setting: {error}");
    assert_eq!((host.state_hash("a").unwrap(), host.info("a").unwrap().settings["model"].as_str()), (before, GEMMA3));

    host.set_setting("a", "context_max", "2048").unwrap();
    host.set_setting("a", "model", SMOLLM2).unwrap();
    talk(&mut host, "a", TURNS[1]);
    let info = host.info("a").unwrap();
    assert_eq!((info.sessions.len(), info.sessions[0].model.as_str(), info.kept.len()), (1, SMOLLM2, 1));
}
