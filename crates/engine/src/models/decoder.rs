//! The decoder that all families share: RMS norms, grouped-query attention with RoPE, a gated feed-forward.
//!
//! A family hands in a [`Blueprint`]; what its layers lack is not there. Top down: the pass, then how parts are read.

use super::{matrix, unsupported, vector};
use crate::Error;
use crate::config::Config;
use crate::pass::{AttentionWeights, Gate, Pass};
use crate::rope::Rope;
use crate::source::Source;
use driftwood_compute::Matrix;

/// What a family knows of a model before its weights are read.
#[derive(Debug)]
pub(super) struct Blueprint {
    pub(super) config: Config,
    pub(super) rope: Rope,
    /// Of layers with a window, where theirs differs.
    pub(super) window_rope: Option<Rope>,
    pub(super) parts: Parts,
    pub(super) gate: Gate,
    /// What the rows of the embedding are multiplied by.
    pub(super) embedding_scale: f32,
    /// What bounds the logits.
    pub(super) logits_cap: Option<f32>,
}

/// What a layer has beyond Llama's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    /// Something added to Q, K and V.
    pub(super) biases: bool,
    /// Norms over each head of Q and K.
    pub(super) head_norms: bool,
    /// Norms after each block, too.
    pub(super) norms_after: bool,
    /// Q, K and V in one tensor, gate and up in another.
    pub(super) fused: bool,
}

/// A decoder with its weights. It names no session and no position: rows carry them.
#[derive(Debug)]
pub(crate) struct Decoder {
    plan: Blueprint,
    windows: Vec<Option<usize>>, // (layer): how many positions a token sees, itself included
    embedding: Matrix,           // (vocabulary, width)
    layers: Vec<Layer>,
    norm: Vec<f32>, // (width)
    output: Matrix, // (vocabulary, width): the embedding where they are tied
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>, // (width)
    attention: AttentionWeights,
    after_attention_norm: Option<Vec<f32>>,    // (width)
    feed_forward_norm: Vec<f32>,               // (width)
    gate: Matrix,                              // (hidden, width)
    up: Matrix,                                // (hidden, width)
    down: Matrix,                              // (width, hidden)
    after_feed_forward_norm: Option<Vec<f32>>, // (width)
}

impl Decoder {
    /// Its extents.
    pub(crate) fn config(&self) -> &Config {
        &self.plan.config
    }

    /// Runs every layer over the rows of one pass, up to their logits. It allocates nothing.
    pub(crate) fn forward(&self, step: &mut dyn Pass) {
        let (Blueprint { config, rope, window_rope, gate, .. }, windows) = (&self.plan, &self.windows);
        let eps = config.norm_eps;
        step.embed(&self.embedding, self.plan.embedding_scale);
        for (index, layer) in self.layers.iter().enumerate() {
            let rope = window_rope.as_ref().filter(|_| windows[index].is_some()).unwrap_or(rope);
            step.norm(&layer.attention_norm, eps);
            step.attention(&layer.attention, config.attention(index, windows[index]), rope, eps);
            if let Some(norm) = &layer.after_attention_norm {
                step.norm_branch(norm, eps);
            }
            step.add();
            step.norm(&layer.feed_forward_norm, eps);
            step.feed_forward(&layer.gate, &layer.up, &layer.down, *gate);
            if let Some(norm) = &layer.after_feed_forward_norm {
                step.norm_branch(norm, eps);
            }
            step.add();
        }
        step.logits(&self.norm, eps, &self.output, self.plan.logits_cap);
    }
}

impl Blueprint {
    /// As Llama's, with this RoPE.
    pub(super) fn plain(config: Config, rope: Rope) -> Blueprint {
        let parts = Parts::default();
        Blueprint { config, rope, window_rope: None, parts, gate: Gate::Silu, embedding_scale: 1.0, logits_cap: None }
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub(super) fn build(self, file: &dyn Source, windows: Vec<Option<usize>>) -> Result<Decoder, Error> {
        let c = &self.config;
        let embedding = matrix(file, "token_embd.weight", c.vocabulary, c.width)?;
        let output = match file.has_tensor("output.weight") {
            true => matrix(file, "output.weight", c.vocabulary, c.width)?,
            false => embedding.clone(),
        };
        let layers = (0..c.layers).map(|index| LayerFile { file, c, index, parts: self.parts }.read()).collect::<Result<_, _>>()?;
        let norm = norm(file, "output_norm.weight", c.width)?;
        Ok(Decoder { plan: self, windows, embedding, layers, norm, output })
    }
}

/// One layer's tensors in a container.
struct LayerFile<'a> {
    file: &'a dyn Source,
    c: &'a Config,
    index: usize,
    parts: Parts,
}

