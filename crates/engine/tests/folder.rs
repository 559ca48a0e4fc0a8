//! Hugging Face folders and safetensors files, good and bad: each bad one with the error that it must give.

mod common;

use driftwood_compute::{Arithmetic, Cpu, Simd};
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Batch, Error, Logits, Model, Session, SessionOptions, Work};
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
    Folder { config, tokenizer: tokenizer(), tensors }
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

#[test]
fn scaled_rope_gives_other_logits_only_far_on() {
    let scaling = |factor: f64| json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8 });
    let of = |factor: f64| logits(&small(false).config("rope_scaling", scaling(factor)).open(false).unwrap());
    let plain = logits(&small(false).open(false).unwrap());
    assert!(of(1.0) == plain && of(8.0) != plain && of(8.0)[..260] == plain[..260]);
}

#[test]
fn bad_folders_get_clear_errors() {
    let f = || small(false);
    let scaling = |key: &str, value: Value| {
        let mut scaling = json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4 });
        scaling[key] = value;
        f().config("rope_scaling", scaling)
    };
    let embed = "model.embed_tokens.weight";
    let cases: Vec<(Folder, &str)> = vec![
        (
            f().config("model_type", json!("gemma3")),
            "architecture of a folder `gemma3` is not supported; supported are llama; take a GGUF file",
        ),
        (f().config("model_type", json!(7)), "architecture of a folder `7`"),
        (f().config("hidden_act", json!("gelu")), "activation `gelu`"),
        (f().config("attention_bias", json!(true)), "bias `attention_bias`"),
        (f().config("quantization_config", json!({ "quant_method": "gptq" })), "quantisation `gptq` is not supported"),
        (small(true).config("quantization", json!({ "group_size": 32, "bits": 4 })), "affine, 4 bits, groups of 64"),
        (small(true).config("quantization", json!({ "group_size": 64, "bits": 4, "mode": "mxfp4" })), "affine, 4 bits, groups of 64"),
        (f().config("hidden_size", Value::Null), "lacks the key `hidden_size`"),
        (f().config("hidden_size", json!(-64)), "`hidden_size` should be an integer of 32 bits, but is -64"),
        (f().config("hidden_size", json!(1u64 << 40)), "`hidden_size` should be an integer of 32 bits"),
        (f().config("hidden_size", json!(1 << 30)), "`llama.embedding_length` is 1073741824"),
        (f().config("num_attention_heads", json!(0)), "`llama.attention.head_count` is 0"),
        (f().config("rms_norm_eps", json!("small")), "`rms_norm_eps` should be a number"),
        (f().config("hidden_size", json!(128)), "should be [260, 128], but is [260, 64]"),
        (f().config("num_hidden_layers", json!(2)), "lacks the tensor `model.layers.1.input_layernorm.weight`"),
        (f().config("tie_word_embeddings", json!(false)), "lacks the tensor `lm_head.weight`"),
        (f().config("rope_scaling", json!({ "rope_type": "yarn" })), "rope scaling `yarn`"),
        (f().config("rope_scaling", json!(3)), "`rope_scaling` should be an object"),
        (scaling("factor", json!(0)), "`rope_scaling.factor` should be a positive number, but is 0"),
        (scaling("factor", json!(8)), "lacks the key `rope_scaling.original_max_position_embeddings`"),
        (scaling("original_max_position_embeddings", json!(1e-320)), "should be a positive number"),
        (
            scaling("original_max_position_embeddings", json!(8)).config("bos_token_id", json!(-1)),
            "`bos_token_id` should be a token's number",
        ),
        (f().config("eos_token_id", json!([300])), "the special token `300` is not in the vocabulary"),
        (f().without(embed), "lacks the tensor `model.embed_tokens.weight`"),
        (f().tensor(embed, "U8", &[260, 64], vec![0; 260 * 64]), "has type U8, which is not supported"),
        (f().tensor(embed, "U32", &[260, 8], vec![0; 260 * 32]), "has type U32, which is not supported"),
        (f().tensor("model.norm.weight", "U8", &[64], vec![0; 64]), "should be [64] of F32, F16 or BF16, but is [64] of U8"),
        (small(true).tensor(embed, "U32", &[260, 7], vec![0; 260 * 28]), "words of whole groups of 64"),
        (small(true).tensor(embed, "U32", &[260 * 8], vec![0; 260 * 32]), "should be a matrix"),
        (small(true).tensor("model.embed_tokens.scales", "BF16", &[260, 2], vec![0; 1040]), "should be one float a group, but is [260, 2]"),
        (small(true).tensor("model.embed_tokens.biases", "F32", &[260, 1], vec![0; 1040]), "should be one float a group"),
        (small(true).without("model.embed_tokens.biases"), "has type U32"),
        (f().tokenizer("/model/type", json!("Unigram")), "tokenizer model `Unigram`"),
        (f().tokenizer("/normalizer", json!({ "type": "NFC" })), "normaliser `NFC`"),
        (f().tokenizer("/pre_tokenizer", json!({ "type": "Metaspace" })), "pre-tokenizer"),
        (f().tokenizer("/pre_tokenizer/add_prefix_space", json!(true)), "pre-tokenizer"),
        (f().tokenizer("/model/merges", json!(["h x"])), "merge 0, `h x`, does not join two pieces to a third"),
        (f().tokenizer("/model/merges", json!(["he"])), "merge 0, `he`"),
        (f().tokenizer("/model/merges", json!([["h"]])), "tokenizer.json is not understood"),
        (f().tokenizer("/model/vocab/he", json!(u32::MAX)), "numbers below 2097152 are possible"),
        (f().tokenizer("/model/vocab/he", json!(1000)), "it has 1001 tokens, the model's embedding 260"),
        (f().tokenizer("/model/vocab/he", json!(65)), "are both piece 65"),
        (f().tokenizer("/model", json!(null)), "tokenizer.json is not understood"),
    ];
    for (folder, expected) in cases {
        let error = folder.open(false).map(drop).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
}

#[test]
fn bad_shards_get_clear_errors() {
    let norm = |name: &str| vec![(name.to_owned(), "F32", vec![1], vec![0; 4])];
    let cases: [(Value, &str); 8] = [
        (json!({}), "has no `weight_map`"),
        (json!({ "weight_map": {} }), "names no file"),
        (json!({ "weight_map": { "a": "../model.safetensors" } }), "names a file outside the folder"),
        (json!({ "weight_map": { "a": "/etc/passwd" } }), "names a file outside the folder"),
        (json!({ "weight_map": { "a": "." } }), "names a file outside the folder"),
        (json!({ "weight_map": { "a": 3 } }), "names a file outside the folder"),
        (json!({ "weight_map": { "a": "missing.safetensors" } }), "missing.safetensors"),
        (json!({ "weight_map": { "a": "one.safetensors", "b": "two.safetensors" } }), "has the tensor `a` twice"),
    ];
    for (index, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        small(false).write(folder.path(), false);
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("one.safetensors"), safetensors(&norm("a"), false)).unwrap();
        std::fs::write(folder.path().join("two.safetensors"), safetensors(&norm("a"), false)).unwrap();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let error = open(folder.path()).map(drop).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
    let error = open(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
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
        (one("F64", "[1]", "[0,8]"), "tensor `a` has type F64, which is not supported; use a file with one of F32, F16, BF16"),
        (one("\\u001b[2J", "[1]", "[0,8]"), "has type \\u{1b}[2J"),
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
    let shapes: Vec<_> = tensors.iter().map(|(name, view)| (&**name, view.shape().extents().to_vec(), view.bytes().len())).collect();
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
