//! What a listing says of a head, without the work of reading all of it: the names of chunks are passed over, not parsed and not kept.

use crate::{Error, PAGE_BYTES};
use driftwood_snapshot::SessionState;
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
        let fields: Fields<'_> = serde_json::from_slice(&bytes[line + 1..]).map_err(|e| bad(e.to_string()))?;
        Ok(fields.summary())
    }
}

/// The fields of a head that are looked at.
#[derive(Deserialize)]
struct Fields<'a> {
    guest: Option<GuestFields>,
    #[serde(borrow)]
    sessions: Vec<SessionFields<'a>>,
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
struct SessionFields<'a> {
    handle: u32,
    tokens: u32,
    ids: Vec<ChunkBytes>,
    #[serde(borrow)]
    blocks: Vec<BlockFields<'a>>,
}

/// The pieces of a block, in either spelling of `pieces.rs`.
#[derive(Deserialize)]
#[serde(untagged)]
enum BlockFields<'a> {
    Text(&'a str),
    Pieces(Vec<PieceFields>),
}

#[derive(Deserialize)]
struct PieceFields {
    rows: ChunkBytes,
}

/// Bytes of all pieces. Where a piece does not say its length, it is that of the one before.
fn pieces_bytes(blocks: &[BlockFields<'_>]) -> u64 {
    let (mut sum, mut len_bytes) = (0u64, 0u64);
    for block in blocks {
        match block {
            BlockFields::Text(text) => {
                for piece in text.split(',').filter(|piece| !piece.is_empty()) {
                    let said = piece.split(' ').skip(2).find_map(|word| word.strip_prefix('l')?.parse().ok());
                    len_bytes = said.unwrap_or(len_bytes);
                    sum = sum.saturating_add(len_bytes);
                }
            }
            BlockFields::Pieces(pieces) => sum = pieces.iter().fold(sum, |sum, piece| sum.saturating_add(piece.rows.0)),
        }
    }
    sum
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

impl Fields<'_> {
    fn summary(self) -> Summary {
        let mut summary = Summary::default();
        if let Some(guest) = self.guest {
            let leaves = sum(guest.memory.leaves.iter().flatten());
            summary.bytes = guest.module.0.saturating_add(leaves).saturating_add(u64::from(guest.memory.stored_pages) * PAGE_BYTES as u64);
            summary.model = guest.settings.model;
        }
        for session in &self.sessions {
            summary.tokens += if session.handle < SessionState::KEPT_FROM { u64::from(session.tokens) } else { 0 };
            let rows = pieces_bytes(&session.blocks);
            summary.bytes = summary.bytes.saturating_add(sum(session.ids.iter())).saturating_add(rows);
        }
        summary
    }
}

fn sum<'a>(chunks: impl Iterator<Item = &'a ChunkBytes>) -> u64 {
    chunks.fold(0, |sum, chunk| sum.saturating_add(chunk.0))
}
