//! Messages that are cut in the middle, and go on: parked in any host call, frozen there, or left behind by a process that died. Needs `DRIFTWOOD_MODELS`.

mod common;

use common::{SMOLLM2, guest, model_host, send, spawn};
use driftwood_actor::{Error, Existing, Hash, Host, Limits, Message, Outcome, StateFolder, ThawOptions};
use std::time::Duration;

const QUESTION: &str = "Name three colours.";

fn roomy() -> Limits {
    Limits { memory_bytes: 64 << 20, wall: Duration::from_secs(300), ..Limits::default() }
}

/// An actor that has had a turn already.
fn talked(host: &mut Host, module: &str, settings: &[(&str, &str)]) {
    spawn(host, "a", guest(module), roomy(), settings).unwrap();
    send(host, "a", "Is the sea deep?").unwrap();
}

const CHAT: [(&str, &str); 4] = [("model", SMOLLM2), ("max_tokens", "12"), ("temperature", "0.8"), ("seed", "3")];
const JUDGE: [(&str, &str); 2] = [("model", SMOLLM2), ("temperature", "0.5")];

/// What came of a message, without what differs by the clock.
fn essence(outcome: &Outcome) -> (Vec<u8>, Vec<u32>, [usize; 2], u64) {
    let Outcome { reply, tokens, restored_tokens, prefilled_tokens, fuel_used, .. } = outcome.clone();
    (reply, tokens, [restored_tokens, prefilled_tokens], fuel_used)
}

/// The same without the count of prefilled tokens: a thaw takes the last token of a reply, which nobody has evaluated yet, for a part of the prompt.
fn told(outcome: &Outcome) -> (Vec<u8>, Vec<u32>, usize, u64) {
    let (reply, tokens, [restored, _], fuel) = essence(outcome);
    (reply, tokens, restored, fuel)
}

/// Forks the actor, sends the fork the question up to its n-th call, and lets it go on; answers what came of it, its state and what it said.
fn cut_and_resumed(host: &mut Host, calls: u64) -> (bool, Outcome, Hash, Vec<u8>) {
    host.fork("a", "cut").unwrap();
    let before = host.state_hash("cut").unwrap();
    let mut said = Vec::new();
    let message = Message { park_after_calls: Some(calls), ..Message::new("cut", QUESTION) };
    let (was_cut, outcome) = match host.send(message, &mut |_| {}) {
        Ok(outcome) => (false, outcome),
        Err(Error::Parked { name }) => {
            assert_eq!((name.as_str(), host.state_hash("cut").unwrap()), ("cut", before), "its state is that before the message");
            assert!(matches!(send(host, "cut", "x"), Err(Error::Parked { .. })), "one message after the other");
            let mut outcomes = host.resume("cut", None, &mut |event| {
                if let driftwood_actor::Event::Reply(bytes) = event {
                    said.extend_from_slice(bytes);
                }
            });
            (true, outcomes.as_mut().unwrap().pop().unwrap())
        }
        Err(other) => panic!("call {calls}: {other}"),
    };
    assert!(!host.is_parked("cut").unwrap());
    let state = host.state_hash("cut").unwrap();
    host.remove("cut").unwrap();
    (was_cut, outcome, state, said)
}

/// Every call of a message is a place where it can be parked, and makes no difference.
fn parked_anywhere(module: &str, settings: &[(&str, &str)], least_calls: u64, step: usize) {
    let mut host = model_host(2);
    talked(&mut host, module, settings);
    let (_, whole, state, _) = cut_and_resumed(&mut host, u64::MAX);
    let mut calls = 1;
    loop {
        let (was_cut, outcome, after, said) = cut_and_resumed(&mut host, calls);
        assert_eq!(essence(&outcome), essence(&whole), "cut in call {calls}");
        assert_eq!(after, state, "cut in call {calls}");
        if !was_cut {
            break;
        }
        assert_eq!(said, whole.reply, "cut in call {calls}");
        calls += step as u64;
    }
    assert!(calls > least_calls, "{calls}");
}

#[test]
fn a_chat_can_be_parked_in_any_host_call() {
    parked_anywhere("chat.wasm", &CHAT, 30, 2);
}

#[test]
fn a_judge_that_sees_raw_logits_can_be_parked_in_any_host_call() {
    parked_anywhere("judge.wasm", &JUDGE, 8, 1);
}

#[test]
fn carried_logits_are_not_computed_again() {
    let mut host = model_host(2);
    talked(&mut host, "judge.wasm", &[&JUDGE[..], &[("journal_logits", "true")]].concat());
    let (_, whole, state, _) = cut_and_resumed(&mut host, u64::MAX);
    let (was_cut, outcome, after, _) = cut_and_resumed(&mut host, 12);
    assert!(was_cut);
    assert_eq!((essence(&outcome), after), (essence(&whole), state));
}

