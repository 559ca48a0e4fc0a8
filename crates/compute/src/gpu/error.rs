//! What can go wrong with a graphics processor.

use thiserror::Error;

/// An error of the GPU backend.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum GpuError {
    /// No driver offers a device that fits.
    #[error("no GPU was found: {why}; `driftwood doctor` says what is missing")]
    NoDevice {
        /// What was looked for and what was there.
        why: String,
    },
    /// A region cannot be shared with the device as it is.
    #[error("this memory cannot be shared with the GPU: {why}")]
    NotImportable {
        /// The precondition that fails.
        why: String,
    },
    /// The device has less than is asked for.
    #[error("the GPU has a limit of {limit} for {what}, {asked} is asked for")]
    BeyondLimit {
        /// The limit's name.
        what: &'static str,
        /// What was asked for.
        asked: u64,
        /// What there is.
        limit: u64,
    },
    /// Matrices or buffers that do not go together.
    #[error("these shapes do not fit: {why}")]
    BadShape {
        /// What does not fit.
        why: String,
    },
    /// The driver refused an operation that our checks let through.
    #[error("the GPU driver failed: {why}")]
    Driver {
        /// Its words.
        why: String,
    },
    /// The device is gone: it hung, was reset or was unplugged. Open it again.
    #[error("the GPU was lost: {why}; open the device again")]
    Lost {
        /// The driver's words.
        why: String,
    },
}
