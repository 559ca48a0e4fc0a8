//! What names bytes at rest: their hash, and where they were when somebody looked.

use driftwood_snapshot::Hash;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// A file of chunks: 64 random bits, written as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u64);

/// A chunk: its name, and where it stands. In JSON: `hash pack at_bytes len_bytes`, with a space between.
///
/// ```
/// use driftwood_store::Chunk;
/// let text = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262 00000000000000ff 4096 0";
/// let chunk: Chunk = text.parse().unwrap();
/// assert_eq!((chunk.pack.0, chunk.at_bytes, chunk.to_string().as_str()), (255, 4096, text));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chunk {
    /// BLAKE3 of its bytes.
    pub hash: Hash,
    /// The file that it is in.
    pub pack: PackId,
    /// Where it begins in that file.
    pub at_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PackId {
    type Err = NotAChunk;
    fn from_str(text: &str) -> Result<PackId, NotAChunk> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if digits { u64::from_str_radix(text, 16).map(PackId).map_err(|_| NotAChunk) } else { Err(NotAChunk) }
    }
}

/// Text that names no chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `hash pack at_bytes len_bytes`")]
pub struct NotAChunk;

impl Chunk {
    /// The place alone, as hints have it.
    pub(crate) fn place(&self) -> String {
        format!("{} {} {}", self.pack, self.at_bytes, self.len_bytes)
    }

    pub(crate) fn at_place(hash: Hash, place: &str) -> Result<Chunk, NotAChunk> {
        let mut words = place.split(' ');
        let mut word = || words.next().ok_or(NotAChunk);
        let (pack, at, len) = (word()?.parse()?, word()?, word()?);
        let number = |text: &str| text.parse::<u64>().ok().filter(|n| n.to_string() == text).ok_or(NotAChunk);
        let chunk = Chunk { hash, pack, at_bytes: number(at)?, len_bytes: number(len)? };
        let ends = chunk.at_bytes.checked_add(chunk.len_bytes).is_some_and(|end| end <= i64::MAX as u64);
        if words.next().is_none() && ends { Ok(chunk) } else { Err(NotAChunk) }
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.hash, self.place())
    }
}

impl FromStr for Chunk {
    type Err = NotAChunk;
    fn from_str(text: &str) -> Result<Chunk, NotAChunk> {
        let (hash, place) = text.split_once(' ').ok_or(NotAChunk)?;
        Chunk::at_place(hash.parse().map_err(|_| NotAChunk)?, place)
    }
}

impl Serialize for Chunk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Chunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Chunk, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
