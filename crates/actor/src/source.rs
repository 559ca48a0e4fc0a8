//! Where an actor at rest comes from: one portable file, or a head in the state folder with its chunks.

use crate::Error;
use crate::instance::{IMAGE_PAGE_BYTES, Image};
use crate::limits::Limits;
use crate::rest::unthawable;
use crate::runtime::Compiled;
use driftwood_compute::KvDType;
use driftwood_engine::{Model, RestoredBlock, RestoredPiece, RestoredSession, Sampler, Session, SessionOptions, SharedBlock};
use driftwood_region::{DType, Shape, View};
use driftwood_snapshot::{self as snapshot, Global, Manifest, Snapshot};
use driftwood_store::{Chunks, Head, HeadPiece};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// An actor at rest: what its manifest says, and the bytes behind it.
pub(crate) enum Source<'a> {
    File(&'a Snapshot),
    Head { head: &'a Head, manifest: Box<Manifest>, chunks: &'a Chunks },
}

/// What names a block of a source: sessions that name the same one share it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum BlockKey {
    File(u32, u32),                 // pool, index
    Head(u32, Vec<snapshot::Hash>), // pool, pieces
}

/// KV of one session.
pub(crate) struct StoredKv<'a> {
    /// The full blocks.
    pub blocks: Vec<(BlockKey, RestoredBlock)>,
    /// The last rows, if they are packed in one piece.
    pub tail: &'a [u8],
    /// Else the pieces that they are in.
    pub last: Option<RestoredBlock>,
}

impl<'a> Source<'a> {
    pub(crate) fn head(head: &'a Head, chunks: &'a Chunks) -> Source<'a> {
        Source::Head { head, manifest: Box::new(head.manifest()), chunks }
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        match self {
            Source::File(file) => file.manifest(),
            Source::Head { manifest, .. } => manifest,
        }
    }

    /// What was recorded of messages since that state.
    pub(crate) fn journal(&self) -> &[u8] {
        match self {
            Source::File(file) => file.journal().map_or(&[], |view| view.bytes()),
            Source::Head { .. } => &[], // in the folder of journals
        }
    }

    /// The guest's module, verified.
    pub(crate) fn module(&self) -> Result<Arc<[u8]>, Error> {
        match self {
            Source::File(file) => Ok(file.module().ok_or_else(|| unthawable("it has no module"))?.bytes().into()),
            Source::Head { head, chunks, .. } => {
                let guest = head.guest.as_ref().ok_or_else(|| unthawable("it has no guest"))?;
                Ok(chunks.read(&guest.module)?.bytes().into())
            }
        }
    }

    /// Memory and globals, verified, and checked against the module and the limits.
    pub(crate) fn image(&self, guest: &snapshot::Guest, compiled: &Compiled, limits: &Limits) -> Result<Image, Error> {
        let mut image = empty_image(guest, compiled, limits)?;
        let mut add = |page: u32, bytes: &[u8]| {
            if (page as usize + 1) * IMAGE_PAGE_BYTES > image.memory_bytes || bytes.len() != IMAGE_PAGE_BYTES {
                return Err(unthawable("a page lies outside its memory"));
            }
            image.pages.push(page);
            image.bytes.extend_from_slice(bytes);
            Ok(())
        };
        match self {
            Source::File(file) => file.pages().try_for_each(|(page, bytes)| add(page, bytes))?,
            Source::Head { head, chunks, .. } => {
                let pages = head.guest.as_ref().map(|guest| guest.memory.pages(chunks)).transpose()?.unwrap_or_default();
                pages.iter().try_for_each(|(page, chunk)| add(*page, chunks.read(chunk)?.bytes()))?;
            }
        }
        Ok(image)
    }

    /// The token ids of a session, verified.
    pub(crate) fn tokens(&self, session: usize) -> Result<Cow<'a, [u32]>, Error> {
        match self {
            Source::File(file) => Ok(Cow::Borrowed(file.tokens(session))),
            Source::Head { head, chunks, .. } => Ok(Cow::Owned(head.sessions[session].token_ids(chunks)?)),
        }
    }

    /// The KV of a session; blocks that `shared` has are not asked for again.
    pub(crate) fn kv(&self, session: usize, shared: &HashMap<BlockKey, SharedBlock>) -> Result<StoredKv<'a>, Error> {
        let stored = &self.manifest().sessions[session];
        let pool = stored.state.pool;
        let or_shared = |key: BlockKey, block: &dyn Fn() -> Result<RestoredBlock, Error>| {
            let held = shared.get(&key).cloned();
            let block = held.map_or_else(block, |held| Ok(RestoredBlock::Shared(held)))?;
            Ok((key, block))
        };
        match self {
            Source::File(file) => {
                let blocks = stored.blocks.iter().map(|&block| or_shared(BlockKey::File(pool, block), &|| mapped(file, pool, block)));
                let blocks = blocks.collect::<Result<Vec<_>, Error>>()?;
                Ok(StoredKv { blocks, tail: file.tail(session).map_or(&[][..], |view| view.bytes()), last: None })
            }
            Source::Head { head, chunks, .. } => {
                let all = &head.sessions[session].blocks;
                let key = |pieces: &[HeadPiece]| BlockKey::Head(pool, pieces.iter().map(|piece| piece.rows.hash).collect());
                let (full, last) = all.split_at(stored.blocks.len());
                let blocks = full.iter().map(|pieces| or_shared(key(pieces), &|| pieced(pieces, chunks)));
                let last = last.first().map(|pieces| in_pieces(pieces, chunks)).transpose()?;
                Ok(StoredKv { blocks: blocks.collect::<Result<_, Error>>()?, tail: &[], last })
            }
        }
    }
}

