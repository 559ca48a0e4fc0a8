//! A folder as Hugging Face has it: `config.json`, safetensors in one file or in shards, `tokenizer.json`; and MLX's variant, whose
//! weights are groups of few bits.
//!
//! Layout: here opening, and what families ask for; `config.rs` reads `config.json`, `index.rs` the weights, `groups.rs` MLX's
//! quantisation, `names.rs` the names of tensors and keys. Errors name the file and the field.

mod config;
mod groups;
mod index;
pub(crate) mod names;

use crate::config::Config;
use crate::description::StoredTensor;
use crate::error::Error;
use crate::gguf::printable;
use crate::limits::FOLDER_JSON_BYTES_MAX;
use crate::models::Windows;
use crate::rope::{RopeLayers, RopeNumbers, RopePairs};
use crate::safetensors::Tensor;
use crate::source::Source;
use crate::tokenizer::{FolderTokens, SpecialToken, Tokenizer};
use config::FolderConfig;
use driftwood_compute::Matrix;
use driftwood_region::{DType, Region, View};
use groups::Quantisation;
use index::Weights;
use names::Stem;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// A JSON object.
type Object = Map<String, Value>;

/// A mapped folder.
#[derive(Debug)]
pub(crate) struct Folder {
    config: FolderConfig,
    quantisation: Quantisation,
    generation: Object, // empty where there is none
    tokenizer: View,
    tokenizer_config: Object, // empty where there is none
    template: Option<View>,   // UTF-8
    template_json: Object,    // empty where there is none
    stem: Stem,
    weights: Weights,
    files: Vec<(String, View)>,
}

impl Folder {
    /// Maps the folder's files and reads their headers.
    ///
    /// # Errors
    /// If a file is missing or cannot be understood, or if the model is none that is read from a folder.
    pub(crate) fn open(path: &Path) -> Result<Folder, Error> {
        let mut files = Files { path, files: Vec::new() };
        let config = json(config::FILE, &files.needed(config::FILE)?)?;
        let quantisation = Quantisation::read(&config).in_file(config::FILE)?;
        let config = FolderConfig::new(config)?;
        let tokenizer = files.needed("tokenizer.json")?;
        check_json_size(&tokenizer).in_file("tokenizer.json")?;
        let tokenizer_config = files.object("tokenizer_config.json")?;
        let template = files.optional("chat_template.jinja")?;
        if template.as_ref().is_some_and(|t| std::str::from_utf8(t.bytes()).is_err()) {
            return Err(Error::Template { why: "chat_template.jinja is not UTF-8".to_owned() });
        }
        let template_json = files.object("chat_template.json")?;
        let generation = files.object("generation_config.json")?;
        let weights = Weights::open(path)?;
        let files = [files.files, weights.files.clone()].concat();
        let stem = Stem::of(|name| weights.tensors.contains_key(name));
        let folder =
            Folder { config, quantisation, generation, tokenizer, tokenizer_config, template, template_json, stem, weights, files };
        folder.check()?;
        Ok(folder)
    }

    /// What no single file can be wrong about.
    fn check(&self) -> Result<(), Error> {
        let has = |module: &str| self.weights.tensors.contains_key(format!("{module}.weight").as_str());
        if let Some(module) = self.quantisation.stray(|module| has(module) || has(&self.stem.module(module))) {
            let key = format!("{}: quantization.{}", config::FILE, printable(module));
            return Err(Error::KeyType { key, expected: "the name of a module", got: "that of none in the folder".to_owned() });
        }
        let embedding = self.readable("token_embd.weight").ok().map(|(_, view)| view.shape());
        let rows = embedding.filter(|shape| shape.extents().len() == 2).map(|shape| shape.rows());
        match (self.config.u32("vocab_size")?, rows) {
            (Some(said), Some(rows)) if said as usize != rows => {
                let (key, embedding) = (self.config.name("vocab_size"), self.tensor_name("token_embd.weight"));
                Err(Error::KeyType { key, expected: "the rows of the embedding", got: format!("{said}, where {embedding} has {rows}") })
            }
            _ => Ok(()),
        }
    }

    /// The folder's name for a tensor.
    fn own(&self, name: &str) -> String {
        self.stem.own(self.config.family().folder.layer_names, name).unwrap_or_else(|| name.to_owned())
    }

    /// The same, and the tensor.
    fn stored(&self, name: &str) -> Result<(String, &Tensor), Error> {
        let own = self.own(name);
        match self.weights.tensors.get(own.as_str()) {
            Some((tensor, _)) => Ok((own, tensor)),
            None => Err(Error::TensorMissing { tensor: own }).in_file(self.weights.listed_in),
        }
    }

    /// The same of a type that can be read.
    fn readable(&self, name: &str) -> Result<(String, &View), Error> {
        let (own, tensor) = self.stored(name)?;
        match &tensor.opaque {
            None => Ok((own, &tensor.view)),
            Some(dtype) => Err(self.bad_type(name, &printable(dtype))),
        }
    }

