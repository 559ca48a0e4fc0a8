//! What stands between a container and a family: keys and tensors under GGUF's names, whatever the file calls them.
//!
//! A GGUF file answers as it is (below), a Hugging Face folder through tables of names (`folder/`).

use crate::Error;
use crate::config::Config;
use crate::description::StoredTensor;
use crate::folder::Folder;
use crate::folder::names::Stem;
use crate::gguf::{GgufFile, printable};
use crate::limits::CONTEXT_TOKENS_MAX;
use crate::models::{Windows, family};
use crate::rope::{LongRope, RopeLayers, RopeNumbers, RopePairs};
use crate::tokenizer::Tokenizer;
use driftwood_compute::Matrix;
use driftwood_region::View;
use std::path::Path;

/// A model's container, as families read it.
///
/// - Tensor names are GGUF's; so are keys, less the architecture that they begin with. Errors name what the container itself calls them.
/// - A tensor's extents are outermost first, and its bytes stay in the mapping.
/// - Everything has been checked against the container's bounds; whether shapes suit the model is the family's to check.
/// - A window or a cap of 0 is none.
pub(crate) trait Source: Sync {
    /// The family's name.
    fn architecture(&self) -> Result<&str, Error>;

    /// What the container calls a key, for errors.
    fn key_name(&self, key: &str) -> String;

    /// What the container calls a tensor, for errors.
    fn tensor_name(&self, name: &str) -> String;

    /// A key's value as an unsigned integer, `None` where it is absent.
    fn optional_u32(&self, key: &str) -> Result<Option<u32>, Error>;

    /// A key's value as a float, `None` where it is absent.
    fn optional_f32(&self, key: &str) -> Result<Option<f32>, Error>;

    /// Whether there is a tensor of this name.
    fn has_tensor(&self, name: &str) -> bool;

    /// Whether weights may be MLX's groups.
    fn is_grouped(&self) -> bool {
        false // as GGUF files never are
    }

    /// The floats of this name, which are no matrix: a norm.
    fn tensor(&self, name: &str) -> Result<&View, Error>;

    /// The weight of this name, (rows, row_len).
    fn matrix(&self, name: &str) -> Result<Matrix, Error>;

    /// How the rows of a Llama's Q and K are paired for RoPE. Other families have halves everywhere.
    fn llama_pairs(&self) -> RopePairs;

    /// What norms add to their stored weights.
    fn norm_offset(&self) -> f32;

    /// RoPE's numbers of some layers; `base` where the container says none.
    fn rope(&self, config: &Config, layers: RopeLayers, base: f32) -> Result<RopeNumbers, Error>;

    /// How many positions a token sees in each layer, itself included; `rule` where the container does not list the layers.
    fn windows(&self, rule: Windows, layers: usize) -> Result<Vec<Option<usize>>, Error>;

    /// The tokenizer.
    fn tokenizer(&self) -> Result<Tokenizer, Error>;

    /// The chat template's source, if there is one.
    fn chat_template(&self) -> Result<Option<&str>, Error>;

    /// Every file with its name, whole, in an order that depends on their names alone: the weights among them.
    fn files(&self) -> Vec<(String, View)>;

    /// Every tensor.
    fn tensors(&self) -> Vec<StoredTensor>;

    /// How the model's makers recommend that tokens are chosen.
    fn generation(&self) -> serde_json::Value;

    /// The error for a key that is needed and absent.
    fn missing(&self, key: &str) -> Error {
        Error::KeyMissing { key: self.key_name(key) }
    }

    /// As [`Source::optional_f32`], where absence is an error.
    fn f32(&self, key: &str) -> Result<f32, Error> {
        self.optional_f32(key)?.ok_or_else(|| self.missing(key))
    }
}

