#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
//!
//! # How this crate is laid out
//!
//! `chunk.rs` names bytes, `chunks.rs` finds and maps them, `packs.rs` is where they rest, `commit.rs` writes new ones, `head.rs` (and `pieces.rs`) is the file that names all chunks of an
//! actor, `summary.rs` the few words of it that a listing needs, `history.rs` the heads before it, `export.rs` makes one file of all of them, `sweep.rs` finds out what nobody names any more, and whether what is named is there.
//! `journal.rs` is what happened since a head: appended record by record, and found again after the process was killed.
//! `lease.rs` says who may change what rests under a name.

mod chunk;
mod chunks;
mod commit;
mod error;
mod export;
mod head;
mod history;
mod journal;
mod lease;
mod packs;
mod pieces;
mod summary;
mod sweep;

pub use chunk::{Chunk, NotAChunk, PackId};
pub use chunks::Chunks;
pub use commit::{Commit, Slices};
pub use error::Error;
pub use head::{HEAD_VERSION, Head, HeadGuest, HeadMemory, HeadPiece, HeadSession, PAGE_BYTES, Published, write_ids};
pub use history::{HISTORY_HEADS_MAX, HeadTurn, History, Text, write_turns};
pub use journal::{
    Base, Durability, JOURNAL_BYTES_MAX, JOURNAL_VERSION, Journal, JournalFiles, Left, RECORD_BYTES_MAX, Stream, journal_files,
    left_behind, sweep_journals,
};
pub use lease::{Lease, Leases, LockFiles};
pub use packs::{PackFolder, PackUsage, Packs};
pub use summary::Summary;
pub use sweep::{Flawed, Stats, Swept};
