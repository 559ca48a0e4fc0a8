//! Giving an actor another model: it keeps its name, its identity, its memory, and the KV of the former model for the way back.

use crate::actor::Checkpoint;
use crate::desk::{Desk, lock};
use crate::host::{Host, no_such};
use crate::log::Log;
use crate::{Error, Event, Message, MessageKind};
use driftwood_compute::KV_BLOCK_TOKENS;
use driftwood_engine::{Model, RestoredBlock, RestoredSession, Session, SessionOptions};
use driftwood_snapshot::Hash;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What came of giving an actor another model.
#[derive(Clone, Debug, PartialEq)]
pub struct SwapReport {
    /// The model that it had.
    pub from: String,
    /// The model that it has.
    pub to: String,
    /// Tokens whose KV was kept from an earlier time on this model.
    pub restored_tokens: usize,
    /// Tokens whose KV was computed.
    pub recomputed_tokens: usize,
    /// Whether the guest was told; else it finds out when it next opens a session.
    pub told: bool,
    /// From beginning to end, with opening the model where it was not open.
    pub ms: f64,
}

/// The way back from a swap.
struct Before {
    checkpoint: Checkpoint,
    settings: BTreeMap<String, String>,
    log: Option<Log>,
}

impl Host {
    /// Gives an actor another model: changes its setting `model` and tells the guest, which opens sessions on the new one. KV of sessions that
    /// it closes for it is kept for the way back. What the guest says meanwhile goes to `on_event`.
    ///
    /// With `keep_kv` the KV of open sessions is taken for the new model's, as for another quantisation of the same weights. What the model
    /// then says is approximate, and snapshots of the actor note that from then on.
    ///
    /// A swap is not in the journal: keep the actor after it, and its messages are recorded again.
    ///
    /// # Errors
    /// If there is no such actor or model, the guest refuses or keeps sessions open on a model that it may no longer use, or KV cannot be
    /// kept as asked. The actor is then as it was before.
    pub fn swap_model(&mut self, name: &str, model: &str, keep_kv: bool, on_event: &mut dyn FnMut(Event<'_>)) -> Result<SwapReport, Error> {
        let begun = Instant::now();
        let from = self.present_model(name)?;
        if from == model {
            return Ok(SwapReport { to: from.clone(), from, restored_tokens: 0, recomputed_tokens: 0, told: false, ms: 0.0 });
        }
        let target = self.models.get(model)?;
        if self.is_parked(name)? {
            return Err(Error::Parked { name: name.to_owned() });
        }
        let before = self.before_swap(name)?;
        match self.try_swap(name, (&from, &target), keep_kv, on_event) {
            Ok((told, restored_tokens, recomputed_tokens)) => {
                let ms = begun.elapsed().as_secs_f64() * 1e3;
                Ok(SwapReport { from, to: model.to_owned(), restored_tokens, recomputed_tokens, told, ms })
            }
            Err(why) => {
                self.undo_swap(name, before);
                Err(why)
            }
        }
    }

    /// The model that an actor's setting names; nothing if it names none.
    ///
    /// # Errors
    /// If there is no such actor.
    fn present_model(&self, name: &str) -> Result<String, Error> {
        let actor = self.actors.get(name).ok_or_else(|| no_such(name))?;
        Ok(lock(&actor.desk).settings.get("model").cloned().unwrap_or_default())
    }

    fn before_swap(&mut self, name: &str) -> Result<Before, Error> {
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        let settings = lock(&actor.desk).settings.clone();
        Ok(Before { checkpoint: actor.checkpoint(), settings, log: actor.log.take() })
    }

    fn undo_swap(&mut self, name: &str, before: Before) {
        if let Some(actor) = self.actors.get_mut(name) {
            actor.roll_back(before.checkpoint, false);
            lock(&actor.desk).settings = before.settings;
            actor.log = before.log;
        }
    }

    /// Whether the guest was told, tokens restored, tokens computed.
    fn try_swap(
        &mut self,
        name: &str,
        (from, target): (&str, &Arc<Model>),
        keep_kv: bool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(bool, usize, usize), Error> {
        let actor = self.actors.get(name).ok_or_else(|| no_such(name))?;
        let (desk, told) = (actor.desk.clone(), actor.compiled.admitted.has_model_changed);
        if keep_kv {
            self.lend_kv(&mut lock(&desk), target)?;
        }
        lock(&desk).sessions.left = Some(from.to_owned());
        self.set_setting(name, "model", target.name())?;
        let tally = match told {
            true => {
                let told = Message { kind: MessageKind::ModelChanged, ..Message::new(name, "") };
                let outcome = self.send(told, on_event)?;
                (outcome.restored_tokens, outcome.prefilled_tokens)
            }
            false => (0, 0),
        };
        check_grants(&lock(&desk), target.name())?;
        Ok((told, tally.0, tally.1))
    }

    /// Puts the KV of open sessions on the shelf as if `target` had computed it.
    fn lend_kv(&self, desk: &mut Desk, target: &Arc<Model>) -> Result<(), Error> {
        let refuse = |why: &str| Error::KeepKv { model: target.name().to_owned(), why: why.to_owned() };
        if self.models.is_on_gpu() {
            return Err(refuse("on a GPU it belongs to the model that computed it"));
        }
        let lent = desk.sessions.iter().map(|(_, session)| {
            if self.models.vocabulary(session.model()) != self.models.vocabulary(target) {
                return Err(refuse("its vocabulary is another one"));
            }
            if session.kv_layout() != target.kv_layout(session.kv_layout().dtype) {
                return Err(refuse("its KV is laid out in another way (layers, heads or their size)"));
            }
            lent(session, target)
        });
        let lent = lent.collect::<Result<Vec<Session>, Error>>()?;
        for session in lent {
            desk.sessions.approximate = true;
            desk.sessions.shelve(session);
        }
        Ok(())
    }
}

/// A session on another model of the same layout, with the full blocks of this one. The numerics id says whose they are.
fn lent(session: &Session, target: &Arc<Model>) -> Result<Session, Error> {
    let full = session.evaluated() / KV_BLOCK_TOKENS;
    let blocks: Option<Vec<_>> = (0..full).map(|at| session.shared_block(at).map(RestoredBlock::Shared)).collect();
    let blocks = blocks.ok_or_else(|| Error::Bug { why: "a full block of KV is missing".into() })?;
    let (own_max, target_max) = (session.model().config().context_max, target.config().context_max);
    let context_max = if session.context_max() == own_max { target_max } else { session.context_max().min(target_max) };
    let whose = Hash(session.model().fingerprint()).to_string();
    let numerics = format!("{}/of-{}", session.numerics_id(), &whose[..8]);
    let evaluated = full * KV_BLOCK_TOKENS;
    let parts = RestoredSession {
        options: SessionOptions { kv: session.kv_layout().dtype, context_max },
        tokens: &session.tokens()[..evaluated],
        evaluated,
        blocks,
        tail: &[],
        sampler: session.sampler().clone(),
        numerics: &numerics,
    };
    Ok(Session::restore(target, parts)?)
}

/// Whether the actor may use the models of all its sessions: else it could not be woken from a snapshot.
fn check_grants(desk: &Desk, model: &str) -> Result<(), Error> {
    let granted = |name: &str| if desk.grants.is_empty() { name == model } else { desk.grants.iter().any(|grant| grant == name) };
    if !granted(model) {
        return Err(Error::NoSuchModel { name: model.to_owned(), why: "the actor is not granted it".into() });
    }
    match desk.sessions.iter().find(|(_, session)| !granted(session.model().name())) {
        Some((_, session)) => Err(Error::StaysOnModel { model: session.model().name().to_owned() }),
        None => Ok(()),
    }
}
