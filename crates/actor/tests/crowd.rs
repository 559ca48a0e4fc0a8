//! Many forks of one actor, at rest in a state folder and asleep in a host.

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use common::{bare_host, guest, reply, spawn, tight};
use driftwood_actor::{ActorFolder, Error, Message, StateFolder, ThawOptions};
use std::collections::HashSet;
use std::path::Path;

/// An actor that has counted to one, saved and held.
fn saved(root: &Path) -> (StateFolder, ActorFolder) {
    let state = StateFolder::open(root).unwrap();
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[("model", "none")]).unwrap();
    assert_eq!(reply(&mut host, "a", "m"), "1 1 m");
    let held = state.create("a").unwrap();
    held.save(&mut host).unwrap();
    (state, held)
}

fn names(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("f-{n}")).collect()
}

#[test]
fn forks_at_rest_are_whole_and_go_their_own_ways() {
    let root = tempfile::tempdir().unwrap();
    let (state, held) = saved(root.path());
    let forks = state.fork(&held, &names(0..20)).unwrap();
    let ids: HashSet<_> = forks.iter().map(|fork| fork.id).collect();
    assert_eq!(ids.len(), 20, "identities are minted, never shared");
    assert_eq!(state.list().unwrap().len(), 21);
    assert!(state.chunks().check(&state.heads().unwrap()).is_empty());

    let mut host = bare_host();
    let parent = held.thaw_into(&mut host, ThawOptions::default()).unwrap().identity;
    for name in ["f-0", "f-19"] {
        let report = state.hold(name).unwrap().thaw_into(&mut host, ThawOptions::default()).unwrap();
        assert_eq!(report.identity.parent, Some(parent.id));
        assert!(forks.contains(&report.identity));
        assert_eq!(host.state_hash(name).unwrap(), host.state_hash("a").unwrap());
    }
    assert_eq!(reply(&mut host, "f-0", "m"), "2 2 m");
    assert_eq!(reply(&mut host, "f-0", "m"), "3 3 m");
    assert_eq!(reply(&mut host, "f-19", "n"), "2 2 n");
    assert_eq!(reply(&mut host, "a", "m"), "2 2 m");
}

#[test]
fn a_name_that_cannot_be_had_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (state, held) = saved(root.path());
    state.fork(&held, &["f-7".to_owned()]).unwrap();
    let busy = state.create("g-1").unwrap();
    let before = state.list().unwrap().len();
    let with = |name: &str| vec!["f-0".to_owned(), name.to_owned(), "f-9".to_owned()];
    assert!(matches!(state.fork(&held, &with("f-7")), Err(Error::NameTaken { name }) if name == "f-7"));
    assert!(matches!(state.fork(&held, &with("f-0")), Err(Error::NameTaken { .. })), "twice the same");
    assert!(matches!(state.fork(&held, &with("a")), Err(Error::NameTaken { .. })));
    assert!(matches!(state.fork(&held, &with("g-1")), Err(Error::Held { .. })));
    assert!(matches!(state.fork(&held, &with("../x")), Err(Error::BadName { .. })));
    assert_eq!(state.list().unwrap().len(), before);
    drop(busy); // nothing rests there: the name is free
    state.fork(&held, &with("g-1")).unwrap();
    assert_eq!(state.list().unwrap().len(), before + 3);
}

/// A process that is killed before the renames leaves its forks in the folder where they are made; after some of them, those are whole.
#[test]
fn what_a_killed_process_left_is_no_actor_and_goes_away() {
    let root = tempfile::tempdir().unwrap();
    let (state, held) = saved(root.path());
    state.fork(&held, &names(0..2)).unwrap();
    let staging = root.path().join("actors/.forks");
    std::fs::create_dir(&staging).unwrap();
    std::fs::rename(root.path().join("actors/f-1"), staging.join("f-1")).unwrap();
    assert_eq!(state.list().unwrap().len(), 2);
    assert!(matches!(state.hold("f-1"), Err(Error::NoSuchActor { .. })));
    state.sweep().unwrap();
    state.fork(&held, &names(1..4)).unwrap();
    assert!(!staging.exists());
    assert!(state.chunks().check(&state.heads().unwrap()).is_empty());
    let mut host = bare_host();
    for name in names(0..4) {
        state.hold(&name).unwrap().thaw_into(&mut host, ThawOptions::default()).unwrap();
        assert_eq!(reply(&mut host, &name, "m"), "2 2 m");
    }
}

