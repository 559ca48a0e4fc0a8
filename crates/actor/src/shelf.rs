//! The shelf: KV of sessions that are no longer open, kept for the day when their actor goes back to the model that computed it.
//!
//! A session that is closed because its actor left the model goes to the shelf. When a later session on that model is to prefill the same
//! first tokens it shares that KV instead; with the end of that message the generation leaves the shelf. At rest a generation stands among
//! the sessions, under a handle that no guest can have, and its model need not be there until the KV is asked for.

use crate::Error;
use crate::abi::Refused;
use crate::desk::Desk;
use crate::keep::head_session;
use crate::limits::KV_GENERATIONS_MAX;
use crate::models::Models;
use crate::rest::{Pools, live_dtype, pool_info, unthawable};
use crate::sessions::Sessions;
use crate::source::{Source, StoredKv};
use crate::{LogLevel, save_kv};
use driftwood_compute::KV_BLOCK_TOKENS;
use driftwood_engine::{Model, RestoredBlock, RestoredPiece, RestoredSession, Sampler, SamplerParams, SavedKv, Session, SessionOptions};
use driftwood_snapshot::{Hash, PoolInfo, SessionState};
use driftwood_store::{Commit, HeadPiece, HeadSession, write_ids};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Tokens of a piece of KV in the store.
const PIECE_TOKENS: usize = 16;

/// A generation on the shelf.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    kept: Arc<Kept>,
    /// Whether a session took its KV back in the message being handled.
    taken_back: bool,
}

#[derive(Debug)]
enum Kept {
    /// All its tokens are evaluated.
    Live(Session),
    AtRest(Resting),
}

/// A generation whose model was not asked for since it was thawed.
#[derive(Debug)]
struct Resting {
    info: PoolInfo,
    context_max: usize,
    /// All have KV.
    tokens: Vec<u32>,
    /// The full blocks, and the last one if it is in pieces.
    blocks: Vec<RestoredBlock>,
    /// Else its rows, packed.
    tail: Vec<u8>,
}

/// What there is to know of KV that is kept for a model that the actor left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptKv {
    /// The model.
    pub model: String,
    /// How many tokens have KV.
    pub tokens: usize,
    /// Bytes of their blocks.
    pub kv_bytes: usize,
}

impl Kept {
    fn info(&self) -> PoolInfo {
        match self {
            Kept::Live(session) => pool_info(session),
            Kept::AtRest(resting) => resting.info.clone(),
        }
    }

    fn tokens(&self) -> &[u32] {
        match self {
            Kept::Live(session) => session.tokens(),
            Kept::AtRest(resting) => &resting.tokens,
        }
    }

    /// What sessions must agree in to share KV: the model's file, how KV is stored, and the context.
    fn key(&self) -> ([u8; 32], driftwood_compute::KvDType, usize) {
        match self {
            Kept::Live(session) => key(session),
            Kept::AtRest(resting) => (resting.info.fingerprint.0, live_dtype(resting.info.dtype), resting.context_max),
        }
    }

    fn block_bytes(&self) -> usize {
        match self {
            Kept::Live(session) => session.kv_layout().block_bytes(),
            Kept::AtRest(resting) => resting.info.block_bytes as usize,
        }
    }

    fn kv_bytes(&self) -> usize {
        self.tokens().len().div_ceil(KV_BLOCK_TOKENS) * self.block_bytes()
    }

    /// How many tokens a session begins with in common, if it can share KV.
    fn common(&self, session: &Session) -> usize {
        if self.key() != key(session) {
            return 0;
        }
        self.tokens().iter().zip(session.tokens()).take_while(|(a, b)| a == b).count()
    }

    fn said(&self) -> String {
        let info = self.info();
        format!("the KV of {} tokens that was kept for the model `{}`", self.tokens().len(), info.model)
    }
}

fn key(session: &Session) -> ([u8; 32], driftwood_compute::KvDType, usize) {
    (session.model().fingerprint(), session.kv_layout().dtype, session.context_max())
}

