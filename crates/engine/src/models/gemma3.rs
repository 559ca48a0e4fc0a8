//! Gemma 3, text only: norms before and after each block, norms on Q and K, five sliding-window layers to one global.
//!
//! Source: "Gemma 3 Technical Report" (2025) and Hugging Face's `Gemma3ForCausalLM`. GGUF files store norm weights with the 1 already
//! added. Sliding layers use RoPE's base 10,000 as it is, global ones the file's, which may be stretched.

use super::decoder::{Blueprint, Parts};
use super::{Dialect, Family, Windows, cap, rope};
use crate::Error;
use crate::config::Config;
use crate::folder::names::{GATED, HEAD_NORMS, QKV, SANDWICH_NORMS};
use crate::pass::Gate;
use crate::rope::{RopeLayers, RopePairs};
use crate::source::Source;

/// Layers of the one size whose scale is the width over the heads; no GGUF file says so.
const LAYERS_OF_27B: usize = 62;

pub(super) const FAMILY: Family = Family {
    architecture: "gemma3",
    model_types: &["gemma3_text", "gemma3"],
    plan,
    folder: Dialect {
        layer_names: &[SANDWICH_NORMS, QKV, HEAD_NORMS, GATED],
        norm_offset: 1.0,
        tied: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        windows: Windows::AllButEach(6),
        // The folders with a vision part leave out most of what describes the text part.
        defaults: &[
            ("hidden_size", 2304.0),
            ("intermediate_size", 9216.0),
            ("num_hidden_layers", 26.0),
            ("num_attention_heads", 8.0),
            ("num_key_value_heads", 4.0),
            ("head_dim", 256.0),
            ("max_position_embeddings", 131_072.0),
            ("rms_norm_eps", 1e-6),
            ("sliding_window", 4096.0),
            ("query_pre_attn_scalar", 256.0),
        ],
    },
};

fn plan(file: &dyn Source, config: Config) -> Result<Blueprint, Error> {
    let config = config.scaled_by_query(file, LAYERS_OF_27B)?;
    let global = rope(file, &config, RopeLayers::Global, 1_000_000.0, RopePairs::Halves)?;
    Ok(Blueprint {
        window_rope: Some(rope(file, &config, RopeLayers::Windows, 10_000.0, RopePairs::Halves)?),
        parts: Parts { head_norms: true, norms_after: true, ..Parts::default() },
        gate: Gate::GeluTanh,
        embedding_scale: (config.width as f32).sqrt(),
        logits_cap: cap(file, "final_logit_softcapping", 0.0)?,
        ..Blueprint::plain(config, global)
    })
}
