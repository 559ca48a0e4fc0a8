//! Freezing an actor into a file, and thawing it: the words of this crate turned into those of `driftwood-snapshot` and back.
//!
//! Limits and grants are never in the file. KV comes back by content hash, verified before the first step that reads it, and only to
//! the sessions that the file gives it to.

use crate::actor::{Actor, Body, Unfinished, check_settings};
use crate::desk::{Desk, lock};
use crate::history::Past;
use crate::host::{Host, no_such};
use crate::limits::Limits;
use crate::log::{pack, recordings, records_of, unpack};
use crate::models::Models;
use crate::random::Random;
use crate::sessions::Sessions;
use crate::source::{BlockKey, Source};
use crate::{Error, abi};
use driftwood_compute::{KV_BLOCK_TOKENS, KvDType};
use driftwood_engine::{BlockAtRest, Logits, Model, RestoredSession, Sampler, Session, SessionAtRest, SessionOptions, SharedBlock, Work};
use driftwood_snapshot::{self as snapshot, Existing, Global, GuestState, Hash, Identity, Manifest, PoolInfo, Snapshot};
use driftwood_store::{Chunks, Head};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Handles from here on are those of sessions as they were when a message was parked.
const AHEAD_FIRST_HANDLE: u32 = 3 << 30;

/// The key of the manifest's notes under which the vocabularies of models stand.
const VOCABULARIES: &str = "vocabularies";
/// The key of the note of an actor that ever used KV of another model as its model's own.
const APPROXIMATE: &str = "approximate";

/// What came of freezing.
#[derive(Clone, Debug, PartialEq)]
pub struct FreezeReport {
    /// Who was frozen.
    pub identity: Identity,
    /// Bytes of the file.
    pub bytes: u64,
    /// How many of them are KV.
    pub kv_bytes: u64,
    /// Until the last byte was hashed and handed to the system.
    pub serialise_ms: f64,
    /// Until the disk had it and the file its name.
    pub sync_ms: f64,
}

/// Who a thawed actor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdentityRule {
    /// A new actor, child of the one in the file. One file may be thawed many times.
    #[default]
    Mint,
    /// The very actor of the file: for its owner, who reads its own state folder.
    Keep,
}

/// How to thaw. Limits and grants are those of the host that will run the actor.
#[derive(Clone, Debug, Default)]
pub struct ThawOptions {
    /// Who it will be.
    pub identity: IdentityRule,
    /// Whether to compute the context again if the model is another one than the file's; else that is an error.
    pub reprefill: bool,
    /// The model to use where the file has the one of its setting `model`.
    pub model: Option<String>,
    /// What it may use.
    pub limits: Limits,
    /// Names of the models that it may use; if empty, the one that the setting `model` names.
    pub models: Vec<String>,
    /// Settings that replace the file's.
    pub settings: BTreeMap<String, String>,
}

/// What came of thawing.
#[derive(Clone, Debug, PartialEq)]
pub struct ThawReport {
    /// Who was thawed.
    pub identity: Identity,
    /// Tokens whose KV came from the file.
    pub restored_tokens: usize,
    /// Tokens whose KV was computed again.
    pub recomputed_tokens: usize,
    /// What is promised of the continuation.
    pub exactness: Exactness,
}

/// What is promised of a thawed actor's continuation, beside the one that was never frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// The same bits.
    SameBits,
    /// KV of another arithmetic, device or kernel version: the continuation may differ.
    OtherNumerics {
        /// What computed the KV in the file.
        stored: String,
        /// What computes here.
        here: String,
    },
    /// The context was computed again by another model.
    Recomputed,
}

impl fmt::Display for Exactness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exactness::SameBits => f.write_str("bit-identical continuation"),
            Exactness::OtherNumerics { stored, here } => {
                write!(f, "different numerics ({stored}, here {here}): the continuation may differ")
            }
            Exactness::Recomputed => f.write_str("context computed again by another model"),
        }
    }
}

