//! The one error type of this crate.

use crate::DType;

/// What can go wrong when memory is reserved, opened or looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused to map, protect or size memory.
    #[error("cannot {operation} {bytes} bytes of memory: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On how many bytes.
        bytes: usize,
        /// The system's answer.
        source: std::io::Error,
    },
    /// More was asked for than the region has reserved.
    #[error("{asked_bytes} bytes asked of a region that reserves {reserved_bytes}")]
    BeyondReservation {
        /// Bytes asked for.
        asked_bytes: usize,
        /// Bytes reserved when the region was made.
        reserved_bytes: usize,
    },
    /// A pool has no free slot left.
    #[error("all {slots_max} slots of the pool are in use; close or freeze a session to free some")]
    PoolExhausted {
        /// The pool's bound.
        slots_max: usize,
    },
    /// A view would leave its region.
    #[error("a view of {view_bytes} bytes at offset {offset_bytes} leaves a region of {region_bytes} bytes")]
    ViewOutside {
        /// Where the view would begin.
        offset_bytes: usize,
        /// How long it would be.
        view_bytes: usize,
        /// What the region holds.
        region_bytes: usize,
    },
    /// A shape that its dtype cannot store (a row is no whole number of blocks, or the product overflows).
    #[error("shape {shape} cannot be stored as {dtype}: rows must be multiples of {block_len} elements")]
    BadShape {
        /// The shape, printed.
        shape: String,
        /// The element type.
        dtype: DType,
        /// Elements in one block of it.
        block_len: usize,
    },
    /// A region of this kind cannot do what was asked.
    #[error("cannot {operation}: {why}")]
    Unsupported {
        /// What was tried.
        operation: &'static str,
        /// Why it cannot be.
        why: &'static str,
    },
}

impl Error {
    pub(crate) fn system(operation: &'static str, bytes: usize, source: impl Into<std::io::Error>) -> Self {
        Error::System { operation, bytes, source: source.into() }
    }
}
