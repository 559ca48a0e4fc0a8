//! The tape of a message: every answer of the host that a replay could not work out, in the order in which the guest got them.
//!
//! A message that is played back runs its guest again from the state before the message. Sampled tokens, the time and what a device
//! computed come from the tape, so that no inference is needed; everything else (texts, token ids, settings, random bytes) follows from the
//! state and is worked out again. Where the tape ends the message is live, and new answers are added to it. Each answer notes how much fuel the
//! guest had used when it asked: a replay that asks at another place, or for something else, has departed and is ended.

use crate::Error;
use crate::abi::Refused;
use crate::desk::Desk;
use crate::instance::Guest;
use crate::log::{Log, answer_record};
use driftwood_snapshot::Hash;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use wasmtime::Caller;

/// What the host answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// A token that it sampled.
    Token(u32),
    /// Logits that it wrote into the guest's memory, by their hash; the bytes themselves where the actor carries them.
    Logits(Hash, Option<Arc<[u8]>>),
    /// Milliseconds since 1970.
    TimeMs(i64),
    /// The user had asked for the reply's end.
    Interrupted,
    /// A device failed, and why.
    Failed(String),
    /// The hash of what was computed in the guest's memory.
    Computed(Hash),
}

/// An answer, and the fuel that the guest had used when it asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Taped {
    pub fuel_used: u64,
    pub answer: Answer,
}

/// A message as far as it came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recording {
    pub message: Vec<u8>,
    pub overrides: BTreeMap<String, String>,
    pub answers: Vec<Taped>,
    /// Whether the guest came to its end.
    pub done: bool,
}

/// The tape of the message that is being handled.
#[derive(Default)]
pub(crate) struct Tape {
    /// What is still to be played.
    ahead: VecDeque<Taped>,
    /// All answers so far, for whoever parks the actor.
    given: Vec<Taped>,
    bytes: usize,
    limit_bytes: usize,
    /// Where new answers are made durable.
    log: Option<Log>,
    /// Whether the log has the message's end already.
    ended: bool,
    /// Whether logits are carried.
    carries_logits: bool,
    /// Host calls until the message is to be parked.
    calls_left: Option<u64>,
}

impl Tape {
    /// A tape that first plays what was recorded.
    pub(crate) fn new(recorded: Recording, log: Option<Log>, limit_bytes: usize, carries_logits: bool) -> Tape {
        let bytes = recorded.answers.iter().map(Taped::len_bytes).sum();
        Tape { ahead: recorded.answers.into(), log, bytes, limit_bytes, carries_logits, ended: recorded.done, ..Tape::default() }
    }

    /// Notes how the message ended, unless that is recorded already.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub(crate) fn end(&mut self, done: bool) -> Result<(), Error> {
        match &mut self.log {
            Some(log) if !self.ended => log.end(done),
            _ => Ok(()),
        }
    }

    /// Ends the message in its n-th host call from now on.
    pub(crate) fn park_after(&mut self, calls: Option<u64>) {
        self.calls_left = calls;
    }

    pub(crate) fn is_playing(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// All answers: those that were given, and those that nobody has asked for yet.
    pub(crate) fn into_answers(mut self) -> (Vec<Taped>, Option<Log>) {
        self.given.extend(self.ahead);
        (self.given, self.log)
    }

    pub(crate) fn log(&mut self) -> Option<&mut Log> {
        self.log.as_mut()
    }

    /// What `pick` takes of the next answer, if the guest stands where it was given.
    fn next_at<T>(&mut self, fuel_used: u64, pick: impl Fn(&Answer) -> Option<T>) -> Option<T> {
        let next = self.ahead.front().filter(|next| next.fuel_used == fuel_used)?;
        let picked = pick(&next.answer)?;
        self.given.extend(self.ahead.pop_front());
        Some(picked)
    }

    fn push(&mut self, taped: Taped) -> Result<(), Error> {
        let bytes = self.bytes + taped.len_bytes();
        if bytes > self.limit_bytes {
            return Err(Error::LimitJournal { limit_bytes: self.limit_bytes });
        }
        if let Some(log) = &mut self.log {
            log.append(&answer_record(&taped))?;
        }
        self.bytes = bytes;
        self.given.push(taped);
        Ok(())
    }
}

impl Taped {
    fn len_bytes(&self) -> usize {
        let own = match &self.answer {
            Answer::Logits(_, Some(bytes)) => bytes.len(),
            Answer::Failed(why) => why.len(),
            _ => 0,
        };
        size_of::<Taped>() + own
    }
}

