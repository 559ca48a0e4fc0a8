//! `tokenizer.json`, Hugging Face's tokenizer file, as far as it is BPE.
//!
//! The file describes a pipeline in general terms; `steps.rs` knows the steps that the supported families have. Everything else is refused
//! by name, because a step that is passed over would give other tokens. The vocabulary and the merges, nearly all of a file that may have
//! thirty megabytes, are read in place: texts are borrowed, and a merge is looked up while it is read.

use super::bpe::Bpe;
use super::char_bpe::CharBpe;
use super::ranks::{MergeList, Ranks, Repeated};
use super::special::{Order, Specials, Strip};
use super::steps::{self, Cut};
use super::vocab::{Kind, Vocab};
use super::{Algorithm, Found, Roles, Tokenizer, byte_of};
use crate::error::Error;
use crate::gguf::printable;
use crate::limits::VOCABULARY_TOKENS_MAX;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// A token as a configuration names it.
#[derive(Clone, Debug)]
pub enum SpecialToken {
    /// Its number.
    Number(u32),
    /// The text that the vocabulary has for it.
    Text(String),
}

/// What the files beside `tokenizer.json` say about special tokens.
#[derive(Clone, Default, Debug)]
pub struct FolderTokens {
    /// What begins a text, where the post-processor names nothing.
    pub bos: Option<SpecialToken>,
    /// What ends a text or a turn; the first ends a text.
    pub ends: Vec<SpecialToken>,
    /// `add_bos_token`: goes before the post-processor.
    pub add_bos: Option<bool>,
    /// `add_eos_token`, likewise.
    pub add_eos: Option<bool>,
    /// What chat templates call special tokens (`bos_token`, `pad_token`), and their texts.
    pub named: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Model<'a>,
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
struct Model<'a> {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(borrow)]
    vocab: Entries<'a>,
    #[serde(borrow)]
    merges: &'a RawValue, // read when the vocabulary is known
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    byte_fallback: bool,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

impl Added {
    fn kind(&self) -> Kind {
        if self.special { Kind::Control } else { Kind::UserDefined }
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`; `tokens` come from the files beside it.
    ///
    /// # Errors
    /// If it is not BPE, has a step that is not known here, or contradicts itself.
    pub fn from_json(json: &[u8], tokens: &FolderTokens) -> Result<Tokenizer, Error> {
        let text = std::str::from_utf8(json).map_err(|_| Error::Tokenizer { why: "tokenizer.json is not UTF-8".to_owned() })?;
        let file: File = serde_json::from_str(text).map_err(|e| not_understood(&e))?;
        refuse_unknown(&file)?;
        let vocab = vocab(&file)?;
        let ranks = ranks(&file, &vocab)?;
        let whole_words = file.model.ignore_merges;
        let normal = steps::normal(&file.normalizer)?;
        let algorithm = match steps::cut(&file.pre_tokenizer, file.model.byte_fallback)? {
            Cut::Bytes(pre) => Algorithm::Bpe(Bpe::new(pre, whole_words, &vocab, ranks)),
            Cut::Characters(spaces) => Algorithm::CharBpe(CharBpe::new(&vocab, ranks, spaces, whole_words)?),
        };
        let pattern = |added: &Added| if added.normalized { normal.apply(&added.content).into_owned() } else { added.content.clone() };
        let (raw, normalised) = (found(&file, false, &pattern)?, found(&file, true, &pattern)?);
        let roles = roles(&file.post_processor, tokens, &vocab)?;
        Ok(Tokenizer { raw, normal, normalised, algorithm, roles, named: tokens.named.clone(), tokens: vocab.len(), vocab }.with_ends())
    }
}

fn not_understood(error: &serde_json::Error) -> Error {
    Error::Tokenizer { why: format!("tokenizer.json is not understood: {error}") }
}

fn refuse_unknown(file: &File) -> Result<(), Error> {
    let unsupported =
        |what, got: &str, supported: &str| Err(Error::Unsupported { what, got: printable(got), supported: supported.to_owned() });
    let model = &file.model;
    let kind = model.kind.as_deref().unwrap_or("BPE"); // older files do not say
    if kind != "BPE" {
        return unsupported("tokenizer model", kind, "BPE; take a GGUF file for others");
    }
    if model.dropout.is_some_and(|rate| rate != 0.0) {
        return unsupported("option of the tokenizer", "dropout", "none");
    }
    for (name, affix) in
        [("continuing_subword_prefix", &model.continuing_subword_prefix), ("end_of_word_suffix", &model.end_of_word_suffix)]
    {
        if affix.as_ref().is_some_and(|affix| !affix.is_empty()) {
            return unsupported("option of the tokenizer", name, "none");
        }
    }
    match file.added_tokens.iter().find(|added| added.single_word) {
        Some(added) => unsupported("single_word of the added token", &added.content, "added tokens without it"),
        None => Ok(()),
    }
}

/// Pieces by number; numbers that nothing has are unused.
fn vocab(file: &File) -> Result<Vocab, Error> {
    let plain = |text: &str| if file.model.byte_fallback && byte_of(text).is_some() { Kind::Byte } else { Kind::Normal };
    let mut pieces: Vec<(&str, Kind)> = Vec::with_capacity(file.model.vocab.0.len() + file.added_tokens.len());
    for (text, number) in &file.model.vocab.0 {
        place(&mut pieces, *number, text, plain(text))?;
    }
    for added in &file.added_tokens {
        place(&mut pieces, added.id, &added.content, added.kind())?;
    }
    let vocab = Vocab::from_pieces(&pieces)?;
    for added in &file.added_tokens {
        let found = vocab.find(added.content.as_bytes());
        if let Some(other) = found.filter(|&token| token != added.id) {
            let why = format!("the added token `{}` is piece {} and piece {other}", printable(&added.content), added.id);
            return Err(Error::Tokenizer { why });
        }
    }
    Ok(vocab)
}

fn place<'a>(pieces: &mut Vec<(&'a str, Kind)>, number: u32, text: &'a str, kind: Kind) -> Result<(), Error> {
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
    Ok(())
}

/// The added tokens that are found in a text as it is, or after it was normalised, as `pattern` writes them.
fn found(file: &File, normalised: bool, pattern: &impl Fn(&Added) -> String) -> Result<Found, Error> {
    let added: Vec<_> = file.added_tokens.iter().filter(|a| a.normalized == normalised).map(|a| (pattern(a), a)).collect();
    let of = |accepts: &dyn Fn(&Added) -> bool| {
        let accepted = added.iter().filter(|(_, a)| accepts(a));
        Specials::new(Order::Leftmost, accepted.map(|(text, a)| (text.as_str(), a.id, Strip { left: a.lstrip, right: a.rstrip })))
    };
    Ok(Found { user_defined: of(&|a| !a.special)?, all: of(&|_| true)? })
}

/// What stands around a text: the post-processor's tokens, as far as `tokenizer_config.json` does not say otherwise.
fn roles(post_processor: &Value, tokens: &FolderTokens, vocab: &Vocab) -> Result<Roles, Error> {
    let around = steps::around(post_processor)?;
    let number = |token: &SpecialToken| number(vocab, token);
    let before = around.before.map(|n| number(&SpecialToken::Number(n))).transpose()?;
    let after = around.after.map(|n| number(&SpecialToken::Number(n))).transpose()?;
    let (bos, ends) = (tokens.bos.as_ref().map(number).transpose()?, tokens.ends.iter().map(number).collect::<Result<Vec<_>, _>>()?);
    let eos = after.or_else(|| ends.first().copied());
    let (add_bos, add_eos) = (tokens.add_bos.unwrap_or(before.is_some()), tokens.add_eos.unwrap_or(after.is_some()));
    Ok(Roles { bos: before.or(bos), eos, add_bos, add_eos, ends })
}

fn number(vocab: &Vocab, token: &SpecialToken) -> Result<u32, Error> {
    let (found, name): (_, Cow<'_, str>) = match token {
        SpecialToken::Number(n) => (((*n as usize) < vocab.len()).then_some(*n), n.to_string().into()),
        SpecialToken::Text(text) => (vocab.find(text.as_bytes()), text.into()),
    };
    found.ok_or_else(|| Error::Tokenizer { why: format!("the special token `{}` is not in the vocabulary", printable(&name)) })
}

/// The vocabulary as it stands in the file.
struct Entries<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vec<(Cow<'de, str>, u32)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of pieces and their numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(text), number)) = map.next_entry()? {
                    if entries.len() == VOCABULARY_TOKENS_MAX {
                        return Err(de::Error::custom(format_args!("more than {VOCABULARY_TOKENS_MAX} pieces")));
                    }
                    entries.push((text, number));
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Reader).map(Entries)
    }
}

/// A string, borrowed from the file unless it is escaped.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Reader).map(Text)
    }
}

/// The merges, looked up while they are read.
fn ranks(file: &File, vocab: &Vocab) -> Result<Ranks, Error> {
    let mut merges = Merges { list: MergeList::default(), vocab, failure: None };
    let read = serde_json::Deserializer::from_str(file.model.merges.get()).deserialize_seq(&mut merges);
    match (read, merges.failure) {
        (_, Some(failure)) => Err(failure),
        (Err(e), None) => Err(not_understood(&e)),
        (Ok(()), None) => Ok(Ranks::new(merges.list, Repeated::Last)),
    }
}

struct Merges<'v> {
    list: MergeList,
    vocab: &'v Vocab,
    failure: Option<Error>,
}

impl Merges<'_> {
    fn keep<E: de::Error>(&mut self, result: Result<(), Error>) -> Result<(), E> {
        result.map_err(|failure| {
            self.failure = Some(failure);
            E::custom("a bad merge")
        })
    }
}

impl<'de> Visitor<'de> for &mut Merges<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut merges: A) -> Result<(), A::Error> {
        while merges.next_element_seed(OneMerge(self))?.is_some() {}
        Ok(())
    }
}

/// One merge: a text with a space in it, or a pair.
struct OneMerge<'m, 'v>(&'m mut Merges<'v>);

impl<'de> DeserializeSeed<'de> for OneMerge<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneMerge<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge: two pieces with a space between them, or a pair")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        let result = self.0.list.push_text(self.0.vocab, text);
        self.0.keep(result)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<(), A::Error> {
        let (Some(Text(left)), Some(Text(right)), None) = (pair.next_element()?, pair.next_element()?, pair.next_element::<IgnoredAny>()?)
        else {
            return Err(de::Error::invalid_length(2, &self));
        };
        let result = self.0.list.push(self.0.vocab, &left, &right);
        self.0.keep(result)
    }
}