/// Maps what lies at `path`: a folder as Hugging Face has it, or a GGUF file.
///
/// # Errors
/// If it cannot be mapped or is neither.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Source>, Error> {
    if path.is_dir() {
        return Ok(Box::new(Folder::open(path)?));
    }
    let file = GgufFile::open(path)?;
    match file.optional_u32("split.count")? {
        None | Some(0 | 1) => Ok(Box::new(file)),
        Some(parts) => {
            let supported = "files that hold a whole model; join them with `gguf-split --merge`".to_owned();
            Err(Error::Unsupported { what: "part of a GGUF file", got: format!("split.count: {parts}"), supported })
        }
    }
}

/// The windows of layers: `rule` says which have one.
pub(crate) fn windows(layers: usize, window: Option<usize>, slides: impl Fn(usize) -> bool) -> Vec<Option<usize>> {
    (0..layers).map(|layer| window.filter(|_| slides(layer))).collect()
}

/// What longrope multiplies turned elements by, where a container does not say: (Ding et al., "LongRoPE", 2024), as Hugging Face has it.
pub(crate) fn longrope_magnitude(factor: f64, original_context: f64) -> f32 {
    if factor <= 1.0 { 1.0 } else { libm::sqrt(1.0 + libm::log(factor) / libm::log(original_context)) as f32 }
}

impl Source for GgufFile {
    fn architecture(&self) -> Result<&str, Error> {
        self.string("general.architecture")
    }

    fn key_name(&self, key: &str) -> String {
        format!("{}.{key}", Source::architecture(self).unwrap_or_default())
    }

    fn tensor_name(&self, name: &str) -> String {
        name.to_owned()
    }

    fn optional_u32(&self, key: &str) -> Result<Option<u32>, Error> {
        GgufFile::optional_u32(self, &self.key_name(key))
    }

