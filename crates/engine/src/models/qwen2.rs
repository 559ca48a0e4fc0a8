//! Qwen 2 and 2.5: Llama with biases on Q, K and V.
//!
//! Source: "Qwen2.5 Technical Report" (2024) and Hugging Face's `Qwen2ForCausalLM`.

use super::decoder::{Blueprint, Parts};
use super::{Dialect, Family, Loaded, Windows, rope};
use crate::Error;
use crate::config::Config;
use crate::folder::names::{GATED, NORMS, QKV};
use crate::pass::Gate;
use crate::rope::{RopeLayers, RopePairs};
use crate::source::Source;

pub(super) const FAMILY: Family = Family {
    architecture: "qwen2",
    model_types: &["qwen2"],
    load,
    folder: Dialect {
        layer_names: &[NORMS, QKV, GATED],
        norm_offset: 0.0,
        tied: false,
        activation: ("hidden_act", "silu"),
        windows: Windows::Switched,
        defaults: &[("sliding_window", 4096.0), ("max_window_layers", 28.0)],
    },
};

fn load(file: &dyn Source) -> Result<Loaded, Error> {
    load_as(&FAMILY, Parts { biases: true, ..Parts::default() }, file)
}

/// Reads a Qwen whose layers have these parts.
pub(super) fn load_as(family: &Family, parts: Parts, file: &dyn Source) -> Result<Loaded, Error> {
    let config = Config::read(file, family.architecture)?;
    Blueprint {
        rope: rope(file, &config, RopeLayers::Global, 10_000.0, RopePairs::Halves)?,
        window_rope: None,
        windows: file.windows(family.folder.windows, config.layers)?,
        parts,
        gate: Gate::Silu,
        embedding_scale: 1.0,
        logits_cap: None,
        config,
    }
    .build(file)
}
