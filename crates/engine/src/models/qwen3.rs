//! Qwen 3: no biases, but norms over each head of Q and K before RoPE, and heads whose size is not the width over their number.
//!
//! Source: "Qwen3 Technical Report" (2025) and Hugging Face's `Qwen3ForCausalLM`.

use super::decoder::{Blueprint, Parts};
use super::{Dialect, Family, Windows, global_rope};
use crate::Error;
use crate::config::Config;
use crate::folder::names::{GATED, HEAD_NORMS, NORMS, QKV};
use crate::rope::RopePairs;
use crate::source::Source;

pub(super) const FAMILY: Family = Family {
    architecture: "qwen3",
    model_types: &["qwen3"],
    plan,
    folder: Dialect {
        layer_names: &[NORMS, QKV, HEAD_NORMS, GATED],
        windows: Windows::Switched,
        defaults: &[("head_dim", 128.0), ("sliding_window", 4096.0), ("max_window_layers", 28.0)],
        ..Dialect::LLAMA
    },
};

fn plan(file: &dyn Source, config: Config) -> Result<Blueprint, Error> {
    let rope = global_rope(file, &config, RopePairs::Halves)?;
    Ok(Blueprint { parts: Parts { head_norms: true, ..Parts::default() }, ..Blueprint::plain(config, rope) })
}