impl LayerFile<'_> {
    fn read(&self) -> Result<Layer, Error> {
        let Config { width, hidden, .. } = *self.c;
        // GGUF's names: with norms after the blocks, too, those before them keep theirs.
        let after = |part| self.parts.norms_after.then(|| self.norm(part, width)).transpose();
        let attention_norm = self.norm("attn_norm", width)?;
        let attention = self.attention()?;
        let [gate, up] = self.gated()?;
        Ok(Layer {
            attention_norm,
            attention,
            after_attention_norm: after("post_attention_norm")?,
            feed_forward_norm: self.norm("ffn_norm", width)?,
            gate,
            up,
            down: self.matrix("ffn_down", width, hidden)?,
            after_feed_forward_norm: after("post_ffw_norm")?,
        })
    }

    fn attention(&self) -> Result<AttentionWeights, Error> {
        let &Config { width, heads, kv_heads, head_dim, .. } = self.c;
        let (q_len, kv_len) = (heads * head_dim, kv_heads * head_dim);
        let [q, k, v] = match self.parts.fused {
            false => [self.matrix("attn_q", q_len, width)?, self.matrix("attn_k", kv_len, width)?, self.matrix("attn_v", kv_len, width)?],
            true => {
                let all = self.matrix("attn_qkv", q_len + 2 * kv_len, width)?;
                [0..q_len, q_len..q_len + kv_len, q_len + kv_len..q_len + 2 * kv_len].map(|rows| all.select_rows(rows))
            }
        };
        let head_norms = || Ok::<_, Error>([self.norm("attn_q_norm", head_dim)?, self.norm("attn_k_norm", head_dim)?]);
        Ok(AttentionWeights {
            q,
            k,
            v,
            o: self.matrix("attn_output", width, q_len)?,
            biases: self.biases([("attn_q", q_len), ("attn_k", kv_len), ("attn_v", kv_len)])?,
            head_norms: self.parts.head_norms.then(head_norms).transpose()?,
        })
    }

    fn gated(&self) -> Result<[Matrix; 2], Error> {
        let &Config { width, hidden, .. } = self.c;
        if !self.parts.fused {
            return Ok([self.matrix("ffn_gate", hidden, width)?, self.matrix("ffn_up", hidden, width)?]);
        }
        let both = self.matrix("ffn_up", 2 * hidden, width)?;
        Ok([both.select_rows(0..hidden), both.select_rows(hidden..2 * hidden)])
    }

    /// The biases of Q, K and V, whose lengths are given.
    fn biases(&self, of: [(&str, usize); 3]) -> Result<Option<[Vec<f32>; 3]>, Error> {
        let [q, k, v] = of.map(|(part, len)| (format!("blk.{}.{part}.bias", self.index), len));
        if self.parts.biases {
            let read = |(name, len): &(String, usize)| vector(self.file, name, *len);
            return Ok(Some([read(&q)?, read(&k)?, read(&v)?]));
        }
        match [q, k, v].into_iter().find(|(name, _)| self.file.has_tensor(name)) {
            Some((name, _)) => Err(unsupported("bias of attention in this family", self.file.tensor_name(&name))),
            None => Ok(None),
        }
    }

    fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}.weight", self.index)
    }

    fn matrix(&self, part: &str, rows: usize, row_len: usize) -> Result<Matrix, Error> {
        matrix(self.file, &self.name(part), rows, row_len)
    }

    fn norm(&self, part: &str, len: usize) -> Result<Vec<f32>, Error> {
        norm(self.file, &self.name(part), len)
    }
}

/// A norm's weights as they are multiplied: what a family adds to the stored ones is added here.
fn norm(file: &dyn Source, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let mut weights = vector(file, name, len)?;
    weights.iter_mut().for_each(|weight| *weight += file.norm_offset());
    Ok(weights)
}
