//! A model's extents, read once from its file and checked against bounds.

use crate::Error;
use crate::limits::{CONTEXT_TOKENS_MAX, HEAD_DIM_MAX, HEADS_MAX, LAYERS_MAX, WIDTH_MAX};
use crate::source::Source;
use driftwood_compute::{AttendShape, KvDType, KvLayout};
use serde::Serialize;

/// The extents that every family shares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// The family's name, as `general.architecture` gives it.
    pub architecture: &'static str,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// Tokens that the model was trained to attend to.
    pub context_max: usize,
    /// Tokens that it can attend to if told so when a session is opened, which turns all of the session's keys otherwise: longrope.
    pub context_long_max: Option<usize>,
    /// Elements of the residual stream.
    pub width: usize,
    /// Elements inside the feed-forward.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Added to the mean square in norms.
    pub norm_eps: f32,
    /// What the products of Q and K are multiplied by.
    pub attention_scale: f32,
    /// What bounds them then: cap * tanh(scores / cap).
    pub scores_cap: Option<f32>,
}

impl Config {
    /// Reads the extents.
    ///
    /// # Errors
    /// If a key is missing or a number is out of bounds; the error names it as the container does.
    pub(crate) fn read(file: &dyn Source, architecture: &'static str) -> Result<Config, Error> {
        let width = extent(file, "embedding_length", WIDTH_MAX)?;
        let heads = extent(file, "attention.head_count", HEADS_MAX)?;
        let kv_heads = optional_extent(file, "attention.head_count_kv", HEADS_MAX)?.unwrap_or(heads);
        let head_dim = optional_extent(file, "attention.key_length", HEAD_DIM_MAX)?.unwrap_or(width / heads);
        let config = Config {
            architecture,
            vocabulary: file.matrix("token_embd.weight")?.rows(),
            context_max: extent(file, "context_length", CONTEXT_TOKENS_MAX)?,
            context_long_max: None,
            width,
            hidden: extent(file, "feed_forward_length", WIDTH_MAX)?,
            layers: extent(file, "block_count", LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim,
            norm_eps: file.f32(NORM_EPS)?,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            scores_cap: None,
        };
        config.check(file)
    }

    fn check(self, file: &dyn Source) -> Result<Config, Error> {
        let out_of_range = |key: &str, why: &str, value: usize, max: usize| {
            let key = format!("{}{why}", file.key_name(key));
            Err(Error::ConfigOutOfRange { key, value: value as f64, max: max as f64 })
        };
        if !self.norm_eps.is_finite() || !(0.0..=1.0).contains(&self.norm_eps) {
            return Err(Error::ConfigOutOfRange { key: file.key_name(NORM_EPS), value: f64::from(self.norm_eps), max: 1.0 });
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return out_of_range("attention.head_count_kv", " (must divide the heads)", self.kv_heads, self.heads);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(32) {
            return out_of_range("attention.key_length", " (the size of a head; must be a multiple of 32)", self.head_dim, HEAD_DIM_MAX);
        }
        if self.heads * self.head_dim > WIDTH_MAX {
            return out_of_range("attention.head_count", " times the size of a head", self.heads * self.head_dim, WIDTH_MAX);
        }
        Ok(self)
    }

    /// Scaled as Gemma scales its queries: by a number of the container's, else by the size of a head; in the largest size, which has
    /// `layers_of_largest`, by the width over the heads.
    ///
    /// # Errors
    /// If the number is none that can be divided by.
    pub(crate) fn scaled_by_query(self, file: &dyn Source, layers_of_largest: usize) -> Result<Config, Error> {
        const KEY: &str = "attention.query_scalar";
        let reconstructed = if self.layers == layers_of_largest { self.width / self.heads } else { self.head_dim };
        let scalar = file.optional_f32(KEY)?.unwrap_or(reconstructed as f32);
        if !(1e-3..=1e6).contains(&scalar) {
            return Err(Error::ConfigOutOfRange { key: file.key_name(KEY), value: scalar.into(), max: 1e6 });
        }
        Ok(Config { attention_scale: 1.0 / scalar.sqrt(), ..self })
    }

    /// How attention in `layer` is shaped. `window` is how many positions a token sees, itself included.
    pub(crate) fn attention(&self, layer: usize, window: Option<usize>) -> AttentionPlan {
        AttentionPlan {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            layer,
            scale: self.attention_scale,
            softcap: self.scores_cap,
            // A window that no context reaches is none, so that kernels need not be told of it.
            window: window.filter(|window| *window < self.context_long_max.unwrap_or(self.context_max)),
        }
    }

    /// How a block of KV of this model is laid out.
    pub fn kv_layout(&self, dtype: KvDType) -> KvLayout {
        KvLayout { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim, dtype }
    }
}

/// An attention's shape without the KV's layout, which is the session's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionPlan {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layer: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
}

impl AttentionPlan {
    /// The shape over KV of this layout.
    pub(crate) fn over(self, layout: KvLayout) -> AttendShape {
        let AttentionPlan { heads, kv_heads, head_dim, layer, scale, softcap, window } = self;
        AttendShape { heads, kv_heads, head_dim, layer, scale, softcap, window, layout }
    }
}

const NORM_EPS: &str = "attention.layer_norm_rms_epsilon";

fn extent(file: &dyn Source, key: &str, max: usize) -> Result<usize, Error> {
    optional_extent(file, key, max)?.ok_or_else(|| file.missing(key))
}

fn optional_extent(file: &dyn Source, key: &str, max: usize) -> Result<Option<usize>, Error> {
    match file.optional_u32(key)?.map(|value| value as usize) {
        Some(value) if !(1..=max).contains(&value) => {
            Err(Error::ConfigOutOfRange { key: file.key_name(key), value: value as f64, max: max as f64 })
        }
        value => Ok(value),
    }
}