impl Host {
    /// Writes an actor as one file, also one that is parked in the middle of a message: then the file holds the state before the message, what the guest
    /// was told since, and the KV up to there. It is written durably and in one step: there is the old file or the new one, never a part. KV that is kept for a model
    /// that is not here any more is left out.
    ///
    /// # Errors
    /// If there is no such actor, or the file cannot be written.
    pub fn freeze(&mut self, name: &str, path: &Path, existing: Existing) -> Result<FreezeReport, Error> {
        let models = self.models.clone();
        let runtime = self.shared_runtime();
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        let (desk, identity, compiled) = (actor.desk.clone(), actor.identity.clone(), actor.compiled.clone());
        let parked = actor.parked.clone().unwrap_or_default();
        let (memory, globals) = actor.memory_and_globals(&runtime)?;
        let mut desk = lock(&desk);
        desk.sessions.wake_shelf(&models);
        let all = || desk.sessions.all_live().chain((AHEAD_FIRST_HANDLE..).zip(&parked.ahead));
        let mut pools = Pools::default();
        let mut blocks = Blocks::default();
        let at_rest: Vec<_> = all().map(|(_, session)| session.at_rest()).collect::<Result<_, _>>()?;
        let each = all().zip(&at_rest);
        let sessions: Vec<_> =
            each.map(|((handle, session), at_rest)| blocks.session(handle, session, pools.of(session), at_rest)).collect();
        let journal = pack(&records_of(&parked.recordings));
        let notes = pools.notes(&models, &desk.sessions);
        let of_pool = |(info, blocks)| snapshot::PoolContents { info, blocks };
        let contents = snapshot::Contents {
            writer: concat!("driftwood ", env!("CARGO_PKG_VERSION")),
            identity: &identity,
            guest: Some(snapshot::GuestContents { state: guest_state(&desk, globals), module: &compiled.module, memory: &memory }),
            pools: pools.infos.into_iter().zip(blocks.of_pools).map(of_pool).collect(),
            sessions,
            journal: &journal,
            notes,
        };
        let report = snapshot::write(&contents, path, existing)?;
        Ok(FreezeReport {
            identity,
            bytes: report.bytes,
            kv_bytes: report.kv_bytes,
            serialise_ms: report.serialise_ms,
            sync_ms: report.sync_ms,
        })
    }

    /// Brings the actor of a file to life under a name of this host. No code of the guest runs.
    ///
    /// The file stays mapped as long as a session reads KV from it: it must be one that the state folder owns, never changed in place.
    ///
    /// # Errors
    /// If the name is taken, the file is damaged or foreign, its model is not here or another one, or a limit is too low.
    pub fn thaw(&mut self, path: &Path, name: &str, options: ThawOptions) -> Result<ThawReport, Error> {
        self.check_free(name)?;
        let file = Snapshot::open(path)?;
        file.verify_small()?;
        self.wake_from(&Source::File(&file), name, options)
    }

    /// As [`Host::thaw`], of a head in a state folder.
    ///
    /// # Errors
    /// As [`Host::thaw`], or if a chunk that the head names is missing or altered.
    pub fn thaw_head(&mut self, path: &Path, chunks: &Chunks, name: &str, options: ThawOptions) -> Result<ThawReport, Error> {
        self.check_free(name)?;
        let head = Head::read(path)?;
        let report = self.wake_from(&Source::head(&head, chunks), name, options)?;
        self.actors.get_mut(name).ok_or_else(|| no_such(name))?.past = Past::at(head, chunks);
        Ok(report)
    }

