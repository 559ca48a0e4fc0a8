//! What goes to an actor and what comes from it.

use crate::Limits;
use std::collections::BTreeMap;

/// A message for an actor.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The actor's name.
    pub actor: String,
    /// What `dw_receive` gives the guest.
    pub bytes: Vec<u8>,
    /// Settings for this message, before the actor's own.
    pub settings: BTreeMap<String, String>,
    /// Limits for this message instead of the actor's.
    pub limits: Option<Limits>,
    /// Parks the actor in so many host calls from the message's start (a call that takes several steps counts for each): the message ends with
    /// [`crate::Error::Parked`], and the actor can be frozen where it stands, or go on by [`crate::Host::resume`].
    pub park_after_calls: Option<u64>,
    /// Which of the guest's functions handles it.
    pub kind: MessageKind,
}

/// Which of a guest's functions handles a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MessageKind {
    /// `handle`: somebody says something.
    #[default]
    Said,
    /// `driftwood_model_changed`, which a guest need not have: the setting `model` names another one. See [`crate::Host::swap_model`].
    ModelChanged,
}

impl Message {
    /// A message without settings of its own.
    pub fn new(actor: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Message {
        Message { actor: actor.into(), bytes: bytes.into(), ..Message::default() }
    }
}

/// How serious a guest means a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is odd.
    Warning,
    /// The user should know.
    Notice,
    /// For whoever writes the guest.
    Debug,
}

impl LogLevel {
    /// The contract's number for it, the other way round.
    pub(crate) fn from_number(level: u32) -> Option<LogLevel> {
        [LogLevel::Error, LogLevel::Warning, LogLevel::Notice, LogLevel::Debug].get(level as usize).copied()
    }
}

/// What an actor says while it handles a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The next bytes of the reply.
    Reply(&'a [u8]),
    /// A log line, of the guest or of the host about it.
    Log {
        /// How serious.
        level: LogLevel,
        /// The line.
        text: &'a str,
    },
}

/// What came of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The whole reply.
    pub reply: Vec<u8>,
    /// Tokens that `dw_next` and `dw_generate` generated, in order.
    pub tokens: Vec<u32>,
    /// Tokens that were in the KV of the actor's sessions when the message came, and those whose KV was kept for a model that it goes back to
    /// (of [`MessageKind::ModelChanged`] these alone).
    pub restored_tokens: usize,
    /// Tokens evaluated that this message did not generate.
    pub prefilled_tokens: usize,
    /// Fuel that the guest used.
    pub fuel_used: u64,
    /// Where the time went.
    pub timings: Timings,
}

/// Where the time of a message went. A step that several actors share counts for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From its start to its end.
    pub total_ms: f64,
    /// In the guest and its host calls, without inference.
    pub guest_ms: f64,
    /// In steps that evaluated a prompt.
    pub prefill_ms: f64,
    /// In steps that evaluated generated tokens only.
    pub decode_ms: f64,
    /// How many steps there were.
    pub steps: usize,
}
