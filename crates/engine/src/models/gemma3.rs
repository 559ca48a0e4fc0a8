//! Gemma 3, text only: norms before and after each block, norms on Q and K, five sliding-window layers to one global.
//!
//! Source: "Gemma 3 Technical Report" (2025) and Hugging Face's `Gemma3ForCausalLM`. GGUF files store norm weights with the 1 already
//! added. Sliding layers use RoPE's base 10,000, global ones the file's.

use super::{Decoder, Loaded, matrix, unsupported, vector};
use crate::Error;
use crate::config::Config;
use crate::pass::{AttentionWeights, Gate, Pass};
use crate::rope::{Rope, RopePairs};
use crate::source::Source;
use driftwood_compute::Matrix;

/// Every sixth layer attends to everything.
const LAYERS_PER_GLOBAL: usize = 6;
/// RoPE's base in sliding-window layers; no file carries it.
const LOCAL_ROPE_BASE: f32 = 10_000.0;

#[derive(Debug)]
struct Gemma3 {
    config: Config,
    window: usize,
    local_rope: Rope,
    global_rope: Rope,
    embedding: Matrix, // (vocabulary, width)
    layers: Vec<Layer>,
    norm: Vec<f32>, // (width)
    output: Matrix, // (vocabulary, width)
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>, // (width)
    q: Matrix,                // (head * head_dim, width)
    k: Matrix,                // (kv_head * head_dim, width)
    v: Matrix,                // (kv_head * head_dim, width)
    o: Matrix,                // (width, head * head_dim)
    q_norm: Vec<f32>,         // (head_dim)
    k_norm: Vec<f32>,         // (head_dim)
    after_attention_norm: Vec<f32>,
    feed_forward_norm: Vec<f32>,
    gate: Matrix, // (hidden, width)
    up: Matrix,   // (hidden, width)
    down: Matrix, // (width, hidden)
    after_feed_forward_norm: Vec<f32>,
}

impl Decoder for Gemma3 {
    fn forward(&self, step: &mut dyn Pass) {
        let eps = self.config.norm_eps;
        step.embed(&self.embedding, (self.config.width as f32).sqrt());
        for (index, layer) in self.layers.iter().enumerate() {
            let global = (index + 1) % LAYERS_PER_GLOBAL == 0;
            let (rope, window) = if global { (&self.global_rope, None) } else { (&self.local_rope, Some(self.window)) };
            step.norm(&layer.attention_norm, eps);
            step.attention(&layer.attention(), self.config.attention(index, window), rope, eps);
            step.norm_branch(&layer.after_attention_norm, eps);
            step.add();
            step.norm(&layer.feed_forward_norm, eps);
            step.feed_forward(&layer.gate, &layer.up, &layer.down, Gate::GeluTanh);
            step.norm_branch(&layer.after_feed_forward_norm, eps);
            step.add();
        }
        step.logits(&self.norm, eps, &self.output);
    }
}

impl Layer {
    fn attention(&self) -> AttentionWeights<'_> {
        let (q_norm, k_norm) = (Some(&self.q_norm[..]), Some(&self.k_norm[..]));
        AttentionWeights { q: &self.q, k: &self.k, v: &self.v, o: &self.o, q_norm, k_norm }
    }
}

pub(super) fn load(file: &dyn Source) -> Result<Loaded, Error> {
    let config = Config::read(file, "gemma3")?;
    let window = file.u32("gemma3.attention.sliding_window")? as usize;
    if window == 0 {
        return Err(unsupported("sliding window", "0 tokens".to_owned()));
    }
    if file.optional_f32("gemma3.final_logit_softcapping")?.is_some_and(|cap| cap != 0.0) {
        return Err(unsupported("soft-capped logits", "gemma3.final_logit_softcapping".to_owned()));
    }
    let base = file.optional_f32("gemma3.rope.freq_base")?.unwrap_or(1_000_000.0);
    let scaling = linear_rope_scaling(file)?;
    let local_rope = Rope::new(config.head_dim, LOCAL_ROPE_BASE, 1.0, RopePairs::Halves);
    let global_rope = Rope::new(config.head_dim, base, scaling, RopePairs::Halves);
    let embedding = matrix(file, "token_embd.weight", config.vocabulary, config.width)?;
    let output = match file.has_tensor("output.weight") {
        true => matrix(file, "output.weight", config.vocabulary, config.width)?,
        false => embedding.clone(),
    };
    let layers = (0..config.layers).map(|i| load_layer(file, &config, i)).collect::<Result<_, _>>()?;
    let norm = vector(file, "output_norm.weight", config.width)?;
    let model = Gemma3 { config: config.clone(), window, local_rope, global_rope, embedding, layers, norm, output };
    Ok((config, Box::new(model)))
}

/// The factor that positions of global layers are divided by (the larger Gemmas have 8).
fn linear_rope_scaling(file: &dyn Source) -> Result<f32, Error> {
    match file.optional_string("gemma3.rope.scaling.type")? {
        None | Some("none") => Ok(1.0),
        Some("linear") => file.f32("gemma3.rope.scaling.factor"),
        Some(other) => Err(unsupported("rope scaling", other.to_owned())),
    }
}

fn load_layer(file: &dyn Source, c: &Config, index: usize) -> Result<Layer, Error> {
    let name = |part: &str| format!("blk.{index}.{part}.weight");
    let (q_len, kv_len) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    Ok(Layer {
        attention_norm: vector(file, &name("attn_norm"), c.width)?,
        q: matrix(file, &name("attn_q"), q_len, c.width)?,
        k: matrix(file, &name("attn_k"), kv_len, c.width)?,
        v: matrix(file, &name("attn_v"), kv_len, c.width)?,
        o: matrix(file, &name("attn_output"), c.width, q_len)?,
        q_norm: vector(file, &name("attn_q_norm"), c.head_dim)?,
        k_norm: vector(file, &name("attn_k_norm"), c.head_dim)?,
        after_attention_norm: vector(file, &name("post_attention_norm"), c.width)?,
        feed_forward_norm: vector(file, &name("ffn_norm"), c.width)?,
        gate: matrix(file, &name("ffn_gate"), c.hidden, c.width)?,
        up: matrix(file, &name("ffn_up"), c.hidden, c.width)?,
        down: matrix(file, &name("ffn_down"), c.width, c.hidden)?,
        after_feed_forward_norm: vector(file, &name("post_ffw_norm"), c.width)?,
    })
}
