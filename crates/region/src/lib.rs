//! Host memory that the runtime controls: page-aligned, with a base that never moves.
//!
//! A [`Region`] reserves address space once and opens it from the front. What lies beyond the open prefix stays
//! inaccessible, so a guest that runs out of its memory traps and a bug of ours faults instead of corrupting.
//! A [`View`] is a read-only window on a mapped file with a [`DType`] and a [`Shape`]: weights and snapshots are views.
//! A [`Pool`] cuts a region into equal [`Slot`]s, each owned by exactly one holder: KV blocks are slots.
//!
//! This crate knows no GPU, no model and no Wasm. Layout: `page.rs` asks the system for its page size, `region.rs` maps, `original.rs` is what regions can be
//! private copies of,
//! `dtype.rs` says how elements are stored, `view.rs` and `pool.rs` hand out windows. All `unsafe` for memory lives here.

mod dtype;
mod error;
mod original;
mod page;
mod pool;
mod region;
mod view;

pub use dtype::DType;
pub use error::Error;
pub use original::Original;
pub use page::{page_bytes, round_up_to_page};
pub use pool::{Pool, Slot};
pub use region::{Backing, Region};
pub use view::{Shape, View};
