//! The sessions of one actor, by handle.

use crate::Error;
use crate::abi::Refused;
use crate::desk::Desk;
use driftwood_compute::KV_BLOCK_TOKENS;
use driftwood_engine::{Session, SessionOptions};
use std::collections::BTreeMap;

/// An open session.
#[derive(Debug)]
pub(crate) struct Entry {
    pub session: Session,
    /// How many of its tokens were generated and are not evaluated yet.
    pub fresh: usize,
}

/// Open sessions. Handles are the lowest free numbers from 1, so they depend on nothing but what is open.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: BTreeMap<i32, Entry>,
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn get(&self, handle: i32) -> Result<&Session, Refused> {
        self.open.get(&handle).map(|e| &e.session).ok_or(Refused::NoSuchSession)
    }

    pub(crate) fn entry(&mut self, handle: i32) -> Result<&mut Entry, Refused> {
        self.open.get_mut(&handle).ok_or(Refused::NoSuchSession)
    }

    pub(crate) fn insert(&mut self, session: Session) -> i32 {
        let handle = (1..).find(|h| !self.open.contains_key(h)).expect("fewer sessions than numbers");
        self.open.insert(handle, Entry { session, fresh: 0 });
        handle
    }

    /// Opens a session under the handle that it had in a snapshot; false if the handle is taken or no handle.
    pub(crate) fn insert_at(&mut self, handle: u32, session: Session) -> bool {
        match i32::try_from(handle) {
            Ok(handle) if handle > 0 && !self.open.contains_key(&handle) => {
                self.open.insert(handle, Entry { session, fresh: 0 });
                true
            }
            _ => false,
        }
    }

    pub(crate) fn close(&mut self, handle: i32) -> Result<(), Refused> {
        self.open.remove(&handle).map(drop).ok_or(Refused::NoSuchSession)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Session)> {
        self.open.iter().map(|(&handle, e)| (handle as u32, &e.session))
    }

    /// The same sessions again, sharing their KV: a checkpoint, or a fork's.
    pub(crate) fn fork(&self) -> Sessions {
        Sessions { open: self.open.iter().map(|(&handle, e)| (handle, Entry { session: e.session.fork(), fresh: e.fresh })).collect() }
    }

    /// Bytes of KV once every token is evaluated. Shared blocks count for every session: what others hold does not matter.
    pub(crate) fn kv_bytes(&self) -> usize {
        let bytes = |s: &Session| s.tokens().len().div_ceil(KV_BLOCK_TOKENS) * s.kv_layout().block_bytes();
        self.open.values().map(|e| bytes(&e.session)).sum()
    }

    /// Tokens whose KV need not be computed.
    pub(crate) fn evaluated_tokens(&self) -> usize {
        self.open.values().map(|e| e.session.evaluated()).sum()
    }
}

impl Desk {
    /// Opens sessions again whose model's GPU was lost, and the model with them: their tokens are evaluated anew when they are needed.
    ///
    /// # Errors
    /// If the model cannot be opened again.
    pub(crate) fn renew_lost_sessions(&mut self) -> Result<(), Error> {
        for entry in self.sessions.open.values_mut().filter(|entry| entry.session.model().is_lost()) {
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

    /// Whether the sessions' KV stays within the actor's limit.
    pub(crate) fn check_kv(&mut self) -> Result<(), Refused> {
        let limit_bytes = self.turn().limits.kv_bytes;
        let asked_bytes = self.sessions.kv_bytes();
        if asked_bytes <= limit_bytes {
            return Ok(());
        }
        self.note(Error::LimitKv { asked_bytes, limit_bytes });
        Err(Refused::Limit)
    }
}
