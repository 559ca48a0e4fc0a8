//! A Hugging Face folder, and MLX's variant of it: configuration, tokenizer, and safetensors
//! (<https://github.com/huggingface/safetensors>) in one file or in shards.

use super::Format;
use super::shape::{CONTEXT_TOKENS, Family, HIGH_FREQ_FACTOR, Kind, LOW_FREQ_FACTOR, NORM_EPS, Shape, Stretch, Tensor};
use super::tokenizer;
use super::weights::Weights;
use super::write::{self, Content, Part, Rows};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

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
    let shards = shards(shape.tensors().iter().flat_map(|tensor| parts(shape, tensor, weights)).collect(), shard_bytes_max);
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

fn parts<'a>(shape: &Shape, tensor: &Tensor, weights: &'a Weights) -> Vec<Part<'a>> {
    let named = |suffix: &str| format!("{}.{suffix}", tensor.folder);
    let vector = |len, middle| {
        let content = Content::Bytes(weights.vector(&tensor.folder, len, middle).iter().flat_map(|x| x.to_le_bytes()).collect());
        vec![Part { name: named(tensor.kind.suffix()), dtype: "BF16", extents: vec![len], content }]
    };
    let (rows, row_len) = match tensor.kind {
        Kind::Matrix { rows, row_len, .. } => (rows, row_len),
        Kind::Norm { len } => return vector(len, if shape.is_gemma() { 0.0 } else { 1.0 }),
        Kind::Bias { len } => return vector(len, 0.0),
    };
    let seed = weights.tensor_seed(&tensor.folder);
    let part = |suffix, dtype, plane, extent| {
        let content = Content::Rows(Rows { plane, seed, rows, row_len, interleaved: None });
        Part { name: named(suffix), dtype, extents: vec![rows, extent], content }
    };
    match (&weights.groups, weights.format) {
        (Some([scales, biases]), Format::Mlx { bits, group }) => vec![
            part("weight", "U32", &weights.elements, row_len * bits / 32),
            part("scales", "BF16", scales, row_len / group),
            part("biases", "BF16", biases, row_len / group),
        ],
        _ => vec![part("weight", "BF16", &weights.elements, row_len)],
    }
}

fn config(shape: &Shape, format: Format) -> Value {
    let special = |text: &str| tokenizer::special(shape, text);
    let (architecture, model_type) = match shape.family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Mistral => ("MistralForCausalLM", "mistral"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Family::Gemma2 => ("Gemma2ForCausalLM", "gemma2"),
        Family::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text"),
        Family::Phi3 => ("Phi3ForCausalLM", "phi3"),
    };
    let mut config = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "attention_bias": false,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": shape.rope_base,
        "rope_scaling": rope_scaling(shape),
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": special("<|begin_of_text|>"),
        "eos_token_id": [special("<|end_of_text|>"), special("<|eom_id|>"), special("<|eot_id|>")],
    });
    let keys = config.as_object_mut().expect("written as one");
    keys.extend(family_keys(shape).as_object().cloned().unwrap_or_default());
    if let Format::Mlx { bits, group } = format {
        keys.insert("quantization".to_owned(), json!({ "group_size": group, "bits": bits }));
    }
    config
}

/// What only some families have.
fn family_keys(shape: &Shape) -> Value {
    let window = (shape.window > 0).then_some(shape.window);
    match shape.family {
        Family::Llama => json!({ "hidden_act": "silu", "mlp_bias": false }),
        Family::Mistral => json!({ "hidden_act": "silu", "sliding_window": window }),
        Family::Qwen2 | Family::Qwen3 => json!({ "hidden_act": "silu", "use_sliding_window": false }),
        Family::Phi3 => json!({
            "hidden_act": "silu",
            "sliding_window": window,
            "original_max_position_embeddings": shape.original_context_tokens(),
            "partial_rotary_factor": shape.rotated() as f64 / shape.head_dim as f64,
        }),
        Family::Gemma2 | Family::Gemma3 => json!({
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": window,
            "query_pre_attn_scalar": shape.head_dim,
            "attn_logit_softcapping": (shape.family == Family::Gemma2).then_some(50.0),
            "final_logit_softcapping": (shape.family == Family::Gemma2).then_some(30.0),
            "rope_local_base_freq": 10_000.0,
        }),
    }
}

fn rope_scaling(shape: &Shape) -> Value {
    match shape.stretch {
        Stretch::None => Value::Null,
        Stretch::Llama3(factor) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW_FREQ_FACTOR,
            "high_freq_factor": HIGH_FREQ_FACTOR,
            "original_max_position_embeddings": shape.original_context_tokens(),
        }),
        Stretch::Linear(factor) => json!({ "rope_type": "linear", "factor": factor }),
        Stretch::Long => json!({ "type": "longrope", "short_factor": shape.long_factors(), "long_factor": shape.long_factors() }),
    }
}

fn tokenizer_config() -> Value {
    json!({
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "model_max_length": CONTEXT_TOKENS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}