impl Resting {
    /// The generation as a session on its model.
    fn wake(&self, model: &Arc<Model>) -> Result<Session, Error> {
        let (info, options) = (&self.info, SessionOptions { kv: live_dtype(self.info.dtype), context_max: self.context_max });
        let here = model.kv_layout(options.kv);
        let shape = (here.layers as u32, here.kv_heads as u32, here.head_dim as u32, here.block_bytes() as u64, KV_BLOCK_TOKENS as u32);
        if (info.layers, info.kv_heads, info.head_dim, info.block_bytes, info.block_tokens) != shape {
            return Err(unthawable(format!("its KV is laid out in another way than the model `{}` does", model.name())));
        }
        let (tokens, evaluated, sampler) =
            (&self.tokens[..], self.tokens.len(), Sampler::new(SamplerParams::default()).map_err(driftwood_engine::Error::from)?);
        let parts = RestoredSession {
            options,
            tokens,
            evaluated,
            blocks: self.blocks.clone(),
            tail: &self.tail,
            sampler,
            numerics: &info.numerics,
        };
        Ok(Session::restore(model, parts)?)
    }

    /// As a head has it. Chunks that are there are named, others written.
    fn save(&self, handle: u32, pool: u32, commit: &Commit<'_>) -> Result<HeadSession, Error> {
        let piece = |tokens: usize, bytes: &[u8], hash: [u8; 32]| -> Result<HeadPiece, Error> {
            let rows = match commit.find(Hash(hash)) {
                Some(there) => there,
                None => commit.put(bytes)?,
            };
            if rows.hash.0 == hash { Ok(HeadPiece { tokens: tokens as u32, rows }) } else { Err(driftwood_engine::Error::AlteredKv.into()) }
        };
        let of_piece = |p: &RestoredPiece| piece(p.tokens, p.view.bytes(), p.hash);
        let mut blocks = Vec::with_capacity(self.blocks.len() + 1);
        for block in &self.blocks {
            blocks.push(match block {
                RestoredBlock::Mapped { view, hash } => vec![piece(KV_BLOCK_TOKENS, view.bytes(), *hash)?],
                RestoredBlock::Pieces(pieces) => pieces.iter().map(of_piece).collect::<Result<_, _>>()?,
                RestoredBlock::Shared(_) => return Err(Error::Bug { why: "a generation at rest shares a block".into() }),
            });
        }
        if !self.tail.is_empty() {
            blocks.push(self.save_tail(commit)?);
        }
        let count = self.tokens.len() as u32;
        let state = SessionState { handle, pool, context_max: self.context_max as u32, sampler: serde_json::Value::Null };
        Ok(HeadSession { state, tokens: count, evaluated: count, ids: write_ids(commit, &self.tokens)?, blocks })
    }

    /// The packed rows of the last block, in pieces as the store has them.
    fn save_tail(&self, commit: &Commit<'_>) -> Result<Vec<HeadPiece>, Error> {
        let (tokens, row_bytes) = (self.tokens.len() % KV_BLOCK_TOKENS, self.info.row_bytes() as usize);
        let pieces: Vec<_> = (0..tokens).step_by(PIECE_TOKENS).map(|from| from..tokens.min(from + PIECE_TOKENS)).collect();
        let rows = |piece: &Range<usize>| {
            let stripes = self.tail.chunks_exact(tokens * row_bytes); // (layer, k or v, kv_head) of (token, head_dim)
            stripes.map(|stripe| &stripe[piece.start * row_bytes..piece.end * row_bytes]).collect()
        };
        let written = commit.put_all(&pieces.iter().map(rows).collect::<Vec<_>>())?;
        Ok(pieces.iter().zip(written).map(|(piece, rows)| HeadPiece { tokens: piece.len() as u32, rows }).collect())
    }
}

impl Sessions {
    /// Puts a session's KV on the shelf; answers what had to go for it.
    pub(crate) fn shelve(&mut self, mut session: Session) -> Option<String> {
        let evaluated = session.evaluated();
        if evaluated == 0 || session.truncate(evaluated).is_err() {
            return None;
        }
        // What the session has all of is not kept twice.
        self.former.retain(|former| former.kept.common(&session) < former.kept.tokens().len());
        self.former.push(Former { kept: Arc::new(Kept::Live(session)), taken_back: false });
        if self.former.len() > KV_GENERATIONS_MAX { self.drop_oldest() } else { None }
    }

