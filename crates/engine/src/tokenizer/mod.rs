//! Text to tokens and back, as a model's GGUF file or `tokenizer.json` (`json.rs`) defines it.
//!
//! A text is first split at special pieces (`special.rs`); what lies between is normalised (`normal.rs`) and encoded by one of three
//! algorithms: byte-level BPE (`bpe.rs`, with its pre-tokenizers in `pre.rs` and `letters.rs`), BPE over characters (`char_bpe.rs`) or
//! SentencePiece by score (`spm.rs`). All join neighbours with `merge.rs`, two by the merges of `ranks.rs`, and look pieces up in `vocab.rs`
//! (hashed by `hash.rs`), which leaves the texts of a GGUF file in its mapping. `json.rs` reads `tokenizer.json`, `steps.rs` the pipeline in it.
//! Tokens of a GGUF file equal llama.cpp's, those of a `tokenizer.json` Hugging Face's.

mod bpe;
mod char_bpe;
mod hash;
mod json;
mod letters;
mod merge;
mod normal;
mod pre;
mod ranks;
mod special;
mod spm;
mod steps;
mod vocab;

pub use json::{FolderTokens, SpecialToken};
pub use vocab::Kind;

use crate::error::Error;
use crate::gguf::{GgufFile, printable};
use crate::limits::ENCODE_BYTES_MAX;
use bpe::Bpe;
use char_bpe::CharBpe;
use merge::Merger;
use normal::Normal;
use special::{Fragment, Order, Specials, Strip};
use spm::Spm;
use std::borrow::Cow;
use vocab::Vocab;

/// What to do about special tokens when encoding.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Special {
    /// Add the tokens that the file asks for at the beginning and the end.
    pub add: bool,
    /// Turn control tokens that are written out in the text into tokens. Never for text that somebody else wrote.
    pub parse: bool,
}

/// Texts of control tokens that end a turn, whatever the file declares.
const END_TEXTS: [&str; 8] = ["<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<eos>", "</s>", "<|end|>"];

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    tokens: usize,     // of the vocabulary, that the model has rows for
    raw: Found,        // in the text as it is
    normal: Normal,    // of what lies between
    normalised: Found, // in what that gives
    algorithm: Algorithm,
    roles: Roles,
    named: Vec<(String, String)>,
}

/// The special pieces that are found at one stage.
#[derive(Debug)]
struct Found {
    user_defined: Specials,
    all: Specials,
}

/// Tokens that begin and end texts, as the file declares them.
#[derive(Debug)]
struct Roles {
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    ends: Vec<u32>,
}

#[derive(Debug)]
enum Algorithm {
    Bpe(Bpe),
    CharBpe(CharBpe),
    Spm(Spm),
}

