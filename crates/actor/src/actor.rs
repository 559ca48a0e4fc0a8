//! One actor in a host: its body in Wasm, its desk, and the checkpoint that a message can be rolled back to.

use crate::desk::{SharedDesk, Turn, lock};
use crate::history::Past;
use crate::instance::{Image, Instance, trap};
use crate::limits::Limits;
use crate::log::Log;
use crate::random::Random;
use crate::runtime::{Compiled, Runtime};
use crate::sessions::Sessions;
use crate::tape::{Recording, Tape, Taped};
use crate::{Error, Message, MessageKind, Outcome, Timings};
use driftwood_engine::Session;
use driftwood_snapshot::{Hash, Identity};
use driftwood_store::{HeadTurn, Text};
use std::sync::Arc;
use std::time::Duration;

/// The setting under which an actor's journal carries the logits that its guest sees, and not only their hashes.
pub const JOURNAL_LOGITS: &str = "journal_logits";

/// A guest with its sessions.
pub(crate) struct Actor {
    pub identity: Identity,
    pub compiled: Arc<Compiled>,
    pub limits: Limits,
    pub desk: SharedDesk,
    pub body: Body,
    /// The heads and messages behind it.
    pub past: Past,
    /// Where its messages are recorded, if they are.
    pub log: Option<Log>,
    /// Messages since the state that it is in, the last of which it may be in the middle of.
    pub parked: Option<Arc<Unfinished>>,
}

/// Messages that the state of their actor does not hold yet: the last of them may have been cut in the middle.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    pub recordings: Vec<Recording>,
    /// The sessions as they were when it was parked, for their KV.
    pub ahead: Vec<Session>,
}

/// Where an actor's memory and globals are.
pub(crate) enum Body {
    /// It has never handled a message: its instance, if there is one, is as it was born.
    Unborn(Option<Box<Instance>>),
    /// It lives in an instance.
    Awake(Box<Instance>),
    /// It lies in an image, shared with forks and checkpoints, and wakes with its next message.
    Asleep(Arc<Image>),
    /// A message is being handled; the instance is with it.
    Away,
}

/// What an actor was before a message. Sessions are forks: they share their KV with the originals.
pub(crate) struct Checkpoint {
    /// `None` for an actor that had never run: it is born again.
    image: Option<Arc<Image>>,
    sessions: Sessions,
    random: Random,
}

/// An actor that is ready for a message, with its way back.
pub(crate) struct Begun {
    pub instance: Box<Instance>,
    pub checkpoint: Checkpoint,
    pub fuel: u64,
    pub wall: Duration,
}

impl Actor {
    /// Takes a checkpoint, wakes the guest and lays the message on its desk, and what of it was recorded.
    pub(crate) fn begin(&mut self, runtime: &Runtime, message: Message, recorded: Option<Vec<Taped>>) -> Result<Begun, Error> {
        if recorded.is_none() && self.parked.is_some() {
            return Err(Error::Parked { name: self.identity.name.clone() });
        }
        let limits = message.limits.clone().unwrap_or_else(|| self.limits.clone());
        check_bytes(&message.bytes, &limits)?;
        check_settings(&message.settings, &limits)?;
        let tape = self.tape(&message, recorded, &limits)?;
        lock(&self.desk).renew_lost_sessions()?;
        let checkpoint = self.checkpoint();
        let mut instance = self.wake(runtime, checkpoint.image.as_ref(), &limits)?;
        instance.set_memory_limit(limits.memory_bytes);
        let mut desk = lock(&self.desk);
        let (fuel, wall) = (limits.fuel, limits.wall);
        let mut turn = Turn { limits, kind: message.kind, message: message.bytes, overrides: message.settings, tape, ..Turn::default() };
        if message.kind == MessageKind::Said {
            turn.tally.restored_tokens = desk.sessions.evaluated_tokens();
        }
        desk.turn = Some(turn);
        Ok(Begun { instance, checkpoint, fuel, wall })
    }