/// What a process leaves that dies in the middle of a message: its folder, and the journal of what its guest was told.
#[test]
fn another_process_goes_on_where_one_died() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, state) = {
        let mut host = model_host(2);
        talked(&mut host, "chat.wasm", &CHAT);
        let held = StateFolder::open(folder.path()).unwrap().create("a").unwrap();
        held.save(&mut host).unwrap();
        host.fork("a", "b").unwrap();
        let whole = send(&mut host, "b", QUESTION).unwrap();
        let message = Message { park_after_calls: Some(24), ..Message::new("a", QUESTION) };
        assert!(matches!(host.send(message, &mut |_| {}), Err(Error::Parked { .. })));
        (whole, host.state_hash("b").unwrap())
    };
    for (threads, keep) in [(1, false), (2, true)] {
        let held = StateFolder::open(folder.path()).unwrap().hold("a").unwrap();
        assert!(held.is_cut_off().unwrap());
        assert!(matches!(held.accept(&Message::new("a", "x")), Err(Error::Parked { .. })));
        let mut host = model_host(threads);
        held.thaw_into(&mut host, ThawOptions { limits: roomy(), ..ThawOptions::default() }).unwrap();
        assert!(host.is_parked("a").unwrap());
        let outcomes = host.resume("a", None, &mut |_| {}).unwrap();
        assert_eq!(outcomes.len(), 1);
        assert_eq!((told(&outcomes[0]), host.state_hash("a").unwrap()), (told(&whole), state));
        if keep {
            held.save(&mut host).unwrap(); // else this process dies, too, and the next finds the whole message in its journal
        }
    }
    let held = StateFolder::open(folder.path()).unwrap().hold("a").unwrap();
    assert!(!held.is_cut_off().unwrap());
    assert_eq!(held.thaw_into(&mut model_host(1), ThawOptions { limits: roomy(), ..ThawOptions::default() }).unwrap().recomputed_tokens, 0);
}

#[test]
fn an_accepted_message_is_handled_once() {
    let folder = tempfile::tempdir().unwrap();
    let options = || ThawOptions { limits: roomy(), ..ThawOptions::default() };
    let state = StateFolder::open(folder.path()).unwrap();
    let mut host = model_host(2);
    talked(&mut host, "chat.wasm", &CHAT);
    let held = state.create("a").unwrap();
    held.save(&mut host).unwrap();
    let whole = send(&mut host, "a", QUESTION).unwrap(); // never kept
    drop((host, held, state)); // the process dies
    // Here the first message is in the journal whole: it is replayed, without a step, before the next.
    let held = StateFolder::open(folder.path()).unwrap().hold("a").unwrap();
    let mut host = model_host(2);
    held.thaw_into(&mut host, options()).unwrap();
    let outcomes = host.resume("a", None, &mut |_| {}).unwrap();
    assert_eq!(outcomes.iter().map(told).collect::<Vec<_>>(), [told(&whole)]);
    held.save(&mut host).unwrap();
    host.remove("a").unwrap();
    let message = Message::new("a", "And three more.");
    held.accept(&message).unwrap();
    held.thaw_into(&mut host, options()).unwrap();
    assert!(!host.is_parked("a").unwrap(), "what was just accepted is not what somebody left");
    let then = host.send(message, &mut |_| {}).unwrap();
    drop((host, held));
    let held = StateFolder::open(folder.path()).unwrap().hold("a").unwrap();
    let mut host = model_host(2);
    held.thaw_into(&mut host, options()).unwrap();
    let outcomes = host.resume("a", None, &mut |_| {}).unwrap();
    assert_eq!(outcomes.iter().map(essence).collect::<Vec<_>>(), [essence(&then)], "once, not twice");
}

/// Sends a message that the user interrupts when the reply has grown for the third time.
fn interrupted(host: &mut Host, name: &str, park_after_calls: Option<u64>) -> Result<Outcome, Error> {
    let interrupt = host.interrupt_handle();
    let mut grown = 0;
    host.send(Message { park_after_calls, ..Message::new(name, QUESTION) }, &mut |_| {
        grown += 1;
        if grown == 3 {
            interrupt.set();
        }
    })
}

