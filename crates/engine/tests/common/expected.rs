//! The tiny models of `tests/fixtures/tiny`, and what transformers answers for them (`tools/tiny/build.py`).

#![allow(dead_code, reason = "each test uses its part")]

use driftwood_engine::safetensors::Tensors;
use driftwood_region::Region;
use serde_json::Value;
use std::sync::Arc;

/// How far a logit may be from transformers'.
pub const LOGIT_TOLERANCE: f32 = 1e-3;
/// Tokens of context: those of the longest prompt and a greedy continuation fit, and so few that long-context factors are not in use.
pub const CONTEXT_TOKENS: usize = 112;

/// Models and their containers.
#[rustfmt::skip]
pub const MODELS: [(&str, &[&str]); 12] = [
    ("llama",     &["f32", "bf16", "f16", "mlx-4-64", "mlx-3-32", "mlx-8-32", "mlx-4-64-bfloat16", "mlx-4-64-float16", "f32.gguf", "q8_0.gguf", "q4_1.gguf"]),
    ("llama2",    &["bf16", "q8_0.gguf"]),
    ("llama128",  &["mlx-mixed", "mlx-6-128"]),
    ("mistral",   &["bf16", "mlx-4-64", "q8_0.gguf"]),
    ("nemo",      &["bf16", "q8_0.gguf"]),
    ("qwen2",     &["bf16", "mlx-4-64", "q8_0.gguf"]),
    ("qwen3",     &["bf16", "mlx-4-64", "q8_0.gguf"]),
    ("gemma2",    &["bf16", "mlx-4-64", "q8_0.gguf"]),
    ("gemma3",    &["bf16", "mlx-4-64", "multimodal", "q8_0.gguf"]),
    ("phi3",      &["bf16", "mlx-4-64", "q8_0.gguf"]),
    ("phi3-96",   &["mlx-4-32", "q8_0.gguf"]),
    ("phi4-mini", &["bf16", "mlx-4-64", "q8_0.gguf"]),
];

/// What transformers answers for one model.
pub struct Expected {
    pub json: Value,
    logits: Tensors,
}

impl Expected {
    /// Of the model `tests/fixtures/tiny/ID`.
    pub fn read(id: &str) -> Expected {
        let folder = super::models::fixtures().join("tiny").join(id);
        let json = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let region = Region::map_path(&folder.join("expected.safetensors")).unwrap();
        Expected { json, logits: driftwood_engine::safetensors::parse(&Arc::new(region)).unwrap() }
    }

    /// Texts with their tokens.
    pub fn prompts(&self) -> &[Value] {
        self.json["prompts"].as_array().unwrap()
    }

    /// The prompts that have logits: their number, tokens, and the positions.
    pub fn with_logits(&self) -> impl Iterator<Item = (&str, Vec<u32>, Vec<usize>)> {
        self.json["positions"].as_object().unwrap().iter().map(|(number, positions)| {
            let prompt = &self.prompts()[number.parse::<usize>().unwrap()];
            (number.as_str(), u32s(&prompt["ids"]), u32s(positions).into_iter().map(|p| p as usize).collect())
        })
    }

    /// Whether a set has logits of a prompt.
    pub fn has(&self, set: &str, prompt: &str) -> bool {
        self.logits.contains_key(format!("{set}.{prompt}").as_str())
    }

    /// The logits of a prompt in one set, (position, vocabulary).
    pub fn logits(&self, set: &str, prompt: &str) -> Vec<f32> {
        let tensor = &self.logits[format!("{set}.{prompt}").as_str()];
        tensor.view.bytes().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

/// A list of numbers.
pub fn u32s(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Every model with each of its containers.
pub fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    MODELS.iter().flat_map(|(id, containers)| containers.iter().map(move |container| (*id, *container)))
}
