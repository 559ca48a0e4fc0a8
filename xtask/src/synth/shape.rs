//! Shapes of real models, and the tensors that they consist of.

use anyhow::{Context, Result};

/// What a model computes, beside its extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
}

/// How RoPE's wavelengths are stretched.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Stretch {
    None,
    /// The long ones, by so much.
    Llama3(f64),
    /// All, by so much.
    Linear(f64),
    /// Each by a number of its own, and three quarters of a head are turned.
    Long,
}

/// The extents of a model.
#[derive(Clone, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub family: Family,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub vocabulary: usize,
    /// Whether the output is the embedding.
    pub tied: bool,
    /// Positions that layers with a window see; 0 if there are none.
    pub window: usize,
    pub rope_base: f64,
    pub stretch: Stretch,
}

use Family::{Gemma2, Gemma3, Llama, Mistral, Phi3, Qwen2, Qwen3};
use Stretch::{Linear, Llama3, Long, None as Plain};

#[rustfmt::skip]
const ALL: [Shape; 19] = [
    Shape { name: "tiny",           family: Llama,   layers: 2,  width: 128,  heads: 4,  kv_heads: 2,  head_dim: 32,  hidden: 256,    vocabulary: 512,     tied: true,  window: 0,    rope_base: 5e5,   stretch: Llama3(32.0) },
    Shape { name: "llama-3.2-1b",   family: Llama,   layers: 16, width: 2048, heads: 32, kv_heads: 8,  head_dim: 64,  hidden: 8192,   vocabulary: 128_256, tied: true,  window: 0,    rope_base: 5e5,   stretch: Llama3(32.0) },
    Shape { name: "llama-3.2-3b",   family: Llama,   layers: 28, width: 3072, heads: 24, kv_heads: 8,  head_dim: 128, hidden: 8192,   vocabulary: 128_256, tied: true,  window: 0,    rope_base: 5e5,   stretch: Llama3(32.0) },
    Shape { name: "llama-3.1-8b",   family: Llama,   layers: 32, width: 4096, heads: 32, kv_heads: 8,  head_dim: 128, hidden: 14_336, vocabulary: 128_256, tied: false, window: 0,    rope_base: 5e5,   stretch: Llama3(8.0) },
    Shape { name: "smollm2-1.7b",   family: Llama,   layers: 24, width: 2048, heads: 32, kv_heads: 32, head_dim: 64,  hidden: 8192,   vocabulary: 49_152,  tied: true,  window: 0,    rope_base: 1.3e5, stretch: Plain },
    Shape { name: "tinyllama-1.1b", family: Llama,   layers: 22, width: 2048, heads: 32, kv_heads: 4,  head_dim: 64,  hidden: 5632,   vocabulary: 32_000,  tied: false, window: 0,    rope_base: 1e4,   stretch: Plain },
    Shape { name: "llama-2-7b",     family: Llama,   layers: 32, width: 4096, heads: 32, kv_heads: 32, head_dim: 128, hidden: 11_008, vocabulary: 32_000,  tied: false, window: 0,    rope_base: 1e4,   stretch: Plain },
    Shape { name: "mistral-7b-v0.1", family: Mistral, layers: 32, width: 4096, heads: 32, kv_heads: 8, head_dim: 128, hidden: 14_336, vocabulary: 32_000,  tied: false, window: 4096, rope_base: 1e4,   stretch: Plain },
    Shape { name: "mistral-7b-v0.3", family: Mistral, layers: 32, width: 4096, heads: 32, kv_heads: 8, head_dim: 128, hidden: 14_336, vocabulary: 32_768,  tied: false, window: 0,    rope_base: 1e6,   stretch: Plain },
    Shape { name: "qwen2.5-0.5b",   family: Qwen2,   layers: 24, width: 896,  heads: 14, kv_heads: 2,  head_dim: 64,  hidden: 4864,   vocabulary: 151_936, tied: true,  window: 0,    rope_base: 1e6,   stretch: Plain },
    Shape { name: "qwen2.5-1.5b",   family: Qwen2,   layers: 28, width: 1536, heads: 12, kv_heads: 2,  head_dim: 128, hidden: 8960,   vocabulary: 151_936, tied: true,  window: 0,    rope_base: 1e6,   stretch: Plain },
    Shape { name: "qwen2.5-7b",     family: Qwen2,   layers: 28, width: 3584, heads: 28, kv_heads: 4,  head_dim: 128, hidden: 18_944, vocabulary: 152_064, tied: false, window: 0,    rope_base: 1e6,   stretch: Plain },
    Shape { name: "qwen3-0.6b",     family: Qwen3,   layers: 28, width: 1024, heads: 16, kv_heads: 8,  head_dim: 128, hidden: 3072,   vocabulary: 151_936, tied: true,  window: 0,    rope_base: 1e6,   stretch: Plain },
    Shape { name: "qwen3-4b",       family: Qwen3,   layers: 36, width: 2560, heads: 32, kv_heads: 8,  head_dim: 128, hidden: 9728,   vocabulary: 151_936, tied: true,  window: 0,    rope_base: 1e6,   stretch: Plain },
    Shape { name: "gemma2-2b",      family: Gemma2,  layers: 26, width: 2304, heads: 8,  kv_heads: 4,  head_dim: 256, hidden: 9216,   vocabulary: 256_000, tied: true,  window: 4096, rope_base: 1e4,   stretch: Plain },
    Shape { name: "gemma3-1b",      family: Gemma3,  layers: 26, width: 1152, heads: 4,  kv_heads: 1,  head_dim: 256, hidden: 6912,   vocabulary: 262_144, tied: true,  window: 512,  rope_base: 1e6,   stretch: Plain },
    Shape { name: "gemma3-4b",      family: Gemma3,  layers: 34, width: 2560, heads: 8,  kv_heads: 4,  head_dim: 256, hidden: 10_240, vocabulary: 262_144, tied: true,  window: 1024, rope_base: 1e6,   stretch: Linear(8.0) },
    Shape { name: "phi-3-mini",     family: Phi3,    layers: 32, width: 3072, heads: 32, kv_heads: 32, head_dim: 96,  hidden: 8192,   vocabulary: 32_064,  tied: false, window: 2047, rope_base: 1e4,   stretch: Plain },
    Shape { name: "phi-4-mini",     family: Phi3,    layers: 32, width: 3072, heads: 24, kv_heads: 8,  head_dim: 128, hidden: 8192,   vocabulary: 200_064, tied: true,  window: 0,    rope_base: 1e4,   stretch: Long },
];

