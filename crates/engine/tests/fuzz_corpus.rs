//! Replays the fuzz targets of model files on stable: the seeds in the repository, and a corpus where fuzzing has left one.

mod common;

use common::{GgufBuilder, tiny_bpe, tiny_spm};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn folder(name: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(name).join(target)
}

#[test]
fn inputs_do_no_harm() {
    replay("gguf", common::exercise::gguf);
    replay("safetensors", common::exercise::safetensors);
    replay("folder", common::exercise::folder);
}

fn replay(target: &str, exercise: fn(&[u8])) {
    for folder in [folder("seeds", target), folder("corpus", target)] {
        let Ok(entries) = folder.read_dir() else { continue };
        for entry in entries {
            exercise(&std::fs::read(entry.unwrap().path()).unwrap());
        }
    }
}

fn seeds() -> [(&'static str, GgufBuilder); 4] {
    let chat = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}";
    let values = (0..13).filter(|kind| ![8, 9].contains(kind)).fold(GgufBuilder::default(), |b, kind| {
        let bytes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind as usize];
        b.raw(&format!("value.{kind}"), kind, &vec![1; bytes]).array(&format!("array.{kind}"), kind, 2, &vec![1; 2 * bytes])
    });
    let aligned = GgufBuilder { alignment_bytes: Some(64), ..GgufBuilder::default() }.u32("general.alignment", 64);
    let tensors = [(0, 4), (1, 2), (30, 2)]
        .into_iter()
        .fold(aligned, |b, (kind, bytes)| b.tensor(&format!("plain.{kind}"), &[3, 2], kind, &vec![0; 6 * bytes]));
    let blocks = [(8, 32, 34), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (12, 256, 144), (13, 256, 176), (14, 256, 210)];
    let tensors =
        blocks.into_iter().fold(tensors, |b, (kind, len, bytes)| b.tensor(&format!("blocks.{kind}"), &[len, 2], kind, &vec![0; 2 * bytes]));
    [
        ("bpe", tiny_bpe().str("tokenizer.chat_template", chat)),
        ("spm", tiny_spm()),
        ("values", values.strings("array.8", &["a", ""])),
        ("tensors", tensors),
    ]
}

/// Folders of families that differ most, with one layer: see [`common::exercise::folder_error`].
fn folder_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let extents = json!({
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "vocab_size": 4, "tie_word_embeddings": true,
    });
    let llama = json!({
        "model_type": "llama", "eos_token_id": [1, 2], "rope_theta": 10000.0,
        "rope_scaling": { "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8 },
    });
    let qwen = json!({ "model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 0, "sliding_window": 8,
        "quantization": { "group_size": 32, "bits": 4, "model.layers.0.mlp.up_proj": { "bits": 3 }, "model.embed_tokens": false } });
    let gemma = json!({ "model_type": "gemma3", "text_config": extents.clone(), "tie_word_embeddings": true });
    let factors = json!([1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]);
    let phi = json!({ "model_type": "phi3", "partial_rotary_factor": 0.5, "original_max_position_embeddings": 16,
        "rope_scaling": { "type": "longrope", "short_factor": factors, "long_factor": factors } });
    let square = |names: &[&str]| names.iter().map(|name| (format!("{name}.weight"), vec![32, 32])).collect::<Vec<_>>();
    let parts =
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
    let norms = |names: &[&str]| names.iter().map(|name| (format!("{name}.weight"), vec![32])).collect::<Vec<_>>();
    let two = norms(&["input_layernorm", "post_attention_layernorm"]);
    let more = norms(&["pre_feedforward_layernorm", "post_feedforward_layernorm", "self_attn.q_norm", "self_attn.k_norm"]);
    let fused = [("self_attn.qkv_proj.weight".to_owned(), vec![96, 32]), ("mlp.gate_up_proj.weight".to_owned(), vec![64, 32])];
    let fused = [&fused[..], &square(&["self_attn.o_proj", "mlp.down_proj"])].concat();
    vec![
        ("llama", folder_seed(&llama, &extents, "model.", [square(&parts), two.clone()].concat())),
        ("qwen2-mlx", folder_seed(&qwen, &extents, "model.", [square(&parts), two.clone()].concat())),
        ("gemma3-vision", folder_seed(&gemma, &json!({}), "language_model.model.", [square(&parts), two.clone(), more].concat())),
        ("phi3", folder_seed(&phi, &extents, "model.", [fused, two].concat())),
    ]
}

/// A folder's files in one, with an index. Weights are F32, or MLX's where the configuration has a word on them.
fn folder_seed(config: &Value, extents: &Value, stem: &str, layer: Vec<(String, Vec<usize>)>) -> Vec<u8> {
    let mut config = config.clone();
    config.as_object_mut().unwrap().extend(extents.as_object().unwrap().clone());
    let mlx = config.get("quantization").is_some();
    let ends = [(format!("{stem}embed_tokens.weight"), vec![4, 32]), (format!("{stem}norm.weight"), vec![32])];
    let layer = layer.into_iter().map(|(name, shape)| (format!("{stem}layers.0.{name}"), shape));
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    let mut add = |name: String, dtype: &str, shape: &[usize]| {
        let end = at + 4 * shape.iter().product::<usize>();
        header.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    };
    for (name, shape) in ends.into_iter().chain(layer) {
        let module = name.trim_end_matches(".weight");
        if mlx && shape.len() == 2 && !name.contains("embed") {
            add(name.clone(), "U32", &[shape[0], if name.contains("up_proj") { 3 } else { 4 }]);
            for part in ["scales", "biases"] {
                add(format!("{module}.{part}"), "F32", &[shape[0], 1]);
            }
        } else {
            add(name.clone(), "F32", &shape);
        }
        if mlx && ["q_proj", "k_proj", "v_proj"].iter().any(|part| module.ends_with(part)) {
            add(format!("{module}.bias"), "F32", &[32]);
        }
    }
    let places: serde_json::Map<_, _> = header.keys().map(|name| (name.clone(), "one.safetensors".into())).collect();
    let texts =
        [config, json!({ "weight_map": places }), json!({ "eos_token_id": 1, "top_k": 40 }), json!({ "bos_token": "<s>" }), header.into()];
    texts.map(|text| text.to_string()).join("\0").into_bytes()
}

#[test]
fn folder_seeds_are_valid_and_up_to_date() {
    for (name, bytes) in folder_seeds() {
        let error = common::exercise::folder_error(&bytes);
        assert!(error.contains("tokenizer.json is not understood"), "{name}: {error}");
        assert!(bytes.len() < 10_000, "{name} has {} bytes", bytes.len());
        let path = folder("seeds", "folder").join(name);
        if std::env::var_os("DRIFTWOOD_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(folder("seeds", "folder")).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).ok() == Some(bytes), "{} is stale: run with DRIFTWOOD_WRITE_SEEDS=1", path.display());
    }
}

/// The seeds are what the builder writes; `DRIFTWOOD_WRITE_SEEDS=1` writes them anew.
#[test]
fn seeds_are_valid_and_up_to_date() {
    for (name, builder) in seeds() {
        let (path, bytes) = (folder("seeds", "gguf").join(format!("{name}.gguf")), builder.build());
        builder.parse().unwrap();
        assert!(bytes.len() < 10_000, "{name} has {} bytes", bytes.len());
        if std::env::var_os("DRIFTWOOD_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(folder("seeds", "gguf")).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).ok() == Some(bytes), "{} is stale: run with DRIFTWOOD_WRITE_SEEDS=1", path.display());
    }
}
