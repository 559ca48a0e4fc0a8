//! Mistral: Llama with a sliding window in every layer, where it has one.
//!
//! Source: Jiang et al., "Mistral 7B" (2023), and Hugging Face's `MistralForCausalLM`. GGUF files call it `llama` and keep no window.

use super::{Dialect, Family, Windows, llama};

pub(super) const FAMILY: Family = Family {
    architecture: "mistral",
    model_types: &["mistral"],
    plan: llama::plan,
    folder: Dialect { windows: Windows::All, defaults: &[("num_key_value_heads", 8.0), ("sliding_window", 4096.0)], ..Dialect::LLAMA },
};
