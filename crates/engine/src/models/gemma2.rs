//! Gemma 2: norms before and after each block, scores and logits that a hyperbolic tangent bounds, every second layer with a window.
//!
//! Source: "Gemma 2: Improving Open Language Models at a Practical Size" (2024) and Hugging Face's `Gemma2ForCausalLM`. GGUF files store
//! norm weights with the 1 already added.

use super::decoder::{Blueprint, Parts};
use super::{Dialect, Family, Windows, cap, global_rope};
use crate::Error;
use crate::config::Config;
use crate::folder::names::{GATED, QKV, SANDWICH_NORMS};
use crate::pass::Gate;
use crate::rope::RopePairs;
use crate::source::Source;

/// Layers of the one size whose scale is the width over the heads; no GGUF file says so.
const LAYERS_OF_27B: usize = 46;

pub(super) const FAMILY: Family = Family {
    architecture: "gemma2",
    model_types: &["gemma2"],
    plan,
    folder: Dialect {
        layer_names: &[SANDWICH_NORMS, QKV, GATED],
        norm_offset: 1.0,
        tied: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        windows: Windows::AllButEach(2),
        defaults: &[("num_key_value_heads", 4.0), ("head_dim", 256.0), ("sliding_window", 4096.0), ("query_pre_attn_scalar", 256.0)],
    },
};

fn plan(file: &dyn Source, config: Config) -> Result<Blueprint, Error> {
    let mut config = config.scaled_by_query(file, LAYERS_OF_27B)?;
    config.scores_cap = cap(file, "attn_logit_softcapping", 50.0)?;
    let rope = global_rope(file, &config, RopePairs::Halves)?;
    Ok(Blueprint {
        parts: Parts { norms_after: true, ..Parts::default() },
        gate: Gate::GeluTanh,
        embedding_scale: (config.width as f32).sqrt(),
        logits_cap: cap(file, "final_logit_softcapping", 30.0)?,
        ..Blueprint::plain(config, rope)
    })
}
