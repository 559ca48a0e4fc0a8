//! Shapes of real models, and the tensors that they consist of.

use anyhow::{Context, Result};

/// The extents of a Llama.
#[derive(Debug)]
pub struct Shape {
    pub name: &'static str,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub vocabulary: usize,
    /// Whether the output is the embedding.
    pub tied: bool,
    /// How far RoPE's long wavelengths are stretched.
    pub rope_factor: f64,
}

#[rustfmt::skip]
const ALL: [Shape; 4] = [
    Shape { name: "tiny",         layers: 2,  width: 128,  heads: 4,  kv_heads: 2, head_dim: 32,  hidden: 256,    vocabulary: 512,     tied: true,  rope_factor: 32.0 },
    Shape { name: "llama-3.2-1b", layers: 16, width: 2048, heads: 32, kv_heads: 8, head_dim: 64,  hidden: 8192,   vocabulary: 128_256, tied: true,  rope_factor: 32.0 },
    Shape { name: "llama-3.2-3b", layers: 28, width: 3072, heads: 24, kv_heads: 8, head_dim: 128, hidden: 8192,   vocabulary: 128_256, tied: true,  rope_factor: 32.0 },
    Shape { name: "llama-3.1-8b", layers: 32, width: 4096, heads: 32, kv_heads: 8, head_dim: 128, hidden: 14_336, vocabulary: 128_256, tied: false, rope_factor: 8.0 },
];

/// The names of all shapes.
pub const SHAPES: [&str; 4] = [ALL[0].name, ALL[1].name, ALL[2].name, ALL[3].name];

/// What all shapes share.
pub const CONTEXT_TOKENS: usize = 131_072;
pub const ORIGINAL_CONTEXT_TOKENS: usize = 8192;
pub const NORM_EPS: f64 = 1e-5;
pub const ROPE_BASE: f64 = 500_000.0;
pub const LOW_FREQ_FACTOR: f64 = 1.0;
pub const HIGH_FREQ_FACTOR: f64 = 4.0;

/// A tensor by its name in both containers.
#[derive(Debug)]
pub struct Tensor {
    pub gguf: String,
    pub folder: String, // without `.weight`
    pub kind: Kind,
}

/// What a tensor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The weight of a norm, (len).
    Norm { len: usize },
    /// A weight, (rows, row_len). GGUF permutes the rows of `rotated` ones, Q and K.
    Matrix { rows: usize, row_len: usize, rotated: bool },
}

impl Shape {
    /// The shape of this name.
    pub fn named(name: &str) -> Result<&'static Shape> {
        const { &ALL }
            .iter()
            .find(|shape| shape.name == name)
            .with_context(|| format!("no shape `{name}`; there are {}", SHAPES.join(", ")))
    }

    /// Every tensor.
    pub fn tensors(&self) -> Vec<Tensor> {
        let matrix = |rows, row_len| Kind::Matrix { rows, row_len, rotated: false };
        let mut tensors = vec![Tensor::new("token_embd", "model.embed_tokens", matrix(self.vocabulary, self.width))];
        for layer in 0..self.layers {
            tensors.extend(
                self.layer_parts().map(|(gguf, folder, kind)| {
                    Tensor::new(&format!("blk.{layer}.{gguf}"), &format!("model.layers.{layer}.{folder}"), kind)
                }),
            );
        }
        tensors.push(Tensor::new("output_norm", "model.norm", Kind::Norm { len: self.width }));
        if !self.tied {
            tensors.push(Tensor::new("output", "lm_head", matrix(self.vocabulary, self.width)));
        }
        tensors
    }

    fn layer_parts(&self) -> [(&'static str, &'static str, Kind); 9] {
        let (q_len, kv_len) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let norm = Kind::Norm { len: self.width };
        let matrix = |rows, row_len| Kind::Matrix { rows, row_len, rotated: false };
        let rotated = |rows| Kind::Matrix { rows, row_len: self.width, rotated: true };
        [
            ("attn_norm", "input_layernorm", norm),
            ("attn_q", "self_attn.q_proj", rotated(q_len)),
            ("attn_k", "self_attn.k_proj", rotated(kv_len)),
            ("attn_v", "self_attn.v_proj", matrix(kv_len, self.width)),
            ("attn_output", "self_attn.o_proj", matrix(self.width, q_len)),
            ("ffn_norm", "post_attention_layernorm", norm),
            ("ffn_gate", "mlp.gate_proj", matrix(self.hidden, self.width)),
            ("ffn_up", "mlp.up_proj", matrix(self.hidden, self.width)),
            ("ffn_down", "mlp.down_proj", matrix(self.width, self.hidden)),
        ]
    }

    /// What divides RoPE's frequencies, (head_dim / 2): Llama 3's stretching, as GGUF's `rope_freqs.weight` holds it.
    pub fn rope_factors(&self) -> Vec<f32> {
        let of = |i: usize| {
            let wavelength = std::f64::consts::TAU * libm::pow(ROPE_BASE, 2.0 * i as f64 / self.head_dim as f64);
            let smooth = (ORIGINAL_CONTEXT_TOKENS as f64 / wavelength - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
            let smooth = smooth.clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / self.rope_factor + smooth)) as f32
        };
        (0..self.head_dim / 2).map(of).collect()
    }
}

impl Tensor {
    fn new(gguf: &str, folder: &str, kind: Kind) -> Tensor {
        Tensor { gguf: format!("{gguf}.weight"), folder: folder.to_owned(), kind }
    }
}