    fn wake_from(&mut self, source: &Source<'_>, name: &str, options: ThawOptions) -> Result<ThawReport, Error> {
        let guest = source.manifest().guest.as_ref().ok_or_else(|| unthawable("it has no guest"))?;
        if guest.state.abi != abi::VERSION as u32 {
            return Err(Error::ContractVersion { found: guest.state.abi as i32, supported: abi::VERSION });
        }
        let compiled = self.runtime().compile(&source.module()?)?;
        let image = source.image(guest, &compiled, &options.limits)?;
        let random = Random::from_text(&guest.state.random_state).ok_or_else(|| unthawable("its random state is of no known kind"))?;
        let mut settings = guest.state.settings.clone();
        settings.extend(options.settings.clone());
        settings.extend(options.model.iter().map(|model| ("model".to_owned(), model.clone())));
        check_settings(&settings, &options.limits)?;
        let mut thawing = Thawing::new(source, &options, guest.state.settings.get("model"), settings.get("model"));
        thawing.sessions(self)?;
        let stored = &source.manifest().identity;
        let identity = match options.identity {
            IdentityRule::Mint => Identity::mint(name, Some(stored.id))?,
            IdentityRule::Keep => Identity { name: name.to_owned(), ..stored.clone() },
        };
        let report = thawing.report(identity.clone());
        let recordings = recordings(unpack(source.journal())?)?;
        let parked = (!recordings.is_empty()).then(|| Arc::new(Unfinished { recordings, ahead: thawing.parked.ahead }));
        if parked.is_some() && (options.model.is_some() || !options.settings.is_empty()) {
            return Err(Error::Parked { name: name.to_owned() }); // it would not be the message that was recorded
        }
        let desk = self.desk(options.models.clone(), settings, random, thawing.open, guest.state.messages_handled);
        let body = Body::Asleep(Arc::new(image));
        self.actors.insert(
            name.to_owned(),
            Actor { identity, compiled, limits: options.limits, desk, body, past: Past::default(), log: None, parked },
        );
        Ok(report)
    }
}

pub(crate) fn unthawable(why: impl Into<String>) -> Error {
    Error::Unthawable { why: why.into() }
}

impl Actor {
    /// The whole linear memory, without a copy if the guest is awake, and the mutable globals.
    pub(crate) fn memory_and_globals(&mut self, runtime: &crate::runtime::Runtime) -> Result<(Cow<'_, [u8]>, Vec<Global>), Error> {
        if let Body::Unborn(None) = self.body {
            self.be_born(runtime)?;
        }
        let slots = self.compiled.admitted.globals.clone();
        let named = |bits: Vec<u128>| slots.iter().zip(bits).map(|(s, bits)| Global { index: s.index, kind: s.kind, bits }).collect();
        match &mut self.body {
            Body::Awake(instance) | Body::Unborn(Some(instance)) => {
                let globals = named(instance.global_bits());
                Ok((Cow::Borrowed(instance.memory()), globals))
            }
            Body::Asleep(image) => Ok((Cow::Owned(image.inflate()), named(image.globals.clone()))),
            Body::Unborn(None) | Body::Away => Err(Error::Bug { why: "an actor was frozen while it was away".into() }),
        }
    }
}

/// The state of a guest beside its memory.
pub(crate) fn guest_state(desk: &Desk, globals: Vec<Global>) -> GuestState {
    GuestState {
        abi: abi::VERSION as u32,
        globals,
        settings: desk.settings.clone(),
        random_state: desk.random.to_text(),
        messages_handled: desk.messages_handled,
    }
}

/// The pools of an actor's sessions: one for each model, dtype and numerics.
#[derive(Default)]
pub(crate) struct Pools {
    pub infos: Vec<PoolInfo>,
    models: Vec<Option<Arc<Model>>>, // of those whose model is open
}

impl Pools {
    /// The index of a session's pool.
    pub(crate) fn of(&mut self, session: &Session) -> u32 {
        let info = pool_info(session);
        let own = |model: &Option<Arc<Model>>| model.as_ref().is_some_and(|model| Arc::ptr_eq(model, session.model()));
        let same = |(known, model): (&PoolInfo, &Option<Arc<Model>>)| own(model) && *known == info;
        let at = self.infos.iter().zip(&self.models).position(same).unwrap_or_else(|| {
            self.infos.push(info.clone());
            self.models.push(Some(session.model().clone()));
            self.infos.len() - 1
        });
        at as u32
    }

