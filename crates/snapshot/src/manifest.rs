//! The manifest: what the tensors of a snapshot mean. Types that read as the JSON does, and one function that trusts them.

use crate::id::bits_hex;
use crate::limits::*;
use crate::{ActorId, Error, Hash};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

/// KV blocks start at, and are padded to, multiples of this: the largest page of the systems that map the file.
pub(crate) const BLOCK_ALIGN_BYTES: u64 = 16 << 10;
/// Pages of linear memory are stored in this size, whatever the system's.
pub(crate) const STORED_PAGE_BYTES: usize = 4096;

/// Everything a snapshot says about itself.
///
/// Of a manifest that a [`crate::Snapshot`] or an [`crate::Inspection`] hands out, every index, count and sum was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The program that wrote it, and its version.
    pub writer: String,
    /// Who the actor is.
    pub identity: Identity,
    /// The program part of the actor; absent where only sessions were kept.
    pub guest: Option<Guest>,
    /// The pools of KV blocks, one for each model and way of storing.
    pub pools: Vec<KvPool>,
    /// The inference timelines.
    pub sessions: Vec<Session>,
    /// The hash of every tensor but KV blocks (whose hashes stand in their pool) and padding (which is zero).
    pub hashes: BTreeMap<String, Hash>,
    /// Bytes of the tensor `journal`: of an actor in the middle of a message, what it was told in it. Then the rest is the state before the message.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub journal_bytes: u64,
    /// What the writer adds for people or later versions; nothing depends on it.
    #[serde(default)]
    pub notes: BTreeMap<String, serde_json::Value>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Who an actor is and from whom it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Its own identity.
    pub id: ActorId,
    /// The identity it was thawed or forked from.
    pub parent: Option<ActorId>,
    /// The name that people use.
    pub name: String,
    /// When the identity was minted, in milliseconds since 1970.
    pub created_ms: u64,
}

impl Identity {
    /// A new identity, of this moment.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn mint(name: &str, parent: Option<ActorId>) -> Result<Identity, Error> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Ok(Identity { id: ActorId::mint()?, parent, name: name.to_owned(), created_ms })
    }
}

/// The program part of an actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    /// What the caller gave.
    #[serde(flatten)]
    pub state: GuestState,
    /// The hash of the module, which is the tensor `guest.module`.
    pub module_hash: Hash,
    /// How linear memory is stored.
    pub memory: Memory,
}

/// The state of a guest outside its linear memory: what its host gives and takes back, unread by this crate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestState {
    /// The version of the contract that the guest was built for.
    pub abi: u32,
    /// Its mutable globals.
    pub globals: Vec<Global>,
    /// What it was spawned with.
    pub settings: BTreeMap<String, String>,
    /// Its random generator, in the writer's own words.
    pub random_state: String,
    /// How many messages it has answered.
    pub messages_handled: u64,
}

/// The value of one mutable global.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Global {
    /// Its index in the module.
    pub index: u32,
    /// Its type.
    pub kind: ValueKind,
    /// Its bits, in the low end.
    #[serde(with = "bits_hex")]
    pub bits: u128,
}

/// The types of values that can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // WebAssembly's own names
pub enum ValueKind {
    I32,
    I64,
    F32,
    F64,
    V128,
}

/// How linear memory is stored: the pages that are not zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes of the linear memory.
    pub bytes: u64,
    /// Bytes of one stored page: 4096.
    pub stored_page_bytes: u32,
    /// How many pages are stored; all others are zero.
    pub stored_pages: u32,
}

/// KV blocks of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvPool {
    /// What the caller gave.
    #[serde(flatten)]
    pub info: PoolInfo,
    /// The tensor that holds the blocks.
    pub tensor: String,
    /// The hash of each block, padding included.
    pub block_hashes: Vec<Hash>,
}

/// Which model computed the blocks of a pool, and how they are laid out: (layer, k or v, kv_head, token, head_dim).
///
/// ```
/// # use driftwood_snapshot::*;
/// let smollm2 = PoolInfo {
///     model: "smollm2-135m".into(),
///     fingerprint: Hash::of(b"the model's file"),
///     numerics: "cpu/1/fast/f16".into(),
///     architecture: "llama".into(),
///     layers: 30,
///     kv_heads: 3,
///     head_dim: 64,
///     dtype: KvDType::F16,
///     block_tokens: 64,
///     block_bytes: 1_474_560,
/// };
/// assert_eq!(smollm2.row_bytes(), 128);
/// assert_eq!(smollm2.payload_bytes(), smollm2.block_bytes);
/// assert_eq!(smollm2.rows_per_token() * smollm2.row_bytes(), 23_040);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// The model's name.
    pub model: String,
    /// The hash of the model's file.
    pub fingerprint: Hash,
    /// What promises equal bits: device class, kernel version, arithmetic, KV dtype.
    pub numerics: String,
    /// The model's family.
    pub architecture: String,
    /// Layers of the model.
    pub layers: u32,
    /// Key and value heads of a layer.
    pub kv_heads: u32,
    /// Elements of a row.
    pub head_dim: u32,
    /// How a row is stored.
    pub dtype: KvDType,
    /// Tokens of one block.
    pub block_tokens: u32,
    /// Bytes of one block: its rows, rounded up to a multiple of 16 KiB.
    pub block_bytes: u64,
}

