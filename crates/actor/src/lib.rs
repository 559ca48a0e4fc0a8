//! Stateful WebAssembly actors that hold conversations with models.
//!
//! A [`Host`] owns models and actors. An actor is a guest module with its linear memory, its mutable globals and its sessions; between
//! messages that is its whole state, and [`Host::freeze`] writes it as one file. A message is a transaction: a trap, a limit or an error
//! code of the guest's own leaves the actor as it was before. Guests run on Wasmtime and speak the contract of
//! `guest/include/driftwood.h`; many that wait for one model share its steps.
//!
//! Where things are, from the outside in:
//!
//! - `host.rs` is the API, `state.rs` the folder in which actors rest, `crowd.rs` many of them at once, `rest.rs` freezing and thawing, `keep.rs` and `source.rs` the same in a state folder,
//!   `history.rs` what was before.
//! - `swap.rs` gives an actor another model, `shelf.rs` keeps the KV of the former.
//! - `tape.rs` is what a message was told, `log.rs` the same as records of a journal, `resume.rs` how a message that was cut goes on.
//! - `delivery.rs` is the step loop, `actor.rs` the transaction, `parked.rs` where a waiting guest and a step meet.
//! - `calls/` are the host functions, `abi.rs` their types, `memory.rs` the border at which a guest's numbers are checked, `desk.rs` and
//!   `sessions.rs` what they work on, `products.rs` where a guest's matrix products are computed, `kernels.rs` the kernels that it brought.
//! - `admit.rs` and `instrument.rs` decide about modules, `runtime.rs`, `instance.rs` and `linear.rs` are Wasmtime's side.
//!
//! Files with `unsafe`: `linear.rs`, `parked.rs`. What is absent: this crate knows no terminal and no HTTP, and no thread of its own runs
//! a guest.

#![recursion_limit = "256"] // whether a graphics device is `Send` takes the compiler that deep
#![deny(unsafe_code)]

mod abi;
mod actor;
mod admit;
mod calls;
mod crowd;
mod delivery;
mod desk;
mod error;
mod history;
mod host;
mod instance;
mod instrument;
mod keep;
mod kernels;
pub mod limits;
#[allow(unsafe_code)] // the two traits by which Wasmtime takes memory from us, and the private copy that a fork's memory begins as
mod linear;
mod log;
mod memory;
mod message;
mod models;
#[allow(unsafe_code)] // the window on a parked guest's memory
mod parked;
mod products;
mod random;
mod rest;
mod resume;
mod runtime;
mod sessions;
mod shelf;
mod source;
mod state;
mod swap;
mod tape;

pub use actor::JOURNAL_LOGITS;
pub use admit::{Refusal, admit};
pub use desk::Interrupt;
pub use driftwood_snapshot::{ActorId, Existing, Hash, Identity};
pub use driftwood_store::Durability;
pub use error::Error;
pub use history::Moment;
pub use host::{ActorInfo, FoundInMemory, Host, HostOptions, SessionInfo, SpawnSpec};
pub use keep::{head_session, save_kv};
pub use limits::Limits;
pub use message::{Event, LogLevel, Message, MessageKind, Outcome, Timings};
pub use models::ModelResolver;
pub use products::{ComputeReport, GpuPath, SharedAddresses};
pub use rest::{Exactness, FreezeReport, IdentityRule, ThawOptions, ThawReport, live_dtype, pool_info};
pub use shelf::KeptKv;
pub use source::restore_session;
pub use state::{ActorFolder, InState, Listed, Rewound, StateFolder, valid_name};
pub use swap::SwapReport;
