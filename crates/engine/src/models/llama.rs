//! Llama and what is built like it (SmolLM2, TinyLlama): RMS norms, grouped-query attention with RoPE, a SiLU-gated feed-forward.
//!
//! Source: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), and Hugging Face's `LlamaForCausalLM`,
//! whose half-split order of K we store; GGUF files permute the rows of Q and K into interleaved pairs.

use super::{Decoder, Loaded, matrix, refuse_rope_scaling, unsupported, vector};
use crate::Error;
use crate::config::Config;
use crate::pass::{AttentionWeights, Gate, Pass};
use crate::rope::Rope;
use crate::source::Source;
use driftwood_compute::Matrix;

#[derive(Debug)]
struct Llama {
    config: Config,
    rope: Rope,
    embedding: Matrix, // (vocabulary, width)
    layers: Vec<Layer>,
    norm: Vec<f32>, // (width)
    output: Matrix, // (vocabulary, width): the embedding where the file has no other
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>, // (width)
    q: Matrix,                // (head * head_dim, width)
    k: Matrix,                // (kv_head * head_dim, width)
    v: Matrix,                // (kv_head * head_dim, width)
    o: Matrix,                // (width, head * head_dim)
    feed_forward_norm: Vec<f32>,
    gate: Matrix, // (hidden, width)
    up: Matrix,   // (hidden, width)
    down: Matrix, // (width, hidden)
}

impl Decoder for Llama {
    fn forward(&self, step: &mut dyn Pass) {
        let eps = self.config.norm_eps;
        step.embed(&self.embedding, 1.0);
        for (index, layer) in self.layers.iter().enumerate() {
            step.norm(&layer.attention_norm, eps);
            let attention = AttentionWeights { q: &layer.q, k: &layer.k, v: &layer.v, o: &layer.o, q_norm: None, k_norm: None };
            step.attention(&attention, self.config.attention(index, None), &self.rope, eps);
            step.add();
            step.norm(&layer.feed_forward_norm, eps);
            step.feed_forward(&layer.gate, &layer.up, &layer.down, Gate::Silu);
            step.add();
        }
        step.logits(&self.norm, eps, &self.output);
    }
}

pub(super) fn load(file: &dyn Source) -> Result<Loaded, Error> {
    refuse_rope_scaling(file, "llama")?;
    let config = Config::read(file, "llama")?;
    let rope_dims = file.optional_u32("llama.rope.dimension_count")?.map_or(config.head_dim, |d| d as usize);
    if rope_dims != config.head_dim {
        return Err(unsupported("rope over part of a head", rope_dims.to_string()));
    }
    let base = file.optional_f32("llama.rope.freq_base")?.unwrap_or(10_000.0);
    let mut rope = Rope::new(config.head_dim, base, 1.0, file.llama_pairs());
    if let Some(factors) = file.rope_factors(base, config.head_dim)? {
        rope = rope.divided_by(&factors);
    }
    let embedding = matrix(file, "token_embd.weight", config.vocabulary, config.width)?;
    let output = match file.has_tensor("output.weight") {
        true => matrix(file, "output.weight", config.vocabulary, config.width)?,
        false => embedding.clone(),
    };
    let layers = (0..config.layers).map(|i| load_layer(file, &config, i)).collect::<Result<_, _>>()?;
    let norm = vector(file, "output_norm.weight", config.width)?;
    let model = Llama { config: config.clone(), rope, embedding, layers, norm, output };
    Ok((config, Box::new(model)))
}

fn load_layer(file: &dyn Source, c: &Config, index: usize) -> Result<Layer, Error> {
    let name = |part: &str| format!("blk.{index}.{part}.weight");
    let (q_len, kv_len) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    if file.has_tensor(&format!("blk.{index}.attn_q.bias")) {
        return Err(unsupported("attention bias in a llama file", format!("blk.{index}.attn_q.bias")));
    }
    Ok(Layer {
        attention_norm: vector(file, &name("attn_norm"), c.width)?,
        q: matrix(file, &name("attn_q"), q_len, c.width)?,
        k: matrix(file, &name("attn_k"), kv_len, c.width)?,
        v: matrix(file, &name("attn_v"), kv_len, c.width)?,
        o: matrix(file, &name("attn_output"), c.width, q_len)?,
        feed_forward_norm: vector(file, &name("ffn_norm"), c.width)?,
        gate: matrix(file, &name("ffn_gate"), c.hidden, c.width)?,
        up: matrix(file, &name("ffn_up"), c.hidden, c.width)?,
        down: matrix(file, &name("ffn_down"), c.width, c.hidden)?,
    })
}