    /// The tape of a message, if anybody needs one. A message that is new is recorded here, before anything is done about it.
    fn tape(&mut self, message: &Message, recorded: Option<Vec<Taped>>, limits: &Limits) -> Result<Option<Tape>, Error> {
        if self.log.is_none() && recorded.is_none() && message.park_after_calls.is_none() {
            return Ok(None);
        }
        if let Some(log) = self.log.as_mut().filter(|_| recorded.is_none()) {
            log.message(&message.bytes, &message.settings)?;
        }
        let carries_logits = lock(&self.desk).settings.get(JOURNAL_LOGITS).is_some_and(|set| set == "true");
        let mut tape = Tape::new(recorded.unwrap_or_default(), self.log.take(), limits.journal_bytes, carries_logits);
        tape.park_after(message.park_after_calls);
        Ok(Some(tape))
    }

    /// The way back to what it is now.
    pub(crate) fn checkpoint(&mut self) -> Checkpoint {
        let image = self.image();
        let desk = lock(&self.desk);
        Checkpoint { image, sessions: desk.sessions.clone(), random: desk.random.clone() }
    }

    /// An image of the guest as it is; `None` if it never ran.
    pub(crate) fn image(&mut self) -> Option<Arc<Image>> {
        match &mut self.body {
            Body::Unborn(_) | Body::Away => None,
            Body::Awake(instance) => Some(Arc::new(instance.image())),
            Body::Asleep(image) => Some(image.clone()),
        }
    }

    /// Lays the guest into an image that forks can share, and from which it wakes with its next message as they do; `None` if it never ran.
    pub(crate) fn fall_asleep(&mut self) -> Option<Arc<Image>> {
        let image = self.image()?;
        image.share();
        self.body = Body::Asleep(image.clone());
        Some(image)
    }

    /// Takes the instance out of the body, or builds one.
    fn wake(&mut self, runtime: &Runtime, image: Option<&Arc<Image>>, limits: &Limits) -> Result<Box<Instance>, Error> {
        match std::mem::replace(&mut self.body, Body::Away) {
            Body::Awake(instance) | Body::Unborn(Some(instance)) => Ok(instance),
            asleep => {
                let built = match image {
                    Some(image) => Instance::again(runtime, &self.compiled, &self.desk, limits, image),
                    None => Instance::first(runtime, &self.compiled, &self.desk, limits),
                };
                built.map(Box::new).inspect_err(|_| self.body = asleep)
            }
        }
    }

    /// The instance of an actor that never ran.
    pub(crate) fn be_born(&mut self, runtime: &Runtime) -> Result<&mut Instance, Error> {
        let limits = self.limits.clone();
        let born = self.wake(runtime, None, &limits)?;
        self.body = Body::Unborn(Some(born));
        match &mut self.body {
            Body::Unborn(Some(born)) => Ok(born),
            _ => unreachable!("it was just put there"),
        }
    }

    /// Ends a message that its guest ended well.
    pub(crate) fn commit(&mut self, instance: Box<Instance>, total: Duration, fuel_used: u64) -> Outcome {
        self.body = Body::Awake(instance);
        let mut desk = lock(&self.desk);
        desk.sessions.settle_shelf();
        let mut turn = desk.turn.take().unwrap_or_default();
        desk.messages_handled += u64::from(turn.kind == MessageKind::Said);
        if let Some(tape) = turn.tape.take() {
            self.log = tape.into_answers().1;
        }
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let tally = turn.tally;
        self.past.handled(HeadTurn { message: Text(turn.message), reply: Text(turn.reply.clone()), tokens: tally.generated.clone() });
        Outcome {
            reply: turn.reply,
            tokens: tally.generated,
            restored_tokens: tally.restored_tokens,
            prefilled_tokens: tally.prefilled_tokens,
            fuel_used,
            timings: Timings {
                total_ms: ms(total),
                guest_ms: ms(tally.guest),
                prefill_ms: ms(tally.prefill),
                decode_ms: ms(tally.decode),
                steps: tally.steps,
            },
        }
    }