/// The names of all shapes.
pub const SHAPES: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut i = 0;
    while i < ALL.len() {
        names[i] = ALL[i].name;
        i += 1;
    }
    names
};

/// What all shapes share.
pub const CONTEXT_TOKENS: usize = 131_072;
pub const NORM_EPS: f64 = 1e-5;
pub const LOW_FREQ_FACTOR: f64 = 1.0;
pub const HIGH_FREQ_FACTOR: f64 = 4.0;

/// A tensor by its name in both containers.
#[derive(Debug)]
pub struct Tensor {
    pub gguf: String,   // without what follows the last dot
    pub folder: String, // likewise
    pub kind: Kind,
}

/// What a tensor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The weight of a norm, (len).
    Norm { len: usize },
    /// What is added to a product, (len).
    Bias { len: usize },
    /// A weight, (rows, row_len). GGUF permutes the rows of `rotated` ones, Llama's Q and K.
    Matrix { rows: usize, row_len: usize, rotated: bool },
}

impl Kind {
    fn matrix(rows: usize, row_len: usize) -> Kind {
        Kind::Matrix { rows, row_len, rotated: false }
    }

    /// What follows the last dot of a tensor's name.
    pub fn suffix(self) -> &'static str {
        if matches!(self, Kind::Bias { .. }) { "bias" } else { "weight" }
    }

    /// The number of elements.
    #[cfg(test)]
    pub fn elements(self) -> usize {
        match self {
            Kind::Norm { len } | Kind::Bias { len } => len,
            Kind::Matrix { rows, row_len, .. } => rows * row_len,
        }
    }
}

/// A part of a layer: its names in a GGUF file and in a folder, and what it is.
type Part = (&'static str, &'static str, Kind);

