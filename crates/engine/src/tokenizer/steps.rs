//! The steps that a `tokenizer.json` may name: normalisers, pre-tokenizers and post-processors of the supported families.

use super::char_bpe::{Metaspace, Prefix};
use super::normal::{Normal, Step};
use super::pre::Pre;
use crate::error::Error;
use crate::gguf::printable;
use serde_json::Value;

/// How text is cut, and into what.
#[derive(Debug)]
pub(super) enum Cut {
    /// Words of bytes.
    Bytes(&'static Pre),
    /// Characters; without a pre-tokenizer, or with one that only writes spaces.
    Characters(Option<Metaspace>),
}

/// The special tokens around a text.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Around {
    pub(super) before: Option<u32>,
    pub(super) after: Option<u32>,
}

/// The normaliser.
///
/// # Errors
/// If it has a step that is not known here.
pub(super) fn normal(normaliser: &Value) -> Result<Normal, Error> {
    let step = |step: &Value| match (step["type"].as_str(), step["pattern"]["String"].as_str()) {
        (Some("NFC"), _) => Ok(Step::Nfc),
        (Some("Prepend"), _) if step["prepend"] == "▁" => Ok(Step::Prepend),
        (Some("Replace"), Some(" ")) if step["content"] == "▁" => Ok(Step::Spaces),
        _ => Err(unsupported("normaliser", step, "NFC, Prepend of `▁`, Replace of spaces by `▁`, and a Sequence of them")),
    };
    parts(normaliser, "normalizers").iter().map(step).collect::<Result<_, _>>().map(Normal)
}

/// The pre-tokenizer.
///
/// # Errors
/// If it is none of those that the supported families have.
pub(super) fn cut(pre: &Value, byte_fallback: bool) -> Result<Cut, Error> {
    let steps = parts(pre, "pretokenizers");
    let cut =
        if byte_fallback { characters(steps).map(Cut::Characters) } else { bytes(steps).map(Pre::named).transpose()?.map(Cut::Bytes) };
    let supported = if byte_fallback {
        "none, Metaspace and Split at spaces, for a vocabulary with byte_fallback"
    } else {
        "those of GPT-2, SmolLM2, Llama 3, Qwen2, Mistral's tekken and GPT-4o, for a vocabulary of bytes"
    };
    cut.ok_or_else(|| unsupported("pre-tokenizer", pre, supported))
}

/// What the post-processor puts before and after one text.
///
/// # Errors
/// If it is of a kind that is not known here, or puts more than one token on a side.
pub(super) fn around(processor: &Value) -> Result<Around, Error> {
    let refused = |what: &Value| unsupported("post-processor", what, "ByteLevel, and TemplateProcessing with one token a side");
    let mut around = Around::default();
    for step in parts(processor, "processors") {
        match step["type"].as_str() {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") => around = template(step).ok_or_else(|| refused(step))?,
            _ => return Err(refused(step)),
        }
    }
    Ok(around)
}

/// A step by itself, or those of a sequence.
fn parts<'a>(step: &'a Value, list: &str) -> &'a [Value] {
    match (step, &step[list]) {
        (Value::Null, _) => &[],
        (_, Value::Array(steps)) if step["type"] == "Sequence" => steps,
        _ => std::slice::from_ref(step),
    }
}

/// What is refused is shown by its pattern, else by its kind.
fn unsupported(what: &'static str, got: &Value, supported: &str) -> Error {
    let pattern = parts(got, "pretokenizers").iter().find_map(|step| step["pattern"]["Regex"].as_str());
    let shown = pattern.or_else(|| got["type"].as_str()).map_or_else(|| got.to_string(), str::to_owned);
    Error::Unsupported { what, got: printable(&shown), supported: supported.to_owned() }
}

fn characters(steps: &[Value]) -> Option<Option<Metaspace>> {
    match steps {
        [] => Some(None),
        // Gemma: its normaliser leaves no space to split at.
        [split] if split["type"] == "Split" && split["pattern"]["String"] == " " => Some(None),
        [spaces] if spaces["type"] == "Metaspace" && spaces["replacement"] == "▁" => metaspace(spaces).map(Some),
        _ => None,
    }
}

