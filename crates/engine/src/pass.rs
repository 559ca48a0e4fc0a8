//! The operations that model families are written in, and what they take. One pass takes some rows (tokens of sessions) through all
//! layers; `batch.rs` runs passes on the CPU, `gpu/` records them for a graphics processor.

use crate::config::AttentionPlan;
use crate::rope::Rope;
use driftwood_compute::Matrix;

/// One pass through a decoder.
///
/// - Each operation reads and writes named rows that the pass owns: `residual`, `normed` and `branch`, all (row, width).
/// - A family calls `embed` first, `logits` last, and names no session and no position.
/// - What it hands in (weights, norms) stays where it is as long as the model lives: a recorder keeps their addresses.
pub(crate) trait Pass {
    /// residual = rows of the embedding, scaled.
    fn embed(&mut self, embedding: &Matrix, scale: f32);
    /// normed = norm(residual), ready to be projected.
    fn norm(&mut self, weight: &[f32], eps: f32);
    /// branch = norm(branch): Gemma's norm after a block.
    fn norm_branch(&mut self, weight: &[f32], eps: f32);
    /// branch = attention(normed), with K and V written to the sessions' blocks first.
    fn attention(&mut self, weights: &AttentionWeights, plan: AttentionPlan, rope: &Rope, eps: f32);
    /// branch = down(gate(normed) * up(normed)).
    fn feed_forward(&mut self, gate: &Matrix, up: &Matrix, down: &Matrix, activation: Gate);
    /// residual += branch.
    fn add(&mut self);
    /// logits = output(norm(residual)), for the rows whose logits are wanted; then cap * tanh(logits / cap), where there is a cap.
    fn logits(&mut self, norm: &[f32], eps: f32, output: &Matrix, cap: Option<f32>);
}

/// The activation of a gated feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Silu,
    GeluTanh,
}

/// The weights of one attention block.
#[derive(Debug)]
pub(crate) struct AttentionWeights {
    pub(crate) q: Matrix, // (head * head_dim, width)
    pub(crate) k: Matrix, // (kv_head * head_dim, width)
    pub(crate) v: Matrix, // (kv_head * head_dim, width)
    pub(crate) o: Matrix, // (width, head * head_dim)
    /// What is added to Q, K and V: (rows of the projection).
    pub(crate) biases: Option<[Vec<f32>; 3]>,
    /// RMS norms over each head of Q and K: (head_dim).
    pub(crate) head_norms: Option<[Vec<f32>; 2]>,
}
