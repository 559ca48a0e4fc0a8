//! A folder as Hugging Face has it: `config.json`, safetensors in one file or in shards, `tokenizer.json`; and MLX's variant, whose
//! weights are 4-bit groups.
//!
//! Llama is the one architecture that is read from a folder. Layout: opening, what families ask for, then the tables of names.

use crate::error::Error;
use crate::gguf::printable;
use crate::limits::{FOLDER_JSON_BYTES_MAX, SHARDS_MAX};
use crate::rope::{Llama3Scaling, RopePairs, llama3_factors};
use crate::safetensors::{self, Tensors};
use crate::source::Source;
use crate::tokenizer::{SpecialToken, Tokenizer};
use driftwood_compute::Matrix;
use driftwood_region::{DType, Region, Shape, View};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Component, Path};
use std::sync::Arc;

/// A JSON object.
type Object = Map<String, Value>;

/// A mapped folder.
#[derive(Debug)]
pub(crate) struct Folder {
    config: Object,
    tokenizer: View,
    tokenizer_config: Object, // empty where there is none
    template: Option<View>,   // UTF-8
    tensors: Tensors,         // under their own names
    files: Vec<View>,
}

impl Folder {
    /// Maps the folder's files and reads their headers.
    ///
    /// # Errors
    /// If a file is missing or cannot be understood, or if the model is none that is read from a folder.
    pub(crate) fn open(path: &Path) -> Result<Folder, Error> {
        let config_file = map(path, "config.json")?;
        let config = object("config.json", &config_file)?;
        check(&config)?;
        let tokenizer = map(path, "tokenizer.json")?;
        let mut files = vec![config_file, tokenizer.clone()];
        let mut optional = |name: &str| -> Result<Option<View>, Error> {
            let file = path.join(name).is_file().then(|| map(path, name)).transpose()?;
            files.extend(file.clone());
            Ok(file)
        };
        let tokenizer_config = match optional("tokenizer_config.json")? {
            Some(file) => object("tokenizer_config.json", &file)?,
            None => Object::new(),
        };
        let template = optional("chat_template.jinja")?;
        if template.as_ref().is_some_and(|t| std::str::from_utf8(t.bytes()).is_err()) {
            return Err(Error::Template { why: "chat_template.jinja is not UTF-8".to_owned() });
        }
        let mut tensors = Tensors::new();
        for name in weight_files(path)? {
            let file = map(path, &name)?;
            for (tensor, view) in safetensors::parse(file.region())? {
                if tensors.insert(tensor.clone(), view).is_some() {
                    return Err(Error::Duplicate { what: "tensor", name: printable(&tensor) });
                }
            }
            files.push(file);
        }
        Ok(Folder { config, tokenizer, tokenizer_config, template, tensors, files })
    }

    /// A value of `config.json`. Newer files keep RoPE's numbers one level down.
    fn value(&self, name: &str) -> Option<&Value> {
        let present = |v: &&Value| !v.is_null();
        let nested = || self.config.get("rope_parameters")?.get(name);
        self.config.get(name).filter(present).or_else(nested).filter(present)
    }

    /// The folder's name for a tensor, and its view.
    fn stored(&self, name: &str) -> Result<(String, &View), Error> {
        let own = tensor_name(name).unwrap_or_else(|| name.to_owned());
        match self.tensors.get(own.as_str()) {
            Some(view) => Ok((own, view)),
            None => Err(Error::TensorMissing { tensor: own }),
        }
    }

    /// A number of RoPE's scaling, positive.
    fn scaling(&self, scaling: &Object, name: &str) -> Result<f64, Error> {
        let key = || format!("rope_scaling.{name}");
        let value = scaling.get(name).ok_or_else(|| Error::KeyMissing { key: key() })?;
        value.as_f64().filter(|x| x.is_normal() && *x > 0.0).ok_or_else(|| wrong_type(&key(), "a positive number", value))
    }