    /// Puts a generation of a snapshot on the shelf; no model is asked for.
    pub(crate) fn shelve_stored(&mut self, source: &Source<'_>, index: usize) -> Result<(), Error> {
        if self.former.len() >= KV_GENERATIONS_MAX {
            return Err(unthawable(format!("it keeps KV of more than {KV_GENERATIONS_MAX} sessions that are not open")));
        }
        let manifest = source.manifest();
        let stored = &manifest.sessions[index];
        if stored.tokens != stored.evaluated {
            return Err(unthawable("it keeps tokens without KV of a session that is not open"));
        }
        let StoredKv { blocks, tail, last } = source.kv(index, &HashMap::new())?;
        let resting = Resting {
            info: manifest.pools[stored.state.pool as usize].info.clone(),
            context_max: stored.state.context_max as usize,
            tokens: source.tokens(index)?.into_owned(),
            blocks: blocks.into_iter().map(|(_, block)| block).chain(last).collect(),
            tail: tail.to_vec(),
        };
        self.former.push(Former { kept: Arc::new(Kept::AtRest(resting)), taken_back: false });
        Ok(())
    }

    /// Takes the oldest generation off the shelf and says which.
    pub(crate) fn drop_oldest(&mut self) -> Option<String> {
        let oldest = (!self.former.is_empty()).then(|| self.former.remove(0))?;
        Some(format!("{} was dropped", oldest.kept.said()))
    }

    /// Gives a session KV that it lacks and the shelf has. Answers for how many tokens.
    ///
    /// # Errors
    /// If the KV is damaged: it leaves the shelf then.
    fn take_back(&mut self, handle: i32) -> Result<usize, Error> {
        let Ok(session) = self.get(handle) else { return Ok(0) };
        let (model, before) = (session.model().clone(), session.evaluated());
        let common = self.former.iter().map(|former| former.kept.common(session));
        let Some((best, _)) = common.enumerate().filter(|(_, common)| *common > before).max_by_key(|(_, common)| *common) else {
            return Ok(0);
        };
        if let Kept::AtRest(resting) = &*self.former[best].kept {
            let woken = resting.wake(&model).inspect_err(|_| drop(self.former.remove(best)))?;
            self.former[best].kept = Arc::new(Kept::Live(woken));
        }
        let kept = self.former[best].kept.clone();
        let (Kept::Live(other), Ok(entry)) = (&*kept, self.entry(handle)) else { return Ok(0) };
        entry.adopt([other]);
        let gained = entry.session.evaluated().saturating_sub(before);
        self.former[best].taken_back |= gained > 0;
        Ok(gained)
    }

    /// Ends a message: what was taken back is in open sessions now.
    pub(crate) fn settle_shelf(&mut self) {
        self.former.retain(|former| !former.taken_back);
    }

    /// Forgets generations whose device is lost.
    pub(crate) fn forget_lost(&mut self) {
        self.former.retain(|former| !matches!(&*former.kept, Kept::Live(session) if session.model().is_lost()));
    }

    /// Bytes of KV on the shelf, without blocks that an open session can share.
    pub(crate) fn kept_bytes(&self) -> usize {
        let own = |kept: &Kept| {
            let shared = self.iter().map(|(_, session)| kept.common(session) / KV_BLOCK_TOKENS).max().unwrap_or(0);
            kept.kv_bytes() - shared * kept.block_bytes()
        };
        self.former.iter().map(|former| own(&former.kept)).sum()
    }

    /// What is on the shelf, the oldest first.
    pub(crate) fn kept(&self) -> impl Iterator<Item = KeptKv> {
        let known = |kept: &Kept| KeptKv { model: kept.info().model, tokens: kept.tokens().len(), kv_bytes: kept.kv_bytes() };
        self.former.iter().map(move |former| known(&former.kept))
    }

