#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
//!
//! # How this crate is laid out
//!
//! `chunk.rs` names bytes, `chunks.rs` finds and maps them, `commit.rs` writes new ones, `head.rs` is the file that names all chunks of an
//! actor, `summary.rs` the few words of it that a listing needs, `export.rs` makes one file of all of them, `sweep.rs` finds out what nobody
//! names any more, and whether what is named is there.

mod chunk;
mod chunks;
mod commit;
mod error;
mod export;
mod head;
mod summary;
mod sweep;

pub use chunk::{Chunk, NotAChunk, PackId};
pub use chunks::Chunks;
pub use commit::{Commit, Slices};
pub use error::Error;
pub use head::{HEAD_VERSION, Head, HeadGuest, HeadMemory, HeadPiece, HeadSession, PAGE_BYTES, write_ids};
pub use summary::Summary;
pub use sweep::{Flawed, Stats, Swept};