fn metaspace(step: &Value) -> Option<Metaspace> {
    let prefix = match (step["prepend_scheme"].as_str(), step.get("add_prefix_space")) {
        (Some("always"), None) | (None, Some(Value::Bool(true))) | (None, None) => Prefix::Always,
        (Some("first"), None | Some(Value::Bool(true))) => Prefix::AtStart,
        (Some("always"), Some(Value::Bool(true))) => Prefix::Always,
        (Some("never"), None | Some(Value::Bool(false))) | (None, Some(Value::Bool(false))) => Prefix::Never,
        _ => return None,
    };
    Some(Metaspace { prefix, cuts: step["split"] != false })
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The name that GGUF has for a byte-level pre-tokenizer.
fn bytes(steps: &[Value]) -> Option<&'static str> {
    match steps {
        [all] if is_bytes(all, true) => Some("gpt-2"),
        [digits, rest] if digits["type"] == "Digits" && digits["individual_digits"] == true && is_bytes(rest, true) => Some("smollm"),
        [split, rest] if is_whole_split(split) && is_bytes(rest, false) => match split["pattern"]["Regex"].as_str()? {
            LLAMA3 => Some("llama-bpe"),
            QWEN2 => Some("qwen2"),
            TEKKEN => Some("tekken"),
            GPT4O => Some("gpt-4o"),
            _ => None,
        },
        _ => None,
    }
}

fn is_bytes(step: &Value, cuts: bool) -> bool {
    step["type"] == "ByteLevel" && step["add_prefix_space"] != true && step.get("use_regex").is_none_or(|v| *v == true) == cuts
}

/// Whether matches become words. The patterns leave nothing between matches, so that removing it is the same.
fn is_whole_split(step: &Value) -> bool {
    let inverted = step["invert"] == true;
    step["type"] == "Split" && if inverted { step["behavior"] == "Removed" } else { step["behavior"] == "Isolated" }
}

/// The tokens of a template `[special] text [special]`, by the numbers that the template itself gives.
fn template(step: &Value) -> Option<Around> {
    let pieces = step["single"].as_array()?;
    let at = pieces.iter().position(|piece| piece["Sequence"]["id"] == "A")?;
    let token = |side: &[Value]| match side {
        [] => Some(None),
        [piece] => match step["special_tokens"][piece["SpecialToken"]["id"].as_str()?]["ids"].as_array()?.as_slice() {
            [id] => Some(Some(u32::try_from(id.as_u64()?).ok()?)),
            _ => None,
        },
        _ => None,
    };
    Some(Around { before: token(&pieces[..at])?, after: token(&pieces[at + 1..])? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metaspace_schemes_are_read_in_both_dialects() {
        for (step, expected) in [
            (json!({"prepend_scheme": "always", "split": false}), Some((Prefix::Always, false))),
            (json!({"prepend_scheme": "first"}), Some((Prefix::AtStart, true))),
            (json!({"prepend_scheme": "never", "split": true}), Some((Prefix::Never, true))),
            (json!({"add_prefix_space": true}), Some((Prefix::Always, true))),
            (json!({"add_prefix_space": false, "split": false}), Some((Prefix::Never, false))),
            (json!({"prepend_scheme": "first", "add_prefix_space": false}), None),
            (json!({"prepend_scheme": "sometimes"}), None),
        ] {
            assert_eq!(metaspace(&step).map(|m| (m.prefix, m.cuts)), expected, "{step}");
        }
    }

    #[test]
    fn templates_have_one_token_a_side() {
        let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let tokens = json!({"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}});
        let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "special_tokens": tokens});
        for (processor, expected) in [
            (Value::Null, Some((None, None))),
            (json!({"type": "ByteLevel"}), Some((None, None))),
            (template(json!([text])), Some((None, None))),
            (template(json!([bos, text])), Some((Some(1), None))),
            (json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template(json!([text, bos]))]}), Some((None, Some(1)))),
            (template(json!([bos, bos, text])), None),
            (template(json!([bos])), None),
            (template(json!([{"SpecialToken": {"id": "<x>"}}, text])), None),
            (json!({"type": "RobertaProcessing"}), None),
        ] {
            let found = around(&processor).ok().map(|a| (a.before, a.after));
            assert_eq!(found, expected, "{processor}");
        }
    }
}
