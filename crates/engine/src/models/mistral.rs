//! Mistral: Llama with a sliding window in every layer, where it has one.
//!
//! Source: Jiang et al., "Mistral 7B" (2023), and Hugging Face's `MistralForCausalLM`. GGUF files call it `llama` and keep no window.

use super::llama;
use super::{Dialect, Family, Loaded, Windows};
use crate::Error;
use crate::folder::names::{GATED, NORMS, QKV};
use crate::source::Source;

pub(super) const FAMILY: Family = Family {
    architecture: "mistral",
    model_types: &["mistral"],
    load,
    folder: Dialect {
        layer_names: &[NORMS, QKV, GATED],
        norm_offset: 0.0,
        tied: false,
        activation: ("hidden_act", "silu"),
        windows: Windows::All,
        defaults: &[("num_key_value_heads", 8.0), ("sliding_window", 4096.0)],
    },
};

fn load(file: &dyn Source) -> Result<Loaded, Error> {
    llama::load_as(&FAMILY, file)
}