impl Tokenizer {
    /// Reads a file's tokenizer. Its texts stay in the file's mapping.
    ///
    /// # Errors
    /// If the file has none, an unknown one, or one that contradicts itself.
    pub fn from_gguf(file: &GgufFile) -> Result<Tokenizer, Error> {
        let model = file.string("tokenizer.ggml.model")?;
        let vocab = Vocab::from_gguf(file)?;
        let id = |name: &str| token_key(file, &vocab, name);
        let (bos, eos, unknown) = (id("bos")?, id("eos")?, id("unknown")?);
        let (algorithm, bos_default) = match model {
            "gpt2" => {
                let bpe = Bpe::from_gguf(file, &vocab)?;
                let bos_default = bpe.pre().add_bos;
                (Algorithm::Bpe(bpe), bos_default)
            }
            "llama" => (Algorithm::Spm(Spm::new(file, &vocab, unknown)?), true),
            _ => return Err(Error::Unsupported { what: "tokenizer model", got: printable(model), supported: "gpt2, llama".to_owned() }),
        };
        let roles = Roles {
            bos,
            eos,
            add_bos: file.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_default),
            add_eos: file.optional_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            ends: [eos, id("eot")?, id("eom")?].into_iter().flatten().collect(),
        };
        let text = |token: Option<u32>| token.map_or_else(String::new, |token| vocab.text(token).to_owned());
        let named = [("bos_token", bos), ("eos_token", eos)].map(|(name, token)| (name.to_owned(), text(token)));
        let raw = Found::in_gguf(&vocab, strips_spaces(file)?)?;
        let (normalised, normal) = (Found::nothing()?, Normal::default());
        Ok(Tokenizer { raw, normalised, normal, algorithm, roles, named: named.into(), tokens: vocab.len(), vocab }.with_ends())
    }

    /// The same for a model that has so many rows. Added tokens beyond them (Gemma has one for images) are text like any other.
    ///
    /// # Errors
    /// If another token is beyond them.
    pub(crate) fn with_rows(mut self, rows: usize) -> Result<Tokenizer, Error> {
        let added = |token: u32| matches!(self.vocab.kind(token), Kind::Control | Kind::UserDefined | Kind::Unused);
        let is_beyond = |token: Option<u32>| token.is_some_and(|token| token as usize >= rows);
        if (rows..self.vocab.len()).any(|token| !added(token as u32)) || is_beyond(self.roles.bos) || is_beyond(self.roles.eos) {
            return Err(Error::Tokenizer { why: format!("it has {} tokens, the model's embedding {rows}", self.vocab.len()) });
        }
        for found in [&mut self.raw, &mut self.normalised] {
            found.user_defined.retain(|token| (token as usize) < rows);
            found.all.retain(|token| (token as usize) < rows);
        }
        self.roles.ends.retain(|token| (*token as usize) < rows);
        self.tokens = self.tokens.min(rows);
        Ok(self)
    }

    /// Adds what ends a turn whatever the files declare.
    fn with_ends(mut self) -> Tokenizer {
        let ends = END_TEXTS.iter().filter_map(|text| self.vocab.find(text.as_bytes()));
        self.roles.ends.extend(ends.filter(|&token| self.vocab.kind(token) == Kind::Control));
        self
    }

    /// The tokens of `text`. Takes time in proportion to its length, but for a logarithm.
    ///
    /// # Panics
    /// If the text exceeds 1 GiB.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        assert!(text.len() <= ENCODE_BYTES_MAX, "a text of {} bytes", text.len());
        let mut tokens = Vec::with_capacity(text.len() / 4 + 2);
        if special.add && self.roles.add_bos {
            tokens.extend(self.roles.bos);
        }
        let mut merger = Merger::default();
        let mut after_special = true; // or at the beginning
        self.raw.specials(special).split(text, &mut |fragment| match fragment {
            Fragment::Token(token) => {
                tokens.push(token);
                after_special = true;
            }
            Fragment::Text(raw, raw_start) => {
                self.normalised.specials(special).split(&self.normal.apply(raw), &mut |fragment| match fragment {
                    Fragment::Token(token) => tokens.push(token),
                    Fragment::Text(text, start) => {
                        let place = Place { at_start: raw_start + start == 0, after_special };
                        self.encode_text(text, place, &mut merger, &mut tokens);
                    }
                });
                after_special = false;
            }
        });
        if special.add && self.roles.add_eos {
            tokens.extend(self.roles.eos);
        }
        tokens
    }

    fn encode_text(&self, text: &str, place: Place, merger: &mut Merger, tokens: &mut Vec<u32>) {
        match &self.algorithm {
            Algorithm::Bpe(bpe) => bpe.encode(&self.vocab, text, merger, tokens),
            Algorithm::CharBpe(bpe) => bpe.encode(&self.vocab, text, place.at_start, merger, tokens),
            Algorithm::Spm(spm) => spm.encode(&self.vocab, text, place.after_special, merger, tokens),
        }
    }

    /// The tokens of a chat that a template rendered: special texts are parsed, and there is exactly one BOS if the file asks for one,
    /// whether or not the template wrote it.
    ///
    /// # Panics
    /// As [`Tokenizer::encode`].
    pub fn encode_rendered(&self, rendered: &str) -> Vec<u32> {
        let mut tokens = self.encode(rendered, Special { add: false, parse: true });
        if let Some(bos) = self.roles.bos.filter(|bos| self.roles.add_bos && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        tokens
    }

    /// The bytes of the tokens' pieces, one after the other. They need not be UTF-8 where a character is cut.
    pub fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(tokens.len() * 4);
        for &token in tokens {
            bytes.extend_from_slice(&self.piece(token));
        }
        bytes
    }

    /// The bytes that a token stands for: none for control, unknown and unused ones, and for numbers outside the vocabulary.
    pub fn piece(&self, token: u32) -> Cow<'_, [u8]> {
        let Some(kind) = self.kind(token) else { return Cow::Borrowed(&[]) };
        let text = self.vocab.text(token);
        match (kind, &self.algorithm) {
            (Kind::Control | Kind::Unknown | Kind::Unused, _) => Cow::Borrowed(&[]),
            (Kind::UserDefined, Algorithm::Bpe(_) | Algorithm::Spm(_)) => Cow::Borrowed(text.as_bytes()),
            (Kind::Byte, _) => byte_of(text).map_or(Cow::Borrowed(text.as_bytes()), |byte| Cow::Owned(vec![byte])),
            (Kind::Normal, Algorithm::Bpe(_)) => Cow::Owned(bytes_of(text)),
            (Kind::Normal | Kind::UserDefined, _) if !text.contains(spm::SPACE) => Cow::Borrowed(text.as_bytes()),
            (Kind::Normal | Kind::UserDefined, _) => Cow::Owned(text.replace(spm::SPACE, " ").into_bytes()),
        }
    }

    /// A token as the vocabulary writes it (`<|im_end|>`, `Ġthe`, `▁the`), to show it; `None` outside the vocabulary.
    pub fn token_text(&self, token: u32) -> Option<&str> {
        self.kind(token).map(|_| self.vocab.text(token))
    }

    /// The token that the vocabulary writes as `text`.
    pub fn find(&self, text: &str) -> Option<u32> {
        self.vocab.find(text.as_bytes())
    }

    /// What a token is for; `None` outside the vocabulary.
    pub fn kind(&self, token: u32) -> Option<Kind> {
        ((token as usize) < self.tokens).then(|| self.vocab.kind(token))
    }

    /// Whether a token ends a reply.
    pub fn is_end(&self, token: u32) -> bool {
        self.roles.ends.contains(&token)
    }

    /// The number of tokens in the vocabulary.
    pub fn vocab_len(&self) -> usize {
        self.tokens
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// Whether the file asks for BOS before a text.
    pub fn adds_bos(&self) -> bool {
        self.roles.add_bos && self.roles.bos.is_some()
    }

    /// Its algorithm, in words.
    pub fn algorithm(&self) -> &'static str {
        match &self.algorithm {
            Algorithm::Bpe(_) => "byte-level BPE",
            Algorithm::CharBpe(_) => "BPE of characters",
            Algorithm::Spm(_) => "SentencePiece",
        }
    }

    /// What chat templates call special tokens (`bos_token`, `pad_token`), and their texts.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }
}

