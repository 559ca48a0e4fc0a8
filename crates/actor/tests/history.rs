//! What an actor was: moments at rest, the way back to them, and what forks, failures and portable files make of history.

mod common;

use common::{SMOLLM2, bare_host, guest, model_host, reply, send, spawn, tight};
use driftwood_actor::{Error, Existing, Hash, Host, Limits, Moment, StateFolder, ThawOptions};
use std::path::Path;
use std::time::Duration;

/// An actor of the guest `counter` in a state folder, kept after each of these messages.
fn kept(root: &Path, messages: &[&str]) -> StateFolder {
    let state = StateFolder::open(root).unwrap();
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    let held = state.create("a").unwrap();
    held.save(&mut host).unwrap();
    for message in messages {
        reply(&mut host, "a", message);
        held.save(&mut host).unwrap();
    }
    state
}

fn woken(state: &StateFolder, name: &str) -> (Host, driftwood_actor::ActorFolder) {
    let mut host = bare_host();
    let held = state.hold(name).unwrap();
    held.thaw_into(&mut host, ThawOptions { limits: tight(), ..ThawOptions::default() }).unwrap();
    (host, held)
}

/// The messages of a history, moment by moment.
fn messages(moments: &[Moment]) -> Vec<Vec<String>> {
    let text = |moment: &Moment| moment.turns.iter().map(|turn| String::from_utf8_lossy(&turn.message.0).into_owned()).collect();
    moments.iter().map(text).collect()
}

fn states(moments: &[Moment]) -> Vec<Hash> {
    moments.iter().map(|moment| moment.state).collect()
}

#[test]
fn each_save_after_a_message_is_a_moment() {
    let root = tempfile::tempdir().unwrap();
    let state = kept(root.path(), &["one", "two"]);
    let (mut host, held) = woken(&state, "a");
    held.save(&mut host).unwrap();
    reply(&mut host, "a", "three");
    assert!(send(&mut host, "a", &"x".repeat(17 << 20)).is_err(), "what failed leaves no turn");
    reply(&mut host, "a", "four");
    held.save(&mut host).unwrap();
    host.set_setting("a", "k", "v").unwrap();
    held.save(&mut host).unwrap();
    let moments = state.history("a").unwrap();
    assert_eq!(moments.iter().map(|moment| moment.turn).collect::<Vec<_>>(), [0, 1, 2, 4]);
    assert_eq!(messages(&moments), [vec![], vec!["one"], vec!["two"], vec!["three", "four"]]);
    let last = &moments[3].turns[1];
    assert_eq!((&last.reply.0[..], &last.tokens[..]), (&b"4 4 four"[..], &[][..]));
}

#[test]
fn forks_share_history_and_add_their_own() {
    let root = tempfile::tempdir().unwrap();
    let state = kept(root.path(), &["one"]);
    let (mut host, held) = woken(&state, "a");
    host.fork("a", "kept").unwrap();
    reply(&mut host, "a", "unkept");
    host.fork("a", "unkept").unwrap();
    for name in ["kept", "unkept"] {
        state.create(name).unwrap().save(&mut host).unwrap();
    }
    let stats = state.chunks().stats(&state.heads().unwrap()).unwrap();
    assert_eq!((stats.heads, stats.former_heads), (3, 2));
    reply(&mut host, "kept", "mine");
    state.hold("kept").unwrap().save(&mut host).unwrap();
    assert_eq!(messages(&state.history("a").unwrap()), [vec![], vec!["one"]]);
    assert_eq!(messages(&state.history("unkept").unwrap()), [vec![], vec!["one"], vec!["unkept"]]);
    assert_eq!(messages(&state.history("kept").unwrap()), [vec![], vec!["one"], vec!["mine"]]);
    held.remove().unwrap();
    state.sweep().unwrap();
    assert!(state.chunks().check(&state.heads().unwrap()).is_empty());
    let rewound = state.hold("kept").unwrap().rewind(0).unwrap();
    assert_eq!((rewound.turn, rewound.dropped_turns), (0, 2));
    let (mut host, _held) = woken(&state, "kept");
    assert_eq!(host.info("kept").unwrap().identity.name, "kept", "it stays who it is before its birth");
    assert_eq!(reply(&mut host, "kept", "m"), "1 1 m");
}

/// Forks that were kept before they were told anything follow one head, which is stored once.
#[test]
fn forks_that_were_kept_follow_one_head() {
    let root = tempfile::tempdir().unwrap();
    let state = kept(root.path(), &["one"]);
    let (mut host, _held) = woken(&state, "a");
    let names = ["b", "c", "d"];
    for name in names {
        host.fork("a", name).unwrap();
        state.create(name).unwrap().save(&mut host).unwrap();
    }
    let former_heads = || state.chunks().stats(&state.heads().unwrap()).unwrap().former_heads;
    assert_eq!(former_heads(), 1, "the head of the spawn");
    for name in names {
        reply(&mut host, name, name);
        state.hold(name).unwrap().save(&mut host).unwrap();
        assert_eq!(messages(&state.history(name).unwrap()), [vec![], vec!["one"], vec![name]]);
    }
    assert_eq!(former_heads(), 2);
    host.set_setting("b", "k", "v").unwrap();
    state.hold("b").unwrap().save(&mut host).unwrap();
    reply(&mut host, "b", "more");
    state.hold("b").unwrap().save(&mut host).unwrap();
    let held = state.hold("b").unwrap();
    held.rewind(2).unwrap();
    let settings = state.inspect("b").unwrap().manifest.guest.unwrap().state.settings;
    assert_eq!(settings["k"], "v", "a changed setting belongs to the moment after the last message");
}

