//! The one error type of this crate. Each variant carries the values that its message names.

use std::path::PathBuf;

/// What can go wrong with an actor.
///
/// An error from a message means that the message had no effect: memory, globals, sessions, samplers and random state are as before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No actor of that name is in the host or in the state folder.
    #[error("there is no actor `{name}`; spawn or thaw one")]
    NoSuchActor {
        /// The name asked for.
        name: String,
    },
    /// The name is in use.
    #[error("an actor `{name}` exists already; choose another name or remove it")]
    NameTaken {
        /// The name asked for.
        name: String,
    },
    /// The name cannot be a name.
    #[error("`{name}` is no name for an actor: {why}")]
    BadName {
        /// The name asked for, escaped.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Another process works with the actor.
    #[error("the actor `{name}` is held by {by}; end it or wait")]
    Held {
        /// The actor.
        name: String,
        /// Program and process id, as the holder wrote them.
        by: String,
    },
    /// The guest's module is not admitted.
    #[error("the guest's module is refused: {0}")]
    Refused(#[from] crate::Refusal),
    /// The module passed admission but could not be made ready.
    #[error("the guest's module cannot be compiled: {why}")]
    Compile {
        /// The compiler's message.
        why: String,
    },
    /// The guest speaks another version of the contract.
    #[error("the guest was built for contract version {found}; this host has {supported}")]
    ContractVersion {
        /// What `driftwood_abi` returned.
        found: i32,
        /// This host's.
        supported: i32,
    },
    /// The guest did something that Wasm does not allow.
    #[error("the guest trapped: {why}")]
    Trap {
        /// The trap and where it happened.
        why: String,
    },
    /// The guest returned an error code of its own.
    #[error("the guest failed with its error code {code}")]
    GuestFailed {
        /// What `handle` returned.
        code: i32,
    },
    /// The message used up its fuel.
    #[error("the guest used up its {limit} units of fuel on one message; raise the limit if it should compute for longer")]
    LimitFuel {
        /// The limit.
        limit: u64,
    },
    /// The guest asked for more memory than it may have, and failed.
    #[error("the guest needs {asked_bytes} bytes of memory, its limit is {limit_bytes}")]
    LimitMemory {
        /// What it asked for.
        asked_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The message took too long.
    #[error("the message took longer than {limit_ms} ms; raise the limit of wall time")]
    LimitWall {
        /// The limit.
        limit_ms: u64,
    },
    /// The message needed more tokens than it may use.
    #[error("the message needs more than {limit} tokens; raise the limit")]
    LimitTokens {
        /// The limit.
        limit: usize,
    },
    /// The actor asked for more sessions than it may open.
    #[error("the actor has its {limit} sessions open already; it must close one")]
    LimitSessions {
        /// The limit.
        limit: usize,
    },
    /// The actor's sessions need more KV than they may have.
    #[error("the actor's sessions need {asked_bytes} bytes of KV, their limit is {limit_bytes}; truncate or close one")]
    LimitKv {
        /// What they would need.
        asked_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The reply became too long.
    #[error("the reply has more than {limit_bytes} bytes")]
    LimitReply {
        /// The limit.
        limit_bytes: usize,
    },
    /// The message is too long.
    #[error("the message has {bytes} bytes, the limit is {limit_bytes}")]
    LimitMessage {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The settings are too long.
    #[error("the settings have {bytes} bytes, the limit is {limit_bytes}")]
    LimitSettings {
        /// Their length.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The host has all the actors that it can have.
    #[error("the host has its {limit} actors already; remove some")]
    LimitActors {
        /// The limit.
        limit: usize,
    },
    /// No model of that name can be found.
    #[error("no model `{name}`: {why}")]
    NoSuchModel {
        /// The name asked for.
        name: String,
        /// What the resolver says one can do.
        why: String,
    },
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] driftwood_engine::Error),
    /// The engine failed during a message, perhaps for several actors at once.
    #[error("the model could not compute: {why}")]
    Compute {
        /// The engine's message.
        why: String,
    },
    /// A kernel that the guest brought, or its dispatch, is refused.
    #[error("the guest's dispatch is refused: {0}")]
    Kernel(#[from] driftwood_compute::gpu::GuestKernelError),
    /// The guest asked for a GPU.
    #[error("the guest needs a GPU that can share its memory, and this host has none: {why}; choose one with --device gpu")]
    NoGpu {
        /// What is missing.
        why: String,
    },
    /// The model is another one than the snapshot's.
    #[error(
        "the snapshot was made with another model `{model}` (fingerprint {stored}, here {here}); thaw with --reprefill to compute its context again"
    )]
    OtherModel {
        /// The model's name.
        model: String,
        /// The stored fingerprint.
        stored: driftwood_snapshot::Hash,
        /// The fingerprint of the model here.
        here: driftwood_snapshot::Hash,
    },
    /// The model has another vocabulary, so that the stored token ids mean nothing to it.
    #[error("the model `{model}` has another vocabulary than the snapshot's: its tokens cannot be prefilled again")]
    OtherVocabulary {
        /// The model's name.
        model: String,
    },
    /// KV of another model cannot be taken for this model's.
    #[error("the KV cannot be kept for the model `{model}`: {why}; without --keep-kv it is computed anew")]
    KeepKv {
        /// The model that it was to be kept for.
        model: String,
        /// What is in the way.
        why: String,
    },
    /// The guest has sessions on a model that its actor was to leave.
    #[error(
        "the guest keeps a session open on the model `{model}`: it must close it first, or export driftwood_model_changed and do so there"
    )]
    StaysOnModel {
        /// The model that it stays on.
        model: String,
    },
    /// The snapshot's parts do not fit this version or each other.
    #[error("the snapshot cannot be thawed: {why}")]
    Unthawable {
        /// What does not fit.
        why: String,
    },
    /// The message was to be parked, and is: it can be frozen as it is, or resumed.
    #[error("the actor `{name}` is parked in the middle of a message; resume it first")]
    Parked {
        /// The actor.
        name: String,
    },
    /// A replay asked for something else than what the guest was once given.
    #[error(
        "the replay departs from the journal at answer {at}, {what}: the guest or the machine is another one; the state before the message is intact"
    )]
    Departed {
        /// What was asked for.
        what: &'static str,
        /// How many answers fitted.
        at: usize,
    },
    /// Logits that a guest saw come out with other bits here.
    #[error(
        "logits of the recorded message have other bits here (other numerics?): go back to the state before the message, or resume where it began"
    )]
    OtherLogits,
    /// A message was given more answers than its journal may hold.
    #[error("the message's journal has reached its limit of {limit_bytes} bytes")]
    LimitJournal {
        /// The limit.
        limit_bytes: usize,
    },
    /// A journal that this program did not write.
    #[error("the journal is damaged or foreign: record {at} is none")]
    BadJournal {
        /// Which.
        at: usize,
    },
    /// The actor's history has no such moment.
    #[error("the actor's history has no moment after {turn} messages; it has those after {known}")]
    NoSuchTurn {
        /// Messages asked for.
        turn: u64,
        /// The moments that there are, as ranges.
        known: String,
    },
    /// A snapshot file could not be written or read.
    #[error(transparent)]
    Snapshot(#[from] driftwood_snapshot::Error),
    /// State at rest could not be written or read.
    #[error(transparent)]
    Store(#[from] driftwood_store::Error),
    /// The system refused something on a file or folder.
    #[error("cannot {operation} {}: {source}", path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The machine has no memory or randomness left, or Wasmtime refused.
    #[error("the host cannot {operation}: {why}")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// What was answered.
        why: String,
    },
    /// A bug of the host. The message was rolled back.
    #[error("the host has a bug: {why}")]
    Bug {
        /// The panic's message.
        why: String,
    },
}

