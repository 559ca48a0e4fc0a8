//! Llama and what is built like it (SmolLM2, TinyLlama): RMS norms, grouped-query attention with RoPE, a SiLU-gated feed-forward.
//!
//! Source: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), and Hugging Face's `LlamaForCausalLM`,
//! whose half-split order of K we store; GGUF files permute the rows of Q and K into interleaved pairs.

use super::decoder::Blueprint;
use super::{Dialect, Family, global_rope};
use crate::Error;
use crate::config::Config;
use crate::source::Source;

pub(super) const FAMILY: Family = Family { architecture: "llama", model_types: &["llama"], plan, folder: Dialect::LLAMA };

/// Mistral's, too, which differs by its windows.
pub(super) fn plan(file: &dyn Source, config: Config) -> Result<Blueprint, Error> {
    let rope = global_rope(file, &config, file.llama_pairs())?;
    Ok(Blueprint::plain(config, rope))
}
