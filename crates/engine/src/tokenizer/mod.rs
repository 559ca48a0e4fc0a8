//! Text to tokens and back, as a model's GGUF file or `tokenizer.json` (`json.rs`) defines it.
//!
//! A text is first split at special pieces (`special.rs`); what lies between is encoded by one of two algorithms: byte-level BPE
//! (`bpe.rs`, with its pre-tokenizers in `pre.rs` and `letters.rs`) or SentencePiece by score (`spm.rs`). Both join neighbours with
//! `merge.rs` and look pieces up in `vocab.rs` (hashed by `hash.rs`), which leaves the texts of a GGUF file in its mapping. Tokens equal llama.cpp's.

mod bpe;
mod hash;
mod json;
mod letters;
mod merge;
mod pre;
mod special;
mod spm;
mod vocab;

pub use vocab::Kind;

pub(crate) use json::SpecialToken;

use crate::error::Error;
use crate::gguf::{GgufFile, printable};
use crate::limits::ENCODE_BYTES_MAX;
use bpe::Bpe;
use merge::Merger;
use special::{Fragment, Specials};
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
    algorithm: Algorithm,
    user_defined: Specials,
    all_special: Specials,
    roles: Roles,
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
        Self::new(vocab, algorithm, roles)
    }

    fn new(vocab: Vocab, algorithm: Algorithm, mut roles: Roles) -> Result<Tokenizer, Error> {
        roles.ends.extend(END_TEXTS.iter().filter_map(|text| vocab.find(text.as_bytes())).filter(|&t| vocab.kind(t) == Kind::Control));
        Ok(Tokenizer {
            user_defined: Specials::new(&vocab, &[Kind::UserDefined])?,
            all_special: Specials::new(&vocab, &[Kind::UserDefined, Kind::Control, Kind::Unknown])?,
            vocab,
            algorithm,
            roles,
        })
    }

    /// The tokens of `text`. Takes time in proportion to its length, but for a logarithm.
    ///
    /// # Panics
    /// If the text exceeds 1 GiB.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        assert!(text.len() <= ENCODE_BYTES_MAX, "a text of {} bytes", text.len());
        let mut tokens = Vec::with_capacity(text.len() / 4 + 2);
        let mut merger = Merger::default();
        let mut first = true;
        if special.add && self.roles.add_bos {
            tokens.extend(self.roles.bos);
        }
        let specials = if special.parse { &self.all_special } else { &self.user_defined };
        specials.split(&self.vocab, text, &mut |fragment| match fragment {
            Fragment::Token(token) => {
                tokens.push(token);
                first = true;
            }
            Fragment::Text(text) => {
                match &self.algorithm {
                    Algorithm::Bpe(bpe) => bpe.encode(&self.vocab, text, &mut merger, &mut tokens),
                    Algorithm::Spm(spm) => spm.encode(&self.vocab, text, first, &mut merger, &mut tokens),
                }
                first = false;
            }
        });
        if special.add && self.roles.add_eos {
            tokens.extend(self.roles.eos);
        }
        tokens
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
            (Kind::UserDefined, _) => Cow::Borrowed(text.as_bytes()),
            (Kind::Byte, _) => byte_of(text).map_or(Cow::Borrowed(text.as_bytes()), |byte| Cow::Owned(vec![byte])),
            (Kind::Normal, Algorithm::Spm(_)) if !text.contains(spm::SPACE) => Cow::Borrowed(text.as_bytes()),
            (Kind::Normal, Algorithm::Spm(_)) => Cow::Owned(text.replace(spm::SPACE, " ").into_bytes()),
            (Kind::Normal, Algorithm::Bpe(_)) => Cow::Owned(bytes_of(text)),
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
        ((token as usize) < self.vocab.len()).then(|| self.vocab.kind(token))
    }

    /// Whether a token ends a reply.
    pub fn is_end(&self, token: u32) -> bool {
        self.roles.ends.contains(&token)
    }

    /// The number of tokens in the vocabulary.
    pub fn vocab_len(&self) -> usize {
        self.vocab.len()
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
