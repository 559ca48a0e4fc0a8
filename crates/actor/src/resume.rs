//! Resuming an actor that was parked in the middle of a message, or whose process died: its guest runs again from the state before, with
//! the answers of the recording, until it stands where it stood, and goes on live.

use crate::actor::Unfinished;
use crate::delivery::Delivery;
use crate::desk::{SharedDesk, lock};
use crate::host::{Host, no_such};
use crate::log::{Journals, Log, records_of};
use crate::tape::Recording;
use crate::{Error, Event, Message, Outcome};
use driftwood_engine::{Logits, Session, Work};
use driftwood_store::Base;
use std::sync::Arc;

impl Host {
    /// Whether an actor stands in the middle of a message, or has handled messages that its state does not hold yet.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn is_parked(&self, name: &str) -> Result<bool, Error> {
        Ok(self.actors.get(name).ok_or_else(|| no_such(name))?.parked.is_some())
    }

    /// Replays what was recorded of an actor's messages, without inference, and goes on live where the recording ends, until the last
    /// message is handled. The reply is told from its beginning. Answers what came of each message; none if the actor is not parked.
    ///
    /// `park_after_calls` is as in [`Message`], of the last message.
    ///
    /// # Errors
    /// [`Error::Departed`] or [`Error::OtherLogits`] if the replay is not what was recorded, or whatever hinders it: the actor is parked as before then
    /// ([`Host::discard`] gives the recording up). If the last message fails by its guest's own fault it had no effect, as ever.
    pub fn resume(
        &mut self,
        name: &str,
        park_after_calls: Option<u64>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Outcome>, Error> {
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        let Some(parked) = actor.parked.take() else { return Ok(Vec::new()) };
        lock(&actor.desk).ahead = parked.clone();
        let mut outcomes = Vec::new();
        for (at, recording) in parked.recordings.iter().enumerate() {
            let park_after_calls = park_after_calls.filter(|_| at + 1 == parked.recordings.len());
            let (bytes, settings) = (recording.message.clone(), recording.overrides.clone());
            let message = Message { settings, park_after_calls, ..Message::new(name, bytes) };
            match self.again(message, recording.clone(), on_event) {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    self.park_again(name, &parked, at, &error);
                    return Err(error);
                }
            }
        }
        if let Some(actor) = self.actors.get(name) {
            lock(&actor.desk).ahead = Arc::default();
        }
        Ok(outcomes)
    }

    /// Keeps what was recorded from the `at`-th message on, which could not be resumed; or gives it up, if it failed as it would have anyway.
    fn park_again(&mut self, name: &str, parked: &Unfinished, at: usize, error: &Error) {
        let Some(actor) = self.actors.get_mut(name) else { return };
        lock(&actor.desk).ahead = Arc::default();
        match &actor.parked {
            Some(_) => {}
            None if parked.recordings[at].done || !is_guests_fault(error) => {
                let recordings = parked.recordings[at..].to_vec();
                let ahead = parked.ahead.iter().map(Session::fork).collect();
                actor.parked = Some(Arc::new(Unfinished { recordings, ahead }));
            }
            None => actor.past.given_up += 1,
        }
    }

    fn again(&mut self, message: Message, recorded: Recording, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Outcome, Error> {
        let runtime = self.shared_runtime();
        let _ticking = runtime.ticking();
        let mut results = Delivery::again(message, recorded).run(self, &mut |_, event| on_event(event));
        results.pop().expect("one message has one result")
    }

    /// Gives up what was recorded of a parked actor: it is as it was before those messages. Once it is kept, nobody finds them again, and its
    /// messages are recorded again. Answers how many.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn discard(&mut self, name: &str) -> Result<usize, Error> {
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        let given_up = actor.parked.take().map_or(0, |parked| parked.recordings.len());
        actor.past.given_up += given_up as u64;
        if given_up > 0 {
            actor.log = None; // what follows does not continue what is recorded
        }
        Ok(given_up)
    }

    /// Records an actor's messages from now on.
    pub(crate) fn log_to(&mut self, name: &str, log: Log) -> Result<(), Error> {
        self.actors.get_mut(name).ok_or_else(|| no_such(name))?.log = Some(log);
        Ok(())
    }

    /// A head holds all that was recorded of an actor: what follows continues that one. `journals` serve an actor that is not recorded yet.
    pub(crate) fn rebase(&mut self, name: &str, base: Base, journals: &Journals) -> Result<(), Error> {
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        match &mut actor.log {
            Some(log) => log.rebase(base),
            none => *none = Some(Log::new(journals.clone(), base)),
        }
        match (&actor.parked, &mut actor.log) {
            (Some(parked), Some(log)) => log.take_over(&records_of(&parked.recordings), true).and_then(|()| log.wait()),
            _ => Ok(()),
        }
    }

    /// Parks an actor with what a process that died has left of its messages.
    pub(crate) fn take_left(&mut self, name: &str, recordings: Vec<Recording>) -> Result<(), Error> {
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        actor.parked = (!recordings.is_empty()).then(|| Arc::new(Unfinished { recordings, ahead: Vec::new() }));
        Ok(())
    }

    /// Computes the KV that a replay left out, so that the state is that of a message that was never cut.
    pub(crate) fn evaluate_replayed(&mut self, desk: &SharedDesk) -> Result<(), Error> {
        let mut desk = lock(desk);
        let desk = &mut *desk;
        for entry in desk.sessions.lacking() {
            entry.adopt(&desk.ahead.ahead);
            let batch = self.batch(&entry.session.model().clone());
            entry.catch_up(|session| Ok(batch.step(&mut [Work::new(session, Logits::None)])?))?;
        }
        Ok(())
    }
}

/// Whether a message failed by what its guest did, as it would have without a replay.
fn is_guests_fault(error: &Error) -> bool {
    use Error::*;
    let limits = matches!(
        error,
        LimitFuel { .. }
            | LimitMemory { .. }
            | LimitWall { .. }
            | LimitTokens { .. }
            | LimitSessions { .. }
            | LimitKv { .. }
            | LimitReply { .. }
    );
    limits || matches!(error, Trap { .. } | GuestFailed { .. } | LimitJournal { .. } | Kernel(_) | NoGpu { .. })
}
