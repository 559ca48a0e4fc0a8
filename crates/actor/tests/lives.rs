//! Any life gives the state of an undisturbed one: messages, failures, freezes, thaws, saves and forks in random order, on a tiny model.

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use driftwood_actor::{Existing, Host, Message, StateFolder, ThawOptions};
use proptest::prelude::*;
use tiny::{CONTEXT, Script, VOCABULARY, host, limits, spawn_caller};

/// The first session, and pages of memory that `call_any` leaves alone.
const SESSION: u32 = 1;
const TOKENS_AT: u32 = 131_072;
const LOGITS_AT: u32 = TOKENS_AT + 8192;
const RANDOM_AT: u32 = LOGITS_AT + 8192;

#[derive(Clone, Debug)]
enum Event {
    /// Handled by both actors: their answers must be equal.
    Talk(Talk),
    /// The others happen to one actor alone.
    Fail,
    FreezeAndThaw,
    /// Kept in a state folder, whose garbage is collected: and the same actor goes on,
    Save,
    /// or one that a new host thaws from there.
    Sleep,
    Fork,
}

#[derive(Clone, Debug)]
enum Talk {
    Prefill(u32),
    Next(u32),
    Logits,
    Truncate(u32),
    ForkSession,
    CloseSecond,
    ReadTokens,
    Random,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let talk = prop_oneof![
        3 => (1u32..90).prop_map(Talk::Prefill),
        3 => (1u32..20).prop_map(Talk::Next),
        2 => Just(Talk::Logits),
        2 => (0u32..CONTEXT).prop_map(Talk::Truncate),
        1 => Just(Talk::ForkSession),
        1 => Just(Talk::CloseSecond),
        2 => Just(Talk::ReadTokens),
        1 => Just(Talk::Random),
    ];
    let event = prop_oneof![
        6 => talk.prop_map(Event::Talk),
        1 => Just(Event::Fail),
        1 => Just(Event::FreezeAndThaw),
        2 => Just(Event::Save),
        2 => Just(Event::Sleep),
        1 => Just(Event::Fork),
    ];
    prop::collection::vec(event, 3..20)
}

fn script(talk: &Talk) -> Script {
    let mut script = Script::default();
    match *talk {
        Talk::Prefill(count) => script.call("prefill", &[SESSION, TOKENS_AT, count]),
        Talk::Next(count) => (0..count).fold(&mut script, |s, _| s.call("next", &[SESSION])),
        Talk::Logits => script.call("decode", &[SESSION, LOGITS_AT, VOCABULARY]).call("sample", &[SESSION, LOGITS_AT, VOCABULARY]),
        Talk::Truncate(to) => script.call("session_truncate", &[SESSION, to]),
        Talk::ForkSession => script.call("session_fork", &[SESSION]),
        Talk::CloseSecond => script.call("session_close", &[SESSION + 1]),
        Talk::ReadTokens => script.call("session_tokens", &[SESSION, 0, TOKENS_AT, 512]),
        Talk::Random => script.call("random", &[RANDOM_AT, 64]),
    };
    script
}

/// An actor that moves from host to host and from name to name.
struct Wanderer {
    host: Host,
    name: String,
    moves: u32,
    root: tempfile::TempDir,
}

impl Wanderer {
    fn freeze_and_thaw(&mut self) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        self.host.freeze(&self.name, &file, Existing::Refuse).unwrap();
        self.host = host(1);
        self.moves += 1;
        self.name = format!("thawed{}", self.moves);
        let options = ThawOptions { limits: limits(), ..ThawOptions::default() };
        let report = self.host.thaw(&file, &self.name, options).unwrap();
        assert_eq!(report.recomputed_tokens, 0);
    }

    fn save(&mut self) {
        let state = StateFolder::open(self.root.path()).unwrap();
        let held = state.create(&self.name).or_else(|_| state.hold(&self.name)).unwrap();
        held.save(&mut self.host).unwrap();
        state.sweep().unwrap();
    }

    fn sleep(&mut self) {
        let state = StateFolder::open(self.root.path()).unwrap();
        let before = self.host.state_hash(&self.name).unwrap();
        self.save();
        self.host = host(1);
        let options = ThawOptions { limits: limits(), ..ThawOptions::default() };
        let report = state.hold(&self.name).unwrap().thaw_into(&mut self.host, options).unwrap();
        assert_eq!((report.recomputed_tokens, self.host.state_hash(&self.name).unwrap()), (0, before));
        assert!(state.chunks().check(&state.heads().unwrap()).is_empty());
    }

    fn fork(&mut self) {
        self.moves += 1;
        let name = format!("forked{}", self.moves);
        self.host.fork(&self.name, &name).unwrap();
        self.host.remove(&self.name).unwrap();
        self.name = name;
    }

    /// A message that takes tokens and then fails: it is too long for `call_any`, or ends in an error of the guest.
    fn fail(&mut self) {
        let before = self.host.state_hash(&self.name).unwrap();
        let too_long = vec![0; 70_000];
        assert!(self.host.send(Message::new(self.name.clone(), too_long), &mut |_| {}).is_err());
        assert_eq!(self.host.state_hash(&self.name).unwrap(), before);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_life_gives_the_state_of_an_undisturbed_one(events in events()) {
        let mut undisturbed = host(1);
        spawn_caller(&mut undisturbed, "a");
        let mut opening = Script::default();
        opening.call("session_open", &[0, 0, 0, 0]).call("random", &[RANDOM_AT, 64]).call("prefill", &[SESSION, TOKENS_AT, 3]);
        opening.run(&mut undisturbed, "a").unwrap();
        undisturbed.fork("a", "wanderer").unwrap(); // the same random state
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        undisturbed.freeze("wanderer", &file, Existing::Refuse).unwrap();
        let mut wanderer = Wanderer { host: host(1), name: "wanderer".into(), moves: 0, root: tempfile::tempdir().unwrap() };
        wanderer.host.thaw(&file, "wanderer", ThawOptions { limits: limits(), ..ThawOptions::default() }).unwrap();
        for event in &events {
            match event {
                Event::Talk(talk) => {
                    let expected = script(talk).run(&mut undisturbed, "a").unwrap();
                    prop_assert_eq!(script(talk).run(&mut wanderer.host, &wanderer.name).unwrap(), expected);
                }
                Event::Fail => wanderer.fail(),
                Event::FreezeAndThaw => wanderer.freeze_and_thaw(),
                Event::Save => wanderer.save(),
                Event::Sleep => wanderer.sleep(),
                Event::Fork => wanderer.fork(),
            }
        }
        prop_assert_eq!(wanderer.host.state_hash(&wanderer.name).unwrap(), undisturbed.state_hash("a").unwrap());
    }
}