/// How a row of keys or values is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvDType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// Signed bytes, then one f16 scale for each 32 of them.
    Q8,
}

impl PoolInfo {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        let elements = u64::from(self.head_dim);
        match self.dtype {
            KvDType::F16 => 2 * elements,
            KvDType::F32 => 4 * elements,
            KvDType::Q8 => elements + elements / 32 * 2,
        }
    }

    /// Rows of one token: layers x 2 x KV heads.
    pub fn rows_per_token(&self) -> u64 {
        u64::from(self.layers) * 2 * u64::from(self.kv_heads)
    }

    /// Bytes of a block's rows, without what rounds it up.
    pub fn payload_bytes(&self) -> u64 {
        self.rows_per_token() * u64::from(self.block_tokens) * self.row_bytes()
    }

    /// Whether the blocks are a tensor of floats; else they are stored as bytes.
    pub(crate) fn is_typed(&self) -> bool {
        self.dtype != KvDType::Q8 && self.payload_bytes() == self.block_bytes
    }
}

/// One inference timeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// What the caller gave.
    #[serde(flatten)]
    pub state: SessionState,
    /// How many tokens it has: the tensor `session.{handle}.tokens`.
    pub tokens: u32,
    /// How many of them have keys and values.
    pub evaluated: u32,
    /// Its full blocks, as indices in the pool.
    pub blocks: Vec<u32>,
    /// The tensor with the rows of the last, partly filled block. Forks may share it.
    pub tail: Option<String>,
    /// How many tokens those rows are.
    pub tail_tokens: u32,
}

/// The state of a session beside its tokens and its KV.
///
/// The sampler's numbers go through JSON: integers up to 64 bits and single-precision floats come back exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionState {
    /// How the guest knows it; see [`SessionState::is_open`].
    pub handle: u32,
    /// The pool of its blocks, as an index.
    pub pool: u32,
    /// The most tokens it may have.
    pub context_max: u32,
    /// The sampler, in the writer's own words.
    pub sampler: serde_json::Value,
}

impl SessionState {
    /// Handles from here on are of sessions that are not open: their KV is kept for a model that the actor left.
    pub const KEPT_FROM: u32 = 1 << 31;

    /// Whether the guest has it open.
    pub fn is_open(&self) -> bool {
        self.handle < SessionState::KEPT_FROM
    }
}

/// The name of the tensor with the blocks of a pool.
pub(crate) fn blocks_tensor(pool: usize) -> String {
    format!("kv.{pool}.blocks")
}

/// The name of the tensor with the token ids of a session.
pub(crate) fn tokens_tensor(handle: u32) -> String {
    format!("session.{handle}.tokens")
}

/// The name of the tensor with the last rows of a session.
pub(crate) fn tail_tensor(handle: u32) -> String {
    format!("session.{handle}.tail")
}

impl Manifest {
    /// Checks everything that needs no tensor: limits, sums and references.
    ///
    /// # Errors
    /// [`Error::Malformed`], with the field.
    pub fn check(&self) -> Result<(), Error> {
        check_name("writer", &self.writer)?;
        check_name("identity.name", &self.identity.name)?;
        self.guest.as_ref().map_or(Ok(()), Guest::check)?;
        at_most("journal_bytes", self.journal_bytes, JOURNAL_BYTES_MAX)?;
        at_most("pools", self.pools.len(), POOLS_MAX)?;
        at_most("sessions", self.sessions.len(), SESSIONS_MAX)?;
        self.pools.iter().enumerate().try_for_each(|(p, pool)| pool.check(p))?;
        let mut handles = HashSet::new();
        for (s, session) in self.sessions.iter().enumerate() {
            require(handles.insert(session.state.handle), || (format!("sessions[{s}].handle"), "two sessions have it".into()))?;
            session.check(s, &self.pools)?;
        }
        Ok(())
    }
}

impl Guest {
    /// Limits and sums of linear memory and globals.
    fn check(&self) -> Result<(), Error> {
        let Memory { bytes, stored_page_bytes, stored_pages } = self.memory;
        at_most("guest.globals", self.state.globals.len(), GLOBALS_MAX)?;
        at_most("guest.memory.bytes", bytes, MEMORY_BYTES_MAX)?;
        let page_bytes = STORED_PAGE_BYTES as u64;
        let memory = |ok, why: &str| require(ok, || ("guest.memory".into(), why.into()));
        memory(u64::from(stored_page_bytes) == page_bytes, "stored_page_bytes must be 4096")?;
        memory(bytes.is_multiple_of(page_bytes), "bytes must be a multiple of 4096")?;
        memory(u64::from(stored_pages) <= bytes / page_bytes, "more pages are stored than the memory has")
    }
}

