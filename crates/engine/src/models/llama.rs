//! Llama and what is built like it (SmolLM2, TinyLlama): RMS norms, grouped-query attention with RoPE, a SiLU-gated feed-forward.
//!
//! Source: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), and Hugging Face's `LlamaForCausalLM`,
//! whose half-split order of K we store; GGUF files permute the rows of Q and K into interleaved pairs.

use super::decoder::{Blueprint, Parts};
use super::{Dialect, Family, Loaded, Windows, rope};
use crate::Error;
use crate::config::Config;
use crate::folder::names::{GATED, NORMS, QKV};
use crate::pass::Gate;
use crate::rope::RopeLayers;
use crate::source::Source;

pub(super) const FAMILY: Family = Family {
    architecture: "llama",
    model_types: &["llama"],
    load,
    folder: Dialect {
        layer_names: &[NORMS, QKV, GATED],
        norm_offset: 0.0,
        tied: false,
        activation: ("hidden_act", "silu"),
        windows: Windows::Never,
        defaults: &[],
    },
};

fn load(file: &dyn Source) -> Result<Loaded, Error> {
    load_as(&FAMILY, file)
}

/// Reads a model that differs from Llama's by nothing but its windows.
pub(super) fn load_as(family: &Family, file: &dyn Source) -> Result<Loaded, Error> {
    let config = Config::read(file, family.architecture)?;
    Blueprint {
        rope: rope(file, &config, RopeLayers::Global, 10_000.0, file.llama_pairs())?,
        window_rope: None,
        windows: file.windows(family.folder.windows, config.layers)?,
        parts: Parts::default(),
        gate: Gate::Silu,
        embedding_scale: 1.0,
        logits_cap: None,
        config,
    }
    .build(file)
}