#[test]
fn a_rewound_actor_goes_on_as_if_nothing_had_come_after() {
    let root = tempfile::tempdir().unwrap();
    let state = kept(root.path(), &["one", "two", "three"]);
    let before = state.history("a").unwrap();
    let identity = state.inspect("a").unwrap().manifest.identity;
    for bad in [4, 99, u64::MAX] {
        let error = state.hold("a").unwrap().rewind(bad).unwrap_err();
        assert!(matches!(&error, Error::NoSuchTurn { known, .. } if known == "0 to 3"), "{error}");
    }
    assert_eq!(state.hold("a").unwrap().rewind(3).unwrap().dropped_turns, 0);
    let rewound = state.hold("a").unwrap().rewind(1).unwrap();
    assert_eq!((rewound.turn, rewound.dropped_turns), (1, 2));
    assert_eq!(state.history("a").unwrap(), before[..2]);
    assert_eq!(state.inspect("a").unwrap().manifest.identity, identity);
    state.sweep().unwrap();
    let (mut host, held) = woken(&state, "a");
    for (message, text) in [("two", "2 2 two"), ("three", "3 3 three")] {
        assert_eq!(reply(&mut host, "a", message), text);
        held.save(&mut host).unwrap();
    }
    assert_eq!(states(&state.history("a").unwrap()), states(&before));
    assert!(state.chunks().check(&state.heads().unwrap()).is_empty());
}

#[test]
fn several_messages_of_one_save_are_one_step_back() {
    let root = tempfile::tempdir().unwrap();
    let state = kept(root.path(), &["one"]);
    let (mut host, held) = woken(&state, "a");
    for message in ["two", "three", "four"] {
        reply(&mut host, "a", message);
    }
    held.save(&mut host).unwrap();
    assert!(matches!(held.rewind(2), Err(Error::NoSuchTurn { known, .. }) if known == "0 to 1, 4"));
    assert_eq!(held.rewind(1).unwrap().dropped_turns, 3);
}

/// A portable file carries no history: it begins anew.
#[test]
fn history_begins_with_a_thawed_file() {
    let (root, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = kept(root.path(), &["one", "two"]);
    let file = there.path().join("a.safetensors");
    state.hold("a").unwrap().export(&file, Existing::Refuse).unwrap();
    let other = StateFolder::open(&there.path().join("state")).unwrap();
    let held = other.import(&file, "b").unwrap();
    assert_eq!(other.history("b").unwrap(), []);
    assert!(matches!(held.rewind(0), Err(Error::NoSuchTurn { known, .. }) if known == "2"));
    let mut host = bare_host();
    held.thaw_into(&mut host, ThawOptions { limits: tight(), ..ThawOptions::default() }).unwrap();
    held.save(&mut host).unwrap();
    reply(&mut host, "b", "three");
    held.save(&mut host).unwrap();
    let (here, there) = (state.history("a").unwrap(), other.history("b").unwrap());
    assert_eq!(messages(&there), [vec![], vec!["three"]]);
    assert_eq!((there[0].turn, there[0].state), (2, here[2].state), "the same state, in another folder");
    assert!(matches!(held.rewind(1), Err(Error::NoSuchTurn { known, .. }) if known == "2 to 3"));
}

/// An actor that is kept in another folder than the one it came from names nothing that is not there.
#[test]
fn a_chain_stays_in_its_folder() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = kept(here.path(), &["one"]);
    let (mut host, _held) = woken(&state, "a");
    let other = StateFolder::open(there.path()).unwrap();
    reply(&mut host, "a", "two");
    other.create("a").unwrap().save(&mut host).unwrap();
    assert_eq!(messages(&other.history("a").unwrap()), [["two"]]);
    assert!(other.chunks().check(&other.heads().unwrap()).is_empty());
}

#[test]
fn a_rewound_conversation_takes_the_same_way() {
    let root = tempfile::tempdir().unwrap();
    let state = StateFolder::open(root.path()).unwrap();
    let limits = Limits { memory_bytes: 64 << 20, wall: Duration::from_secs(300), ..Limits::default() };
    let mut host = model_host(2);
    let pairs = [("model", SMOLLM2), ("max_tokens", "16"), ("temperature", "0")];
    spawn(&mut host, "a", guest("chat.wasm"), limits.clone(), &pairs).unwrap();
    let held = state.create("a").unwrap();
    held.save(&mut host).unwrap();
    let turns = ["My name is Ada. Say hello.", "Name three colours.", "What is my name?"];
    let talk = |host: &mut Host, text: &str| {
        let outcome = send(host, "a", text).unwrap();
        held.save(host).unwrap();
        outcome.tokens
    };
    let tokens = turns.map(|text| talk(&mut host, text));
    let before = state.history("a").unwrap();
    assert_eq!(before[2].turns[0].tokens, tokens[1]);
    host.remove("a").unwrap();
    held.rewind(1).unwrap();
    let report = held.thaw_into(&mut host, ThawOptions { limits, ..ThawOptions::default() }).unwrap();
    assert_eq!(report.recomputed_tokens, 0);
    assert_eq!([talk(&mut host, turns[1]), talk(&mut host, turns[2])], tokens[1..]);
    assert_eq!(state.history("a").unwrap(), before);
}