#[test]
fn an_interruption_is_replayed() {
    let mut host = model_host(2);
    talked(&mut host, "chat.wasm", &CHAT);
    for name in ["whole", "cut"] {
        host.fork("a", name).unwrap();
    }
    let whole = interrupted(&mut host, "whole", None).unwrap();
    assert!(whole.tokens.len() < 12, "{}", whole.tokens.len());
    let calls = (1..).find(|calls| {
        host.fork("a", "try").unwrap();
        let done = interrupted(&mut host, "try", Some(*calls)).is_ok();
        host.remove("try").unwrap();
        done
    });
    // One call before its end: behind the interruption.
    assert!(matches!(interrupted(&mut host, "cut", calls.map(|calls| calls - 1)), Err(Error::Parked { .. })));
    host.deliver(Vec::new(), &mut |_, _| {}); // begins with nobody interrupting
    let outcome = host.resume("cut", None, &mut |_| {}).unwrap().pop().unwrap();
    assert_eq!((essence(&outcome), host.state_hash("cut").unwrap()), (essence(&whole), host.state_hash("whole").unwrap()));
}

#[test]
fn a_full_journal_is_told_to_the_guest() {
    let mut host = model_host(1);
    let limits = Limits { journal_bytes: 100, ..roomy() }; // one token and no more
    spawn(&mut host, "a", guest("chat.wasm"), limits, &CHAT).unwrap();
    let message = Message { park_after_calls: Some(100_000), ..Message::new("a", QUESTION) };
    let error = host.send(message, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), "limit_journal", "{error}");
    assert!(!host.is_parked("a").unwrap());
}

/// A parked actor is frozen into a file where it stands; whoever thaws the file, here or elsewhere, lets it go on.
#[test]
fn a_parked_actor_is_one_file() {
    let mut host = model_host(2);
    talked(&mut host, "chat.wasm", &CHAT);
    host.fork("a", "whole").unwrap();
    let whole = send(&mut host, "whole", QUESTION).unwrap();
    let state = host.state_hash("whole").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for calls in [2, 20, 31] {
        host.fork("a", "cut").unwrap();
        let message = Message { park_after_calls: Some(calls), ..Message::new("cut", QUESTION) };
        assert!(matches!(host.send(message, &mut |_| {}), Err(Error::Parked { .. })));
        let file = folder.path().join(format!("{calls}.safetensors"));
        host.freeze("cut", &file, Existing::Refuse).unwrap();
        host.remove("cut").unwrap();
        let options = || ThawOptions { limits: roomy(), ..ThawOptions::default() };
        // Straight from the file, in another host.
        let mut other = model_host(1);
        other.thaw(&file, "b", options()).unwrap();
        assert!(other.is_parked("b").unwrap());
        let outcome = other.resume("b", None, &mut |_| {}).unwrap().pop().unwrap();
        assert_eq!((told(&outcome), other.state_hash("b").unwrap()), (told(&whole), state), "{calls}");
        // Through a state folder, in a process that dies before it has resumed it; then through that one's export.
        let state_folder = tempfile::tempdir().unwrap();
        {
            let mut dies = model_host(1);
            let held = StateFolder::open(state_folder.path()).unwrap().import(&file, "c").unwrap();
            held.thaw_into(&mut dies, options()).unwrap();
            held.save(&mut dies).unwrap();
        }
        let exported = folder.path().join(format!("{calls}-again.safetensors"));
        let held = StateFolder::open(state_folder.path()).unwrap().hold("c").unwrap();
        assert!(held.is_cut_off().unwrap());
        held.export(&exported, Existing::Refuse).unwrap();
        for thawed in [true, false] {
            let mut host = model_host(2);
            match thawed {
                true => drop(host.thaw(&exported, "c", options()).unwrap()),
                false => drop(held.thaw_into(&mut host, options()).unwrap()),
            }
            let outcome = host.resume("c", None, &mut |_| {}).unwrap().pop().unwrap();
            assert_eq!((told(&outcome), host.state_hash("c").unwrap()), (told(&whole), state), "{calls}");
        }
    }
}

#[test]
fn a_replay_that_departs_is_told_and_loses_nothing() {
    let mut host = model_host(2);
    talked(&mut host, "judge.wasm", &JUDGE);
    let message = Message { park_after_calls: Some(12), ..Message::new("a", QUESTION) };
    assert!(matches!(host.send(message, &mut |_| {}), Err(Error::Parked { .. })));
    let before = host.state_hash("a").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.safetensors");
    host.freeze("a", &file, Existing::Refuse).unwrap();
    // In exact arithmetic logits have other bits.
    let mut exact = common::exact_host();
    exact.thaw(&file, "a", ThawOptions { limits: roomy(), ..ThawOptions::default() }).unwrap();
    for _ in 0..2 {
        assert_eq!(exact.resume("a", None, &mut |_| {}).unwrap_err().kind(), "other_logits");
        assert!(exact.is_parked("a").unwrap(), "it can be resumed elsewhere");
        assert_eq!(exact.state_hash("a").unwrap(), before);
    }
    assert_eq!(exact.discard("a").unwrap(), 1);
    send(&mut exact, "a", QUESTION).unwrap();
}