/// Where a text stands that is encoded.
#[derive(Clone, Copy)]
struct Place {
    at_start: bool,
    after_special: bool, // or at the start
}

impl Found {
    fn nothing() -> Result<Found, Error> {
        let none = || Specials::new(Order::Leftmost, std::iter::empty());
        Ok(Found { user_defined: none()?, all: none()? })
    }

    /// By the kinds of pieces; `strips_spaces` says that most take the spaces after them.
    fn in_gguf(vocab: &Vocab, strips_spaces: bool) -> Result<Found, Error> {
        let of = |kinds: &[Kind]| {
            let tokens = (0..vocab.len() as u32).filter(|&token| kinds.contains(&vocab.kind(token)));
            Specials::new(
                Order::Longest,
                tokens.map(|token| {
                    let text = vocab.text(token);
                    let right = strips_spaces && !["<unk>", "<s>", "<|endoftext|>"].contains(&text);
                    (text, token, Strip { left: false, right })
                }),
            )
        };
        Ok(Found { user_defined: of(&[Kind::UserDefined])?, all: of(&[Kind::UserDefined, Kind::Control, Kind::Unknown])? })
    }

    fn specials(&self, special: Special) -> &Specials {
        if special.parse { &self.all } else { &self.user_defined }
    }
}

/// Phi-3's special pieces take the spaces after them, which a GGUF file does not say: llama.cpp goes by the model's name, and so do we.
fn strips_spaces(file: &GgufFile) -> Result<bool, Error> {
    let name = file.optional_string("general.name")?.unwrap_or_default().to_ascii_lowercase();
    Ok(name.contains("phi-3") || name.contains("phi3"))
}

fn token_key(file: &GgufFile, vocab: &Vocab, name: &str) -> Result<Option<u32>, Error> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(token) = file.optional_u32(&key)? else { return Ok(None) };
    if token as usize >= vocab.len() {
        return Err(Error::Tokenizer { why: format!("`{key}` is {token}, but there are {} pieces", vocab.len()) });
    }
    Ok(Some(token))
}

/// `<0xNN>` as a byte.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// A byte-level piece as bytes; characters that stand for no byte remain themselves.
fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match bpe::char_to_byte(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}
