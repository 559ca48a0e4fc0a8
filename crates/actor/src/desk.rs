//! What the host keeps of an actor outside Wasm, and what its host calls work on.
//!
//! The [`Desk`] lies behind a mutex that guest calls and the step loop share; both run on one thread, so nobody ever waits for it.
//! [`Turn`] is what belongs to the message being handled; everything else is state that a snapshot holds.

use crate::abi::Refused;
use crate::actor::Unfinished;
use crate::kernels::Kernels;
use crate::limits::{LOG_LINE_BYTES_MAX, Limits};
use crate::models::Models;
use crate::parked::Slot;
use crate::products::ComputeReport;
use crate::random::Random;
use crate::sessions::Sessions;
use crate::tape::Tape;
use crate::{Error, LogLevel, MessageKind};
use driftwood_engine::Model;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Ends replies early: shared with whoever listens for Ctrl-C.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks every guest to end its reply after the current token.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked for in this delivery.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The host's side of one actor.
pub(crate) struct Desk {
    pub models: Arc<Models>,
    pub interrupt: Interrupt,
    /// Names of the models that the actor may use; if empty, the setting `model` alone.
    pub grants: Vec<String>,
    pub settings: BTreeMap<String, String>,
    pub sessions: Sessions,
    pub random: Random,
    pub messages_handled: u64,
    /// The message being handled.
    pub turn: Option<Turn>,
    /// The host call that waits for inference.
    pub slot: Slot,
    /// The token that the last step chose for a parked call, if it could.
    pub token: Option<u32>,
    /// What is being resumed: a replay may take its KV where it goes on live.
    pub ahead: Arc<Unfinished>,
    /// Where its matrix products were computed.
    pub products: ComputeReport,
    /// Kernels that it brought.
    pub kernels: Kernels,
}

/// A desk as its two users hold it.
pub(crate) type SharedDesk = Arc<Mutex<Desk>>;

/// Takes the desk. A panic that poisoned it ends in a rollback, which sets it right again.
pub(crate) fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One message on its way.
#[derive(Default)]
pub(crate) struct Turn {
    pub limits: Limits,
    pub kind: MessageKind,
    pub message: Vec<u8>,
    pub overrides: BTreeMap<String, String>,
    pub reply: Vec<u8>,
    pub logs: Vec<(LogLevel, String)>,
    pub log_lines: usize,
    /// The first limit or failure that the guest was told of: the cause, if it fails because of it.
    pub noted: Option<Error>,
    /// Whether it fails whatever the guest does: its next host call ends it.
    pub doomed: bool,
    pub tally: Tally,
    /// Whether the step that was last charged evaluates tokens that nobody generated in this message.
    pub prefills: bool,
    /// What a replay of this message would need, if it is recorded.
    pub tape: Option<Tape>,
}

/// What a message has cost so far.
#[derive(Default)]
pub(crate) struct Tally {
    pub generated: Vec<u32>,
    pub evaluated_tokens: usize,
    pub prefilled_tokens: usize,
    pub restored_tokens: usize,
    pub steps: usize,
    pub prefill: Duration,
    pub decode: Duration,
    pub guest: Duration,
}

impl Desk {
    /// The message being handled. Host calls are refused while there is none.
    pub(crate) fn turn(&mut self) -> &mut Turn {
        self.turn.as_mut().expect("host calls are answered only while a message is handled")
    }

    /// A setting: the message's, else the actor's.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        let overridden = self.turn.as_ref().and_then(|t| t.overrides.get(name));
        overridden.or_else(|| self.settings.get(name)).map(String::as_str)
    }

    /// Whether a GPU may want to import the linear memory.
    pub(crate) fn has_gpu(&self) -> bool {
        self.models.gpu().is_some() || self.sessions.iter().any(|(_, session)| session.model().logits_device().is_some())
    }

    /// The model of that name, if the actor may use it; an empty name is the setting `model`.
    pub(crate) fn model(&mut self, name: &str) -> Result<Arc<Model>, Refused> {
        let name = if name.is_empty() { self.setting("model") } else { Some(name) };
        let name = name.ok_or(Refused::NoSuchModel)?.to_owned();
        let granted =
            if self.grants.is_empty() { self.settings.get("model").is_some_and(|own| *own == name) } else { self.grants.contains(&name) };
        if !granted {
            return Err(Refused::NoSuchModel);
        }
        self.models.get(&name).map_err(|error| {
            let refused = if matches!(error, Error::NoSuchModel { .. }) { Refused::NoSuchModel } else { Refused::ModelError };
            self.log(LogLevel::Error, &error.to_string());
            self.note(error);
            refused
        })
    }

    /// Remembers why the guest was refused something, in case it fails because of it.
    pub(crate) fn note(&mut self, error: Error) {
        self.turn().noted.get_or_insert(error);
    }

    /// Adds a log line; false if the message has logged enough.
    pub(crate) fn log(&mut self, level: LogLevel, text: &str) -> bool {
        let turn = self.turn();
        if turn.log_lines >= turn.limits.log_lines {
            return false;
        }
        turn.log_lines += 1;
        let cut = text.floor_char_boundary(LOG_LINE_BYTES_MAX);
        turn.logs.push((level, text[..cut].to_owned()));
        true
    }

    /// Adds to the reply, or refuses all of it.
    pub(crate) fn reply(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let turn = self.turn();
        let limit_bytes = turn.limits.reply_bytes;
        if bytes.len() > limit_bytes.saturating_sub(turn.reply.len()) {
            self.note(Error::LimitReply { limit_bytes });
            return Err(Refused::Limit);
        }
        turn.reply.extend_from_slice(bytes);
        Ok(())
    }
}
