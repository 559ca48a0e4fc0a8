//! `tokenizer.json`, Hugging Face's tokenizer file, as far as it is byte-level BPE.
//!
//! The file describes a pipeline in general terms; what is known here is what Llama 3, SmolLM2 and their like have in it. Everything else is
//! refused by name, because a step that is passed over would give other tokens.

use super::bpe::{self, Bpe};
use super::pre::Pre;
use super::vocab::{Kind, Vocab};
use super::{Algorithm, Roles, Tokenizer};
use crate::error::Error;
use crate::gguf::printable;
use crate::limits::VOCABULARY_TOKENS_MAX;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;

/// A token as a configuration names it.
#[derive(Clone, Debug)]
pub(crate) enum SpecialToken {
    Number(u32),
    Text(String),
}

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    byte_fallback: bool,
}

/// A merge is a text with a space in it, or a pair.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json`. `bos` and `ends` come from the files beside it; the first of `ends` is what ends a text.
    ///
    /// # Errors
    /// If it is not byte-level BPE, has a step that is not known here, or contradicts itself.
    pub(crate) fn from_json(json: &[u8], bos: Option<SpecialToken>, ends: &[SpecialToken]) -> Result<Tokenizer, Error> {
        let file: File =
            serde_json::from_slice(json).map_err(|e| Error::Tokenizer { why: format!("tokenizer.json is not understood: {e}") })?;
        refuse_unknown(&file)?;
        let vocab = vocab(&file)?;
        let pre = pre(&file)?;
        let merges = file.model.merges.iter().map(|merge| match merge {
            Merge::Text(text) => bpe::halves(text).ok_or(text.as_str()),
            Merge::Pair(left, right) => Ok((left.as_str(), right.as_str())),
        });
        let bpe = Bpe::new(pre, &vocab, merges)?;
        let number = |token: &SpecialToken| number(&vocab, token);
        let (bos, ends) = (bos.as_ref().map(number).transpose()?, ends.iter().map(number).collect::<Result<Vec<_>, _>>()?);
        let (first, last) = around_text(&file.post_processor);
        let is = |token: Option<u32>, text: Option<&str>| token.is_some_and(|t| text == Some(vocab.text(t)));
        let eos = ends.first().copied();
        let roles = Roles { bos, eos, add_bos: is(bos, first), add_eos: is(eos, last), ends };
        Self::new(vocab, Algorithm::Bpe(bpe), roles)
    }
}

fn unsupported(what: &'static str, got: &str, supported: &str) -> Error {
    Error::Unsupported { what, got: printable(got), supported: supported.to_owned() }
}

fn refuse_unknown(file: &File) -> Result<(), Error> {
    let kind = file.model.kind.as_deref().unwrap_or("BPE"); // older files do not say
    if kind != "BPE" || file.model.byte_fallback {
        let got = if kind == "BPE" { "BPE with byte_fallback" } else { kind };
        return Err(unsupported("tokenizer model", got, "byte-level BPE; take a GGUF file for SentencePiece's"));
    }
    match &file.normalizer {
        Value::Null => Ok(()),
        other => Err(unsupported("normaliser", other["type"].as_str().unwrap_or("without a name"), "none")),
    }
}

/// Pieces by number; numbers that nothing has are unused.
fn vocab(file: &File) -> Result<Vocab, Error> {
    let kind = |added: &Added| if added.special { Kind::Control } else { Kind::UserDefined };
    let plain = file.model.vocab.iter().map(|(text, &number)| (number, text.as_str(), Kind::Normal));
    let added = file.added_tokens.iter().map(|a| (a.id, a.content.as_str(), kind(a)));
    let mut pieces: Vec<(&str, Kind)> = Vec::new();
    for (number, text, kind) in plain.chain(added) {
        let index = number as usize;
        if index >= VOCABULARY_TOKENS_MAX {
            return Err(Error::Tokenizer { why: format!("it has a piece {number}; numbers below {VOCABULARY_TOKENS_MAX} are possible") });
        }
        if index >= pieces.len() {
            pieces.resize(index + 1, ("", Kind::Unused));
        }
        let place = &mut pieces[index];
        if place.1 != Kind::Unused && place.0 != text {
            let why = format!("`{}` and `{}` are both piece {number}", printable(place.0), printable(text));
            return Err(Error::Tokenizer { why });
        }
        *place = (text, kind);
    }
    Vocab::from_pieces(&pieces)
}

fn number(vocab: &Vocab, token: &SpecialToken) -> Result<u32, Error> {
    let (found, name): (_, Cow<'_, str>) = match token {
        SpecialToken::Number(n) => (((*n as usize) < vocab.len()).then_some(*n), n.to_string().into()),
        SpecialToken::Text(text) => (vocab.find(text.as_bytes()), text.into()),
    };
    found.ok_or_else(|| Error::Tokenizer { why: format!("the special token `{}` is not in the vocabulary", printable(&name)) })
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizer that the file describes, by the name that GGUF has for it.
fn pre(file: &File) -> Result<&'static Pre, Error> {
    let steps = match &file.pre_tokenizer["pretokenizers"] {
        Value::Array(steps) => steps.as_slice(),
        _ => std::slice::from_ref(&file.pre_tokenizer),
    };
    let is = |step: &Value, kind: &str| step["type"] == kind;
    let bytes = |step: &Value, cuts: bool| {
        is(step, "ByteLevel") && step["add_prefix_space"] != true && step.get("use_regex").is_none_or(|v| *v == true) == cuts
    };
    let name = match steps {
        [all] if bytes(all, true) => Some("gpt-2"),
        [digits, rest] if is(digits, "Digits") && digits["individual_digits"] == true && bytes(rest, true) => Some("smollm"),
        [split, rest] if is(split, "Split") && split["behavior"] == "Isolated" && split["invert"] != true && bytes(rest, false) => {
            match split["pattern"]["Regex"].as_str() {
                Some(LLAMA3) => Some("llama-bpe"),
                Some(QWEN2) => Some("qwen2"),
                _ => None,
            }
        }
        _ => None,
    };
    let supported = "those of GPT-2, SmolLM2, Llama 3 and Qwen2";
    let pre = Pre::named(name.ok_or_else(|| unsupported("pre-tokenizer", &file.pre_tokenizer.to_string(), supported))?)?;
    if pre.whole_words != file.model.ignore_merges {
        return Err(unsupported("ignore_merges", &file.model.ignore_merges.to_string(), "what the pre-tokenizer's own models have"));
    }
    Ok(pre)
}

/// The special tokens that the post-processor puts before and after a text.
fn around_text(processor: &Value) -> (Option<&str>, Option<&str>) {
    let steps = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
    let template = steps.iter().find(|step| step["type"] == "TemplateProcessing");
    let Some(single) = template.and_then(|step| step["single"].as_array()) else { return (None, None) };
    (single.first().and_then(special), single.last().and_then(special))
}

fn special(piece: &Value) -> Option<&str> {
    piece["SpecialToken"]["id"].as_str()
}
