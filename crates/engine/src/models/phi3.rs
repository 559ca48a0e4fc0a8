//! Phi 3, 3.5, 4-mini and 4: Llama with Q, K and V in one tensor and gate and up in another, RoPE over part of a head, and longrope.
//!
//! Source: "Phi-3 Technical Report" (2024), "LongRoPE" (2024), and Hugging Face's `Phi3ForCausalLM`.

use super::decoder::{Blueprint, Parts};
use super::{Dialect, Family, Windows};
use crate::Error;
use crate::config::Config;
use crate::folder::names::{FUSED_GATED, FUSED_QKV, NORMS};
use crate::rope::{Rope, RopeLayers, RopePairs};
use crate::source::Source;

pub(super) const FAMILY: Family = Family {
    architecture: "phi3",
    model_types: &["phi3"],
    plan,
    folder: Dialect {
        layer_names: &[NORMS, FUSED_QKV, FUSED_GATED],
        windows: Windows::All,
        defaults: &[("original_max_position_embeddings", 4096.0), ("rms_norm_eps", 1e-5)],
        ..Dialect::LLAMA
    },
};

fn plan(file: &dyn Source, mut config: Config) -> Result<Blueprint, Error> {
    let numbers = file.rope(&config, RopeLayers::Global, 10_000.0)?;
    if let Some(long) = numbers.long.as_ref().filter(|long| long.beyond < config.context_max) {
        (config.context_max, config.context_long_max) = (long.beyond, Some(config.context_max));
    }
    let rope = Rope::new(config.head_dim, &numbers, RopePairs::Halves).map_err(|bad| bad.of(file))?;
    Ok(Blueprint { parts: Parts { fused: true, ..Parts::default() }, ..Blueprint::plain(config, rope) })
}
