//! The sessions of one actor, by handle.

use crate::Error;
use crate::abi::Refused;
use crate::desk::Desk;
use crate::shelf::Former;
use driftwood_compute::KV_BLOCK_TOKENS;
use driftwood_engine::{Session, SessionOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An open session.
#[derive(Debug)]
pub(crate) struct Entry {
    pub session: Session,
    /// How many of its tokens were generated and are not evaluated yet.
    pub fresh: usize,
    /// So many tokens count as evaluated even where their KV is not here: a replay takes no steps. The next step computes it.
    replayed: usize,
}

impl Entry {
    fn new(session: Session) -> Entry {
        Entry { session, fresh: 0, replayed: 0 }
    }

    /// How many tokens are evaluated, as far as limits and reports go.
    pub(crate) fn evaluated(&self) -> usize {
        self.session.evaluated().max(self.replayed)
    }

    /// Counts all tokens as evaluated, without a step.
    pub(crate) fn count_as_evaluated(&mut self) {
        self.replayed = self.session.tokens().len();
        self.fresh = 0;
    }

    /// How many tokens count as evaluated though they are not.
    pub(crate) fn lacks(&self) -> usize {
        self.evaluated() - self.session.evaluated()
    }

    /// Evaluates by `step` what counts as evaluated, and no more.
    pub(crate) fn catch_up(&mut self, step: impl FnOnce(&mut Session) -> Result<(), Error>) -> Result<(), Error> {
        let rest = self.session.tokens()[self.evaluated()..].to_vec();
        self.session.truncate(self.evaluated())?;
        step(&mut self.session)?;
        Ok(self.session.append(&rest)?)
    }

    /// Forgets the tokens from `length` on.
    pub(crate) fn truncate(&mut self, length: usize) -> Result<(), Refused> {
        self.session.truncate(length).map_err(|_| Refused::BadArgument)?;
        self.replayed = self.replayed.min(length);
        self.fresh = self.fresh.min(length - self.evaluated());
        Ok(())
    }

    /// Takes KV that this session lacks from one of the others, if one has it for the same first tokens.
    pub(crate) fn adopt<'a>(&mut self, others: impl IntoIterator<Item = &'a Session>) {
        let tokens = self.session.tokens();
        let alike = |other: &&Session| {
            Arc::ptr_eq(other.model(), self.session.model())
                && other.kv_layout() == self.session.kv_layout()
                && other.context_max() == self.session.context_max()
        };
        let common = |other: &Session| {
            let same = other.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
            same.min(other.evaluated())
        };
        let best = others.into_iter().filter(alike).map(|other| (common(other), other)).max_by_key(|(common, _)| *common);
        let Some((common, other)) = best.filter(|(common, _)| *common > self.session.evaluated()) else { return };
        let mut adopted = other.fork();
        if adopted.truncate(common).and_then(|()| adopted.append(&tokens[common..])).is_ok() {
            adopted.set_sampler(self.session.sampler().clone());
            self.session = adopted;
            self.fresh = self.fresh.min(self.session.tokens().len() - self.session.evaluated());
        }
    }
}

impl Clone for Entry {
    /// A fork: it shares its KV with the original.
    fn clone(&self) -> Entry {
        Entry { session: self.session.fork(), fresh: self.fresh, replayed: self.replayed }
    }
}

