//! The one error type of this crate. Each variant carries the values that its message names.

use std::path::PathBuf;

/// What can go wrong with a model's file, its tokenizer and its chat template.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened or mapped.
    #[error("cannot open the model file {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: driftwood_region::Error,
    },
    /// One of a folder's files is not as it should be.
    #[error("{file}: {source}")]
    InFile {
        /// Its name in the folder.
        file: String,
        /// What is wrong.
        source: Box<Error>,
    },
    /// A window on mapped memory was refused.
    #[error(transparent)]
    Region(#[from] driftwood_region::Error),
    /// The graphics processor refused or was lost.
    #[error(transparent)]
    Gpu(#[from] driftwood_compute::gpu::GpuError),
    /// The file is none that this crate reads.
    #[error("not a GGUF file of version 2 or 3: {why}")]
    NotGguf {
        /// What was found instead.
        why: String,
    },
    /// The file ends before what it announces.
    #[error(
        "the model file is truncated: {what} at byte {offset_bytes} needs {need_bytes} bytes, the file has {file_bytes}; fetch it again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset_bytes: u64,
        /// How long it is.
        need_bytes: u64,
        /// How long the file is.
        file_bytes: u64,
    },
    /// A count or a length exceeds this crate's limits.
    #[error("the model file has {got} {what}; at most {max} are accepted")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many the file announces.
        got: u64,
        /// The bound, from `limits.rs`.
        max: u64,
    },
    /// The file contradicts the format.
    #[error("the model file is malformed: {why}")]
    Malformed {
        /// What is wrong and where.
        why: String,
    },
    /// A key or a tensor name occurs twice.
    #[error("the model file has the {what} `{name}` twice")]
    Duplicate {
        /// Key or tensor.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A key that is needed is absent.
    #[error("the model file lacks the key `{key}`")]
    KeyMissing {
        /// The key.
        key: String,
    },
    /// A key has another type, or its value does not fit.
    #[error("the key `{key}` should be {expected}, but is {got}")]
    KeyType {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// What the file has.
        got: String,
    },
    /// A tensor that is needed is absent.
    #[error("the model lacks the tensor `{tensor}`")]
    TensorMissing {
        /// Its name.
        tensor: String,
    },
    /// A tensor is stored in a way that no kernel reads.
    #[error("tensor `{tensor}` has type {got}, which is not supported; use a file with one of {supported}")]
    TensorType {
        /// Its name.
        tensor: String,
        /// GGML's name of the type, or its number.
        got: String,
        /// The names that are.
        supported: String,
    },
    /// A tensor's window leaves the file.
    #[error("tensor `{tensor}` needs {need_bytes} bytes at byte {offset_bytes}, but the file has {file_bytes}; fetch it again")]
    TensorOutside {
        /// Its name.
        tensor: String,
        /// Where it begins.
        offset_bytes: u64,
        /// How long it is.
        need_bytes: u64,
        /// How long the file is.
        file_bytes: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    TensorOverlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// A kind of something that this crate does not know.
    #[error("the {what} `{got}` is not supported; supported are {supported}")]
    Unsupported {
        /// A kind of what.
        what: &'static str,
        /// The name in the file.
        got: String,
        /// The names that are.
        supported: String,
    },
    /// The vocabulary is inconsistent.
    #[error("the tokenizer cannot be used: {why}")]
    Tokenizer {
        /// What is wrong.
        why: String,
    },
    /// The file has no chat template, and none is known for its family.
    #[error("the model has no chat template, and its architecture `{architecture}` and vocabulary suggest none; use it without a chat")]
    TemplateMissing {
        /// `general.architecture`.
        architecture: String,
    },
    /// The chat template cannot be parsed or rendered.
    #[error("the chat template failed: {why}")]
    Template {
        /// The template engine's message.
        why: String,
    },
    /// A number of the model's configuration is out of bounds.
    #[error("`{key}` is {value}; this version takes up to {max}")]
    ConfigOutOfRange {
        /// The key.
        key: String,
        /// What the file says.
        value: f64,
        /// The bound.
        max: f64,
    },
    /// A tensor has another shape than its family expects.
    #[error("tensor `{name}` should be {expected}, but is {found}")]
    TensorShape {
        /// Its name.
        name: String,
        /// What the configuration implies.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A session was opened for more tokens than its model takes.
    #[error("a context of {asked} tokens was asked for; the model takes {limit}")]
    ContextTooLong {
        /// Tokens asked for.
        asked: usize,
        /// The model's bound.
        limit: usize,
    },
    /// The session's context has no room.
    #[error("context full: {tokens} tokens do not fit in {context_max}; truncate the session or open one with a longer context")]
    ContextFull {
        /// Tokens that there would be.
        tokens: usize,
        /// Tokens that fit.
        context_max: usize,
    },
    /// A token outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
    /// A session cannot be truncated to more than it has.
    #[error("cannot truncate to {asked} tokens: the session has {tokens}")]
    TruncateBeyond {
        /// Tokens to keep.
        asked: usize,
        /// Tokens it has.
        tokens: usize,
    },
    /// Logits of an empty session.
    #[error("the session has no tokens yet; append at least one")]
    NothingToEvaluate,
    /// A session of another model in a batch.
    #[error("a session of another model cannot take part in this step")]
    OtherModel,
    /// A restored session's parts contradict each other.
    #[error("the stored KV does not fit its session or its model")]
    InconsistentKv,
    /// A mapped block is not what was frozen.
    #[error("the stored KV was altered on disk: a block does not match its hash; thaw an intact copy or prefill again")]
    AlteredKv,
    /// No token could be chosen.
    #[error(transparent)]
    Sample(#[from] crate::SampleError),
}