    /// Ends a message that failed: the instance is gone, and everything is as it was before. Of one that is `parked` its recording stays.
    pub(crate) fn roll_back(&mut self, checkpoint: Checkpoint, parked: bool) {
        self.body = match checkpoint.image {
            Some(image) => Body::Asleep(image),
            None => Body::Unborn(None),
        };
        let mut desk = lock(&self.desk);
        let sessions = std::mem::replace(&mut desk.sessions, checkpoint.sessions);
        desk.random = checkpoint.random;
        desk.slot = Default::default();
        let mut turn = desk.turn.take().unwrap_or_default();
        if let Some(tape) = turn.tape.take() {
            let (answers, log) = tape.into_answers();
            self.log = log;
            let recording = Recording { message: turn.message, overrides: turn.overrides, answers, done: false };
            let ahead = || sessions.iter().map(|(_, session)| session.fork()).collect();
            self.parked = parked.then(|| Arc::new(Unfinished { recordings: vec![recording], ahead: ahead() }));
        }
        self.desk.clear_poison();
    }

    /// Why a message failed: what `handle` returned, or the limit that it met on its way.
    pub(crate) fn failure(&self, instance: &Instance, returned: wasmtime::Result<i32>, limits: (u64, usize)) -> Error {
        let noted = lock(&self.desk).turn.as_mut().and_then(|t| t.noted.take());
        let memory = instance.refused_memory_bytes().map(|asked_bytes| Error::LimitMemory { asked_bytes, limit_bytes: limits.1 });
        let own = match returned {
            Ok(code) => Error::GuestFailed { code },
            Err(e) => trap(&e, limits.0),
        };
        match noted {
            Some(Error::Parked { .. }) => Error::Parked { name: self.identity.name.clone() },
            _ if matches!(own, Error::LimitFuel { .. }) => own,
            noted => noted.or(memory).unwrap_or(own),
        }
    }

    /// A hash of memory, globals, sessions, samplers, random state and settings: all that a message may change but the KV's bytes, which
    /// follow from the tokens.
    pub(crate) fn state_hash(&mut self, runtime: &Runtime) -> Result<Hash, Error> {
        let image = match self.image() {
            Some(image) => image,
            None => Arc::new(self.be_born(runtime)?.image()),
        };
        let mut hasher = blake3::Hasher::new();
        let desk = lock(&self.desk);
        hasher
            .update(format!("{:?}", (image.memory_bytes, &image.pages, &image.globals, &desk.settings, desk.random.to_text())).as_bytes());
        hasher.update(&image.bytes);
        for (handle, session) in desk.sessions.iter() {
            let state = (handle, session.tokens(), session.evaluated(), session.context_max(), session.sampler().to_json());
            hasher.update(format!("{state:?}").as_bytes());
        }
        hasher.update(desk.sessions.kept_state().as_bytes());
        Ok(Hash(*hasher.finalize().as_bytes()))
    }
}

fn check_bytes(message: &[u8], limits: &Limits) -> Result<(), Error> {
    let (bytes, limit_bytes) = (message.len(), limits.message_bytes);
    if bytes <= limit_bytes { Ok(()) } else { Err(Error::LimitMessage { bytes, limit_bytes }) }
}

/// Whether settings are within their limit.
pub(crate) fn check_settings(settings: &std::collections::BTreeMap<String, String>, limits: &Limits) -> Result<(), Error> {
    let bytes = settings.iter().map(|(name, value)| name.len() + value.len()).sum();
    let limit_bytes = limits.settings_bytes;
    if bytes <= limit_bytes { Ok(()) } else { Err(Error::LimitSettings { bytes, limit_bytes }) }
}