impl KvPool {
    /// Limits and sums of one pool; whoever multiplies its extents calls this first.
    pub(crate) fn check(&self, p: usize) -> Result<(), Error> {
        let field = |name: &str| format!("pools[{p}].{name}");
        self.info.check_as(&field)?;
        at_most(&field("block_hashes"), self.block_hashes.len(), BLOCKS_MAX)?;
        require(self.tensor == blocks_tensor(p), || (field("tensor"), format!("must be {:?}", blocks_tensor(p))))
    }
}

impl PoolInfo {
    /// Checks limits and sums: before this, its extents are not to be multiplied.
    ///
    /// # Errors
    /// [`Error::Malformed`], with the field.
    pub fn check(&self) -> Result<(), Error> {
        self.check_as(&|name| format!("pool.{name}"))
    }

    fn check_as(&self, field: &dyn Fn(&str) -> String) -> Result<(), Error> {
        for (name, value) in [("model", &self.model), ("numerics", &self.numerics), ("architecture", &self.architecture)] {
            check_name(&field(name), value)?;
        }
        for (name, value) in [("layers", self.layers), ("kv_heads", self.kv_heads), ("block_tokens", self.block_tokens)] {
            at_least_one(&field(name), value)?;
            at_most(&field(name), value, BLOCK_EXTENT_MAX)?;
        }
        at_least_one(&field("head_dim"), self.head_dim)?;
        at_most(&field("head_dim"), self.head_dim, HEAD_DIM_MAX)?;
        let whole_rows = self.dtype != KvDType::Q8 || self.head_dim.is_multiple_of(32);
        require(whole_rows, || (field("head_dim"), "Q8 needs a multiple of 32".into()))?;
        at_most(&field("block_bytes"), self.block_bytes, BLOCK_BYTES_MAX)?;
        let expected = self.payload_bytes().next_multiple_of(BLOCK_ALIGN_BYTES);
        require(self.block_bytes == expected, || (field("block_bytes"), format!("{} where its rows make {expected}", self.block_bytes)))
    }
}

impl Session {
    /// Counts that must agree, and references to pool and blocks.
    fn check(&self, s: usize, pools: &[KvPool]) -> Result<(), Error> {
        let bad = |name: &str, why: String| (format!("sessions[{s}].{name}"), why);
        let Some(pool) = pools.get(self.state.pool as usize) else {
            return require(false, || bad("pool", format!("{} of {}", self.state.pool, pools.len())));
        };
        at_most(&format!("sessions[{s}].context_max"), self.state.context_max, TOKENS_MAX)?;
        require(self.tokens <= self.state.context_max, || bad("tokens", format!("{} of at most {}", self.tokens, self.state.context_max)))?;
        require(self.evaluated <= self.tokens, || bad("evaluated", format!("{} of {}", self.evaluated, self.tokens)))?;
        let full_blocks = self.evaluated / pool.info.block_tokens;
        let tail_tokens = self.evaluated % pool.info.block_tokens;
        let (blocks, tail) = (self.blocks.len(), self.tail_tokens);
        require(blocks == full_blocks as usize, || bad("blocks", format!("{blocks} where {full_blocks} are full")))?;
        require(tail == tail_tokens, || bad("tail_tokens", format!("{tail} where {tail_tokens} remain")))?;
        require(self.tail.is_some() == (tail > 0), || bad("tail", format!("does not fit {tail} tail_tokens")))?;
        let pool_blocks = pool.block_hashes.len();
        let outside = self.blocks.iter().find(|&&b| b as usize >= pool_blocks);
        outside.map_or(Ok(()), |b| require(false, || bad("blocks", format!("block {b} of {pool_blocks}"))))
    }
}

/// The error of `bad` unless `ok`.
pub(crate) fn require(ok: bool, bad: impl FnOnce() -> (String, String)) -> Result<(), Error> {
    if ok {
        return Ok(());
    }
    let (field, why) = bad();
    Err(Error::malformed(field, why))
}

/// Refuses what exceeds a limit.
pub(crate) fn at_most<T: PartialOrd + std::fmt::Display>(field: &str, value: T, limit: T) -> Result<(), Error> {
    require(value <= limit, || (field.into(), format!("{value} exceeds the limit of {limit}")))
}

/// Refuses zero, where something is divided by it or it would hide other extents.
fn at_least_one(field: &str, value: u32) -> Result<(), Error> {
    require(value > 0, || (field.into(), "must not be zero".into()))
}

/// Names are shown to people, so a file must not be able to steer their terminal.
fn check_name(field: &str, name: &str) -> Result<(), Error> {
    at_most(field, name.len(), NAME_BYTES_MAX)?;
    require(!name.is_empty(), || (field.into(), "must not be empty".into()))?;
    require(!name.chars().any(char::is_control), || (field.into(), "holds control characters".into()))
}
