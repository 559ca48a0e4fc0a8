//! Any life gives the state of an undisturbed one: messages, messages that are cut in the middle, failures, freezes, thaws, saves, forks, rewinds, changes
//! of the model and deaths of its process in random order, on a tiny model of each family.

mod common;
#[path = "../../engine/tests/common/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;

use driftwood_actor::{Error, Existing, Host, Message, StateFolder, ThawOptions};
use driftwood_engine::describe;
use models::FAMILIES;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tiny::{CONTEXT, Script, host_from, limits, spawn_caller_on};

/// What the actors call the models that they go to and fro between.
const MODELS: [&str; 2] = ["tiny", "other"];
/// Each family has one life for so many cases that are asked for.
const RARER: u32 = 32;
/// The first session, and pages of memory that `call_any` leaves alone.
const SESSION: u32 = 1;
/// What it is opened with.
const OPEN: [u32; 4] = [0, 0, 0, CONTEXT];
const TOKENS_AT: u32 = 131_072;
const LOGITS_AT: u32 = TOKENS_AT + 8192;
const RANDOM_AT: u32 = LOGITS_AT + 8192;

/// The models of a life.
#[derive(Clone, Copy)]
struct World {
    files: [&'static str; 2],
    vocabularies: [u32; 2],
}

impl World {
    fn new(files: [&'static str; 2]) -> World {
        let vocabulary = |file: &str| describe(&models::path(file)).unwrap().config.vocabulary as u32;
        World { files, vocabularies: files.map(vocabulary) }
    }

    fn host(self) -> Host {
        let at = |name: &str| MODELS.iter().position(|model| *model == name);
        host_from(None, move |name| at(name).map(|at| models::path(self.files[at])))
    }

    /// What an actor of a host is told to do.
    fn script(self, host: &Host, name: &str, talk: &Talk) -> Script {
        let other = host.info(name).unwrap().settings["model"] == MODELS[1];
        script(talk, self.vocabularies[usize::from(other)])
    }
}

fn thaw_options() -> ThawOptions {
    ThawOptions { limits: limits(), models: MODELS.map(str::to_owned).to_vec(), ..ThawOptions::default() }
}

#[derive(Clone, Debug)]
enum Event {
    /// Handled by both actors: their answers must be equal.
    Talk(Talk),
    /// The same, but the one actor's message is cut in so many calls, and then goes on in one way or another.
    Cut(Talk, u64, GoOn),
    /// The others happen to one actor alone.
    Fail,
    /// A message is cut in its first call and given up, maybe by another process.
    GiveUp(Talk, bool),
    FreezeAndThaw,
    /// Kept in a state folder, whose garbage is collected: and the same actor goes on,
    Save,
    /// or one that a new host thaws from there.
    Sleep,
    Fork,
    /// The process dies; what it had handled since it saved is in its journal.
    Die,
    /// It is saved, handles a message, is saved again, and taken back.
    Rewind(Talk),
    /// It goes to a model that is not there, and stays as it was.
    SwapToNone,
    /// Both change their model, and open their first session anew on the other one.
    Swap(u32),
}

/// What happens to an actor that is parked in the middle of a message.
#[derive(Clone, Copy, Debug)]
enum GoOn {
    Here,
    Frozen,
    AfterDeath,
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
    let go_on = prop_oneof![Just(GoOn::Here), Just(GoOn::Frozen), Just(GoOn::AfterDeath)];
    let cut = (talk.clone(), 1u64..30, go_on).prop_map(|(talk, calls, go_on)| Event::Cut(talk, calls, go_on));
    let rewind = talk.clone().prop_map(Event::Rewind);
    let give_up = (talk.clone(), any::<bool>()).prop_map(|(talk, after_death)| Event::GiveUp(talk, after_death));
    let event = prop_oneof![
        3 => cut,
        1 => rewind,
        1 => Just(Event::SwapToNone),
        2 => (1u32..90).prop_map(Event::Swap),
        2 => Just(Event::Die),
        6 => talk.prop_map(Event::Talk),
        1 => Just(Event::Fail),
        1 => give_up,
        1 => Just(Event::FreezeAndThaw),
        2 => Just(Event::Save),
        2 => Just(Event::Sleep),
        1 => Just(Event::Fork),
    ];
    prop::collection::vec(event, 3..20)
}

fn script(talk: &Talk, vocabulary: u32) -> Script {
    let mut script = Script::default();
    match *talk {
        Talk::Prefill(count) => script.call("prefill", &[SESSION, TOKENS_AT, count]),
        Talk::Next(count) => (0..count).fold(&mut script, |s, _| s.call("next", &[SESSION])),
        Talk::Logits => script.call("decode", &[SESSION, LOGITS_AT, vocabulary]).call("sample", &[SESSION, LOGITS_AT, vocabulary]),
        Talk::Truncate(to) => script.call("session_truncate", &[SESSION, to]),
        Talk::ForkSession => script.call("session_fork", &[SESSION]),
        Talk::CloseSecond => script.call("session_close", &[SESSION + 1]),
        Talk::ReadTokens => script.call("session_tokens", &[SESSION, 0, TOKENS_AT, 512]),
        Talk::Random => script.call("random", &[RANDOM_AT, 64]),
    };
    script
}

/// Takes an actor to the other model. It reads so many tokens there, which it has read before on every model but the first time.
fn swap(host: &mut Host, name: &str, count: u32) -> Vec<i32> {
    let other = MODELS.into_iter().find(|model| host.info(name).unwrap().settings["model"] != *model).unwrap();
    host.swap_model(name, other, false, &mut |_| {}).unwrap();
    let mut script = Script::default();
    script.call("session_close", &[SESSION]).call("session_open", &OPEN).call("prefill", &[SESSION, TOKENS_AT, count]);
    script.run(host, name).unwrap()
}

/// An actor that moves from host to host and from name to name.
struct Wanderer {
    world: World,
    host: Host,
    name: String,
    moves: u32,
    root: tempfile::TempDir,
}

impl Wanderer {
    fn script(&self, talk: &Talk) -> Script {
        self.world.script(&self.host, &self.name, talk)
    }