/// A session of a head on its model, without an actor. KV of whole blocks is verified before the first step, everything else now.
///
/// # Errors
/// If a chunk is missing or altered, or the session does not fit the model.
///
/// # Panics
/// If the head has no such session.
pub fn restore_session(model: &Arc<Model>, head: &Head, index: usize, chunks: &Chunks, kv: KvDType) -> Result<Session, Error> {
    let source = Source::head(head, chunks);
    let (stored, tokens) = (&head.sessions[index], source.tokens(index)?);
    let StoredKv { blocks, tail, last } = source.kv(index, &HashMap::new())?;
    let blocks = blocks.into_iter().map(|(_, block)| block).chain(last).collect();
    let options = SessionOptions { kv, context_max: stored.state.context_max as usize };
    let (evaluated, sampler) = (stored.evaluated as usize, Sampler::from_json(stored.state.sampler.clone())?);
    let numerics = &head.pools[stored.state.pool as usize].numerics;
    Ok(Session::restore(model, RestoredSession { options, tokens: &tokens, evaluated, blocks, tail, sampler, numerics })?)
}

/// A block of a file.
fn mapped(file: &Snapshot, pool: u32, block: u32) -> Result<RestoredBlock, Error> {
    let stored = &file.manifest().pools[pool as usize];
    let block_bytes = stored.info.block_bytes as usize;
    let hash = stored.block_hashes.get(block as usize).ok_or_else(|| unthawable("a block has no hash"))?;
    let all = file.blocks(pool as usize).ok_or_else(|| unthawable("a pool has no blocks"))?;
    let shape = Shape::new(&[block_bytes]).expect("one extent");
    let view = View::new(all.region(), all.offset_bytes() + block as usize * block_bytes, DType::U8, shape);
    Ok(RestoredBlock::Mapped { view: view.map_err(|e| unthawable(e.to_string()))?, hash: hash.0 })
}

/// A full block of a head: mapped if it was saved whole.
fn pieced(pieces: &[HeadPiece], chunks: &Chunks) -> Result<RestoredBlock, Error> {
    match pieces {
        [whole] => Ok(RestoredBlock::Mapped { view: chunks.view(&whole.rows)?, hash: whole.rows.hash.0 }),
        pieces => in_pieces(pieces, chunks),
    }
}

fn in_pieces(pieces: &[HeadPiece], chunks: &Chunks) -> Result<RestoredBlock, Error> {
    let piece =
        |piece: &HeadPiece| Ok(RestoredPiece { view: chunks.view(&piece.rows)?, tokens: piece.tokens as usize, hash: piece.rows.hash.0 });
    Ok(RestoredBlock::Pieces(pieces.iter().map(piece).collect::<Result<_, Error>>()?))
}

/// Globals and an empty memory of the size that the source says.
fn empty_image(guest: &snapshot::Guest, compiled: &Compiled, limits: &Limits) -> Result<Image, Error> {
    let memory_bytes = usize::try_from(guest.memory.bytes).unwrap_or(usize::MAX);
    if memory_bytes > limits.memory_bytes {
        return Err(Error::LimitMemory { asked_bytes: memory_bytes, limit_bytes: limits.memory_bytes });
    }
    if memory_bytes < compiled.admitted.memory_bytes || !memory_bytes.is_multiple_of(1 << 16) {
        return Err(unthawable("its memory has no size that its module can have"));
    }
    if guest.memory.stored_page_bytes as usize != IMAGE_PAGE_BYTES {
        return Err(unthawable("its memory has pages of another size than 4096 bytes"));
    }
    let slots = &compiled.admitted.globals;
    let same = |(slot, global): (&crate::admit::GlobalSlot, &Global)| (slot.index, slot.kind) == (global.index, global.kind);
    if slots.len() != guest.state.globals.len() || !slots.iter().zip(&guest.state.globals).all(same) {
        return Err(unthawable("its globals are not those of its module"));
    }
    let globals = guest.state.globals.iter().map(|g| g.bits).collect();
    Ok(Image::new(memory_bytes, globals))
}
