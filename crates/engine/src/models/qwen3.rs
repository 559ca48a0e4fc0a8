//! Qwen 3: no biases, but norms over each head of Q and K before RoPE, and heads whose size is not the width over their number.
//!
//! Source: "Qwen3 Technical Report" (2025) and Hugging Face's `Qwen3ForCausalLM`.

use super::decoder::Parts;
use super::{Dialect, Family, Loaded, Windows, qwen2};
use crate::Error;
use crate::folder::names::{GATED, HEAD_NORMS, NORMS, QKV};
use crate::source::Source;

pub(super) const FAMILY: Family = Family {
    architecture: "qwen3",
    model_types: &["qwen3"],
    load,
    folder: Dialect {
        layer_names: &[NORMS, QKV, HEAD_NORMS, GATED],
        norm_offset: 0.0,
        tied: false,
        activation: ("hidden_act", "silu"),
        windows: Windows::Switched,
        defaults: &[("head_dim", 128.0), ("sliding_window", 4096.0), ("max_window_layers", 28.0)],
    },
};

fn load(file: &dyn Source) -> Result<Loaded, Error> {
    qwen2::load_as(&FAMILY, Parts { head_norms: true, ..Parts::default() }, file)
}