impl Shape {
    /// The shape of this name.
    pub fn named(name: &str) -> Result<&'static Shape> {
        const { &ALL }
            .iter()
            .find(|shape| shape.name == name)
            .with_context(|| format!("no shape `{name}`; there are {}", SHAPES.join(", ")))
    }

    /// Whether norms surround each block, and multiply by their weight and one.
    pub fn is_gemma(&self) -> bool {
        matches!(self.family, Gemma2 | Gemma3)
    }

    /// Elements of a head that RoPE turns.
    pub fn rotated(&self) -> usize {
        if self.stretch == Long { self.head_dim / 4 * 3 } else { self.head_dim }
    }

    /// Tokens of the context before it was stretched.
    pub fn original_context_tokens(&self) -> usize {
        if self.stretch == Long { 4096 } else { 8192 }
    }

    /// Every tensor.
    pub fn tensors(&self) -> Vec<Tensor> {
        let tensor = |gguf: String, folder: String, kind| Tensor { gguf, folder, kind };
        let ends = Kind::matrix(self.vocabulary, self.width);
        let mut tensors = vec![tensor("token_embd".into(), "model.embed_tokens".into(), ends)];
        let parts: Vec<Part> = [self.attention_parts(), self.feed_forward_parts()].concat();
        for layer in 0..self.layers {
            let named =
                |(gguf, folder, kind): &Part| tensor(format!("blk.{layer}.{gguf}"), format!("model.layers.{layer}.{folder}"), *kind);
            tensors.extend(parts.iter().map(named));
        }
        tensors.push(tensor("output_norm".into(), "model.norm".into(), Kind::Norm { len: self.width }));
        if !self.tied {
            tensors.push(tensor("output".into(), "lm_head".into(), ends));
        }
        tensors
    }

    fn attention_parts(&self) -> Vec<Part> {
        let (q_len, kv_len) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let rotated = matches!(self.family, Llama | Mistral);
        let turned = |rows| Kind::Matrix { rows, row_len: self.width, rotated };
        let mut parts = vec![("attn_norm", "input_layernorm", Kind::Norm { len: self.width })];
        match self.family {
            Phi3 => parts.push(("attn_qkv", "self_attn.qkv_proj", turned(q_len + 2 * kv_len))),
            _ => parts.extend([
                ("attn_q", "self_attn.q_proj", turned(q_len)),
                ("attn_k", "self_attn.k_proj", turned(kv_len)),
                ("attn_v", "self_attn.v_proj", Kind::matrix(kv_len, self.width)),
            ]),
        }
        if self.family == Qwen2 {
            parts.extend([
                ("attn_q", "self_attn.q_proj", Kind::Bias { len: q_len }),
                ("attn_k", "self_attn.k_proj", Kind::Bias { len: kv_len }),
                ("attn_v", "self_attn.v_proj", Kind::Bias { len: kv_len }),
            ]);
        }
        if matches!(self.family, Qwen3 | Gemma3) {
            let norm = Kind::Norm { len: self.head_dim };
            parts.extend([("attn_q_norm", "self_attn.q_norm", norm), ("attn_k_norm", "self_attn.k_norm", norm)]);
        }
        parts.push(("attn_output", "self_attn.o_proj", Kind::matrix(self.width, q_len)));
        parts
    }

    fn feed_forward_parts(&self) -> Vec<Part> {
        let norm = Kind::Norm { len: self.width };
        let mut parts = match self.is_gemma() {
            true => vec![
                ("post_attention_norm", "post_attention_layernorm", norm),
                ("ffn_norm", "pre_feedforward_layernorm", norm),
                ("post_ffw_norm", "post_feedforward_layernorm", norm),
            ],
            false => vec![("ffn_norm", "post_attention_layernorm", norm)],
        };
        match self.family {
            Phi3 => parts.push(("ffn_up", "mlp.gate_up_proj", Kind::matrix(2 * self.hidden, self.width))),
            _ => parts.extend([
                ("ffn_gate", "mlp.gate_proj", Kind::matrix(self.hidden, self.width)),
                ("ffn_up", "mlp.up_proj", Kind::matrix(self.hidden, self.width)),
            ]),
        }
        parts.push(("ffn_down", "mlp.down_proj", Kind::matrix(self.width, self.hidden)));
        parts
    }

    /// What divides RoPE's frequencies, (head_dim / 2): Llama 3's stretching, as GGUF's `rope_freqs.weight` holds it.
    pub fn llama3_factors(&self, factor: f64) -> Vec<f32> {
        let of = |i: usize| {
            let wavelength = std::f64::consts::TAU * libm::pow(self.rope_base, 2.0 * i as f64 / self.head_dim as f64);
            let smooth = (self.original_context_tokens() as f64 / wavelength - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
            let smooth = smooth.clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        };
        (0..self.head_dim / 2).map(of).collect()
    }

    /// What longrope divides frequencies by, (rotated / 2).
    pub fn long_factors(&self) -> Vec<f32> {
        let pairs = self.rotated() / 2;
        (0..pairs).map(|i| 1.0 + i as f32 / pairs as f32).collect()
    }
}
