//! Write Driftwood actors in Rust: safe wrappers over the contract of `guest/include/driftwood.h`.
//!
//! A whole actor:
//!
//! ```
//! #![cfg_attr(target_family = "wasm", no_std)]
//! use driftwood_guest::{Generate, Message, Model, Result, Session, SessionOptions, actor};
//!
//! actor!(poet);
//!
//! /// Answers every message with a haiku about it.
//! fn poet(subject: &str) -> Result<()> {
//!     let model = Model::default();
//!     let prompt = model.render(&[Message::system("You write one haiku."), Message::user(subject)], true)?;
//!     let session = Session::open(&model, SessionOptions::default())?;
//!     session.prefill(&model.tokenize_rendered(&prompt)?)?;
//!     session.generate(&Generate { max_tokens: 64, stream: true, ..Generate::default() })?;
//!     Ok(())
//! }
//! ```
//!
//! `message` speaks of what comes and goes (message, reply, log, settings, time, chance), `model` of text and tokens, `session` of
//! inference, `sampler` of choosing tokens, `compute` of matrices and kernels, `state` of what lives from message to message, `json` of writing
//! JSON. Below them, `raw` declares the imports, `host` makes them safe, `heap` is the allocator, `actor` holds the macros.
//! `unsafe` stands in `raw`, `host`, `heap` and `state` only.
//!
//! On other targets than Wasm everything type-checks and pure code can be tested, but a call to the host panics: there is none.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

mod actor;
mod compute;
mod error;
mod heap;
mod host;
pub mod json;
mod message;
mod model;
mod raw;
mod sampler;
mod session;
mod setting;
mod state;

pub use compute::{BINDING_ALIGN, Binding, Grid, MatmulShape, dispatch, matmul};
pub use error::{Code, Error, Result};
pub use message::{Level, log, now_ms, random, random_u64, receive, reply};
pub use model::{Message, Model, ModelInfo, Role, Token, common_prefix};
pub use sampler::{Bias, Sampler};
pub use session::{Finish, Generate, Generated, Kv, Session, SessionOptions};
pub use setting::{Setting, setting, setting_or};
pub use state::State;

/// What the macros need; not for actors.
#[doc(hidden)]
pub mod macros {
    #[cfg(target_family = "wasm")]
    pub use crate::actor::panicked;
    pub use crate::actor::{ABI, run, run_changed};
    pub use crate::heap::Heap;
    pub use alloc::format;
}