/// How much fuel the guest has used up to here.
pub(crate) fn fuel_used(caller: &Caller<'_, Guest>) -> wasmtime::Result<u64> {
    let left = caller.get_fuel()?;
    let desk = crate::desk::lock(&caller.data().desk);
    Ok(desk.turn.as_ref().map_or(0, |turn| turn.limits.fuel.saturating_sub(left)))
}

impl Desk {
    /// Whether answers come from the tape.
    pub(crate) fn is_playing(&self) -> bool {
        self.turn.as_ref().and_then(|turn| turn.tape.as_ref()).is_some_and(Tape::is_playing)
    }

    /// Whether what the guest is given must be noted, or compared.
    pub(crate) fn is_taped(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.tape.is_some())
    }

    pub(crate) fn carries_logits(&self) -> bool {
        self.turn.as_ref().and_then(|turn| turn.tape.as_ref()).is_some_and(|tape| tape.carries_logits)
    }

    /// The tape's next answer, which must be one that `pick` takes and be asked for where it was given.
    ///
    /// # Errors
    /// If it is not: the message is doomed then.
    pub(crate) fn play<T>(&mut self, fuel_used: u64, what: &'static str, pick: impl Fn(&Answer) -> Option<T>) -> Result<T, Refused> {
        self.play_if(fuel_used, pick).ok_or_else(|| self.depart(what))
    }

    /// The tape's next answer, if `pick` takes it.
    pub(crate) fn play_if<T>(&mut self, fuel_used: u64, pick: impl Fn(&Answer) -> Option<T>) -> Option<T> {
        self.turn().tape.as_mut()?.next_at(fuel_used, pick)
    }

    /// Ends a message whose replay is not what was recorded.
    pub(crate) fn depart(&mut self, what: &'static str) -> Refused {
        let at = self.turn().tape.as_ref().map_or(0, |tape| tape.given.len());
        self.doom(Error::Departed { what, at });
        Refused::ModelError
    }

    /// Notes an answer before the guest sees it.
    ///
    /// # Errors
    /// If the tape is full, or the journal cannot be written.
    pub(crate) fn record(&mut self, fuel_used: u64, answer: Answer) -> Result<(), Refused> {
        let Some(tape) = &mut self.turn().tape else { return Ok(()) };
        tape.push(Taped { fuel_used, answer }).map_err(|error| match error {
            Error::LimitJournal { .. } => {
                self.note(error);
                Refused::Limit
            }
            error => {
                self.doom(error);
                Refused::ModelError
            }
        })
    }

    /// The time, as it is or was.
    pub(crate) fn time_ms(&mut self, fuel_used: u64, now: i64) -> Result<i64, Refused> {
        if self.is_playing() {
            return self.play(fuel_used, "the time", |answer| if let Answer::TimeMs(ms) = answer { Some(*ms) } else { None });
        }
        self.record(fuel_used, Answer::TimeMs(now)).map(|()| now)
    }

    /// Whether the user has asked for the reply's end, or had.
    pub(crate) fn is_interrupted(&mut self, fuel_used: u64) -> Result<bool, Refused> {
        if self.is_playing() {
            return Ok(self.play_if(fuel_used, |answer| (*answer == Answer::Interrupted).then_some(())).is_some());
        }
        let set = self.interrupt.is_set();
        if set {
            self.record(fuel_used, Answer::Interrupted)?;
        }
        Ok(set)
    }

    /// Notes the hash of what was computed in the guest's memory, or compares it.
    pub(crate) fn computed(&mut self, fuel_used: u64, hash: Hash) -> Result<(), Refused> {
        if self.is_playing() {
            return self.play(fuel_used, "a product with these bits", |answer| (*answer == Answer::Computed(hash)).then_some(()));
        }
        self.record(fuel_used, Answer::Computed(hash))
    }

    /// Ends the message with this error, whatever the guest makes of it.
    pub(crate) fn doom(&mut self, error: Error) {
        let turn = self.turn();
        turn.noted = Some(error);
        turn.doomed = true;
    }

    /// Counts a host call; false if the message is to end in it.
    pub(crate) fn may_call(&mut self) -> bool {
        let Some(turn) = &mut self.turn else { return true };
        let Some(left) = turn.tape.as_mut().and_then(|tape| tape.calls_left.as_mut()) else { return !turn.doomed };
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.doom(Error::Parked { name: String::new() });
            return false;
        }
        !turn.doomed
    }
}