    /// How RoPE is scaled: its name, and the object that holds the numbers.
    fn rope_scaling(&self) -> Result<Option<(&str, &Object)>, Error> {
        let Some(value) = ["rope_scaling", "rope_parameters"].into_iter().find_map(|k| self.config.get(k).filter(|v| !v.is_null())) else {
            return Ok(None);
        };
        let scaling = value.as_object().ok_or_else(|| wrong_type("rope_scaling", "an object", value))?;
        let Some(kind) = scaling.get("rope_type").or_else(|| scaling.get("type")) else { return Ok(None) };
        let kind = kind.as_str().ok_or_else(|| wrong_type("rope_scaling.rope_type", "a string", kind))?;
        Ok((kind != "default").then_some((kind, scaling)))
    }

    /// The token that a key of `tokenizer_config.json` names.
    fn token_text(&self, key: &str) -> Option<SpecialToken> {
        let value = self.tokenizer_config.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(|text| SpecialToken::Text(text.to_owned()))
    }

    /// The tokens that a key of `config.json` numbers: one, or a list.
    fn token_numbers(&self, key: &str) -> Result<Vec<SpecialToken>, Error> {
        let number = |v: &Value| {
            let number = v.as_u64().and_then(|n| u32::try_from(n).ok());
            number.map(SpecialToken::Number).ok_or_else(|| wrong_type(key, "a token's number, or a list of them", v))
        };
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(numbers)) => numbers.iter().map(number).collect(),
            Some(value) => Ok(vec![number(value)?]),
        }
    }
}

impl Source for Folder {
    fn architecture(&self) -> Result<&str, Error> {
        Ok(ARCHITECTURE)
    }

    fn optional_u32(&self, key: &str) -> Result<Option<u32>, Error> {
        let Some((name, value)) = key_name(key).and_then(|name| Some((name, self.value(name)?))) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.map(Some).ok_or_else(|| wrong_type(name, "an integer of 32 bits", value))
    }

    fn optional_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some((name, value)) = key_name(key).and_then(|name| Some((name, self.value(name)?))) else { return Ok(None) };
        value.as_f64().map(|x| Some(x as f32)).ok_or_else(|| wrong_type(name, "a number", value))
    }

    fn optional_string(&self, key: &str) -> Result<Option<&str>, Error> {
        // Llama 3's scaling is `rope_factors`; another one is for the family to refuse.
        let kind = if key == "llama.rope.scaling.type" { self.rope_scaling()?.map(|(kind, _)| kind) } else { None };
        Ok(kind.filter(|kind| *kind != "llama3"))
    }

    fn missing(&self, key: &str) -> Error {
        Error::KeyMissing { key: key_name(key).unwrap_or(key).to_owned() }
    }

    fn has_tensor(&self, name: &str) -> bool {
        match (name, self.value("tie_word_embeddings")) {
            ("output.weight", Some(tied)) => *tied == Value::Bool(false),
            _ => self.stored(name).is_ok(),
        }
    }

    fn tensor(&self, name: &str) -> Result<&View, Error> {
        self.stored(name).map(|(_, view)| view)
    }

    fn matrix(&self, name: &str) -> Result<Matrix, Error> {
        let (own, weight) = self.stored(name)?;
        let part = |part: &str| self.tensors.get(format!("{}.{part}", own.trim_end_matches(".weight")).as_str());
        match (weight.dtype(), part("scales"), part("biases")) {
            (DType::F32 | DType::F16 | DType::BF16, None, None) => Ok(weight.clone().into()),
            (DType::U32, Some(scales), Some(biases)) => grouped(&own, weight, scales, biases),
            (other, ..) => {
                let supported = "F32, F16, BF16, or U32 with MLX's scales and biases".to_owned();
                Err(Error::TensorType { tensor: own, got: other.to_string(), supported })
            }
        }
    }

    fn llama_pairs(&self) -> RopePairs {
        RopePairs::Halves
    }

    fn rope_factors(&self, base: f32, head_dim: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(("llama3", scaling)) = self.rope_scaling()? else { return Ok(None) };
        let scaling = Llama3Scaling {
            factor: self.scaling(scaling, "factor")?,
            low_freq_factor: self.scaling(scaling, "low_freq_factor")?,
            high_freq_factor: self.scaling(scaling, "high_freq_factor")?,
            original_context: self.scaling(scaling, "original_max_position_embeddings")?,
        };
        if scaling.low_freq_factor >= scaling.high_freq_factor {
            let key = "rope_scaling.low_freq_factor (must be below high_freq_factor)".to_owned();
            return Err(Error::ConfigOutOfRange { key, value: scaling.low_freq_factor, max: scaling.high_freq_factor });
        }
        Ok(Some(llama3_factors(head_dim, base, &scaling)))
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        check_json_size("tokenizer.json", &self.tokenizer)?;
        let bos = self.token_text("bos_token").into_iter().chain(self.token_numbers("bos_token_id")?).next();
        let ends: Vec<_> = self.token_text("eos_token").into_iter().chain(self.token_numbers("eos_token_id")?).collect();
        Tokenizer::from_json(self.tokenizer.bytes(), bos, &ends)
    }

    fn chat_template(&self) -> Result<Option<&str>, Error> {
        let file = self.template.as_ref().map(|t| std::str::from_utf8(t.bytes()).expect("checked when opened"));
        match self.tokenizer_config.get("chat_template").filter(|v| !v.is_null()) {
            None => Ok(file),
            Some(Value::String(source)) => Ok(Some(source)),
            Some(other) => Err(wrong_type("chat_template", "a string", other)),
        }
    }

    fn files(&self) -> Vec<View> {
        self.files.clone()
    }
}

