//! Hugging Face folders and safetensors files, good and bad: each bad one with the error that it must give.

mod common;

use driftwood_compute::{Arithmetic, Cpu, Simd};
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Batch, Error, Logits, Model, Session, SessionOptions, Work, describe};
use driftwood_region::Region;
use half::bf16;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// A tensor as the header names it, and its bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// A folder's files, to be spoilt one at a time.
#[derive(Clone)]
struct Folder {
    config: Value,
    tokenizer: Value,
    tensors: Vec<Tensor>,
    others: Vec<(&'static str, &'static str)>, // files as they stand
}

fn safetensors(tensors: &[Tensor], odd: bool) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    for (name, dtype, shape, bytes) in tensors {
        let place = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": place }));
        data.extend_from_slice(bytes);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(2) + usize::from(odd), b' ');
    raw(&header, &data)
}

fn raw(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

fn parse(bytes: &[u8]) -> Result<driftwood_engine::safetensors::Tensors, Error> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    driftwood_engine::safetensors::parse(&Arc::new(Region::map_file(&file)?))
}

/// Element i of a weight in MLX's terms: a nibble, and its group's scale and bias, which are powers of two.
fn nibble(seed: usize, i: usize) -> u8 {
    ((seed * 31 + i * 7 + i / 13) % 16) as u8
}

fn scale_and_bias(seed: usize, group: usize) -> (f32, f32) {
    let scale = 1.0 / (64 << ((seed + group) % 2)) as f32;
    (scale, -8.0 * scale)
}

fn bf16s(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect()
}

/// A weight by hand: as bf16, or as MLX's three tensors of the very same numbers.
fn weight(name: &str, rows: usize, row_len: usize, mlx: bool) -> Vec<Tensor> {
    let (seed, len) = (name.len(), rows * row_len);
    let named = |suffix: &str| format!("{name}.{suffix}");
    if !mlx {
        let value = |i: usize| {
            let (scale, bias) = scale_and_bias(seed, i / 64);
            f32::from(nibble(seed, i)) * scale + bias
        };
        return vec![(named("weight"), "BF16", vec![rows, row_len], bf16s((0..len).map(value)))];
    }
    let words = (0..len / 8).flat_map(|w| (0..8).map(|i| u32::from(nibble(seed, 8 * w + i)) << (4 * i)).sum::<u32>().to_le_bytes());
    let groups = vec![rows, row_len / 64];
    vec![
        (named("weight"), "U32", vec![rows, row_len / 8], words.collect()),
        (named("scales"), "BF16", groups.clone(), bf16s((0..len / 64).map(|g| scale_and_bias(seed, g).0))),
        (named("biases"), "BF16", groups, bf16s((0..len / 64).map(|g| scale_and_bias(seed, g).1))),
    ]
}

fn small(mlx: bool) -> Folder {
    let norm = |name: &str| (format!("{name}.weight"), "BF16", vec![64], bf16s((0..64).map(|i| 1.0 + i as f32 / 64.0)));
    let mut tensors = vec![norm("model.norm")];
    tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|part| norm(&format!("model.layers.0.{part}"))));
    tensors.extend(weight("model.embed_tokens", 260, 64, mlx));
    for (part, rows, row_len) in [
        ("self_attn.q_proj", 64, 64),
        ("self_attn.k_proj", 32, 64),
        ("self_attn.v_proj", 32, 64),
        ("self_attn.o_proj", 64, 64),
        ("mlp.gate_proj", 128, 64),
        ("mlp.up_proj", 128, 64),
        ("mlp.down_proj", 64, 128),
    ] {
        tensors.extend(weight(&format!("model.layers.0.{part}"), rows, row_len, mlx));
    }
    let mut config = json!({
        "model_type": "llama", "vocab_size": 260, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 258, "eos_token_id": [259],
    });
    if mlx {
        config["quantization"] = json!({ "group_size": 64, "bits": 4 });
    }
    Folder { config, tokenizer: tokenizer(), tensors, others: Vec::new() }
}

