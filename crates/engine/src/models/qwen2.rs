//! Qwen 2 and 2.5: Llama with biases on Q, K and V.
//!
//! Source: "Qwen2.5 Technical Report" (2024) and Hugging Face's `Qwen2ForCausalLM`.

use super::decoder::{Blueprint, Parts};
use super::{Dialect, Family, Windows, global_rope};
use crate::Error;
use crate::config::Config;
use crate::rope::RopePairs;
use crate::source::Source;

pub(super) const FAMILY: Family = Family {
    architecture: "qwen2",
    model_types: &["qwen2"],
    plan,
    folder: Dialect { windows: Windows::Switched, defaults: &[("sliding_window", 4096.0), ("max_window_layers", 28.0)], ..Dialect::LLAMA },
};

fn plan(file: &dyn Source, config: Config) -> Result<Blueprint, Error> {
    let rope = global_rope(file, &config, RopePairs::Halves)?;
    Ok(Blueprint { parts: Parts { biases: true, ..Parts::default() }, ..Blueprint::plain(config, rope) })
}