/// Refuses what no family here computes.
fn check(config: &Object) -> Result<(), Error> {
    let unsupported = |what, got: &Value, supported: &str| {
        let got = got.as_str().map_or_else(|| got.to_string(), str::to_owned);
        Err(Error::Unsupported { what, got: printable(&got), supported: supported.to_owned() })
    };
    let get = |key: &str| config.get(key).unwrap_or(&Value::Null);
    if get("model_type") != ARCHITECTURE {
        return unsupported("architecture of a folder", get("model_type"), "llama; take a GGUF file for the others");
    }
    if !get("hidden_act").is_null() && get("hidden_act") != "silu" {
        return unsupported("activation", get("hidden_act"), "silu");
    }
    for key in ["attention_bias", "mlp_bias"] {
        if get(key) == true {
            return unsupported("bias", &Value::String(key.to_owned()), "files without it");
        }
    }
    let mlx = get("quantization");
    if mlx.is_null() && !get("quantization_config").is_null() {
        return unsupported("quantisation", &get("quantization_config")["quant_method"], "MLX's affine groups");
    }
    let affine = mlx.get("mode").is_none_or(|mode| mode == "affine");
    if !mlx.is_null() && (mlx["bits"] != 4 || mlx["group_size"] != Matrix::GROUP || !affine) {
        return unsupported("quantisation", mlx, "affine, 4 bits, groups of 64");
    }
    Ok(())
}

/// MLX's three tensors as one matrix.
fn grouped(name: &str, words: &View, scales: &View, biases: &View) -> Result<Matrix, Error> {
    let &[rows, row_words] = words.shape().extents() else { return Err(wrong_shape(name, words, "a matrix")) };
    let shape = row_words.checked_mul(8).and_then(|len| Shape::new(&[rows, len])).filter(|s| s.row_len().is_multiple_of(Matrix::GROUP));
    let shape = shape.ok_or_else(|| wrong_shape(name, words, "words of whole groups of 64"))?;
    for view in [scales, biases] {
        let floats = matches!(view.dtype(), DType::F32 | DType::F16 | DType::BF16) && view.dtype() == scales.dtype();
        if !floats || view.shape().extents() != [rows, shape.row_len() / Matrix::GROUP] {
            return Err(wrong_shape(&format!("{name}, its scales or biases"), view, "one float a group"));
        }
    }
    let weight = View::new(words.region(), words.offset_bytes(), DType::U4, shape)?;
    Ok(Matrix::grouped(weight, scales.clone(), biases.clone()))
}