impl Error {
    /// A stable name of the kind of error, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::NoSuchActor { .. } => "no_such_actor",
            Error::NameTaken { .. } => "name_taken",
            Error::BadName { .. } => "bad_name",
            Error::Held { .. } => "held",
            Error::Refused(_) => "refused",
            Error::Compile { .. } => "compile",
            Error::ContractVersion { .. } => "contract_version",
            Error::Trap { .. } => "trap",
            Error::GuestFailed { .. } => "guest_failed",
            Error::LimitFuel { .. } => "limit_fuel",
            Error::LimitMemory { .. } => "limit_memory",
            Error::LimitWall { .. } => "limit_wall",
            Error::LimitTokens { .. } => "limit_tokens",
            Error::LimitSessions { .. } => "limit_sessions",
            Error::LimitKv { .. } => "limit_kv",
            Error::LimitReply { .. } => "limit_reply",
            Error::LimitMessage { .. } => "limit_message",
            Error::LimitSettings { .. } => "limit_settings",
            Error::LimitActors { .. } => "limit_actors",
            Error::NoSuchModel { .. } => "no_such_model",
            Error::Engine(_) => "engine",
            Error::Compute { .. } => "compute",
            Error::Kernel(_) => "kernel",
            Error::NoGpu { .. } => "no_gpu",
            Error::OtherModel { .. } => "other_model",
            Error::OtherVocabulary { .. } => "other_vocabulary",
            Error::KeepKv { .. } => "keep_kv",
            Error::StaysOnModel { .. } => "stays_on_model",
            Error::Unthawable { .. } => "unthawable",
            Error::Parked { .. } => "parked",
            Error::Departed { .. } => "departed",
            Error::OtherLogits => "other_logits",
            Error::LimitJournal { .. } => "limit_journal",
            Error::BadJournal { .. } => "bad_journal",
            Error::NoSuchTurn { .. } => "no_such_turn",
            Error::Snapshot(_) => "snapshot",
            Error::Store(_) => "store",
            Error::System { .. } => "system",
            Error::Host { .. } => "host",
            Error::Bug { .. } => "bug",
        }
    }

    pub(crate) fn host(operation: &'static str) -> impl Fn(wasmtime::Error) -> Error {
        move |e| Error::Host { operation, why: format!("{e:#}") }
    }
}
