//! What a model is, read from its files' heads: for people who ask, and before anything is run.

use crate::config::AttentionPlan;
use crate::model::tokenizer;
use crate::models;
use crate::pass::{AttentionWeights, Gate, Pass};
use crate::rope::Rope;
use crate::source;
use crate::template::{ChatTemplate, TemplateOrigin};
use crate::{Config, Error};
use driftwood_compute::{KvDType, Matrix};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A model as its files describe it.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Its extents, with the family's name.
    pub config: Config,
    /// What the rows of the embedding are multiplied by.
    pub embedding_scale: f32,
    /// What bounds the logits: cap * tanh(logits / cap).
    pub logits_cap: Option<f32>,
    /// Whether something is added to Q, K and V.
    pub attention_biases: bool,
    /// Its kinds of layers: how many there are of each, in the order of their first.
    pub layers: Vec<LayerKind>,
    /// Its tokenizer.
    pub tokenizer: TokenizerDescription,
    /// Where its chat template comes from, or why there is none.
    pub template: String,
    /// How its tensors are stored, the format that takes most bytes first.
    pub formats: Vec<Format>,
    /// Tensors that are in the files and not in the model.
    pub ignored: Vec<String>,
    /// Its files, in the order of its fingerprint.
    pub files: Vec<FileDescription>,
    /// Bytes of keys and values for each token, with each of their types.
    pub kv_bytes_a_token: BTreeMap<String, usize>,
    /// What `generation_config.json` recommends; nothing here follows it but for the tokens that end a turn.
    pub generation: serde_json::Value,
}

/// Layers that are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerKind {
    /// How many there are.
    pub count: usize,
    /// How many positions a token sees, itself included; all if nothing is said.
    pub window: Option<usize>,
    /// What RoPE's frequencies are powers of.
    pub rope_base: f32,
    /// Elements of a head that are turned.
    pub rope_dimensions: usize,
    /// How its context was stretched: `none`, `linear`, `llama3` or `longrope`.
    pub rope_scaling: &'static str,
}

/// A tokenizer, in short.
#[derive(Clone, Debug, Serialize)]
pub struct TokenizerDescription {
    /// Its algorithm.
    pub kind: &'static str,
    /// How many tokens it has; a model may have rows for more.
    pub tokens: usize,
    /// What begins a text, if something does.
    pub begin: Option<String>,
    /// What ends a text.
    pub end: Option<String>,
}

/// Tensors that are stored alike.
#[derive(Clone, Debug, Serialize)]
pub struct Format {
    /// GGML's or safetensors' name of the type, or MLX's bits and groups.
    pub name: String,
    /// How many there are; MLX's scales and biases are part of their tensor.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// A file.
#[derive(Clone, Debug, Serialize)]
pub struct FileDescription {
    /// Its name.
    pub name: String,
    /// How long it is.
    pub bytes: usize,
}

/// One tensor of a container.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    /// What the container calls it.
    pub(crate) name: String,
    /// As [`Format::name`].
    pub(crate) format: String,
    /// With what belongs to it.
    pub(crate) bytes: usize,
    /// Whether it is part of such a model.
    pub(crate) is_known: bool,
}

/// Reads what the model at `path` is: a GGUF file, or a folder as Hugging Face or MLX has it. Its weights are not read.
///
/// # Errors
/// If it is none that this version can run, as [`crate::Model::open`].
pub fn describe(path: &Path) -> Result<Description, Error> {
    let source = source::open(path)?;
    let decoder = models::load(&*source)?;
    let config = decoder.config();
    let tokenizer = tokenizer(&*source, config)?;
    let mut census = Census::default();
    decoder.forward(&mut census);
    let template = source.chat_template().and_then(|t| ChatTemplate::new(t, config.architecture, &tokenizer));
    let text = |token: Option<u32>| token.and_then(|token| tokenizer.token_text(token)).map(str::to_owned);
    let (known, ignored): (Vec<_>, Vec<_>) = source.tensors().into_iter().partition(|tensor| tensor.is_known);
    let own_name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = |(name, view): (String, driftwood_region::View)| {
        let name = if name.is_empty() { own_name.clone().into_owned() } else { name };
        FileDescription { name, bytes: view.bytes().len() }
    };
    Ok(Description {
        embedding_scale: census.embedding_scale,
        logits_cap: census.logits_cap,
        attention_biases: census.biases,
        layers: census.layers,
        tokenizer: TokenizerDescription {
            kind: tokenizer.algorithm(),
            tokens: tokenizer.vocab_len(),
            begin: text(tokenizer.bos().filter(|_| tokenizer.adds_bos())),
            end: text(tokenizer.eos()),
        },
        template: origin(template),
        formats: formats(&known),
        ignored: ignored.into_iter().map(|tensor| tensor.name).collect(),
        files: source.files().into_iter().map(file).collect(),
        kv_bytes_a_token: KvDType::ALL.into_iter().map(|dtype| (dtype.to_string(), config.kv_layout(dtype).token_bytes())).collect(),
        generation: source.generation(),
        config: config.clone(),
    })
}

fn origin(template: Result<ChatTemplate, Error>) -> String {
    match template.as_ref().map(ChatTemplate::origin) {
        Ok(TemplateOrigin::File) => "the model's own".to_owned(),
        Ok(TemplateOrigin::Family(name)) => format!("built in: {name}"),
        Err(error) => error.to_string(),
    }
}

fn formats(tensors: &[StoredTensor]) -> Vec<Format> {
    let mut by_name = BTreeMap::<&str, (usize, usize)>::new();
    for tensor in tensors {
        let (count, bytes) = by_name.entry(&tensor.format).or_default();
        (*count, *bytes) = (*count + 1, *bytes + tensor.bytes);
    }
    let mut formats: Vec<_> =
        by_name.into_iter().map(|(name, (tensors, bytes))| Format { name: name.to_owned(), tensors, bytes }).collect();
    formats.sort_by_key(|format| std::cmp::Reverse(format.bytes));
    formats
}

/// Takes note of what a pass asks for, and runs nothing.
#[derive(Debug, Default)]
struct Census {
    embedding_scale: f32,
    logits_cap: Option<f32>,
    biases: bool,
    layers: Vec<LayerKind>,
}

impl Pass for Census {
    fn embed(&mut self, _: &Matrix, scale: f32) {
        self.embedding_scale = scale;
    }

    fn norm(&mut self, _: &[f32], _: f32) {}

    fn norm_branch(&mut self, _: &[f32], _: f32) {}

    fn attention(&mut self, weights: &AttentionWeights, plan: AttentionPlan, rope: &Rope, _: f32) {
        self.biases |= weights.biases.is_some();
        let kind = LayerKind {
            count: 0,
            window: plan.window,
            rope_base: rope.base(),
            rope_dimensions: 2 * rope.rotated_half(),
            rope_scaling: rope.scaling(),
        };
        let known = self.layers.iter().position(|known| *known == LayerKind { count: known.count, ..kind.clone() });
        let index = known.unwrap_or_else(|| {
            self.layers.push(kind);
            self.layers.len() - 1
        });
        self.layers[index].count += 1;
    }

    fn feed_forward(&mut self, _: &Matrix, _: &Matrix, _: &Matrix, _: Gate) {}

    fn add(&mut self) {}

    fn logits(&mut self, _: &[f32], _: f32, _: &Matrix, cap: Option<f32>) {
        self.logits_cap = cap;
    }
}