fn wrong_shape(name: &str, view: &View, expected: &str) -> Error {
    let found = format!("{:?} of {}", view.shape(), view.dtype());
    Error::TensorShape { name: name.to_owned(), expected: expected.to_owned(), found }
}

fn wrong_type(key: &str, expected: &'static str, got: &Value) -> Error {
    Error::KeyType { key: key.to_owned(), expected, got: printable(&got.to_string()) }
}

/// The names of the files that hold the weights, sorted.
fn weight_files(folder: &Path) -> Result<BTreeSet<String>, Error> {
    const INDEX: &str = "model.safetensors.index.json";
    const WHOLE: &str = "model.safetensors";
    if folder.join(WHOLE).is_file() || !folder.join(INDEX).is_file() {
        return Ok([WHOLE.to_owned()].into());
    }
    let index = object(INDEX, &map(folder, INDEX)?)?;
    let malformed = |why: &str| Error::Malformed { why: format!("{INDEX} {why}") };
    let places = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| malformed("has no `weight_map`"))?;
    let mut names = BTreeSet::new();
    for place in places.values() {
        let name = place.as_str().filter(|name| is_plain(name)).ok_or_else(|| malformed("names a file outside the folder"))?;
        names.insert(name.to_owned());
    }
    match names.len() {
        0 => Err(malformed("names no file")),
        n if n > SHARDS_MAX => Err(Error::TooMany { what: "shards", got: n as u64, max: SHARDS_MAX as u64 }),
        _ => Ok(names),
    }
}

/// Whether a name is a file's in the folder itself.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

fn map(folder: &Path, name: &str) -> Result<View, Error> {
    let path = folder.join(name);
    let region = Region::map_path(&path).map_err(|source| Error::Open { path, source })?;
    Ok(View::whole(&Arc::new(region))?)
}

fn check_json_size(name: &str, file: &View) -> Result<(), Error> {
    match file.bytes().len() {
        n if n > FOLDER_JSON_BYTES_MAX => {
            Err(Error::Malformed { why: format!("{name} has {n} bytes; at most {FOLDER_JSON_BYTES_MAX} are accepted") })
        }
        _ => Ok(()),
    }
}

fn object(name: &str, file: &View) -> Result<Object, Error> {
    check_json_size(name, file)?;
    serde_json::from_slice(file.bytes()).map_err(|e| Error::Malformed { why: format!("{name} is not understood: {e}") })
}

/// The one family that folders are read for.
const ARCHITECTURE: &str = "llama";

/// GGUF's keys, after `llama.`, and those of `config.json`.
const KEYS: [(&str, &str); 9] = [
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
];

/// GGUF's tensors and a folder's, less `.weight`.
const TENSORS: [(&str, &str); 3] = [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The same within a layer: `blk.N.` and `model.layers.N.`.
const LAYER_TENSORS: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

fn key_name(key: &str) -> Option<&'static str> {
    let key = key.strip_prefix(ARCHITECTURE)?.strip_prefix('.')?;
    KEYS.iter().find(|(gguf, _)| *gguf == key).map(|(_, own)| *own)
}

fn tensor_name(name: &str) -> Option<String> {
    let find = |table: &[(&str, &'static str)], name: &str| table.iter().find(|(gguf, _)| *gguf == name).map(|(_, own)| *own);
    let (stem, suffix) = name.rsplit_once('.')?;
    match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => Some(format!("model.layers.{layer}.{}.{suffix}", find(&LAYER_TENSORS, part)?)),
        None => Some(format!("{}.{suffix}", find(&TENSORS, stem)?)),
    }
}
