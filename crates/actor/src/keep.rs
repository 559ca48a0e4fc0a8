//! Keeping an actor in the state folder: what is new goes to chunks, and a head names all that it consists of.

use crate::Error;
use crate::desk::lock;
use crate::host::{Host, no_such};
use crate::rest::{FreezeReport, Pools, guest_state};
use driftwood_engine::{Piece, SavedKv, Session, UnsavedRows};
use driftwood_snapshot::{Hash, SessionState};
use driftwood_store::{Chunks, Commit, Head, HeadGuest, HeadMemory, HeadPiece, HeadSession, write_ids};
use std::path::Path;
use std::time::Instant;

impl Host {
    /// Makes an actor durable as a head at `path`: chunks first, then the head in place of the one that was there. The head names the
    /// messages that were handled since the actor was last kept or thawed, and the head of then.
    ///
    /// The report counts what was written; `serialise_ms` ends when the system has all chunks, `sync_ms` when the disk has the head.
    ///
    /// # Errors
    /// If there is no such actor or the disk refuses; the former head stays then.
    pub fn keep(&mut self, name: &str, chunks: &Chunks, path: &Path) -> Result<FreezeReport, Error> {
        let begun = Instant::now();
        let models = self.models.clone();
        let runtime = self.shared_runtime();
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        let (desk, identity, compiled) = (actor.desk.clone(), actor.identity.clone(), actor.compiled.clone());
        let mut commit = chunks.commit()?;
        let (memory, globals) = actor.memory_and_globals(&runtime)?;
        let memory = HeadMemory::write(&commit, &memory)?;
        let module = commit.put(&compiled.module)?;
        let (former, turns) = actor.past.write(chunks, &commit)?;
        let desk = lock(&desk);
        let mut pools = Pools::default();
        let mut saved = Vec::new();
        let mut sessions = Vec::new();
        for (handle, session) in desk.sessions.iter() {
            let kv = save_kv(session, &commit)?;
            sessions.push(head_session(handle, session, pools.of(session), &kv, &commit)?);
            saved.push(kv);
        }
        let (kept, kept_kv) = desk.sessions.save_shelf(&mut pools, &commit)?;
        sessions.extend(kept);
        saved.extend(kept_kv);
        let guest = HeadGuest { state: guest_state(&desk, globals), module, memory };
        let head = Head {
            writer: concat!("driftwood ", env!("CARGO_PKG_VERSION")).to_owned(),
            identity: identity.clone(),
            guest: Some(guest),
            notes: pools.notes(&models, &desk.sessions),
            pools: pools.infos,
            sessions,
            former,
            turns,
            given_up: actor.past.given_up,
        };
        let serialise_ms = begun.elapsed().as_secs_f64() * 1e3;
        commit.seal()?;
        let published = head.publish(path)?;
        saved.into_iter().for_each(SavedKv::note);
        let sync_ms = begun.elapsed().as_secs_f64() * 1e3 - serialise_ms;
        let bytes = commit.written_bytes() + published.bytes;
        let kv_bytes = head.kv_bytes();
        actor.past.kept(head, chunks);
        Ok(FreezeReport { identity, bytes, kv_bytes, serialise_ms, sync_ms })
    }
}

/// Saves what of a session's KV has no chunk yet.
///
/// # Errors
/// If the disk refuses, or the KV cannot be read from a device.
pub fn save_kv(session: &Session, commit: &Commit<'_>) -> Result<SavedKv, Error> {
    let is_kept = |hash: &[u8; 32]| commit.find(Hash(*hash)).is_some();
    session.save_kv(is_kept, |rows: &[UnsavedRows<'_>]| {
        let slices: Vec<_> = rows.iter().map(|rows| rows.slices().collect()).collect();
        Ok(commit.put_all(&slices)?.into_iter().map(|chunk| chunk.hash.0).collect())
    })
}

/// A session as its head has it, once its KV is saved; `pool` is the index of its [`crate::pool_info`].
///
/// # Errors
/// If the disk refuses.
pub fn head_session(handle: u32, session: &Session, pool: u32, kv: &SavedKv, commit: &Commit<'_>) -> Result<HeadSession, Error> {
    let piece = |piece: &Piece| {
        let rows = commit.find(Hash(piece.hash)).ok_or_else(|| Error::Bug { why: "a piece of KV vanished while it was saved".into() })?;
        Ok(HeadPiece { tokens: piece.tokens as u32, rows })
    };
    let blocks = kv.blocks().iter().map(|pieces| pieces.iter().map(piece).collect::<Result<_, Error>>());
    let (context_max, sampler) = (session.context_max() as u32, session.sampler().to_json());
    Ok(HeadSession {
        state: SessionState { handle, pool, context_max, sampler },
        tokens: session.tokens().len() as u32,
        evaluated: session.evaluated() as u32,
        ids: write_ids(commit, session.tokens())?,
        blocks: blocks.collect::<Result<_, Error>>()?,
    })
}