    /// The index of the pool of KV whose model is not open.
    pub(crate) fn of_stored(&mut self, info: &PoolInfo) -> u32 {
        let at = self.infos.iter().position(|known| known == info).unwrap_or_else(|| {
            self.infos.push(info.clone());
            self.models.push(None);
            self.infos.len() - 1
        });
        at as u32
    }

    /// What a manifest notes of the models.
    pub(crate) fn notes(&self, models: &Models, sessions: &Sessions) -> BTreeMap<String, serde_json::Value> {
        let vocabularies: BTreeMap<&str, Hash> = self.models.iter().flatten().map(|m| (m.name(), models.vocabulary(m))).collect();
        let mut notes = BTreeMap::from([(VOCABULARIES.to_owned(), serde_json::json!(vocabularies))]);
        notes.extend(sessions.approximate.then(|| (APPROXIMATE.to_owned(), true.into())));
        notes
    }
}

/// Whose a session's KV is, and how it is laid out.
pub fn pool_info(session: &Session) -> PoolInfo {
    let (model, layout) = (session.model(), session.kv_layout());
    PoolInfo {
        model: model.name().to_owned(),
        fingerprint: Hash(model.fingerprint()),
        numerics: session.numerics_id(),
        architecture: model.config().architecture.to_owned(),
        layers: layout.layers as u32,
        kv_heads: layout.kv_heads as u32,
        head_dim: layout.head_dim as u32,
        dtype: stored_dtype(layout.dtype),
        block_tokens: KV_BLOCK_TOKENS as u32,
        block_bytes: layout.block_bytes() as u64,
    }
}

/// Gathers KV for a portable file: each block stands in its pool once.
#[derive(Default)]
struct Blocks<'a> {
    of_pools: Vec<Vec<snapshot::Block<'a>>>,
    known: HashMap<(u32, usize), u32>, // (pool, block's identity) -> index in the pool
}

impl<'a> Blocks<'a> {
    fn session(&mut self, handle: u32, session: &'a Session, pool: u32, at_rest: &'a SessionAtRest<'_>) -> snapshot::SessionContents<'a> {
        let (context_max, sampler) = (session.context_max() as u32, session.sampler().to_json());
        let block_bytes = session.kv_layout().block_bytes();
        self.of_pools.resize_with(self.of_pools.len().max(pool as usize + 1), Vec::new);
        snapshot::SessionContents {
            state: snapshot::SessionState { handle, pool, context_max, sampler },
            tokens: session.tokens(),
            evaluated: session.evaluated() as u32,
            blocks: at_rest.blocks().map(|block| self.block(pool, &block, block_bytes)).collect(),
            tail: at_rest.tail().map(|block| block.bytes()),
        }
    }

    fn block(&mut self, pool: u32, block: &BlockAtRest<'a>, block_bytes: usize) -> u32 {
        let blocks = &mut self.of_pools[pool as usize];
        let next = blocks.len() as u32;
        let index = *self.known.entry((pool, block.identity())).or_insert(next);
        if index == next {
            blocks.push(snapshot::Block { bytes: &block.bytes()[..block_bytes], hash: block.known_hash().map(Hash) });
        }
        index
    }
}

fn stored_dtype(dtype: KvDType) -> snapshot::KvDType {
    match dtype {
        KvDType::F16 => snapshot::KvDType::F16,
        KvDType::F32 => snapshot::KvDType::F32,
        KvDType::Q8 => snapshot::KvDType::Q8,
    }
}

/// How a live session stores what a snapshot calls so.
pub fn live_dtype(dtype: snapshot::KvDType) -> KvDType {
    match dtype {
        snapshot::KvDType::F16 => KvDType::F16,
        snapshot::KvDType::F32 => KvDType::F32,
        snapshot::KvDType::Q8 => KvDType::Q8,
    }
}

/// Sessions on their way back.
struct Thawing<'a> {
    source: &'a Source<'a>,
    options: &'a ThawOptions,
    /// The file's setting `model`, and what takes its place.
    stored_model: Option<&'a String>,
    own_model: Option<String>,
    open: Sessions,
    parked: Unfinished,
    shared: HashMap<BlockKey, SharedBlock>,
    restored_tokens: usize,
    recomputed_tokens: usize,
    exactness: Exactness,
}