    /// What tells generations apart, for a hash of the state.
    pub(crate) fn kept_state(&self) -> String {
        let state = |former: &Former| format!("{:?}", (former.kept.info(), former.kept.key().2, former.kept.tokens()));
        self.former.iter().map(state).collect()
    }

    /// Opens the models of all generations that rest, where they are here. Others stay as they are.
    pub(crate) fn wake_shelf(&mut self, models: &Models) {
        for former in &mut self.former {
            let Kept::AtRest(resting) = &*former.kept else { continue };
            let same = |model: &Arc<Model>| model.fingerprint() == resting.info.fingerprint.0;
            let model = models.get(&resting.info.model).ok().filter(same);
            match model.map(|model| resting.wake(&model)) {
                Some(Ok(session)) => former.kept = Arc::new(Kept::Live(session)),
                _ => tracing::warn!("{} is left out: its model is not here", former.kept.said()),
            }
        }
    }

    /// Open sessions, and generations whose model is open, by the handles that they have at rest.
    pub(crate) fn all_live(&self) -> impl Iterator<Item = (u32, &Session)> {
        let live = |former: &'_ Former| matches!(&*former.kept, Kept::Live(_));
        let on_shelf = (SessionState::KEPT_FROM..).zip(self.former.iter().filter(move |former| live(former)));
        self.iter().chain(on_shelf.filter_map(|(handle, former)| match &*former.kept {
            Kept::Live(session) => Some((handle, session)),
            Kept::AtRest(_) => None,
        }))
    }

    /// Saves the shelf for a head.
    ///
    /// # Errors
    /// If the disk refuses, or KV that is to be saved was altered.
    pub(crate) fn save_shelf(&self, pools: &mut Pools, commit: &Commit<'_>) -> Result<(Vec<HeadSession>, Vec<SavedKv>), Error> {
        let (mut sessions, mut saved) = (Vec::new(), Vec::new());
        for (handle, former) in (SessionState::KEPT_FROM..).zip(&self.former) {
            match &*former.kept {
                Kept::AtRest(resting) => sessions.push(resting.save(handle, pools.of_stored(&resting.info), commit)?),
                Kept::Live(session) => {
                    let kv = save_kv(session, commit)?;
                    sessions.push(head_session(handle, session, pools.of(session), &kv, commit)?);
                    saved.push(kv);
                }
            }
        }
        Ok((sessions, saved))
    }
}

impl Desk {
    /// Closes a session. If the actor has left its model, its KV is kept.
    pub(crate) fn close(&mut self, handle: i32) -> Result<(), Refused> {
        let session = self.sessions.close(handle)?;
        if self.has_left(session.model().name()) {
            let dropped = self.sessions.shelve(session);
            self.tell_dropped(dropped);
            self.fit_shelf();
        }
        Ok(())
    }

    /// Whether the actor's model was this one and is not now. An actor that may use one model only can have no session on another by itself.
    fn has_left(&self, model: &str) -> bool {
        self.setting("model") != Some(model) && (self.grants.is_empty() || self.sessions.left.as_deref() == Some(model))
    }

    /// Takes KV from the shelf for what a session is about to prefill.
    pub(crate) fn take_back(&mut self, handle: i32) {
        match self.sessions.take_back(handle) {
            Ok(gained) => self.turn().tally.restored_tokens += gained,
            Err(e) => self.tell_dropped(Some(format!("KV that was kept cannot be used and is computed again: {e}"))),
        }
    }

    /// Makes the shelf small enough for the actor's limit of KV, as far as it is the shelf's fault.
    pub(crate) fn fit_shelf(&mut self) {
        let limit_bytes = self.turn().limits.kv_bytes;
        while self.sessions.kv_bytes() > limit_bytes {
            let dropped = self.sessions.drop_oldest();
            if dropped.is_none() {
                return;
            }
            self.tell_dropped(dropped);
        }
    }

    fn tell_dropped(&mut self, dropped: Option<String>) {
        if let Some(text) = dropped {
            self.log(LogLevel::Notice, &text);
        }
    }
}
