//! A GGUF file of version 3, as <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md> has it.

use super::Format;
use super::shape::{CONTEXT_TOKENS, Family, Kind, NORM_EPS, Shape, Stretch};
use super::tokenizer::{self, Vocabulary};
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
        Format::Q4_1 => "Q4_1",
        Format::Mlx { .. } => unreachable!("a folder's format"),
    };
    let floats = |name: &str, values: Vec<f32>| {
        let content = Content::Bytes(values.iter().flat_map(|x| x.to_le_bytes()).collect());
        Part { name: name.to_owned(), dtype: "F32", extents: vec![values.len()], content }
    };
    let mut parts = match shape.stretch {
        Stretch::None | Stretch::Linear(_) => vec![],
        Stretch::Llama3(factor) => vec![floats("rope_freqs.weight", shape.llama3_factors(factor))],
        Stretch::Long => ["rope_factors_long.weight", "rope_factors_short.weight"].map(|name| floats(name, shape.long_factors())).into(),
    };
    parts.extend(shape.tensors().into_iter().map(|tensor| {
        let name = format!("{}.{}", tensor.gguf, tensor.kind.suffix());
        let vector = |len, middle| weights.vector(&tensor.folder, len, middle).into_iter().map(f32::from).collect::<Vec<f32>>();
        match tensor.kind {
            Kind::Norm { len } if shape.is_gemma() => floats(&name, vector(len, 0.0).into_iter().map(|x| x + 1.0).collect()),
            Kind::Norm { len } => floats(&name, vector(len, 1.0)),
            Kind::Bias { len } => floats(&name, vector(len, 0.0)),
            Kind::Matrix { rows, row_len, rotated } => {
                let (plane, seed) = (&weights.elements, weights.tensor_seed(&tensor.folder));
                let content = Content::Rows(Rows { plane, seed, rows, row_len, interleaved: rotated.then_some(shape.head_dim) });
                Part { name, dtype, extents: vec![rows, row_len], content }
            }
        }
    }));
    parts
}

/// GGML's number of an element type.
fn type_number(dtype: &str) -> u32 {
    match dtype {
        "F32" => 0,
        "Q4_0" => 2,
        "Q4_1" => 3,
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
    let architecture = match shape.family {
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Gemma2 => "gemma2",
        Family::Gemma3 => "gemma3",
        Family::Phi3 => "phi3",
    };
    let of = |key: &str| format!("{architecture}.{key}");
    keys.string("general.architecture", architecture);
    keys.string("general.name", &format!("synthetic {}", shape.name));
    keys.u32(&of("block_count"), shape.layers);
    keys.u32(&of("context_length"), CONTEXT_TOKENS);
    keys.u32(&of("embedding_length"), shape.width);
    keys.u32(&of("feed_forward_length"), shape.hidden);
    keys.u32(&of("attention.head_count"), shape.heads);
    keys.u32(&of("attention.head_count_kv"), shape.kv_heads);
    keys.u32(&of("attention.key_length"), shape.head_dim);
    keys.u32(&of("attention.value_length"), shape.head_dim);
    keys.f32(&of("attention.layer_norm_rms_epsilon"), NORM_EPS);
    keys.u32(&of("rope.dimension_count"), shape.rotated());
    keys.f32(&of("rope.freq_base"), shape.rope_base);
    keys.u32(&of("vocab_size"), shape.vocabulary);
    if shape.is_gemma() || shape.family == Family::Phi3 {
        keys.u32(&of("attention.sliding_window"), shape.window);
    }
    if shape.family == Family::Gemma2 {
        keys.f32(&of("attn_logit_softcapping"), 50.0);
        keys.f32(&of("final_logit_softcapping"), 30.0);
    }
    match shape.stretch {
        Stretch::None | Stretch::Llama3(_) => {}
        Stretch::Linear(factor) => {
            keys.string(&of("rope.scaling.type"), "linear");
            keys.f32(&of("rope.scaling.factor"), factor);
        }
        Stretch::Long => keys.u32(&of("rope.scaling.original_context_length"), shape.original_context_tokens()),
    }
    vocabulary_keys(shape, &mut keys);
    keys
}

fn vocabulary_keys(shape: &Shape, keys: &mut Keys) {
    let Vocabulary { pieces, merges } = Vocabulary::new(shape);
    keys.string("tokenizer.ggml.model", "gpt2");
    keys.string("tokenizer.ggml.pre", "llama-bpe");
    keys.array("tokenizer.ggml.tokens", 8, &pieces.iter().map(|(text, _)| string(text)).collect::<Vec<_>>());
    keys.array("tokenizer.ggml.token_type", 5, &pieces.iter().map(|(_, kind)| (*kind as i32).to_le_bytes().to_vec()).collect::<Vec<_>>());
    keys.array("tokenizer.ggml.merges", 8, &merges.iter().map(|(left, right)| string(&format!("{left} {right}"))).collect::<Vec<_>>());
    keys.u32("tokenizer.ggml.bos_token_id", tokenizer::special(shape, "<|begin_of_text|>"));
    keys.u32("tokenizer.ggml.eos_token_id", tokenizer::special(shape, "<|eot_id|>"));
}
