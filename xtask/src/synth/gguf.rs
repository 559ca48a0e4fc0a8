//! A GGUF file of version 3, as <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md> has it.

use super::Format;
use super::shape::{CONTEXT_TOKENS, Kind, NORM_EPS, ROPE_BASE, Shape};
use super::tokenizer;
use super::weights::Weights;
use super::write::{self, Content, Part, Rows};
use anyhow::Result;
use std::path::Path;

const ALIGNMENT_BYTES: usize = 32;

/// Writes the model as one file; its bytes.
pub fn write(shape: &Shape, weights: &Weights, path: &Path) -> Result<usize> {
    let parts = parts(shape, weights);
    let (offsets, data_bytes) = write::offsets(&parts, ALIGNMENT_BYTES);
    let keys = keys(shape);
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((parts.len() as u64).to_le_bytes());
    head.extend((keys.count as u64).to_le_bytes());
    head.extend(keys.bytes);
    for (part, offset) in parts.iter().zip(&offsets) {
        head.extend(string(&part.name));
        head.extend((part.extents.len() as u32).to_le_bytes());
        part.extents.iter().rev().for_each(|extent| head.extend((*extent as u64).to_le_bytes()));
        head.extend(type_number(part.dtype).to_le_bytes());
        head.extend((*offset as u64).to_le_bytes());
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT_BYTES), 0);
    write::write(path, &head, &parts, &offsets, data_bytes)?;
    Ok(head.len() + data_bytes)
}

fn parts<'a>(shape: &Shape, weights: &'a Weights) -> Vec<Part<'a>> {
    let dtype = match weights.format {
        Format::Bf16 => "BF16",
        Format::Q8_0 => "Q8_0",
        Format::Q4_0 => "Q4_0",
        Format::Mlx4 => unreachable!("a folder's format"),
    };
    let floats = |values: Vec<f32>| Content::Bytes(values.iter().flat_map(|x| x.to_le_bytes()).collect());
    let factors = shape.rope_factors();
    let mut parts =
        vec![Part { name: "rope_freqs.weight".to_owned(), dtype: "F32", extents: vec![factors.len()], content: floats(factors) }];
    parts.extend(shape.tensors().into_iter().map(|tensor| match tensor.kind {
        Kind::Norm { len } => {
            let content = floats(weights.norm(&tensor.folder, len).into_iter().map(f32::from).collect());
            Part { name: tensor.gguf, dtype: "F32", extents: vec![len], content }
        }
        Kind::Matrix { rows, row_len, rotated } => {
            let (plane, seed) = (&weights.elements, weights.tensor_seed(&tensor.folder));
            let content = Content::Rows(Rows { plane, seed, rows, row_len, interleaved: rotated.then_some(shape.head_dim) });
            Part { name: tensor.gguf, dtype, extents: vec![rows, row_len], content }
        }
    }));
    parts
}

/// GGML's number of an element type.
fn type_number(dtype: &str) -> u32 {
    match dtype {
        "F32" => 0,
        "Q4_0" => 2,
        "Q8_0" => 8,
        "BF16" => 30,
        other => unreachable!("{other} is not written"),
    }
}

/// Keys with their values, and how many they are.
#[derive(Default)]
struct Keys {
    bytes: Vec<u8>,
    count: usize,
}

impl Keys {
    fn add(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.bytes.extend(string(key));
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.count += 1;
    }

    fn string(&mut self, key: &str, value: &str) {
        self.add(key, 8, &string(value));
    }

    fn u32(&mut self, key: &str, value: usize) {
        self.add(key, 4, &(value as u32).to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f64) {
        self.add(key, 6, &(value as f32).to_le_bytes());
    }

    fn array(&mut self, key: &str, element: u32, items: &[Vec<u8>]) {
        let head = [&element.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
        self.add(key, 9, &[head, items.concat()].concat());
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn keys(shape: &Shape) -> Keys {
    let mut keys = Keys::default();
    keys.string("general.architecture", "llama");
    keys.string("general.name", &format!("synthetic {}", shape.name));
    keys.u32("llama.block_count", shape.layers);
    keys.u32("llama.context_length", CONTEXT_TOKENS);
    keys.u32("llama.embedding_length", shape.width);
    keys.u32("llama.feed_forward_length", shape.hidden);
    keys.u32("llama.attention.head_count", shape.heads);
    keys.u32("llama.attention.head_count_kv", shape.kv_heads);
    keys.u32("llama.attention.key_length", shape.head_dim);
    keys.u32("llama.attention.value_length", shape.head_dim);
    keys.f32("llama.attention.layer_norm_rms_epsilon", NORM_EPS);
    keys.u32("llama.rope.dimension_count", shape.head_dim);
    keys.f32("llama.rope.freq_base", ROPE_BASE);
    keys.u32("llama.vocab_size", shape.vocabulary);
    let pieces = tokenizer::pieces(shape);
    keys.string("tokenizer.ggml.model", "gpt2");
    keys.string("tokenizer.ggml.pre", "llama-bpe");
    keys.array("tokenizer.ggml.tokens", 8, &pieces.iter().map(|(text, _)| string(text)).collect::<Vec<_>>());
    keys.array("tokenizer.ggml.token_type", 5, &pieces.iter().map(|(_, kind)| (*kind as i32).to_le_bytes().to_vec()).collect::<Vec<_>>());
    keys.array("tokenizer.ggml.merges", 8, &tokenizer::merges().iter().map(|text| string(text)).collect::<Vec<_>>());
    keys.u32("tokenizer.ggml.bos_token_id", tokenizer::special(shape, "<|begin_of_text|>"));
    keys.u32("tokenizer.ggml.eos_token_id", tokenizer::special(shape, "<|eot_id|>"));
    keys
}
