//! A model's extents, read once from its file and checked against bounds.

use crate::Error;
use crate::limits::{CONTEXT_TOKENS_MAX, HEADS_MAX, LAYERS_MAX, WIDTH_MAX};
use crate::source::Source;
use driftwood_compute::{AttendShape, KvDType, KvLayout};

/// The extents that every family shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family's name, as `general.architecture` gives it.
    pub architecture: &'static str,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// Tokens that the model was trained to attend to.
    pub context_max: usize,
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
}

impl Config {
    /// Reads the keys `{architecture}.*`.
    ///
    /// # Errors
    /// If a key is missing or a number is out of bounds; the error names it.
    pub(crate) fn read(file: &dyn Source, architecture: &'static str) -> Result<Config, Error> {
        let extent = |key: &str, max: usize| -> Result<usize, Error> {
            let key = format!("{architecture}.{key}");
            let value = file.u32(&key)? as usize;
            if (1..=max).contains(&value) { Ok(value) } else { Err(Error::ConfigOutOfRange { key, value: value as f64, max: max as f64 }) }
        };
        let width = extent("embedding_length", WIDTH_MAX)?;
        let heads = extent("attention.head_count", HEADS_MAX)?;
        let kv_heads = match file.optional_u32(&format!("{architecture}.attention.head_count_kv"))? {
            Some(_) => extent("attention.head_count_kv", HEADS_MAX)?,
            None => heads,
        };
        let head_dim = match file.optional_u32(&format!("{architecture}.attention.key_length"))? {
            Some(_) => extent("attention.key_length", 512)?,
            None => width / heads,
        };
        let norm_key = format!("{architecture}.attention.layer_norm_rms_epsilon");
        let config = Config {
            architecture,
            vocabulary: file.matrix("token_embd.weight")?.rows(),
            context_max: extent("context_length", CONTEXT_TOKENS_MAX)?,
            width,
            hidden: extent("feed_forward_length", WIDTH_MAX)?,
            layers: extent("block_count", LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim,
            norm_eps: file.f32(&norm_key)?,
        };
        config.check(&norm_key)
    }

    fn check(self, norm_key: &str) -> Result<Config, Error> {
        let out_of_range =
            |key: String, value: usize, max: usize| Err(Error::ConfigOutOfRange { key, value: value as f64, max: max as f64 });
        if !self.norm_eps.is_finite() || !(0.0..=1.0).contains(&self.norm_eps) {
            return Err(Error::ConfigOutOfRange { key: norm_key.to_owned(), value: f64::from(self.norm_eps), max: 1.0 });
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return out_of_range(
                format!("{}.attention.head_count_kv (must divide the heads)", self.architecture),
                self.kv_heads,
                self.heads,
            );
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(32) || self.head_dim > 512 {
            return out_of_range(format!("{}: head size (must be a multiple of 32)", self.architecture), self.head_dim, 512);
        }
        if self.heads * self.head_dim > WIDTH_MAX {
            return out_of_range(format!("{}: heads times head size", self.architecture), self.heads * self.head_dim, WIDTH_MAX);
        }
        Ok(self)
    }

    /// How attention in `layer` is shaped. `window` is how many positions a token sees, itself included.
    pub(crate) fn attention(&self, layer: usize, window: Option<usize>) -> AttentionPlan {
        AttentionPlan {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            layer,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window,
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
    pub window: Option<usize>,
}

impl AttentionPlan {
    /// The shape over KV of this layout.
    pub(crate) fn over(self, layout: KvLayout) -> AttendShape {
        let AttentionPlan { heads, kv_heads, head_dim, layer, scale, window } = self;
        AttendShape { heads, kv_heads, head_dim, layer, scale, window, layout }
    }
}
