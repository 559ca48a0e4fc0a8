//! The one error type of this crate.

use std::path::{Path, PathBuf};

/// Why a snapshot could not be written, read or trusted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file ends before its contents do.
    #[error("the snapshot is cut short: {found_bytes} bytes of {expected_bytes} are there; copy it again")]
    Truncated {
        /// What the header promises (of a file without a whole header: the least that a snapshot has).
        expected_bytes: u64,
        /// What is there.
        found_bytes: u64,
    },
    /// Some other file.
    #[error("not a driftwood snapshot: {why}; give a file that `driftwood freeze` wrote")]
    NotASnapshot {
        /// What it looks like instead.
        why: &'static str,
    },
    /// Bytes differ from the hash that was taken when the snapshot was written.
    #[error("the snapshot was altered after it was written: {what} does not match; copy it again from where it was made")]
    Altered {
        /// Which bytes.
        what: String,
    },
    /// A format newer than this program.
    #[error("the snapshot has format {found}, this program reads up to {supported}; update driftwood")]
    FutureVersion {
        /// The file's format version.
        found: u32,
        /// The newest that this crate reads.
        supported: u32,
    },
    /// The file contradicts the format or itself.
    #[error("the snapshot is malformed: {field}: {why}; it was not written by driftwood, do not use it")]
    Malformed {
        /// Where.
        field: String,
        /// What is wrong there.
        why: String,
    },
    /// The writer was given contents that contradict themselves or exceed a limit.
    #[error("cannot write this snapshot: {field}: {why}")]
    Contents {
        /// Where.
        field: String,
        /// What is wrong there.
        why: String,
    },
    /// The target is there already and was not to be replaced.
    #[error("{} exists already; choose another name or remove it", .path.display())]
    Exists {
        /// The target.
        path: PathBuf,
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
    /// The file could not be mapped.
    #[error("cannot map {}: {source}", .path.display())]
    Map {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: driftwood_region::Error,
    },
}

impl Error {
    pub(crate) fn system(operation: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Error::System { operation, path: path.to_owned(), source: source.into() }
    }

    pub(crate) fn malformed(field: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Malformed { field: field.into(), why: why.into() }
    }

    pub(crate) fn contents(field: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Contents { field: field.into(), why: why.into() }
    }

    /// What the reader would call malformed, the writer was given.
    pub(crate) fn into_contents(self) -> Self {
        match self {
            Error::Malformed { field, why } => Error::Contents { field, why },
            other => other,
        }
    }
}
