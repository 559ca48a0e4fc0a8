//! Passes on a graphics processor.
//!
//! - `weights.rs`: a model's weights where the device reads them, shared or uploaded.
//! - `record.rs`: a family's operations, recorded once as a list of dispatches.
//! - `passes.rs`: one step: KV shared, what changes from step to step written, the list replayed, the logits read from a shared window.
//! - `tile_inputs.rs`, `tile_record.rs`, `tile_passes.rs`: the same on devices that multiply tiles, with KV in the device's own memory (`resident.rs`), tokens
//!   chosen on the device, and a step ahead of who asks; `scribe.rs` encodes the next while one runs.
//!
//! What a step changes (rows, tokens, positions, slots of KV, rotations) stands in small buffers, so that one recording serves every
//! step of a model and KV type until a buffer grows.

mod passes;
mod record;
mod resident;
mod rope_tables;
mod scribe;
mod tile_inputs;
mod tile_passes;
mod tile_record;
mod weights;

pub(crate) use passes::GpuPasses;
pub(crate) use resident::ResidentKv;
pub(crate) use tile_passes::TilePasses;
pub(crate) use tile_record::{tile_attention, upload_tiles};
pub(crate) use weights::GpuWeights;