    fn bad_type(&self, name: &str, got: &str) -> Error {
        let supported = "F32, F16, BF16, or U32 with MLX's scales and biases".to_owned();
        Error::TensorType { tensor: self.tensor_name(name), got: got.to_owned(), supported }
    }

    /// The part of a module: its scales or biases.
    fn part(&self, module: &str, part: &str) -> Option<&View> {
        self.weights.tensors.get(format!("{module}.{part}").as_str()).map(|(tensor, _)| &tensor.view)
    }

    /// A tensor for people who ask; nothing if it belongs to another.
    fn describe(&self, name: &str) -> Option<StoredTensor> {
        let (tensor, _) = &self.weights.tensors[name];
        let (module, suffix) = name.rsplit_once('.').unwrap_or((name, ""));
        if matches!(suffix, "scales" | "biases") && self.part(module, "weight").is_some() {
            return None;
        }
        let of_groups = |part: &str| self.part(module, part).filter(|_| suffix == "weight").map(|view| view.bytes().len());
        let (format, more_bytes) = match (&tensor.opaque, of_groups("scales"), of_groups("biases")) {
            (Some(dtype), ..) => (printable(dtype), 0),
            (None, Some(scales), Some(biases)) => {
                let groups = self.quantisation.of(&self.stem.modules(module));
                (groups.map_or_else(|| tensor.view.dtype().to_string(), |groups| groups.to_string()), scales + biases)
            }
            _ => (tensor.view.dtype().to_string(), 0),
        };
        let is_part = name != self.own("output.weight") || self.has_tensor("output.weight");
        let is_known = is_part && self.stem.knows(self.config.family().folder.layer_names, name);
        Some(StoredTensor { name: printable(name), format, bytes: tensor.view.bytes().len() + more_bytes, is_known })
    }

    /// The token that a key of `tokenizer_config.json` names, by itself or in an object.
    fn token_text(&self, key: &str) -> Option<&str> {
        let value = self.tokenizer_config.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }

    /// The tokens that files name for some use, then those that they number.
    fn tokens(&self, text_key: &str, number_key: &str) -> Result<Vec<SpecialToken>, Error> {
        let text = self.token_text(text_key).map(|text| SpecialToken::Text(text.to_owned()));
        Ok(text.into_iter().chain(self.token_numbers(number_key)?).collect())
    }

    /// The tokens that a key numbers, in every file that has it: one, or a list.
    fn token_numbers(&self, key: &str) -> Result<Vec<SpecialToken>, Error> {
        let mut all = Vec::new();
        for (file, object) in [(config::FILE, self.config.whole()), ("generation_config.json", &self.generation)] {
            let number = |v: &Value| {
                let number = v.as_u64().and_then(|n| u32::try_from(n).ok());
                number
                    .map(SpecialToken::Number)
                    .ok_or_else(|| wrong_type(&format!("{file}: {key}"), "a token's number, or a list of them", v))
            };
            match object.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Array(numbers)) => all.extend(numbers.iter().map(number).collect::<Result<Vec<_>, _>>()?),
                Some(value) => all.push(number(value)?),
            }
        }
        Ok(all)
    }
}

impl Source for Folder {
    fn architecture(&self) -> Result<&str, Error> {
        Ok(self.config.family().architecture)
    }

    fn key_name(&self, key: &str) -> String {
        self.config.name(names::key(key).unwrap_or(key))
    }

    fn tensor_name(&self, name: &str) -> String {
        let own = self.own(name);
        match self.weights.tensors.get(own.as_str()) {
            Some((_, file)) => format!("{own}` of `{}", self.weights.files[*file].0),
            None => own,
        }
    }

    fn optional_u32(&self, key: &str) -> Result<Option<u32>, Error> {
        names::key(key).map_or(Ok(None), |own| self.config.u32(own))
    }