fn tokenizer() -> Value {
    let mut vocab: serde_json::Map<_, _> = (0..=255).map(|b| (common::byte_char(b).to_string(), b.into())).collect();
    vocab.extend([("he".to_owned(), 256.into()), ("Ġhe".to_owned(), 257.into())]);
    let special = |id: u32, content: &str| json!({ "id": id, "content": content, "special": true });
    json!({
        "added_tokens": [special(258, "<|im_start|>"), special(259, "<|im_end|>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "post_processor": null,
        "model": { "type": "BPE", "vocab": vocab, "merges": ["h e", ["Ġ", "he"]] },
    })
}

impl Folder {
    fn config(mut self, key: &str, value: Value) -> Folder {
        self.config[key] = value;
        self
    }

    fn tokenizer(mut self, pointer: &str, value: Value) -> Folder {
        *self.tokenizer.pointer_mut(pointer).unwrap() = value;
        self
    }

    fn file(mut self, name: &'static str, text: &'static str) -> Folder {
        self.others.push((name, text));
        self
    }

    fn without(mut self, name: &str) -> Folder {
        self.tensors.retain(|tensor| tensor.0 != name);
        self
    }

    fn tensor(self, name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Folder {
        let mut folder = self.without(name);
        folder.tensors.push((name.to_owned(), dtype, shape.to_vec(), bytes));
        folder
    }

    fn write(&self, path: &Path, odd: bool) {
        std::fs::write(path.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(path.join("tokenizer.json"), self.tokenizer.to_string()).unwrap();
        std::fs::write(path.join("model.safetensors"), safetensors(&self.tensors, odd)).unwrap();
        for (name, text) in &self.others {
            std::fs::write(path.join(name), text).unwrap();
        }
    }

    fn open(&self, odd: bool) -> Result<Arc<Model>, Error> {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path(), odd);
        open(folder.path())
    }
}

fn open(path: &Path) -> Result<Arc<Model>, Error> {
    Model::open("small", path, Arc::new(Cpu::new(2, Simd::detect(), Arithmetic::Exact)))
}

fn logits(model: &Arc<Model>) -> Vec<u32> {
    let mut session = Session::open(model, SessionOptions::default()).unwrap();
    let mut out = vec![0.0; 4 * 260];
    session.append(&[258, 104, 256, 10]).unwrap();
    Batch::new(model).step(&mut [Work::new(&mut session, Logits::All(&mut out))]).unwrap();
    assert!(out.iter().all(|x| x.is_finite()) && out.iter().any(|x| x.abs() > 0.1));
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn mlx_groups_are_the_numbers_worked_out_by_hand() {
    assert!(logits(&small(true).open(false).unwrap()) == logits(&small(false).open(false).unwrap()));
}

#[test]
fn data_may_begin_at_an_odd_byte() {
    for mlx in [false, true] {
        assert!(logits(&small(mlx).open(true).unwrap()) == logits(&small(mlx).open(false).unwrap()));
    }
}

#[test]
fn a_folder_has_a_tokenizer_and_a_template() {
    let folder = tempfile::tempdir().unwrap();
    small(false).write(folder.path(), false);
    let model = open(folder.path()).unwrap();
    let encode = |text: &str| model.tokenizer().encode(text, Special { add: true, parse: true });
    assert_eq!(encode("he he<|im_end|>"), [256, 257, 259]);
    assert_eq!((model.tokenizer().bos(), model.tokenizer().eos(), model.tokenizer().adds_bos()), (Some(258), Some(259), false));
    assert!(model.chat_template().unwrap().source().contains("im_start"));
    let fingerprint = model.fingerprint();
    let settings = json!({ "chat_template": "{{ messages[0].content }}!", "bos_token": { "content": "<|im_end|>" } });
    std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
    let model = open(folder.path()).unwrap();
    assert_eq!((model.tokenizer().bos(), model.chat_template().unwrap().source()), (Some(259), "{{ messages[0].content }}!"));
    assert_ne!(model.fingerprint(), fingerprint);
}

/// A template of its own file goes before the others; a folder whose template is no good can be used without.
#[test]
fn templates_are_found_where_folders_have_them() {
    let list = r#"{"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]}"#;
    let json = r#"{"chat_template":"j"}"#;
    type Case<'a> = (&'a [(&'a str, &'a str)], Result<&'a str, &'a str>);
    let cases: [Case<'_>; 6] = [
        (&[("tokenizer_config.json", list)], Ok("d")),
        (&[("chat_template.json", json)], Ok("j")),
        (&[("chat_template.json", json), ("tokenizer_config.json", list)], Ok("d")),
        (&[("chat_template.json", json), ("tokenizer_config.json", list), ("chat_template.jinja", "f")], Ok("f")),
        (&[("tokenizer_config.json", r#"{"chat_template":3}"#)], Err("`tokenizer_config.json: chat_template` should be a string")),
        (&[("tokenizer_config.json", r#"{"chat_template":[{"name":"a"}]}"#)], Err("or a list with one named `default`")),
    ];
    for (files, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        small(false).write(folder.path(), false);
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let model = open(folder.path()).unwrap();
        match (model.chat_template().map(|template| template.source().to_owned()), expected) {
            (Ok(source), Ok(expected)) => assert_eq!(source, expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "expected {expected:?}, got {error}"),
            (got, expected) => panic!("expected {expected:?}, got {got:?}"),
        }
    }
}

/// Gemma's tokenizers have an added token that the embedding has no row for.
#[test]
fn added_tokens_beyond_the_embedding_are_text() {
    let mut folder = small(false);
    let image = json!({ "id": 260, "content": "<image>", "special": true });
    folder.tokenizer["added_tokens"].as_array_mut().unwrap().push(image);
    let model = folder.open(false).unwrap();
    assert_eq!((model.tokenizer().vocab_len(), model.tokenizer().token_text(260)), (260, None));
    let tokens = model.tokenizer().encode("a<image>", Special { add: true, parse: true });
    assert_eq!(model.tokenizer().decode(&tokens), b"a<image>");
    assert!(tokens.iter().all(|token| *token < 256));
}

#[test]
fn scaled_rope_gives_other_logits_only_far_on() {
    let scaling = |factor: f64| json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8 });
    let of = |factor: f64| logits(&small(false).config("rope_scaling", scaling(factor)).open(false).unwrap());
    let plain = logits(&small(false).open(false).unwrap());
    assert!(of(1.0) == plain && of(8.0) != plain && of(8.0)[..260] == plain[..260]);
}

/// The same weights behind an index, in shards that a hub's cache keeps elsewhere under other names.
#[test]
fn shards_may_be_links_and_hold_more() {
    let (folder, blobs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut all = small(false);
    all.write(folder.path(), false);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    all.tensors.push(("model.layers.0.position_ids".to_owned(), "I64", vec![3], vec![0; 24]));
    let (one, two) = all.tensors.split_at(5);
    let mut places = serde_json::Map::new();
    for (shard, tensors) in [("model-00001-of-00002.safetensors", one), ("model-00002-of-00002.safetensors", two)] {
        std::fs::write(blobs.path().join(&shard[6..11]), safetensors(tensors, false)).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(blobs.path().join(&shard[6..11]), folder.path().join(shard)).unwrap();
        #[cfg(not(unix))]
        std::fs::copy(blobs.path().join(&shard[6..11]), folder.path().join(shard)).unwrap();
        places.extend(tensors.iter().map(|tensor| (tensor.0.clone(), shard.into())));
    }
    let index = json!({ "metadata": { "total_size": 3 }, "weight_map": places });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(logits(&open(folder.path()).unwrap()) == logits(&small(false).open(false).unwrap()));
    let described = describe(folder.path()).unwrap();
    assert_eq!(described.ignored, ["model.layers.0.position_ids"]);
    let files: Vec<_> = described.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(files, ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
}

#[test]
fn a_model_is_described() {
    let folder = tempfile::tempdir().unwrap();
    small(true).config("rope_theta", json!(500.0)).file("generation_config.json", r#"{"top_k":3}"#).write(folder.path(), false);
    let described = serde_json::to_value(describe(folder.path()).unwrap()).unwrap();
    assert_eq!(described["config"]["architecture"], "llama");
    assert_eq!(described["config"]["vocabulary"], 260);
    let formats = json!([
        { "name": "MLX 4 bits, groups of 64", "tensors": 8, "bytes": (260 * 64 + 3 * 64 * 128 + 2 * 64 * 64 + 2 * 32 * 64) / 64 * 36 },
        { "name": "BF16", "tensors": 3, "bytes": 3 * 128 },
    ]);
    assert_eq!(described["formats"], formats);
    let layers = json!([{ "count": 1, "window": null, "rope_base": 500.0, "rope_dimensions": 32, "rope_scaling": "none" }]);
    assert_eq!((&described["layers"], &described["generation"]), (&layers, &json!({ "top_k": 3 })));
    assert_eq!(described["tokenizer"], json!({ "kind": "byte-level BPE", "tokens": 260, "begin": null, "end": "<|im_end|>" }));
    assert_eq!(described["kv_bytes_a_token"], json!({ "f16": 128, "f32": 256, "q8": 68 }));
    assert_eq!((described["template"].as_str(), described["ignored"].as_array()), (Some("built in: chatml"), Some(&vec![])));
}

#[test]
fn modules_may_be_quantised_each_in_its_own_way() {
    let (mlx, plain) = (small(true), small(false));
    let is_up = |tensor: &&Tensor| tensor.0.contains("up_proj");
    let mut mixed = mlx.clone();
    mixed.tensors.retain(|tensor| !is_up(&tensor));
    mixed.tensors.extend(plain.tensors.iter().filter(is_up).cloned());
    let entries = json!({ "group_size": 128, "bits": 8, "model.layers.0.mlp.up_proj": false });
    let mut mixed = mixed.config("quantization", entries);
    for tensor in mlx.tensors.iter().filter(|tensor| tensor.0.ends_with(".scales")) {
        let module = tensor.0.trim_end_matches(".scales");
        if !module.contains("up_proj") {
            mixed.config["quantization"][module] = json!({ "group_size": 64, "bits": 4 });
        }
    }
    assert!(logits(&mixed.open(false).unwrap()) == logits(&plain.open(false).unwrap()));
}

#[test]
fn bad_folders_get_clear_errors() {
    let f = || small(false);
    let scaling = |key: &str, value: Value| {
        let mut scaling = json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4 });
        scaling[key] = value;
        f().config("rope_scaling", scaling)
    };
    let quantised = |value: Value| small(true).config("quantization", value);
    let embed = "model.embed_tokens.weight";
    let cases: Vec<(Folder, &str)> = vec![
        (
            f().config("model_type", json!("mixtral")),
            "model_type of config.json `mixtral` is not supported; supported are gemma2, gemma3_text",
        ),
        (f().config("model_type", json!(7)), "model_type of config.json `7`"),
        (f().config("model_type", Value::Null), "model_type of config.json `null`"),
        (f().config("text_config", json!(7)), "`text_config` should be an object"),
        (f().config("hidden_act", json!("gelu")), "activation `config.json: hidden_act: gelu` is not supported; supported are silu"),
        (f().config("attention_bias", json!(true)), "`config.json: attention_bias` is not supported"),
        (f().config("mlp_bias", json!(true)), "`config.json: mlp_bias` is not supported"),
        (f().config("rope_interleaved", json!(true)), "`config.json: rope_interleaved` is not supported"),
        (
            f().config("quantization_config", json!({ "quant_method": "gptq" })),
            "config.json: the quantization_config.quant_method `gptq` is not supported; supported are MLX's",
        ),
        (
            quantised(json!({ "group_size": 16, "bits": 4 })),
            "config.json: the key `quantization.group_size` should be 32, 64 or 128, but is 16",
        ),
        (
            quantised(json!({ "group_size": 64, "bits": 7 })),
            "config.json: the key `quantization.bits` should be 2, 3, 4, 5, 6 or 8, but is 7",
        ),
        (quantised(json!({ "group_size": 64 })), "`quantization.bits` should be 2, 3, 4, 5, 6 or 8, but is null"),
        (quantised(json!({ "group_size": 64, "bits": 4, "mode": "mxfp4" })), "config.json: the quantization.mode `mxfp4` is not supported"),
        (quantised(json!(4)), "config.json: the key `quantization` should be an object"),
        (quantised(Value::Null), "`config.json: quantization` should be what the scales in the folder ask for"),
        (
            quantised(json!({ "group_size": 64, "bits": 4, "model.embed_tokens": false })),
            "`config.json: quantization` should be what the scales in the folder ask for, but is no word on model.embed_tokens.weight",
        ),
        (
            quantised(json!({ "group_size": 64, "bits": 4, "model.layers.7.mlp.up_proj": { "bits": 2 } })),
            "`config.json: quantization.model.layers.7.mlp.up_proj` should be the name of a module",
        ),
        (
            quantised(json!({ "group_size": 64, "bits": 4, "model.embed_tokens": { "bits": 2 } })),
            "tensor `model.embed_tokens.scales` of `model.safetensors` should be [260, 2] of floats, one for each 64 elements of 2 bits, but is [260, 1]",
        ),
        (
            quantised(json!({ "group_size": 32, "bits": 4 })),
            "`model.embed_tokens.scales` of `model.safetensors` should be [260, 2] of floats, one for each 32 elements of 4 bits",
        ),
        (
            f().config("vocab_size", json!(512)),
            "`config.json: vocab_size` should be the rows of the embedding, but is 512, where model.embed_tokens",
        ),
        (f().config("hidden_size", Value::Null), "lacks the key `config.json: hidden_size`"),
        (f().config("hidden_size", json!(-64)), "`config.json: hidden_size` should be an integer of 32 bits, but is -64"),
        (f().config("hidden_size", json!(64.0)), "`config.json: hidden_size` should be an integer of 32 bits, but is 64.0"),
        (f().config("hidden_size", json!(1u64 << 40)), "`config.json: hidden_size` should be an integer of 32 bits"),
        (f().config("hidden_size", json!(1 << 30)), "`config.json: hidden_size` is 1073741824; this version takes up to 32768"),
        (f().config("intermediate_size", json!(0)), "`config.json: intermediate_size` is 0"),
        (f().config("num_hidden_layers", json!(1 << 20)), "`config.json: num_hidden_layers` is 1048576"),
        (f().config("max_position_embeddings", json!(1 << 30)), "`config.json: max_position_embeddings` is 1073741824"),
        (f().config("num_attention_heads", json!(0)), "`config.json: num_attention_heads` is 0"),
        (f().config("num_key_value_heads", json!(0)), "`config.json: num_key_value_heads` is 0"),
        (f().config("num_attention_heads", json!(3)), "`config.json: head_dim (the size of a head; must be a multiple of 32)` is 21"),
        (
            f().config("num_key_value_heads", json!(3)).config("head_dim", json!(32)),
            "`config.json: num_key_value_heads (must divide the heads)` is 3",
        ),
        (f().config("head_dim", json!(1024)), "`config.json: head_dim` is 1024; this version takes up to 512"),
        (
            f().config("head_dim", json!(512)).config("num_attention_heads", json!(1000)),
            "`config.json: num_attention_heads times the size of a head`",
        ),
        (f().config("rms_norm_eps", json!("small")), "`config.json: rms_norm_eps` should be a number"),
        (f().config("rms_norm_eps", json!(2.0)), "`config.json: rms_norm_eps` is 2"),
        (f().config("rope_theta", json!(0.0)), "`config.json: rope_theta` is 0"),
        (f().config("rope_theta", json!(1e300)), "`config.json: rope_theta` is inf"),
        (f().config("partial_rotary_factor", json!(0.5)), "rope over part of a head"),
        (f().config("tie_word_embeddings", json!("yes")), "`config.json: tie_word_embeddings` should be true or false"),
        (
            f().config("hidden_size", json!(128)),
            "tensor `model.embed_tokens.weight` of `model.safetensors` should be [260, 128], but is [260, 64]",
        ),
        (
            f().config("num_hidden_layers", json!(2)),
            "model.safetensors: the model lacks the tensor `model.layers.1.input_layernorm.weight`",
        ),
        (f().config("tie_word_embeddings", json!(false)), "model.safetensors: the model lacks the tensor `lm_head.weight`"),
        (
            f().config("rope_scaling", json!({ "rope_type": "yarn" })),
            "rope scaling `config.json: rope_scaling: yarn` is not supported; supported are default, linear",
        ),
        (f().config("rope_scaling", json!({ "type": 3 })), "`config.json: rope_scaling.rope_type` should be a string"),
        (f().config("rope_scaling", json!({ "type": "linear" })), "lacks the key `config.json: rope_scaling.factor`"),
        (
            f().config("rope_scaling", json!({ "type": "linear", "factor": 1e12 })),
            "`config.json: rope_scaling` is 999999995904; this version takes up to 1000000",
        ),
        (f().config("rope_scaling", json!(3)), "`config.json: rope_scaling` should be an object"),
        (scaling("factor", json!(0)), "`config.json: rope_scaling.factor` should be a positive number, but is 0"),
        (scaling("factor", json!(8)), "lacks the key `config.json: rope_scaling.original_max_position_embeddings`"),
        (scaling("original_max_position_embeddings", json!(1e-320)), "should be a positive number"),
        (
            scaling("original_max_position_embeddings", json!(8)).config("bos_token_id", json!(-1)),
            "`config.json: bos_token_id` should be a token's number",
        ),
        (f().config("eos_token_id", json!([300])), "the special token `300` is not in the vocabulary"),
        (f().without(embed), "model.safetensors: the model lacks the tensor `model.embed_tokens.weight`"),
        (f().tensor(embed, "U8", &[260, 64], vec![0; 260 * 64]), "has type U8, which is not supported"),
        (f().tensor(embed, "U32", &[260, 8], vec![0; 260 * 32]), "has type U32, which is not supported"),
        (
            f().tensor(embed, "F64", &[260, 64], vec![0; 260 * 512]),
            "tensor `model.embed_tokens.weight` of `model.safetensors` has type F64, which is not",
        ),
        (f().tensor("model.norm.weight", "U8", &[64], vec![0; 64]), "should be [64] of F32, F16 or BF16, but is [64] of U8"),
        (f().tensor("model.norm.weight", "F32", &[63], vec![0; 252]), "tensor `model.norm.weight` of `model.safetensors` should be [64]"),
        (f().tensor("model.layers.0.self_attn.q_proj.bias", "F32", &[64], vec![0; 256]), "bias of attention in this family"),
        (
            small(true).tensor(embed, "U32", &[260, 7], vec![0; 260 * 28]),
            "`model.embed_tokens.weight` of `model.safetensors` should be words of whole groups of 64 elements of 4 bits",
        ),
        (small(true).tensor(embed, "U32", &[260 * 8], vec![0; 260 * 32]), "should be a matrix"),
        (
            small(true).tensor("model.embed_tokens.scales", "BF16", &[260, 2], vec![0; 1040]),
            "tensor `model.embed_tokens.scales` of `model.safetensors` should be [260, 1] of floats, one for each 64 elements of 4 bits, but is [260, 2]",
        ),
        (
            small(true).tensor("model.embed_tokens.biases", "F32", &[260, 1], vec![0; 1040]),
            "tensor `model.embed_tokens.biases` of `model.safetensors` should be [260, 1] of floats",
        ),
        (small(true).without("model.embed_tokens.biases"), "has type U32"),
        (f().tokenizer("/model/type", json!("Unigram")), "tokenizer model `Unigram`"),
        (f().tokenizer("/normalizer", json!({ "type": "NFKC" })), "normaliser `NFKC`"),
        (f().tokenizer("/pre_tokenizer", json!({ "type": "Metaspace" })), "pre-tokenizer"),
        (f().tokenizer("/pre_tokenizer/add_prefix_space", json!(true)), "pre-tokenizer"),
        (f().tokenizer("/model/merges", json!(["h x"])), "merge 0, `h x`, does not join two pieces to a third"),
        (f().tokenizer("/model/merges", json!(["he"])), "merge 0, `he`"),
        (f().tokenizer("/model/merges", json!([["h"]])), "tokenizer.json is not understood"),
        (f().tokenizer("/model/vocab/he", json!(u32::MAX)), "numbers below 2097152 are possible"),
        (f().tokenizer("/model/vocab/he", json!(1000)), "it has 1001 tokens, the model's embedding 260"),
        (f().tokenizer("/model/vocab/he", json!(65)), "are both piece 65"),
        (f().tokenizer("/model", json!(null)), "tokenizer.json is not understood"),
        (f().file("tokenizer_config.json", "{"), "tokenizer_config.json: the model file is malformed: it is not understood"),
        (f().file("generation_config.json", "[]"), "generation_config.json: the model file is malformed: it is not understood"),
        (
            f().file("generation_config.json", r#"{"eos_token_id":"x"}"#),
            "`generation_config.json: eos_token_id` should be a token's number",
        ),
        (f().file("generation_config.json", r#"{"eos_token_id":[1, 300]}"#), "the special token `300` is not in the vocabulary"),
        (f().file("config.json", "{"), "config.json: the model file is malformed: it is not understood"),
        (f().file("model.safetensors", "{"), "model.safetensors: the model file is truncated"),
    ];
    let mut wrong = Vec::new();
    for (folder, expected) in cases {
        let error = folder.open(false).map_or_else(|error| error.to_string(), |_| "none".to_owned());
        if !error.contains(expected) {
            wrong.push(format!("expected {expected:?}, got {error:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bad_shards_get_clear_errors() {
    let norm = |name: &str| vec![(name.to_owned(), "F32", vec![1], vec![0; 4])];
    let cases: [(Value, &str); 11] = [
        (json!({}), "model.safetensors.index.json: the model file is malformed: has no `weight_map`"),
        (json!({ "weight_map": {} }), "names no file"),
        (json!({ "weight_map": { "a": "../model.safetensors" } }), "names a file outside the folder"),
        (json!({ "weight_map": { "a": "/etc/passwd" } }), "names a file outside the folder"),
        (json!({ "weight_map": { "a": "." } }), "names a file outside the folder"),
        (json!({ "weight_map": { "a": 3 } }), "names a file outside the folder"),
        (json!({ "weight_map": { "a": "missing.safetensors" } }), "missing.safetensors"),
        (
            json!({ "weight_map": { "a": "one.safetensors", "b": "two.safetensors" } }),
            "puts the tensor `b` into two.safetensors, but it is in no shard",
        ),
        (
            json!({ "weight_map": { "a": "three.safetensors", "c": "one.safetensors" } }),
            "index.json: the model file is malformed: puts the tensor `a` into three.safetensors, but it is in one.safetensors",
        ),
        (
            json!({ "weight_map": { "a": "one.safetensors", "c": "again.safetensors" } }),
            "one.safetensors: the model file is malformed: the tensor `a` is in again.safetensors, too",
        ),
        (
            json!({ "weight_map": { "a": "pointer.safetensors" } }),
            "pointer.safetensors: the model file is malformed: it is a Git LFS pointer",
        ),
    ];
    for (index, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        small(false).write(folder.path(), false);
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("one.safetensors"), safetensors(&norm("a"), false)).unwrap();
        std::fs::write(folder.path().join("two.safetensors"), safetensors(&norm("d"), false)).unwrap();
        std::fs::write(folder.path().join("three.safetensors"), safetensors(&norm("c"), false)).unwrap();
        std::fs::write(folder.path().join("again.safetensors"), safetensors(&norm("a"), false)).unwrap();
        std::fs::write(folder.path().join("pointer.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
            .unwrap();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let error = open(folder.path()).map(drop).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
    let error = open(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    small(false).write(folder.path(), false);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    for (name, expected) in
        [("README.md", "the folder has neither model.safetensors nor"), ("model.bin", "weights in a folder `model.bin`")]
    {
        std::fs::write(folder.path().join(name), "").unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
}

#[test]
fn bad_safetensors_get_clear_errors() {
    let entry = |dtype: &str, shape: &str, offsets: &str| format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#);
    let one = |dtype: &str, shape: &str, offsets: &str| format!(r#"{{"a":{}}}"#, entry(dtype, shape, offsets));
    let two = |name: &str, offsets: &str| format!(r#"{{"a":{},"{name}":{}}}"#, entry("F32", "[2]", "[0,8]"), entry("F32", "[2]", offsets));
    let max = u64::MAX;
    let cases: Vec<(String, &str)> = vec![
        (String::new(), "its header is not understood"),
        ("[]".to_owned(), "its header is not understood"),
        (r#"{"a":{"dtype":"F32"}}"#.to_owned(), "its header is not understood: missing field"),
        ("[".repeat(100_000), "its header is not understood"),
        (one("F32", &format!("{:?}", [1; 7]), "[0,4]"), "more than 6 extents"),
        (one("F32", &format!("[{max},{max}]"), "[0,4]"), "more elements than the address space"),
        (one("F32", &format!("[{max}]"), "[0,4]"), "lies from byte 0 to 4"),
        (one("F32", "[-1]", "[0,4]"), "its header is not understood"),
        (one("F32", "[2]", "[0,4]"), "tensor `a` of shape [2] and type F32 lies from byte 0 to 4"),
        (one("F32", "[2]", "[8,0]"), "lies from byte 8 to 0"),
        (one("F32", "[4]", "[0,16]"), "tensor `a` needs 16 bytes at byte"),
        (one("F32", "[2]", "[4,12]"), "tensor `a` needs 8 bytes at byte"),
        (one("F32", "[2]", &format!("[{},{max}]", max - 8)), "tensor `a` needs 8 bytes"),
        (one("F64", "[1]", "[8,0]"), "tensor `a` lies from byte 8 to 0"),
        (one("F64", "[1]", "[0,16]"), "tensor `a` needs 16 bytes"),
        (two("a", "[0,8]"), "has the tensor `a` twice"),
        (two("b", "[0,8]"), "tensors `a` and `b` overlap"),
        (two("b", "[4,12]"), "tensor `b` needs 8 bytes"),
    ];
    for (header, expected) in cases {
        let error = parse(&raw(header.as_bytes(), &[0; 8])).map(drop).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
    for (bytes, expected) in [
        (vec![1, 0, 0], "truncated: the header's length"),
        ([&100u64.to_le_bytes()[..], b"{}"].concat(), "truncated: the header at byte 8 needs 100 bytes, the file has 10"),
        (max.to_le_bytes().to_vec(), "bytes in its header; at most 33554432"),
    ] {
        let error = parse(&bytes).map(drop).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
    assert_eq!(parse(&raw(b"{}", &[])).unwrap().len(), 0);
}

fn three() -> Vec<u8> {
    let tensor = |name: &str, dtype, shape: &[usize], bytes: usize| (name.to_owned(), dtype, shape.to_vec(), vec![1; bytes]);
    safetensors(&[tensor("a", "F32", &[2, 3], 24), tensor("b", "BF16", &[5], 10), tensor("c", "U8", &[], 1)], true)
}

#[test]
fn good_safetensors_read_back() {
    let tensors = parse(&three()).unwrap();
    let shapes: Vec<_> =
        tensors.iter().map(|(name, tensor)| (&**name, tensor.view.shape().extents().to_vec(), tensor.view.bytes().len())).collect();
    assert_eq!(shapes, [("a", vec![2, 3], 24), ("b", vec![5], 10), ("c", vec![], 1)]);
}

#[test]
fn truncated_and_altered_safetensors_are_survived() {
    let bytes = three();
    for len in 1..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
    for at in 0..bytes.len() - 35 {
        for value in [0, b'9', b'"', b'}', 0x7f, 0xff] {
            let mut altered = bytes.clone();
            altered[at] = value;
            common::exercise::safetensors(&altered);
        }
    }
}

proptest! {
    /// Headers that are JSON of the right kind with any numbers: an error, or views that lie apart in the file.
    #[test]
    fn any_numbers_in_a_header_are_survived(
        entries in prop::collection::vec((0..3usize, prop::collection::vec(extent(), 0..4), extent(), extent()), 0..5),
        data in 0..64usize,
    ) {
        let header: Vec<String> = entries.iter().enumerate().map(|(i, (dtype, shape, start, end))| {
            let dtype = ["F32", "BF16", "U8"][*dtype];
            format!(r#""{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        }).collect();
        common::exercise::safetensors(&raw(format!("{{{}}}", header.join(",")).as_bytes(), &vec![0; data]));
    }
}

/// Numbers that fit, and ones that overflow what they are added to or multiplied with.
fn extent() -> impl Strategy<Value = u64> {
    prop_oneof![0..40u64, any::<u64>(), (0..64u32).prop_map(|bits| 1 << bits), (0..9u64).prop_map(|less| u64::MAX - less)]
}
