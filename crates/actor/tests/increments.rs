//! What a turn, and an actor with a prompt that others have, write to the state folder: what is new. Needs `DRIFTWOOD_MODELS`.
//!
//! With `DRIFTWOOD_SOAK=1`, as `cargo xtask soak` says, at 4,000 tokens and with a hundred actors.
#![allow(clippy::print_stdout, reason = "the ratios are what one wants to read")]

mod common;

use common::{SMOLLM2, guest, model_host, send, spawn};
use driftwood_actor::{Host, Limits, StateFolder};
use std::time::Duration;

/// What a head, token ids and a page or two may take.
const SMALL_BYTES: u64 = 64 << 10;

fn soaks() -> bool {
    std::env::var_os("DRIFTWOOD_SOAK").is_some()
}

fn limits() -> Limits {
    Limits { memory_bytes: 64 << 20, wall: Duration::from_secs(600), ..Limits::default() }
}

fn chat(host: &mut Host, name: &str, system: &str, max_tokens: &str) {
    let settings = [("model", SMOLLM2), ("system", system), ("max_tokens", max_tokens), ("temperature", "0.8")];
    spawn(host, name, guest("chat.wasm"), limits(), &settings).unwrap();
}

fn tokens(host: &Host, name: &str) -> u64 {
    host.info(name).unwrap().sessions.iter().map(|session| session.tokens as u64).sum()
}

/// A text of about so many tokens.
fn text(tokens: usize) -> String {
    (0..tokens / 5).map(|n| format!("{} and {}, ", ["red", "green", "blue"][n % 3], n % 10)).collect()
}

#[test]
fn a_turn_late_in_a_conversation_writes_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let held = StateFolder::open(folder.path()).unwrap().create("a").unwrap();
    let mut host = model_host(2);
    chat(&mut host, "a", "Be brief.", "24");
    let context = if soaks() { 4000 } else { 1000 };
    send(&mut host, "a", &text(context)).unwrap();
    let mut before = held.save(&mut host).unwrap();
    for turn in 0..4 {
        let tokens_before = tokens(&host, "a");
        send(&mut host, "a", "Which of these colours do you like best, and why is that so? Say it in one sentence.").unwrap();
        let after = held.save(&mut host).unwrap();
        let new_kv_bytes = after.kv_bytes - before.kv_bytes;
        let allowed = new_kv_bytes * 12 / 10 + SMALL_BYTES;
        let new_tokens = tokens(&host, "a") - tokens_before;
        println!(
            "turn {turn}: {new_tokens} tokens, {new_kv_bytes} bytes of KV, wrote {}: {:.3}",
            after.bytes,
            after.bytes as f64 / new_kv_bytes as f64
        );
        assert!(new_kv_bytes > 0 && after.bytes <= allowed, "turn {turn}: wrote {} bytes, {allowed} are allowed", after.bytes);
        before = after;
    }
}

#[test]
fn actors_with_one_prompt_keep_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let mut host = model_host(2);
    let system = text(if soaks() { 990 } else { 415 }); // ends in the middle of a block
    let actors = if soaks() { 100 } else { 6 };
    let (mut prompt_tokens, mut own_bytes, mut token_bytes) = (0, 0, 0);
    for n in 0..actors {
        let name = format!("a{n}");
        chat(&mut host, &name, &system, "8");
        send(&mut host, &name, &format!("{n} is a number. Which colour has it? Tell me what you think of it, and of others.")).unwrap();
        let report = state.create(&name).unwrap().save(&mut host).unwrap();
        let head = state.head(&name).unwrap().unwrap();
        let session = &head.sessions[0];
        token_bytes = report.kv_bytes / u64::from(session.evaluated);
        if n == 0 {
            // The template's beginning, the prompt, and what ends it: all but the user's turn and the reply.
            prompt_tokens = common_tokens(&state, &mut host, &system, session.token_ids(state.chunks()).unwrap());
        }
        own_bytes += (u64::from(session.evaluated) - prompt_tokens) * token_bytes;
        host.remove(&name).unwrap();
    }
    let stats = state.chunks().stats(&state.heads().unwrap()).unwrap();
    assert!(!prompt_tokens.is_multiple_of(16), "{prompt_tokens} tokens end where a piece does anyway");
    let prompt_bytes = prompt_tokens * token_bytes;
    let ratio = stats.unique_bytes.saturating_sub(own_bytes) as f64 / prompt_bytes as f64;
    println!(
        "{actors} actors, a prompt of {prompt_tokens} tokens ({prompt_bytes} bytes): {stats:?}; own KV {own_bytes}; all else {ratio:.3} times the prompt"
    );
    // Beside KV an actor has pages of memory, token ids and a head; a module is kept once.
    let small_bytes = (actors + 4) * SMALL_BYTES / 4;
    assert!(stats.unique_bytes <= prompt_bytes * 11 / 10 + own_bytes + small_bytes, "{stats:?}");
    assert!(stats.unique_bytes * 2 < stats.named_bytes, "{stats:?}");
}

/// How many tokens another actor with this prompt has in common with these.
fn common_tokens(state: &StateFolder, host: &mut Host, system: &str, ids: Vec<u32>) -> u64 {
    chat(host, "other", system, "1");
    send(host, "other", "?").unwrap();
    let held = state.create("other").unwrap();
    held.save(host).unwrap();
    let others = state.head("other").unwrap().unwrap().sessions[0].token_ids(state.chunks()).unwrap();
    host.remove("other").unwrap();
    held.remove().unwrap();
    state.sweep().unwrap();
    ids.iter().zip(&others).take_while(|(one, other)| one == other).count() as u64
}