    fn optional_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        names::key(key).map_or(Ok(None), |own| self.config.f32(own))
    }

    fn is_grouped(&self) -> bool {
        self.quantisation.is_any()
    }

    fn has_tensor(&self, name: &str) -> bool {
        match name {
            "output.weight" => !self.config.is_tied().unwrap_or_default(),
            _ => self.stored(name).is_ok(),
        }
    }

    fn tensor(&self, name: &str) -> Result<&View, Error> {
        self.readable(name).map(|(_, view)| view)
    }

    fn matrix(&self, name: &str) -> Result<Matrix, Error> {
        let (own, weight) = self.readable(name)?;
        let module = own.trim_end_matches(".weight");
        match (weight.dtype(), self.part(module, "scales"), self.part(module, "biases")) {
            (DType::F32 | DType::F16 | DType::BF16, None, None) => Ok(weight.clone().into()),
            (DType::U32, Some(scales), Some(biases)) => {
                let Some(groups) = self.quantisation.of(&self.stem.modules(module)) else {
                    let key = format!("{}: quantization", config::FILE);
                    return Err(Error::KeyType {
                        key,
                        expected: "what the scales in the folder ask for",
                        got: format!("no word on {own}"),
                    });
                };
                groups.matrix(weight, scales, biases).map_err(|(expected, part)| {
                    let found = self.part(module, part).map_or_else(String::new, |view| format!("{:?} of {}", view.shape(), view.dtype()));
                    Error::TensorShape { name: self.tensor_name(name).replacen(".weight", &format!(".{part}"), 1), expected, found }
                })
            }
            (other, ..) => Err(self.bad_type(name, other.name())),
        }
    }

    fn llama_pairs(&self) -> RopePairs {
        RopePairs::Halves
    }

    fn norm_offset(&self) -> f32 {
        self.config.family().folder.norm_offset
    }

    fn rope(&self, config: &Config, layers: RopeLayers, base: f32) -> Result<RopeNumbers, Error> {
        self.config.rope(config, layers, base)
    }

    fn windows(&self, rule: Windows, layers: usize) -> Result<Vec<Option<usize>>, Error> {
        self.config.windows(rule, layers)
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let flag = |key: &str| self.tokenizer_config.get(key).and_then(Value::as_bool);
        let named = self.tokenizer_config.keys().filter(|key| key.ends_with("_token"));
        let tokens = FolderTokens {
            bos: self.tokens("bos_token", "bos_token_id")?.into_iter().next(),
            ends: self.tokens("eos_token", "eos_token_id")?,
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            named: named.filter_map(|key| Some((key.clone(), self.token_text(key)?.to_owned()))).collect(),
        };
        Tokenizer::from_json(self.tokenizer.bytes(), &tokens)
    }

    fn chat_template(&self) -> Result<Option<&str>, Error> {
        if let Some(file) = &self.template {
            return Ok(Some(std::str::from_utf8(file.bytes()).expect("checked when opened")));
        }
        // Some have several; the default one is for chats without tools.
        let own = self.tokenizer_config.get("chat_template").filter(|value| !value.is_null());
        let list = own.and_then(Value::as_array).into_iter().flatten();
        let default = list.into_iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
        let value = default.and_then(|entry| entry.get("template")).or(own).or(self.template_json.get("chat_template"));
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(source)) => Ok(Some(source)),
            Some(other) => Err(wrong_type("tokenizer_config.json: chat_template", "a string, or a list with one named `default`", other)),
        }
    }

    fn files(&self) -> Vec<(String, View)> {
        self.files.clone()
    }

    fn tensors(&self) -> Vec<StoredTensor> {
        self.weights.tensors.keys().filter_map(|name| self.describe(name)).collect()
    }

    fn generation(&self) -> Value {
        Value::Object(self.generation.clone())
    }
}

/// Files of a folder as they are mapped one by one.
struct Files<'a> {
    path: &'a Path,
    files: Vec<(String, View)>,
}

impl Files<'_> {
    fn needed(&mut self, name: &str) -> Result<View, Error> {
        let file = map(self.path, name)?;
        self.files.push((name.to_owned(), file.clone()));
        Ok(file)
    }

    fn optional(&mut self, name: &str) -> Result<Option<View>, Error> {
        self.path.join(name).is_file().then(|| self.needed(name)).transpose()
    }

    /// The object in a file; an empty one where there is no such file.
    fn object(&mut self, name: &str) -> Result<Object, Error> {
        self.optional(name)?.map_or(Ok(Object::new()), |file| json(name, &file))
    }
}

/// Says in an error which file of the folder it is about.
trait InFile<T> {
    fn in_file(self, file: &str) -> Result<T, Error>;
}

impl<T> InFile<T> for Result<T, Error> {
    fn in_file(self, file: &str) -> Result<T, Error> {
        self.map_err(|source| Error::InFile { file: printable(file), source: Box::new(source) })
    }
}

fn wrong_type(key: &str, expected: &'static str, got: &Value) -> Error {
    Error::KeyType { key: key.to_owned(), expected, got: printable(&got.to_string()) }
}

fn map(folder: &Path, name: &str) -> Result<View, Error> {
    let path = folder.join(name);
    let region = Region::map_path(&path).map_err(|source| Error::Open { path, source })?;
    Ok(View::whole(&Arc::new(region))?)
}

fn check_json_size(file: &View) -> Result<(), Error> {
    match file.bytes().len() {
        n if n > FOLDER_JSON_BYTES_MAX => {
            Err(Error::Malformed { why: format!("it has {n} bytes; at most {FOLDER_JSON_BYTES_MAX} are accepted") })
        }
        _ => Ok(()),
    }
}

/// The object in a JSON file.
fn json(name: &str, file: &View) -> Result<Object, Error> {
    let read =
        |file: &View| serde_json::from_slice(file.bytes()).map_err(|e| Error::Malformed { why: format!("it is not understood: {e}") });
    check_json_size(file).and_then(|()| read(file)).in_file(name)
}
