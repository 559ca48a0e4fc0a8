//! The one error type of this crate.

use crate::PackId;
use std::path::{Path, PathBuf};

/// Why state at rest could not be written, read or trusted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes that a head names are not there.
    #[error(
        "{what} is missing: the file {pack}.pack is gone or too short; run `driftwood store fsck`, and restore the state folder from a backup"
    )]
    Missing {
        /// Which bytes.
        what: String,
        /// Where they should be.
        pack: PackId,
    },
    /// Bytes differ from the hash that names them.
    #[error(
        "{what} was altered after it was written (in {pack}.pack); run `driftwood store fsck`, and restore the state folder from a backup"
    )]
    Altered {
        /// Which bytes.
        what: String,
        /// Where they are.
        pack: PackId,
    },
    /// The head is not what its own hash says, or contradicts the format.
    #[error("{} is damaged: {why}; restore it from a backup, or remove the actor", .path.display())]
    BadHead {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A former head, or the messages between two heads, are not what the format says.
    #[error("the history is damaged at chunk {chunk}: {why}; restore the state folder from a backup, or remove the actor")]
    BadHistory {
        /// The chunk.
        chunk: driftwood_snapshot::Hash,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a later version.
    #[error("{} has format {found}, this program reads up to {supported}; update driftwood", .path.display())]
    FutureVersion {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that this crate reads.
        supported: u32,
    },
    /// Somebody has it.
    #[error("`{name}` is held by {by}; end that first, or wait until it is done")]
    Held {
        /// What was asked for.
        name: String,
        /// Who has it.
        by: String,
    },
    /// Somebody else may have it by now.
    #[error("the lock {} was taken away while it was held: nothing was written; look who removes files there, then run the command again", .path.display())]
    LeaseLost {
        /// The lock.
        path: PathBuf,
    },
    /// More than one record of a journal takes.
    #[error("a record of {bytes} bytes is longer than a journal takes ({bytes_max}); use shorter messages")]
    LongRecord {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// A journal does not begin as one.
    #[error(
        "the journal {} is damaged: its first page was altered after it was written; resume the actors that were cut off, then run `driftwood store gc`",
        .path.display()
    )]
    BadJournal {
        /// The file.
        path: PathBuf,
    },
    /// A journal grew to its bound.
    #[error("the journal {} has reached its bound of {bytes_max} bytes; let the messages that are under way end first", .path.display())]
    JournalFull {
        /// The file.
        path: PathBuf,
        /// The bound.
        bytes_max: u64,
    },
    /// The system refused.
    #[error("cannot {operation} {}: {source}", .path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file could not be written or named.
    #[error(transparent)]
    Publish(#[from] driftwood_snapshot::Error),
}

impl Error {
    pub(crate) fn system(operation: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Error {
        Error::System { operation, path: path.to_owned(), source: source.into() }
    }
}