    fn freeze_and_thaw(&mut self) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        self.host.freeze(&self.name, &file, Existing::Refuse).unwrap();
        self.host = self.world.host();
        self.moves += 1;
        self.name = format!("thawed{}", self.moves);
        let report = self.host.thaw(&file, &self.name, thaw_options()).unwrap();
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
        self.host = self.world.host();
        let report = state.hold(&self.name).unwrap().thaw_into(&mut self.host, thaw_options()).unwrap();
        assert_eq!((report.recomputed_tokens, self.host.state_hash(&self.name).unwrap()), (0, before));
        assert!(state.chunks().check(&state.heads().unwrap()).is_empty());
    }

    /// From the state folder, in a new host, as the process after one that died.
    fn wake(&mut self) {
        self.host = self.world.host(); // drops the journal's streams: what is not kept is left
        let state = StateFolder::open(self.root.path()).unwrap();
        state.hold(&self.name).unwrap().thaw_into(&mut self.host, thaw_options()).unwrap();
    }

    /// The same; what was left is resumed. Answers the last reply.
    fn rise(&mut self) -> Option<Vec<u8>> {
        self.wake();
        let outcomes = self.host.resume(&self.name, None, &mut |_| {}).unwrap();
        outcomes.last().map(|outcome| outcome.reply.clone())
    }

    /// Is killed, if there is a head to go on from.
    fn die(&mut self) {
        if !self.is_kept() {
            self.save();
        }
        let before = self.host.state_hash(&self.name).unwrap();
        self.rise();
        assert_eq!(self.host.state_hash(&self.name).unwrap(), before);
    }

    fn is_kept(&self) -> bool {
        StateFolder::open(self.root.path()).unwrap().hold(&self.name).is_ok()
    }

    fn give_up(&mut self, talk: &Talk, after_death: bool) {
        if after_death || self.is_kept() {
            self.save();
        }
        let before = self.host.state_hash(&self.name).unwrap();
        let message = Message { park_after_calls: Some(1), ..Message::new(self.name.clone(), self.script(talk).message()) };
        assert!(matches!(self.host.send(message, &mut |_| {}), Err(Error::Parked { .. })));
        if after_death {
            self.wake();
        }
        assert_eq!(self.host.discard(&self.name).unwrap(), 1);
        assert_eq!(self.host.state_hash(&self.name).unwrap(), before);
        if self.is_kept() {
            self.save();
        }
    }

    /// Handles a message that is cut in so many calls, and goes on.
    fn cut(&mut self, talk: &Talk, calls: u64, go_on: GoOn) -> Vec<u8> {
        if matches!(go_on, GoOn::AfterDeath) && !self.is_kept() {
            self.save();
        }
        let before = self.host.state_hash(&self.name).unwrap();
        let message = Message { park_after_calls: Some(calls), ..Message::new(self.name.clone(), self.script(talk).message()) };
        match self.host.send(message, &mut |_| {}) {
            Ok(outcome) => return outcome.reply,
            Err(Error::Parked { .. }) => assert_eq!(self.host.state_hash(&self.name).unwrap(), before),
            Err(other) => panic!("{other}"),
        }
        match go_on {
            GoOn::Here => {}
            GoOn::Frozen => self.freeze_and_thaw(),
            GoOn::AfterDeath => return self.rise().unwrap(),
        }
        self.host.resume(&self.name, None, &mut |_| {}).unwrap().pop().unwrap().reply
    }