    fn optional_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        GgufFile::optional_f32(self, &self.key_name(key))
    }

    fn has_tensor(&self, name: &str) -> bool {
        GgufFile::has_tensor(self, name)
    }

    fn tensor(&self, name: &str) -> Result<&View, Error> {
        GgufFile::tensor(self, name)
    }

    fn matrix(&self, name: &str) -> Result<Matrix, Error> {
        GgufFile::tensor(self, name).map(|view| view.clone().into())
    }

    fn llama_pairs(&self) -> RopePairs {
        RopePairs::Interleaved
    }

    fn norm_offset(&self) -> f32 {
        0.0
    }

    fn rope(&self, config: &Config, layers: RopeLayers, base: f32) -> Result<RopeNumbers, Error> {
        if layers == RopeLayers::Windows {
            let base = Source::optional_f32(self, "rope.freq_base_swa")?.unwrap_or(base);
            return Ok(RopeNumbers::plain(base, config.head_dim));
        }
        let base = Source::optional_f32(self, "rope.freq_base")?.unwrap_or(base);
        let rotated = Source::optional_u32(self, "rope.dimension_count")?.map_or(config.head_dim, |d| d as usize);
        self.scaled(config, RopeNumbers::plain(base, rotated.min(2 * config.head_dim)))
    }

    fn windows(&self, rule: Windows, layers: usize) -> Result<Vec<Option<usize>>, Error> {
        const WINDOW: &str = "attention.sliding_window";
        let window = Source::optional_u32(self, WINDOW)?.filter(|w| *w > 0).map(|w| w as usize);
        match rule {
            // What GGUF files of these families say of windows, nobody reads.
            Windows::Never | Windows::Switched => Ok(vec![None; layers]),
            Windows::All => Ok(vec![window; layers]),
            Windows::AllButEach(each) => {
                let window = window.ok_or_else(|| self.missing(WINDOW))?;
                let slides = self.sliding_layers(each, layers)?;
                Ok(windows(layers, Some(window), |layer| slides[layer]))
            }
        }
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_gguf(self)
    }

    fn chat_template(&self) -> Result<Option<&str>, Error> {
        GgufFile::optional_string(self, "tokenizer.chat_template")
    }

    fn files(&self) -> Vec<(String, View)> {
        vec![(String::new(), self.view().clone())]
    }

    fn tensors(&self) -> Vec<StoredTensor> {
        let layer_names = Source::architecture(self).and_then(family).map_or(&[][..], |family| family.folder.layer_names);
        let stored = |(name, view): (&str, &View)| StoredTensor {
            name: printable(name),
            format: view.dtype().to_string(),
            bytes: view.bytes().len(),
            is_known: name.starts_with("rope_f") || Stem::of(|_| false).own(layer_names, name).is_some(),
        };
        GgufFile::tensors(self).map(stored).collect()
    }

    fn generation(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

impl GgufFile {
    /// Which layers slide: as a list says, or all but each so-many-th.
    fn sliding_layers(&self, each: usize, layers: usize) -> Result<Vec<bool>, Error> {
        let key = self.key_name("attention.sliding_window_pattern");
        if let Ok(list) = self.bools(&key) {
            let slides: Vec<bool> = list.collect();
            let wrong = || Error::ConfigOutOfRange { key, value: slides.len() as f64, max: layers as f64 };
            return if slides.len() == layers { Ok(slides) } else { Err(wrong()) };
        }
        let each = match GgufFile::optional_u32(self, &key)? {
            None => each,
            Some(0) => return Err(Error::ConfigOutOfRange { key, value: 0.0, max: layers as f64 }),
            Some(each) => each as usize,
        };
        Ok((1..=layers).map(|layer| !layer.is_multiple_of(each)).collect())
    }

    /// RoPE's numbers, stretched as the file says.
    fn scaled(&self, config: &Config, plain: RopeNumbers) -> Result<RopeNumbers, Error> {
        const SHORT: &str = "rope_factors_short.weight";
        const FREQUENCIES: &str = "rope_freqs.weight";
        let pairs = plain.rotated / 2;
        let kind = self.key_name("rope.scaling.type");
        match GgufFile::optional_string(self, &kind)? {
            None | Some("none" | "longrope") if self.has_tensor(SHORT) => self.longrope(config, plain),
            None | Some("none") if self.has_tensor(FREQUENCIES) => Ok(plain.divided("llama3", self.divisors(FREQUENCIES, pairs)?)),
            None | Some("none") => Ok(plain),
            Some("linear") => {
                let factor = Source::f32(self, "rope.scaling.factor")?;
                Ok(plain.divided("linear", vec![factor; pairs]))
            }
            Some(other) => {
                let supported = "none, linear, longrope".to_owned();
                Err(Error::Unsupported { what: "rope scaling", got: printable(other), supported })
            }
        }
    }

    /// Phi's scaling: divisors by tensor, one list up to the first training's context and another beyond.
    fn longrope(&self, config: &Config, plain: RopeNumbers) -> Result<RopeNumbers, Error> {
        const ORIGINAL: &str = "rope.scaling.original_context_length";
        let original = Source::optional_u32(self, ORIGINAL)?.ok_or_else(|| self.missing(ORIGINAL))? as usize;
        if !(2..=CONTEXT_TOKENS_MAX).contains(&original) {
            return Err(Error::ConfigOutOfRange { key: self.key_name(ORIGINAL), value: original as f64, max: CONTEXT_TOKENS_MAX as f64 });
        }
        let magnitude = match Source::optional_f32(self, "rope.scaling.attn_factor")? {
            Some(magnitude) => magnitude,
            None => longrope_magnitude(config.context_max as f64 / original as f64, original as f64),
        };
        let pairs = plain.rotated / 2;
        let long = LongRope { beyond: original, divisors: self.divisors("rope_factors_long.weight", pairs)? };
        let divisors = self.divisors("rope_factors_short.weight", pairs)?;
        Ok(RopeNumbers { magnitude, long: Some(long), ..plain.divided("longrope", divisors) })
    }

    /// What divides frequencies, by tensor: (pairs).
    fn divisors(&self, name: &str, pairs: usize) -> Result<Vec<f32>, Error> {
        let divisors = crate::models::vector(self, name, pairs)?;
        match divisors.iter().find(|f| !f.is_normal() || **f < 0.0) {
            None => Ok(divisors),
            Some(bad) => Err(Error::Malformed { why: format!("tensor `{name}` holds {bad}, which divides no frequency") }),
        }
    }
}