#[test]
fn a_listing_says_what_an_inspection_says() {
    let root = tempfile::tempdir().unwrap();
    let (state, held) = saved(root.path());
    state.fork(&held, &names(0..7)).unwrap();
    std::fs::write(root.path().join("actors/f-3/head"), "driftwood-head 1 0\n{").unwrap();
    let listed = state.list().unwrap();
    for (actor, summary) in listed.iter().zip(state.summaries(&listed)) {
        let Some(summary) = summary else {
            assert_eq!(actor.name, "f-3");
            continue;
        };
        let inspected = state.inspect(&actor.name).unwrap();
        assert_eq!((summary.bytes, summary.model.as_deref(), summary.tokens), (inspected.bytes, Some("none"), 0));
    }
}

/// Forks of an actor that is awake, and forks of those: each wakes from the image that all share.
#[test]
fn forks_in_a_host_share_memory_until_they_write() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    assert_eq!(reply(&mut host, "a", "m"), "1 1 m");
    for name in names(0..100) {
        host.fork("a", &name).unwrap();
    }
    let state = host.state_hash("a").unwrap();
    assert_eq!(reply(&mut host, "f-0", "x"), "2 2 x");
    assert_eq!(reply(&mut host, "f-0", "y"), "3 3 y");
    let own = host.info("f-0").unwrap();
    assert!((1..own.memory_bytes / 4).contains(&own.memory_own_bytes), "{own:?}");
    host.fork("f-0", "g").unwrap();
    assert_eq!(reply(&mut host, "f-1", "z"), "2 2 z");
    assert_eq!(host.state_hash("a").unwrap(), state, "the original sees nothing of it");
    assert_eq!(host.state_hash("f-99").unwrap(), state, "nor do other forks");
    assert_eq!((reply(&mut host, "a", "m"), reply(&mut host, "f-99", "n")), ("2 2 m".into(), "2 2 n".into()));
    assert_eq!((reply(&mut host, "g", "m"), reply(&mut host, "f-0", "n")), ("4 4 m".into(), "4 4 n".into()));
}

/// A message that fails leaves a fork as it was, also if its memory grew beyond the image or it read beyond its memory.
#[test]
fn forks_roll_back_to_the_shared_image() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("misbehave"), tight(), &[]).unwrap();
    assert_eq!(reply(&mut host, "a", "m"), "1 1 1 ");
    let state = host.state_hash("a").unwrap();
    host.fork("a", "b").unwrap();
    for misdeed in ["t", "r", "e", "u"] {
        assert!(host.send(Message::new("b", misdeed), &mut |_| {}).is_err(), "{misdeed}");
        for name in ["a", "b"] {
            assert_eq!(host.state_hash(name).unwrap(), state, "{name} after {misdeed}");
        }
    }
    assert_eq!(reply(&mut host, "b", "m"), "2 2 1 ");
    assert_eq!(reply(&mut host, "a", "m"), "2 2 1 ");
}

/// Forks of one conversation take their steps together, each with a question of its own.
#[test]
fn thirty_two_forks_answer_at_once_as_if_alone() {
    const TOKENS_AT: u32 = 131_072; // `call_any` leaves both pages alone
    const ANSWER_AT: u32 = 196_608;
    const QUESTION_AT: u32 = 65_536 + 8; // behind the first argument of a message's first call
    let mut host = tiny::host(1);
    tiny::spawn_caller(&mut host, "a");
    tiny::Script::default().call("session_open", &[0, 0, 0, 0]).call("prefill", &[1, TOKENS_AT, 90]).run(&mut host, "a").unwrap();
    let question = |n: u32| {
        let mut script = tiny::Script::default();
        let [a, b, c, d] = [1, 2, 3, 4].map(|token| 7 * n + token);
        script.call("session_length", &[1, a, b, c, d]).call("prefill", &[1, QUESTION_AT, n % 4 + 1]); // arguments too many are passed over
        (0..12).fold(&mut script, |script, _| script.call("next", &[1]));
        script.call("session_tokens", &[1, 90, ANSWER_AT, 64]).call("reply", &[ANSWER_AT, 4 * 24]);
        script.bytes()
    };
    let (together, alone) = (names(0..32), names(100..132));
    for name in together.iter().chain(&alone) {
        host.fork("a", name).unwrap();
    }
    let messages = (0..).zip(&together).map(|(n, name)| Message::new(name.clone(), question(n))).collect();
    let replies = host.deliver(messages, &mut |_, _| {});
    let different: HashSet<_> = replies.iter().flatten().map(|outcome| &outcome.reply).collect();
    assert_eq!(different.len(), 32);
    for (n, (reply, (together, alone))) in (0..).zip(replies.into_iter().zip(together.iter().zip(&alone))) {
        let expected = host.send(Message::new(alone.clone(), question(n)), &mut |_| {}).unwrap();
        let found = reply.unwrap();
        assert_eq!((found.reply, found.tokens), (expected.reply, expected.tokens), "{n}");
        assert_eq!(host.state_hash(together).unwrap(), host.state_hash(alone).unwrap(), "{n}");
    }
}
