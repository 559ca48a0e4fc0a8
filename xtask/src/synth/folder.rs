//! A Hugging Face folder, and MLX's variant of it: configuration, tokenizer, and safetensors
//! (<https://github.com/huggingface/safetensors>) in one file or in shards.

use super::Format;
use super::shape::{CONTEXT_TOKENS, HIGH_FREQ_FACTOR, Kind, LOW_FREQ_FACTOR, NORM_EPS, ORIGINAL_CONTEXT_TOKENS, ROPE_BASE, Shape, Tensor};
use super::tokenizer;
use super::weights::Weights;
use super::write::{self, Content, Part, Rows};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Elements that share a scale and a bias in MLX's format.
const GROUP: usize = 64;
/// Bytes of data up to which weights stay in one file, as Hugging Face has it.
pub const SHARD_BYTES_MAX: usize = 5_000_000_000;

/// Writes the model as a folder; the bytes of its weights.
pub fn write(shape: &Shape, weights: &Weights, shard_bytes_max: usize, path: &Path) -> Result<usize> {
    std::fs::create_dir(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
    let json = |name: &str, value: &Value| {
        let text = serde_json::to_string_pretty(value).expect("string keys only");
        std::fs::write(path.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    json("config.json", &config(shape, weights.format))?;
    json("tokenizer.json", &tokenizer::tokenizer_json(shape))?;
    json("tokenizer_config.json", &tokenizer_config())?;
    let shards = shards(shape.tensors().iter().flat_map(|tensor| parts(tensor, weights)).collect(), shard_bytes_max);
    let (mut bytes, mut places) = (0, Map::new());
    for (index, parts) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        bytes += write_shard(&path.join(&name), parts)?;
        places.extend(parts.iter().map(|part| (part.name.clone(), Value::from(name.clone()))));
    }
    if shards.len() > 1 {
        json("model.safetensors.index.json", &json!({ "metadata": { "total_size": bytes }, "weight_map": places }))?;
    }
    Ok(bytes)
}

/// Tensors in their order, cut into files.
fn shards(parts: Vec<Part<'_>>, bytes_max: usize) -> Vec<Vec<Part<'_>>> {
    let (mut shards, mut left_bytes) = (vec![Vec::new()], bytes_max);
    for part in parts {
        if part.bytes() > left_bytes && !shards.last().is_some_and(Vec::is_empty) {
            shards.push(Vec::new());
            left_bytes = bytes_max;
        }
        left_bytes = left_bytes.saturating_sub(part.bytes());
        shards.last_mut().expect("one at least").push(part);
    }
    shards
}

/// Writes one safetensors file; the bytes of its data.
fn write_shard(path: &Path, parts: &[Part<'_>]) -> Result<usize> {
    let (offsets, data_bytes) = write::offsets(parts, 1); // the format has no holes
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    for (part, offset) in parts.iter().zip(&offsets) {
        let place = json!({ "dtype": part.dtype, "shape": part.extents, "data_offsets": [offset, offset + part.bytes()] });
        entries.insert(part.name.clone(), place);
    }
    let mut header = serde_json::to_vec(&entries).expect("string keys only");
    header.resize(header.len().next_multiple_of(8), b' ');
    let head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    write::write(path, &head, parts, &offsets, data_bytes)?;
    Ok(data_bytes)
}

fn parts<'a>(tensor: &Tensor, weights: &'a Weights) -> Vec<Part<'a>> {
    let named = |suffix: &str| format!("{}.{suffix}", tensor.folder);
    let (rows, row_len) = match tensor.kind {
        Kind::Matrix { rows, row_len, .. } => (rows, row_len),
        Kind::Norm { len } => {
            let content = Content::Bytes(weights.norm(&tensor.folder, len).iter().flat_map(|x| x.to_le_bytes()).collect());
            return vec![Part { name: named("weight"), dtype: "BF16", extents: vec![len], content }];
        }
    };
    let seed = weights.tensor_seed(&tensor.folder);
    let part = |suffix, dtype, plane, extent| {
        let content = Content::Rows(Rows { plane, seed, rows, row_len, interleaved: None });
        Part { name: named(suffix), dtype, extents: vec![rows, extent], content }
    };
    match &weights.groups {
        None => vec![part("weight", "BF16", &weights.elements, row_len)],
        Some([scales, biases]) => vec![
            part("weight", "U32", &weights.elements, row_len / 8),
            part("scales", "BF16", scales, row_len / GROUP),
            part("biases", "BF16", biases, row_len / GROUP),
        ],
    }
}

fn config(shape: &Shape, format: Format) -> Value {
    let special = |text: &str| tokenizer::special(shape, text);
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_BASE,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": shape.rope_factor,
            "low_freq_factor": LOW_FREQ_FACTOR,
            "high_freq_factor": HIGH_FREQ_FACTOR,
            "original_max_position_embeddings": ORIGINAL_CONTEXT_TOKENS,
        },
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": special("<|begin_of_text|>"),
        "eos_token_id": [special("<|end_of_text|>"), special("<|eom_id|>"), special("<|eot_id|>")],
    });
    if format == Format::Mlx4 {
        config["quantization"] = json!({ "group_size": GROUP, "bits": 4 });
    }
    config
}

fn tokenizer_config() -> Value {
    json!({
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "model_max_length": CONTEXT_TOKENS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}