    fn rewind(&mut self, talk: &Talk) {
        self.save();
        let before = self.host.state_hash(&self.name).unwrap();
        let turn = self.host.info(&self.name).unwrap().messages_handled;
        self.script(talk).run(&mut self.host, &self.name).unwrap();
        self.save();
        self.host = self.world.host();
        let state = StateFolder::open(self.root.path()).unwrap();
        assert_eq!(state.hold(&self.name).unwrap().rewind(turn).unwrap().dropped_turns, 1);
        assert!(self.rise().is_none());
        assert_eq!(self.host.state_hash(&self.name).unwrap(), before);
    }

    fn swap_to_none(&mut self) {
        let before = self.host.state_hash(&self.name).unwrap();
        assert!(self.host.swap_model(&self.name, "none", false, &mut |_| {}).is_err());
        assert_eq!(self.host.state_hash(&self.name).unwrap(), before);
    }

    fn swap(&mut self, count: u32) -> Vec<i32> {
        let kept = self.is_kept();
        let answers = swap(&mut self.host, &self.name, count);
        if kept {
            self.save(); // a swap is not in the journal
        }
        answers
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

/// Lives through events with a wanderer and an actor that nobody disturbs, whose answers and last state must be equal.
fn live(world: World, events: &[Event]) {
    let mut undisturbed = world.host();
    spawn_caller_on(&mut undisturbed, "a", &MODELS);
    let mut opening = Script::default();
    opening.call("session_open", &OPEN).call("random", &[RANDOM_AT, 64]).call("prefill", &[SESSION, TOKENS_AT, 3]);
    opening.run(&mut undisturbed, "a").unwrap();
    undisturbed.fork("a", "wanderer").unwrap(); // the same random state
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    undisturbed.freeze("wanderer", &file, Existing::Refuse).unwrap();
    let mut wanderer = Wanderer { world, host: world.host(), name: "wanderer".into(), moves: 0, root: tempfile::tempdir().unwrap() };
    wanderer.host.thaw(&file, "wanderer", thaw_options()).unwrap();
    for event in events {
        match event {
            Event::Talk(talk) => {
                let script = wanderer.script(talk);
                let expected = script.run(&mut undisturbed, "a").unwrap();
                assert_eq!(script.run(&mut wanderer.host, &wanderer.name).unwrap(), expected);
            }
            Event::Cut(talk, calls, go_on) => {
                let script = wanderer.script(talk);
                let expected = script.run(&mut undisturbed, "a").unwrap();
                assert_eq!(script.answers(&wanderer.cut(talk, *calls, *go_on)), expected);
            }
            Event::Die => wanderer.die(),
            Event::Rewind(talk) => wanderer.rewind(talk),
            Event::SwapToNone => wanderer.swap_to_none(),
            Event::Swap(count) => {
                let expected = swap(&mut undisturbed, "a", *count);
                assert_eq!(wanderer.swap(*count), expected);
            }
            Event::Fail => wanderer.fail(),
            Event::GiveUp(talk, after_death) => wanderer.give_up(talk, *after_death),
            Event::FreezeAndThaw => wanderer.freeze_and_thaw(),
            Event::Save => wanderer.save(),
            Event::Sleep => wanderer.sleep(),
            Event::Fork => wanderer.fork(),
        }
    }
    assert_eq!(wanderer.host.state_hash(&wanderer.name).unwrap(), undisturbed.state_hash("a").unwrap());
}

#[test]
fn any_life_gives_the_state_of_an_undisturbed_one() {
    for (first, family) in FAMILIES.into_iter().enumerate() {
        let asked = ProptestConfig::default();
        let config = ProptestConfig { cases: asked.cases / RARER, failure_persistence: None, ..asked };
        let lived = TestRunner::new(config).run(&(events(), 1..FAMILIES.len()), |(events, further)| {
            live(World::new([family, FAMILIES[(first + further) % FAMILIES.len()]]), &events);
            Ok(())
        });
        lived.unwrap_or_else(|failure| panic!("{family}: {failure}"));
    }
}

/// What a process takes over from one that died is shorter than what that one wrote, if messages failed: it must not be passed over.
#[test]
fn what_follows_a_message_that_failed_is_found() {
    let cut = |talk, calls, go_on| Event::Cut(talk, calls, go_on);
    let events = [Event::Die, Event::Fail, cut(Talk::Logits, 5, GoOn::Here), Event::Die, cut(Talk::Prefill(1), 1, GoOn::AfterDeath)];
    live(World::new([FAMILIES[0], FAMILIES[1]]), &events);
}
