//! From a head to a portable file: everything that it names, in one piece, as `driftwood-snapshot` says. No model is needed for it.

use crate::{Chunks, Error, Head, HeadPiece, HeadSession};
use driftwood_region::View;
use driftwood_snapshot::{self as snapshot, Existing, GuestContents, Hash, PoolInfo, SessionContents, WriteReport};
use std::collections::HashMap;
use std::path::Path;

/// A block with all its rows: mapped, or put together from its pieces.
enum Whole {
    Mapped(View, Hash),
    Assembled(Vec<u8>),
}

impl Whole {
    fn bytes(&self) -> &[u8] {
        match self {
            Whole::Mapped(view, _) => view.bytes(),
            Whole::Assembled(bytes) => bytes,
        }
    }

    fn hash(&self) -> Option<Hash> {
        if let Whole::Mapped(_, hash) = self { Some(*hash) } else { None }
    }
}

impl Head {
    /// Writes the actor as one portable file, with what it was told in messages since. Every chunk is verified on the way.
    ///
    /// # Errors
    /// If a chunk is missing or altered, or the file cannot be written.
    pub fn export(&self, chunks: &Chunks, path: &Path, existing: Existing, journal: &[u8]) -> Result<WriteReport, Error> {
        let mut blocks = Blocks::default();
        for session in &self.sessions {
            blocks.add(session, &self.pools[session.state.pool as usize], chunks)?;
        }
        let ids = self.sessions.iter().map(|session| session.token_ids(chunks)).collect::<Result<Vec<_>, _>>()?;
        let (module, memory) = match &self.guest {
            None => (None, Vec::new()),
            Some(guest) => (Some(chunks.read(&guest.module)?), guest.memory.inflate(chunks)?),
        };
        let pool = |(p, info): (usize, &PoolInfo)| {
            let of_pool = blocks.pools.get(p).map_or(&[][..], Vec::as_slice);
            let blocks = of_pool.iter().map(|b| snapshot::Block { bytes: b.bytes(), hash: b.hash() }).collect();
            snapshot::PoolContents { info: info.clone(), blocks }
        };
        let session = |(s, session): (usize, &HeadSession)| SessionContents {
            state: session.state.clone(),
            tokens: &ids[s],
            evaluated: session.evaluated,
            blocks: blocks.sessions[s].clone(),
            tail: blocks.tails[s].as_deref(),
        };
        let guest = self.guest.as_ref().zip(module.as_ref());
        let contents = snapshot::Contents {
            writer: &self.writer,
            identity: &self.identity,
            guest: guest.map(|(guest, module)| GuestContents { state: guest.state.clone(), module: module.bytes(), memory: &memory }),
            pools: self.pools.iter().enumerate().map(pool).collect(),
            sessions: self.sessions.iter().enumerate().map(session).collect(),
            journal,
            notes: self.notes.clone(),
        };
        Ok(snapshot::write(&contents, path, existing)?)
    }
}

/// All blocks of a head, each once.
#[derive(Default)]
struct Blocks {
    pools: Vec<Vec<Whole>>,
    known: HashMap<(usize, Vec<Hash>), u32>, // (pool, its pieces) -> index in the pool
    sessions: Vec<Vec<u32>>,
    tails: Vec<Option<Vec<u8>>>,
}

impl Blocks {
    fn add(&mut self, session: &HeadSession, pool: &PoolInfo, chunks: &Chunks) -> Result<(), Error> {
        let p = session.state.pool as usize;
        if self.pools.len() <= p {
            self.pools.resize_with(p + 1, Vec::new);
        }
        let full = (session.evaluated / pool.block_tokens) as usize;
        let mut indices = Vec::with_capacity(full);
        for pieces in &session.blocks[..full] {
            let next = self.pools[p].len() as u32;
            let index = *self.known.entry((p, pieces.iter().map(|piece| piece.rows.hash).collect())).or_insert(next);
            if index == next {
                self.pools[p].push(whole(pieces, pool, chunks)?);
            }
            indices.push(index);
        }
        self.sessions.push(indices);
        self.tails.push(session.blocks.get(full).map(|pieces| assemble(pieces, pool, chunks)).transpose()?);
        Ok(())
    }
}

fn whole(pieces: &[HeadPiece], pool: &PoolInfo, chunks: &Chunks) -> Result<Whole, Error> {
    match pieces {
        [one] => Ok(Whole::Mapped(chunks.read(&one.rows)?, one.rows.hash)),
        pieces => Ok(Whole::Assembled(assemble(pieces, pool, chunks)?)),
    }
}

/// Puts the rows of pieces where a block has them.
fn assemble(pieces: &[HeadPiece], pool: &PoolInfo, chunks: &Chunks) -> Result<Vec<u8>, Error> {
    let mut block = vec![0; pool.block_bytes as usize];
    let (row_bytes, block_tokens) = (pool.row_bytes() as usize, pool.block_tokens as usize);
    let mut first = 0;
    for piece in pieces {
        let rows = chunks.read(&piece.rows)?;
        let run_bytes = piece.tokens as usize * row_bytes;
        for (tile, run) in rows.bytes().chunks_exact(run_bytes).take(pool.rows_per_token() as usize).enumerate() {
            block[(tile * block_tokens + first) * row_bytes..][..run_bytes].copy_from_slice(run);
        }
        first += piece.tokens as usize;
    }
    Ok(block)
}

impl crate::HeadMemory {
    /// The whole linear memory, its pages verified.
    ///
    /// # Errors
    /// If a page or a leaf is missing or altered.
    pub fn inflate(&self, chunks: &Chunks) -> Result<Vec<u8>, Error> {
        let mut memory = vec![0; self.bytes as usize];
        for (page, chunk) in self.pages(chunks)? {
            let view = chunks.read(&chunk)?;
            memory[page as usize * crate::PAGE_BYTES..][..crate::PAGE_BYTES].copy_from_slice(view.bytes());
        }
        Ok(memory)
    }
}
