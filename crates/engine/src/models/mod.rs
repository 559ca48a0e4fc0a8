//! Model families: one file each; [`FAMILIES`] is the only place that lists them.
//!
//! A family says where it differs: which parts a layer has, what its containers leave unsaid, and what its folders call things.
//! `decoder.rs` reads those parts and is the one function that all families run.

mod decoder;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;

pub(crate) use decoder::Decoder;

use crate::Error;
use crate::config::Config;
use crate::folder::names::{GATED, NORMS, Names, QKV};
use crate::rope::{Rope, RopeLayers, RopePairs};
use crate::source::Source;
use decoder::Blueprint;
use driftwood_compute::Matrix;
use driftwood_region::DType;

/// A family of models.
#[derive(Debug)]
pub(crate) struct Family {
    /// What GGUF calls it, and this crate.
    pub(crate) architecture: &'static str,
    /// What the `model_type` of its `config.json` may be.
    pub(crate) model_types: &'static [&'static str],
    /// How its models are built.
    plan: fn(&dyn Source, Config) -> Result<Blueprint, Error>,
    /// How its folders put things.
    pub(crate) folder: Dialect,
}

/// What folders of a family say in their own way.
#[derive(Debug)]
pub(crate) struct Dialect {
    /// The tensors of a layer, under GGUF's names and their own.
    pub(crate) layer_names: &'static [Names],
    /// What norms add to their stored weights.
    pub(crate) norm_offset: f32,
    /// Whether the embedding is the output where `tie_word_embeddings` is not said.
    pub(crate) tied: bool,
    /// The key of the feed-forward's activation, and the only one that is computed.
    pub(crate) activation: (&'static str, &'static str),
    /// Which layers see a window.
    pub(crate) windows: Windows,
    /// Numbers of `config.json` that may be left out.
    pub(crate) defaults: &'static [(&'static str, f64)],
}

impl Dialect {
    /// What folders of Llama say, and most after it.
    const LLAMA: Dialect = Dialect {
        layer_names: &[NORMS, QKV, GATED],
        norm_offset: 0.0,
        tied: false,
        activation: ("hidden_act", "silu"),
        windows: Windows::Never,
        defaults: &[],
    };
}

/// Which layers see a sliding window, where a container says no more than how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windows {
    /// None.
    Never,
    /// All.
    All,
    /// All but each so-many-th.
    AllButEach(usize),
    /// Those from `max_window_layers` on, if `use_sliding_window` says so.
    Switched,
}

/// Every family, by its architecture.
pub(crate) const FAMILIES: [&Family; 7] =
    [&gemma2::FAMILY, &gemma3::FAMILY, &llama::FAMILY, &mistral::FAMILY, &phi3::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY];

/// The family of this architecture.
///
/// # Errors
/// If there is none here.
pub(crate) fn family(architecture: &str) -> Result<&'static Family, Error> {
    FAMILIES.into_iter().find(|family| family.architecture == architecture).ok_or_else(|| Error::Unsupported {
        what: "architecture",
        got: crate::gguf::printable(architecture),
        supported: FAMILIES.map(|family| family.architecture).join(", "),
    })
}

/// Reads a model of any known family.
///
/// # Errors
/// If the architecture is unknown or the file is not what its family expects.
pub(crate) fn load(file: &dyn Source) -> Result<Decoder, Error> {
    let family = family(file.architecture()?)?;
    let plan = (family.plan)(file, Config::read(file, family.architecture)?)?;
    let windows = file.windows(family.folder.windows, plan.config.layers)?;
    plan.build(file, windows)
}

/// A weight of exactly `rows` by `row_len` elements.
fn matrix(file: &dyn Source, name: &str, rows: usize, row_len: usize) -> Result<Matrix, Error> {
    let matrix = file.matrix(name)?;
    let shape = matrix.weight().shape();
    if shape.extents() == [rows, row_len] {
        return Ok(matrix);
    }
    let name = file.tensor_name(name);
    Err(Error::TensorShape { name, expected: format!("[{rows}, {row_len}]"), found: format!("{shape:?}") })
}

/// A small vector of exactly `len` elements, de-quantised: norms are read by every row and take no room.
pub(crate) fn vector(file: &dyn Source, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let view = file.tensor(name)?;
    if view.shape().extents() != [len] || !matches!(view.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        let found = format!("{:?} of {}", view.shape(), view.dtype());
        return Err(Error::TensorShape { name: file.tensor_name(name), expected: format!("[{len}] of F32, F16 or BF16"), found });
    }
    let mut values = vec![0.0; len];
    driftwood_compute::dequantise_row(view.dtype(), view.bytes(), &mut values);
    Ok(values)
}

/// The RoPE of all layers that have none of their own. Its base is Llama's where the container says none.
fn global_rope(file: &dyn Source, config: &Config, pairs: RopePairs) -> Result<Rope, Error> {
    rope(file, config, RopeLayers::Global, 10_000.0, pairs)
}

/// The RoPE of some layers over whole heads, in contexts of any length. `base` stands where the container says none.
fn rope(file: &dyn Source, config: &Config, layers: RopeLayers, base: f32, pairs: RopePairs) -> Result<Rope, Error> {
    let numbers = file.rope(config, layers, base)?;
    if numbers.rotated != config.head_dim {
        return Err(unsupported("rope over part of a head", format!("{} of {}", numbers.rotated, config.head_dim)));
    }
    if let Some(long) = numbers.long {
        return Err(unsupported("rope that changes in long contexts in this family", format!("beyond {} tokens", long.beyond)));
    }
    Rope::new(config.head_dim, &numbers, pairs).map_err(|bad| bad.of(file))
}

/// A number that bounds logits or scores; 0 means that nothing does.
fn cap(file: &dyn Source, key: &str, default: f32) -> Result<Option<f32>, Error> {
    const CAP_MAX: f32 = 1e4;
    match file.optional_f32(key)?.unwrap_or(default) {
        0.0 => Ok(None),
        cap if cap > 0.0 && cap <= CAP_MAX => Ok(Some(cap)),
        cap => Err(Error::ConfigOutOfRange { key: file.key_name(key), value: cap.into(), max: CAP_MAX.into() }),
    }
}

/// A feature of a file that its family does not have here.
fn unsupported(what: &'static str, got: impl Into<String>) -> Error {
    Error::Unsupported { what, got: got.into(), supported: "files without it".to_owned() }
}
