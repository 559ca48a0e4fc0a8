#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
//!
//! # How this crate is laid out
//!
//! Writing: `contents.rs` borrows what is to be kept and plans the file, `write.rs` fills it, `publish.rs` gives it its name.
//! Reading: `header.rs` understands the safetensors header, `manifest.rs` what it means, `layout.rs` holds one against the other, and
//! from there on `read.rs` trusts them. `import.rs` handles files of other people. `limits.rs` has every bound.
//!
//! This crate knows no model and no Wasm: it keeps what it is given.

mod contents;
mod error;
mod header;
mod id;
mod import;
mod layout;
pub mod limits;
mod manifest;
mod publish;
mod read;
mod write;

pub use contents::{Block, Contents, GuestContents, PoolContents, SessionContents};
pub use error::Error;
pub use id::{ActorId, Hash, NotHex};
pub use import::{Inspection, TensorInfo, import, inspect};
pub use manifest::{Global, Guest, GuestState, Identity, KvDType, KvPool, Manifest, Memory, PoolInfo, Session, SessionState, ValueKind};
pub use publish::{Existing, Temp, make_folder_durably, remove_stale_temps};
pub use read::Snapshot;
pub use write::{Unpublished, WriteReport, serialise, write};

/// The newest format that this crate reads: of an actor in the middle of a message, which a reader of [`FORMAT_VERSION_AT_REST`] would take for one
/// that is not.
pub const FORMAT_VERSION: u32 = 2;
/// The format of an actor between messages.
pub const FORMAT_VERSION_AT_REST: u32 = 1;

#[cfg(target_endian = "big")]
compile_error!("a snapshot is little-endian and read where it lies");
