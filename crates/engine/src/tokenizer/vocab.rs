//! The pieces of a vocabulary, by number and by text.
//!
//! Texts of a GGUF file stay in the mapping: a piece costs four bytes for its place, one for its kind and eight in the hash table, which holds
//! numbers only. The table is seeded at random, so that a file cannot be made to collide.

use super::hash::Secret;
use crate::error::Error;
use crate::gguf::{GgufFile, Span};
use crate::limits::{TOKEN_BYTES_MAX, VOCABULARY_TOKENS_MAX};
use driftwood_region::View;
use std::hash::BuildHasher;

/// What a piece is for, numbered as in GGUF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Ordinary text.
    Normal,
    /// What unknown text becomes.
    Unknown,
    /// Structure (end of text, start of a turn): never found in raw text, decodes to nothing.
    Control,
    /// Text that is always one piece.
    UserDefined,
    /// A place left free.
    Unused,
    /// One byte, written `<0xNN>`.
    Byte,
}

impl Kind {
    fn from_number(number: i128) -> Option<Kind> {
        Some(match number {
            0 | 1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => return None,
        })
    }
}

/// Pieces by number and by text.
#[derive(Debug)]
pub(super) struct Vocab {
    texts: Texts,
    places: Box<[Place]>,
    kinds: Box<[Kind]>,
    table: Box<[Slot]>, // open addressing, at most half full
    secret: Secret,
    longest_bytes: usize,
}

/// Where pieces are written: the mapped file, or memory for a file that escapes them.
#[derive(Debug)]
enum Texts {
    Mapped(View),
    Owned(Box<[u8]>),
}

/// A place of the hash table: 0 is free, else the token + 1 and, above its bits, part of the text's hash, which tells most others apart
/// before their texts are fetched.
type Slot = u32;

const TOKEN_BITS: u32 = (VOCABULARY_TOKENS_MAX as u32).ilog2() + 1;

fn token_in(slot: Slot) -> Option<u32> {
    (slot & ((1 << TOKEN_BITS) - 1)).checked_sub(1)
}

#[derive(Clone, Copy, Debug)]
struct Place {
    offset_bytes: u32, // in the texts
    len_bytes: u16,
}

impl Vocab {
    /// Indexes `tokenizer.ggml.tokens`.
    pub(super) fn from_gguf(file: &GgufFile) -> Result<Vocab, Error> {
        let places = places(file)?;
        let kinds = kinds(file, places.len())?;
        Ok(Self::new(Texts::Mapped(file.view().clone()), places, kinds))
    }

    /// Indexes pieces that stand nowhere as they are meant, by number.
    pub(super) fn from_pieces(pieces: &[(&str, Kind)]) -> Result<Vocab, Error> {
        check_count(pieces.len())?;
        let mut places = Vec::with_capacity(pieces.len());
        let mut texts = Vec::new();
        for (token, (text, _)) in pieces.iter().enumerate() {
            places.push(place(Span { start_bytes: texts.len(), len_bytes: text.len() }, token)?);
            texts.extend_from_slice(text.as_bytes());
        }
        Ok(Self::new(Texts::Owned(texts.into()), places.into(), pieces.iter().map(|(_, kind)| *kind).collect()))
    }

    fn new(texts: Texts, places: Box<[Place]>, kinds: Box<[Kind]>) -> Vocab {
        let mut vocab = Vocab {
            texts,
            kinds,
            table: vec![0; (places.len() * 2).next_power_of_two()].into(),
            secret: Secret::random(),
            longest_bytes: places.iter().map(|p| p.len_bytes.into()).max().unwrap_or(0),
            places,
        };
        for token in 0..vocab.len() as u32 {
            let (slot, tag) = vocab.slot(vocab.bytes(token));
            vocab.table[slot] = tag | (token + 1); // of equal texts the last counts
        }
        vocab
    }

    /// The number of pieces.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of the longest piece.
    pub(super) fn longest_bytes(&self) -> usize {
        self.longest_bytes
    }

    /// A piece's text as the file writes it.
    ///
    /// # Panics
    /// If there is no such piece.
    pub(super) fn text(&self, token: u32) -> &str {
        std::str::from_utf8(self.bytes(token)).expect("checked when the file was parsed")
    }

    /// The same as bytes.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        let place = self.places[token as usize];
        let texts = match &self.texts {
            Texts::Mapped(file) => file.bytes(),
            Texts::Owned(bytes) => bytes,
        };
        &texts[place.offset_bytes as usize..][..place.len_bytes.into()]
    }

    /// What a piece is for.
    ///
    /// # Panics
    /// If there is no such piece.
    pub(super) fn kind(&self, token: u32) -> Kind {
        self.kinds[token as usize]
    }

    /// The piece of exactly this text.
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest_bytes {
            return None;
        }
        token_in(self.table[self.slot(text).0])
    }

    /// Where `text` stands in the table, or the free place where it would, and the tag of its slot.
    fn slot(&self, text: &[u8]) -> (usize, Slot) {
        let (mask, hash) = (self.table.len() - 1, self.secret.hash_one(text));
        let tag = (hash >> 32) as u32 >> TOKEN_BITS << TOKEN_BITS;
        let mut index = hash as usize & mask;
        while let slot = self.table[index]
            && let Some(token) = token_in(slot)
        {
            if slot >> TOKEN_BITS == tag >> TOKEN_BITS && self.bytes(token) == text {
                break;
            }
            index = (index + 1) & mask;
        }
        (index, tag)
    }
}

fn places(file: &GgufFile) -> Result<Box<[Place]>, Error> {
    let mut strings = file.strings("tokenizer.ggml.tokens")?;
    check_count(strings.len())?;
    let mut places = Vec::with_capacity(strings.len());
    while let Some(span) = strings.next_span() {
        places.push(place(span, places.len())?);
    }
    Ok(places.into())
}

fn check_count(count: usize) -> Result<(), Error> {
    match count {
        1..=VOCABULARY_TOKENS_MAX => Ok(()),
        _ => Err(Error::Tokenizer { why: format!("it has {count} pieces; 1 to {VOCABULARY_TOKENS_MAX} are possible") }),
    }
}

fn place(span: Span, token: usize) -> Result<Place, Error> {
    if span.len_bytes > TOKEN_BYTES_MAX {
        return Err(Error::Tokenizer {
            why: format!("piece {token} has {} bytes; at most {TOKEN_BYTES_MAX} are possible", span.len_bytes),
        });
    }
    let offset_bytes = u32::try_from(span.start_bytes)
        .map_err(|_| Error::Tokenizer { why: format!("piece {token} lies beyond the file's first 4 GiB") })?;
    Ok(Place { offset_bytes, len_bytes: span.len_bytes as u16 })
}

fn kinds(file: &GgufFile, count: usize) -> Result<Box<[Kind]>, Error> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let numbers = match file.integers(KEY) {
        Ok(numbers) => numbers,
        Err(Error::KeyMissing { .. }) => return Ok(vec![Kind::Normal; count].into()),
        Err(e) => return Err(e),
    };
    if numbers.len() != count {
        return Err(Error::Tokenizer { why: format!("`{KEY}` has {} entries for {count} pieces", numbers.len()) });
    }
    let kind = |n| Kind::from_number(n).ok_or_else(|| Error::Tokenizer { why: format!("`{KEY}` has the unknown type {n}") });
    numbers.map(kind).collect()
}