impl<'a> Thawing<'a> {
    fn new(source: &'a Source<'a>, options: &'a ThawOptions, stored_model: Option<&'a String>, own_model: Option<&String>) -> Thawing<'a> {
        Thawing {
            source,
            options,
            stored_model,
            own_model: own_model.cloned(),
            open: Sessions::default(),
            parked: Unfinished::default(),
            shared: HashMap::new(),
            restored_tokens: 0,
            recomputed_tokens: 0,
            exactness: Exactness::SameBits,
        }
    }

    fn sessions(&mut self, host: &mut Host) -> Result<(), Error> {
        let manifest: &Manifest = self.source.manifest();
        let limit = self.options.limits.sessions;
        self.open.approximate = manifest.notes.get(APPROXIMATE).is_some_and(|note| note == true);
        if manifest.sessions.iter().filter(|stored| stored.state.is_open()).count() > limit {
            return Err(Error::LimitSessions { limit });
        }
        for (index, stored) in manifest.sessions.iter().enumerate() {
            if stored.state.handle >= AHEAD_FIRST_HANDLE {
                self.ahead(host, index)?;
                continue;
            }
            if !stored.state.is_open() {
                self.open.shelve_stored(self.source, index)?;
                continue;
            }
            let info = &manifest.pools[stored.state.pool as usize].info;
            let model = host.model(&self.model_name(info)?)?;
            let sampler = Sampler::from_json(stored.state.sampler.clone())?;
            let session = if Hash(model.fingerprint()) == info.fingerprint {
                self.restore(&model, index, sampler)?
            } else {
                self.recompute(host, &model, index, sampler)?
            };
            if !self.open.insert_at(stored.state.handle, session) {
                return Err(unthawable(format!("it has no place for a session of handle {}", stored.state.handle)));
            }
        }
        let limit_bytes = self.options.limits.kv_bytes;
        while self.open.kv_bytes() > limit_bytes {
            let Some(dropped) = self.open.drop_oldest() else { break };
            tracing::warn!("{dropped}: more than {limit_bytes} bytes of KV");
        }
        let asked_bytes = self.open.kv_bytes();
        if asked_bytes > limit_bytes { Err(Error::LimitKv { asked_bytes, limit_bytes }) } else { Ok(()) }
    }

    /// KV of a message that is parked. If its model is another one here it is left out: it is computed again where it is needed.
    fn ahead(&mut self, host: &Host, index: usize) -> Result<(), Error> {
        let stored = &self.source.manifest().sessions[index];
        let info = &self.source.manifest().pools[stored.state.pool as usize].info;
        let model = self.model_name(info).and_then(|name| host.model(&name));
        if let Some(model) = model.ok().filter(|model| Hash(model.fingerprint()) == info.fingerprint)
            && self.parked.ahead.len() < self.options.limits.sessions
        {
            let session = self.restore(&model, index, Sampler::from_json(stored.state.sampler.clone())?)?;
            self.parked.ahead.push(session);
        }
        Ok(())
    }

    /// The model here that takes the place of a pool's, if the actor may use it.
    fn model_name(&self, info: &PoolInfo) -> Result<String, Error> {
        let swapped = self.stored_model.is_some_and(|stored| *stored == info.model);
        let name = self.own_model.as_ref().filter(|_| swapped).unwrap_or(&info.model).clone();
        let granted =
            if self.options.models.is_empty() { self.own_model.as_ref() == Some(&name) } else { self.options.models.contains(&name) };
        if granted { Ok(name) } else { Err(Error::NoSuchModel { name, why: "a session uses it, but the actor is not granted it".into() }) }
    }

    fn restore(&mut self, model: &Arc<Model>, index: usize, sampler: Sampler) -> Result<Session, Error> {
        let manifest = self.source.manifest();
        let stored = &manifest.sessions[index];
        let pool = &manifest.pools[stored.state.pool as usize];
        let options = SessionOptions { kv: live_dtype(pool.info.dtype), context_max: stored.state.context_max as usize };
        let layout = model.kv_layout(options.kv);
        let here =
            (layout.layers as u32, layout.kv_heads as u32, layout.head_dim as u32, layout.block_bytes() as u64, KV_BLOCK_TOKENS as u32);
        let i = &pool.info;
        if (i.layers, i.kv_heads, i.head_dim, i.block_bytes, i.block_tokens) != here {
            return Err(unthawable(format!("its KV is laid out in another way than the model `{}` does", model.name())));
        }
        let kv = self.source.kv(index, &self.shared)?;
        let (keys, mut blocks): (Vec<_>, Vec<_>) = kv.blocks.into_iter().unzip();
        blocks.extend(kv.last);
        let (tokens, evaluated) = (self.source.tokens(index)?, stored.evaluated as usize);
        let parts = RestoredSession { options, tokens: &tokens, evaluated, blocks, tail: kv.tail, sampler, numerics: &pool.info.numerics };
        let session = Session::restore(model, parts)?;
        for (at, key) in keys.into_iter().enumerate() {
            let held = session.shared_block(at).ok_or_else(|| unthawable("a block is missing"))?;
            self.shared.entry(key).or_insert(held);
        }
        if session.numerics_id() != pool.info.numerics && self.exactness == Exactness::SameBits {
            self.exactness = Exactness::OtherNumerics { stored: pool.info.numerics.clone(), here: session.numerics_id() };
        }
        self.restored_tokens += evaluated;
        Ok(session)
    }

    /// The same tokens on another model with the same vocabulary: evaluated anew.
    fn recompute(&mut self, host: &mut Host, model: &Arc<Model>, index: usize, sampler: Sampler) -> Result<Session, Error> {
        let manifest = self.source.manifest();
        let stored = &manifest.sessions[index];
        let info = &manifest.pools[stored.state.pool as usize].info;
        let vocabulary = manifest.notes.get(VOCABULARIES).and_then(|all| all.get(&info.model)).and_then(|hash| hash.as_str());
        if vocabulary != Some(host.models.vocabulary(model).to_string().as_str()) {
            return Err(Error::OtherVocabulary { model: model.name().to_owned() });
        }
        if !self.options.reprefill {
            let here = Hash(model.fingerprint());
            return Err(Error::OtherModel { model: info.model.clone(), stored: info.fingerprint, here });
        }
        let context_max = (stored.state.context_max as usize).min(model.config().context_max);
        let mut session = Session::open(model, SessionOptions { kv: live_dtype(info.dtype), context_max })?;
        session.append(&self.source.tokens(index)?)?;
        session.set_sampler(sampler);
        host.batch(model).step(&mut [Work::new(&mut session, Logits::None)])?;
        self.recomputed_tokens += session.evaluated();
        self.exactness = Exactness::Recomputed;
        Ok(session)
    }

    fn report(&self, identity: Identity) -> ThawReport {
        ThawReport {
            identity,
            restored_tokens: self.restored_tokens,
            recomputed_tokens: self.recomputed_tokens,
            exactness: self.exactness.clone(),
        }
    }
}
