//! Passes on a graphics processor.
//!
//! - `weights.rs`: a model's weights where the device reads them, shared or uploaded.
//! - `record.rs`: a family's operations, recorded once as a list of dispatches.
//! - `passes.rs`: one step: KV shared, what changes from step to step written, the list replayed, the logits read from a shared window.
//!
//! What a step changes (rows, tokens, positions, slots of KV, rotations) stands in small buffers, so that one recording serves every
//! step of a model and KV type until a buffer grows.

mod passes;
mod record;
mod weights;

pub(crate) use passes::GpuPasses;
pub(crate) use weights::GpuWeights;