/// Open sessions. Handles are the lowest free numbers from 1, so they depend on nothing but what is open.
///
/// A clone is a checkpoint, or a fork's: it shares everything until one side asks to change something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    open: Arc<BTreeMap<i32, Entry>>,
    /// KV that is kept for models that the actor left, the oldest first.
    pub(crate) former: Vec<Former>,
    /// The model that the last swap left.
    pub(crate) left: Option<String>,
    /// Whether KV of another model was ever used as a model's own.
    pub(crate) approximate: bool,
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn get(&self, handle: i32) -> Result<&Session, Refused> {
        self.open.get(&handle).map(|e| &e.session).ok_or(Refused::NoSuchSession)
    }

    pub(crate) fn entry(&mut self, handle: i32) -> Result<&mut Entry, Refused> {
        if !self.open.contains_key(&handle) {
            return Err(Refused::NoSuchSession);
        }
        self.open_mut().get_mut(&handle).ok_or(Refused::NoSuchSession)
    }

    /// Those that lack KV of tokens that count as evaluated.
    pub(crate) fn lacking(&mut self) -> impl Iterator<Item = &mut Entry> {
        let any = self.open.values().any(|entry| entry.lacks() > 0);
        let open = if any { Some(self.open_mut()) } else { None };
        open.into_iter().flat_map(|open| open.values_mut()).filter(|entry| entry.lacks() > 0)
    }

    /// All of them, to be changed: what others share is forked first.
    fn open_mut(&mut self) -> &mut BTreeMap<i32, Entry> {
        Arc::make_mut(&mut self.open)
    }

    pub(crate) fn insert(&mut self, session: Session) -> i32 {
        let handle = (1..).find(|h| !self.open.contains_key(h)).expect("fewer sessions than numbers");
        self.open_mut().insert(handle, Entry::new(session));
        handle
    }

    /// Opens a session under the handle that it had in a snapshot; false if the handle is taken or no handle.
    pub(crate) fn insert_at(&mut self, handle: u32, session: Session) -> bool {
        match i32::try_from(handle) {
            Ok(handle) if handle > 0 && !self.open.contains_key(&handle) => {
                self.open_mut().insert(handle, Entry::new(session));
                true
            }
            _ => false,
        }
    }

    pub(crate) fn close(&mut self, handle: i32) -> Result<Session, Refused> {
        self.open_mut().remove(&handle).map(|e| e.session).ok_or(Refused::NoSuchSession)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Session)> {
        self.open.iter().map(|(&handle, e)| (handle as u32, &e.session))
    }

    /// Bytes of KV once every token is evaluated, with those on the shelf. Shared blocks count for every session: what others hold does not
    /// matter.
    pub(crate) fn kv_bytes(&self) -> usize {
        let bytes = |s: &Session| s.tokens().len().div_ceil(KV_BLOCK_TOKENS) * s.kv_layout().block_bytes();
        self.open.values().map(|e| bytes(&e.session)).sum::<usize>() + self.kept_bytes()
    }

    /// Tokens whose KV need not be computed.
    pub(crate) fn evaluated_tokens(&self) -> usize {
        self.open.values().map(Entry::evaluated).sum()
    }
}

impl Desk {
    /// Opens sessions again whose model's GPU was lost, and the model with them: their tokens are evaluated anew when they are needed.
    ///
    /// # Errors
    /// If the model cannot be opened again.
    pub(crate) fn renew_lost_sessions(&mut self) -> Result<(), Error> {
        let lost = |entry: &Entry| entry.session.model().is_lost();
        self.sessions.forget_lost();
        if !self.sessions.open.values().any(lost) {
            return Ok(());
        }
        for entry in self.sessions.open_mut().values_mut().filter(|entry| lost(entry)) {
            let lost = &entry.session;
            let model = self.models.get(lost.model().name())?;
            let options = SessionOptions { kv: lost.kv_layout().dtype, context_max: lost.context_max() };
            let mut session = Session::open(&model, options)?;
            session.append(lost.tokens())?;
            session.set_sampler(lost.sampler().clone());
            entry.session = session;
        }
        Ok(())
    }

    /// Whether one more session may be opened.
    pub(crate) fn check_session_count(&mut self) -> Result<(), Refused> {
        let limit = self.turn().limits.sessions;
        if self.sessions.len() < limit {
            return Ok(());
        }
        self.note(Error::LimitSessions { limit });
        Err(Refused::Limit)
    }

    /// Appends tokens to a session, if they fit in its context and in the actor's KV.
    pub(crate) fn append(&mut self, handle: i32, tokens: &[u32]) -> Result<(), Refused> {
        let entry = self.sessions.entry(handle)?;
        let length = entry.session.tokens().len();
        entry.session.append(tokens).map_err(|e| match e {
            driftwood_engine::Error::ContextFull { .. } => Refused::ContextFull,
            _ => Refused::BadArgument,
        })?;
        self.check_kv().inspect_err(|_| {
            let undone = self.sessions.entry(handle).map(|e| e.session.truncate(length));
            debug_assert!(matches!(undone, Ok(Ok(()))));
        })
    }

    /// Whether the sessions' KV stays within the actor's limit; what is kept for other models gives way.
    pub(crate) fn check_kv(&mut self) -> Result<(), Refused> {
        self.fit_shelf();
        let limit_bytes = self.turn().limits.kv_bytes;
        let asked_bytes = self.sessions.kv_bytes();
        if asked_bytes <= limit_bytes {
            return Ok(());
        }
        self.note(Error::LimitKv { asked_bytes, limit_bytes });
        Err(Refused::Limit)
    }
}
