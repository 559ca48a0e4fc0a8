//! Models, sessions and batched decoding over host memory that the runtime controls.
//!
//! A [`Model`] is its mapped weights with their tokenizer and chat template. A [`Session`] is one inference timeline: tokens, KV and a
//! sampler. A [`Batch`] evaluates the appended tokens of many sessions in one step. Logits of a position are bit-identical however
//! they came about: prefilled or decoded, in whatever chunks, alone or in company, before or after a restore or a fork.
//!
//! This crate knows no Wasm, no HTTP and no terminal. Layout: `gguf.rs`, `safetensors.rs`, `folder/`, `tokenizer/` and `template.rs`
//! read files, which `source.rs` shows to `models/`, one family a file; `description.rs` tells what they are. Decoders are written in the
//! operations of `pass.rs`. `batch.rs` runs those
//! on the CPU, `gpu/` on a graphics processor. `session.rs`, `kv.rs` and `sampler.rs` are a timeline's state, of which
//! `saved.rs` and `packed.rs` know what is saved and how.

#![recursion_limit = "256"] // whether a graphics device is `Send` takes the compiler that deep
#![forbid(unsafe_code)]

mod batch;
mod config;
mod description;
mod error;
mod folder;
pub mod gguf;
mod gpu;
mod kv;
pub mod limits;
mod model;
mod models;
mod packed;
mod pass;
mod rope;
pub mod safetensors;
mod sampler;
mod saved;
mod session;
mod source;
pub mod template;
pub mod tokenizer;

pub use batch::{Batch, Logits, Work};
pub use config::Config;
pub use description::{Description, FileDescription, Format, LayerKind, TokenizerDescription, describe};
pub use driftwood_compute::gpu::Timed;
pub use error::Error;
pub use model::{Device, Model, Residence};
pub use packed::UnsavedRows;
pub use sampler::{SampleError, Sampler, SamplerParams, argmax, top_logits};
pub use saved::{Piece, SavedKv};
pub use session::{BlockAtRest, RestoredBlock, RestoredPiece, RestoredSession, Session, SessionAtRest, SessionOptions, SharedBlock};
