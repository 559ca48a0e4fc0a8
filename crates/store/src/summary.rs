//! What a listing says of a head, without the work of reading all of it: the names of chunks are passed over, not parsed and not kept.

use crate::{Error, PAGE_BYTES};
use serde::{Deserialize, Deserializer, de};
use std::path::Path;

/// A head in a few words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The model of the guest's setting `model`.
    pub model: Option<String>,
    /// Tokens of all sessions.
    pub tokens: u64,
    /// Bytes that it names, pages of memory included: of chunks that others name, too, all of them.
    pub bytes: u64,
}

impl Summary {
    /// Reads what a listing needs. The head's own hash is not checked: who wakes the actor does that.
    ///
    /// # Errors
    /// [`Error::BadHead`] if it is no head, or if it cannot be read.
    pub fn read(path: &Path) -> Result<Summary, Error> {
        let bytes = std::fs::read(path).map_err(|e| Error::system("read", path, e))?;
        let bad = |why: String| Error::BadHead { path: path.to_owned(), why };
        let line = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| bad("it is no head".into()))?;
        let fields: Fields = serde_json::from_slice(&bytes[line + 1..]).map_err(|e| bad(e.to_string()))?;
        Ok(fields.summary())
    }
}

/// The fields of a head that are looked at.
#[derive(Deserialize)]
struct Fields {
    guest: Option<GuestFields>,
    sessions: Vec<SessionFields>,
}

#[derive(Deserialize)]
struct GuestFields {
    settings: SettingsFields,
    module: ChunkBytes,
    memory: MemoryFields,
}

#[derive(Deserialize)]
struct SettingsFields {
    model: Option<String>,
}

#[derive(Deserialize)]
struct MemoryFields {
    stored_pages: u32,
    leaves: Vec<Option<ChunkBytes>>,
}

#[derive(Deserialize)]
struct SessionFields {
    tokens: u32,
    ids: Vec<ChunkBytes>,
    blocks: Vec<Vec<PieceFields>>,
}

#[derive(Deserialize)]
struct PieceFields {
    rows: ChunkBytes,
}

/// The length of a chunk: the last word of its text.
struct ChunkBytes(u64);

impl<'de> Deserialize<'de> for ChunkBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ChunkBytes, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        let last = text.rsplit(' ').next().and_then(|word| word.parse().ok());
        last.map(ChunkBytes).ok_or_else(|| de::Error::custom(crate::NotAChunk))
    }
}

impl Fields {
    fn summary(self) -> Summary {
        let mut summary = Summary::default();
        if let Some(guest) = self.guest {
            let leaves = sum(guest.memory.leaves.iter().flatten());
            summary.bytes = guest.module.0.saturating_add(leaves).saturating_add(u64::from(guest.memory.stored_pages) * PAGE_BYTES as u64);
            summary.model = guest.settings.model;
        }
        for session in &self.sessions {
            summary.tokens += u64::from(session.tokens);
            let rows = sum(session.blocks.iter().flatten().map(|piece| &piece.rows));
            summary.bytes = summary.bytes.saturating_add(sum(session.ids.iter())).saturating_add(rows);
        }
        summary
    }
}

fn sum<'a>(chunks: impl Iterator<Item = &'a ChunkBytes>) -> u64 {
    chunks.fold(0, |sum, chunk| sum.saturating_add(chunk.0))
}
