//! Heads: an actor at rest as a small file that names its chunks. A head is immutable and replaced by rename, so a reader has the old
//! state or the new one.
//!
//! The file is a line, `driftwood-head 2 <blake3 of the rest>`, and JSON. Version 1 spelt pieces at length (`pieces.rs`) and named no former head.

use crate::{Chunk, Chunks, Commit, Error};
use driftwood_region::View;
use driftwood_snapshot::{
    Existing, Guest, GuestState, Hash, Identity, KvPool, Manifest, Memory, PoolInfo, Session, SessionState, Temp, limits,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

/// The format that this crate writes, and the newest that it reads.
pub const HEAD_VERSION: u32 = 2;
/// What a head begins with.
const MAGIC: &str = "driftwood-head";
/// Bytes of a head at most.
const HEAD_BYTES_MAX: u64 = limits::HEADER_BYTES_MAX;
/// Bytes of its first line at most.
const FIRST_LINE_BYTES_MAX: u64 = 128;
/// Bytes of a page of linear memory, each a chunk of its own.
pub const PAGE_BYTES: usize = 4096;
/// Pages that one leaf names: 2 MiB of linear memory.
const LEAF_PAGES: usize = 512;
/// A page in a leaf: hash, pack, where; all zero for a page of zeros.
const ENTRY_BYTES: usize = 48;
/// Token ids of one chunk.
const TOKENS_PER_CHUNK: usize = 4096;

/// An actor at rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The program that wrote it, and its version.
    pub writer: String,
    /// Who the actor is.
    pub identity: Identity,
    /// Its program part.
    pub guest: Option<HeadGuest>,
    /// Whose KV its sessions have, one for each model and way of storing.
    pub pools: Vec<PoolInfo>,
    /// Its inference timelines.
    pub sessions: Vec<HeadSession>,
    /// The head that it follows, as a chunk: the whole text, its first line included. Only the direct predecessor is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Chunk>,
    /// The messages that were handled since then, as [`write_turns`] writes them; absent if there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<Chunk>,
    /// How many messages were cut off and given up: it makes a head that says so another one than the head whose journal they are in.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub given_up: u64,
    /// Anything for people or later versions.
    #[serde(default)]
    pub notes: BTreeMap<String, serde_json::Value>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A head that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Bytes of the file.
    pub bytes: u64,
    /// The hash in its first line.
    pub hash: Hash,
}

/// The program part of an actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadGuest {
    /// Its state outside linear memory.
    #[serde(flatten)]
    pub state: GuestState,
    /// Its module.
    pub module: Chunk,
    /// Its linear memory.
    pub memory: HeadMemory,
}

/// Linear memory: leaves of 512 pages, each leaf a chunk that names its pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadMemory {
    /// Bytes of the linear memory.
    pub bytes: u64,
    /// Pages that are not all zero.
    pub stored_pages: u32,
    /// Its leaves in order; none where all pages are zero.
    pub leaves: Vec<Option<Chunk>>,
}

/// One inference timeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadSession {
    /// Its handle, pool, bound and sampler.
    #[serde(flatten)]
    pub state: SessionState,
    /// How many tokens it has.
    pub tokens: u32,
    /// How many of them have keys and values.
    pub evaluated: u32,
    /// The token ids, 4,096 to a chunk.
    pub ids: Vec<Chunk>,
    /// The rows of each block, in pieces.
    #[serde(with = "crate::pieces")]
    pub blocks: Vec<Vec<HeadPiece>>,
}

/// Rows of consecutive tokens of one block: of a whole block as it lies in memory, else packed as (layer, k or v, kv_head, token, head_dim).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadPiece {
    /// How many tokens.
    pub tokens: u32,
    /// Their rows.
    pub rows: Chunk,
}

impl Head {
    /// Makes the head durable under `path`, in place of what is there, and says what stands there now. What it names must be sealed.
    ///
    /// # Errors
    /// If the disk refuses; what was there stays.
    pub fn publish(&self, path: &Path) -> Result<Published, Error> {
        let (text, hash) = self.text_and_hash()?;
        let mut temp = Temp::beside(path)?;
        temp.file.write_all(text.as_bytes()).map_err(|e| Error::system("write", path, e))?;
        temp.publish(Existing::Replace)?;
        Ok(Published { bytes: text.len() as u64, hash })
    }

    /// The hash in the first line of a head, by which journals name it. The rest is not read.
    ///
    /// # Errors
    /// [`Error::BadHead`], [`Error::FutureVersion`], or if it cannot be read.
    pub fn hash_of(path: &Path) -> Result<Hash, Error> {
        let bytes = read_at_most(path, FIRST_LINE_BYTES_MAX)?;
        let line = bytes.split(|&byte| byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
        let ended = line.filter(|line| line.len() < bytes.len());
        ended.ok_or_else(|| Flaw::Bad("it is no head".into())).and_then(first_line).map_err(|flaw| flaw.at(path))
    }

    /// The file: its first line and the JSON. The chunk by which the next head names this one holds the same.
    ///
    /// # Errors
    /// If its notes or samplers cannot be JSON.
    pub fn text(&self) -> Result<String, Error> {
        Ok(self.text_and_hash()?.0)
    }

    fn text_and_hash(&self) -> Result<(String, Hash), Error> {
        let json = serde_json::to_string(self).map_err(|e| Error::system("write", Path::new("a head"), std::io::Error::other(e)))?;
        let hash = Hash::of(json.as_bytes());
        Ok((format!("{MAGIC} {HEAD_VERSION} {hash}\n{json}"), hash))
    }

    /// Reads a head and checks it: its own hash, all bounds, and that counts and lengths agree. No chunk is looked at.
    ///
    /// # Errors
    /// [`Error::BadHead`], [`Error::FutureVersion`], or if it cannot be read.
    pub fn read(path: &Path) -> Result<Head, Error> {
        Head::parse(&read_at_most(path, HEAD_BYTES_MAX + 1)?).map_err(|flaw| flaw.at(path))
    }

    /// As [`Head::read`], of bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Head, Flaw> {
        require(bytes.len() as u64 <= HEAD_BYTES_MAX, || format!("it has more than {HEAD_BYTES_MAX} bytes"))?;
        let text = std::str::from_utf8(bytes).map_err(|_| Flaw::Bad("it is no text".into()))?;
        let (first, json) = text.split_once('\n').ok_or_else(|| Flaw::Bad("it is no head".into()))?;
        require(first_line(first)? == Hash::of(json.as_bytes()), || "its text does not match its hash".into())?;
        let head: Head = serde_json::from_str(json).map_err(|e| Flaw::Bad(e.to_string()))?;
        head.check()?;
        Ok(head)
    }

    fn check(&self) -> Result<(), Flaw> {
        self.guest.as_ref().map_or(Ok(()), HeadGuest::check)?;
        for (index, session) in self.sessions.iter().enumerate() {
            let pool = self.pools.get(session.state.pool as usize);
            let pool = pool.ok_or_else(|| Flaw::Bad(format!("sessions[{index}] names no pool")))?;
            session.check(pool).map_err(|why| Flaw::Bad(format!("sessions[{index}]: {why}")))?;
        }
        self.check_history()?;
        self.manifest().check().map_err(|e| Flaw::Bad(e.to_string()))
    }

    /// What a portable file would say of it. The hashes of blocks that are kept in pieces are not known: they are zeros.
    pub fn manifest(&self) -> Manifest {
        let mut pools: Vec<KvPool> = Vec::new();
        for (p, info) in self.pools.iter().enumerate() {
            pools.push(KvPool { info: info.clone(), tensor: format!("kv.{p}.blocks"), block_hashes: Vec::new() });
        }
        let mut sessions = Vec::new();
        for session in &self.sessions {
            let Some(pool) = pools.get_mut(session.state.pool as usize) else { continue };
            let block_tokens = pool.info.block_tokens.max(1);
            let full = (session.evaluated / block_tokens) as usize;
            let first = pool.block_hashes.len() as u32;
            let whole = |pieces: &Vec<HeadPiece>| if let [one] = pieces[..] { one.rows.hash } else { Hash([0; 32]) };
            pool.block_hashes.extend(session.blocks.iter().take(full).map(whole));
            let tail_tokens = session.evaluated % block_tokens;
            sessions.push(Session {
                state: session.state.clone(),
                tokens: session.tokens,
                evaluated: session.evaluated,
                blocks: (first..pool.block_hashes.len() as u32).collect(),
                tail: (tail_tokens > 0).then(|| format!("session.{}.tail", session.state.handle)),
                tail_tokens,
            });
        }
        let guest = self.guest.as_ref().map(|guest| Guest {
            state: guest.state.clone(),
            module_hash: guest.module.hash,
            memory: Memory { bytes: guest.memory.bytes, stored_page_bytes: PAGE_BYTES as u32, stored_pages: guest.memory.stored_pages },
        });
        let (writer, identity, notes) = (self.writer.clone(), self.identity.clone(), self.notes.clone());
        Manifest { writer, identity, guest, pools, sessions, hashes: BTreeMap::new(), journal_bytes: 0, notes }
    }

    /// Every chunk that it names itself: pages of linear memory are named by its leaves.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        let guest = self.guest.iter().flat_map(|guest| std::iter::once(guest.module).chain(guest.memory.leaves.iter().flatten().copied()));
        let pieces = |session: &'_ HeadSession| session.blocks.iter().flatten().map(|piece| piece.rows).collect::<Vec<_>>();
        let sessions = self.sessions.iter().flat_map(move |session| session.ids.iter().copied().chain(pieces(session)));
        guest.chain(sessions).chain(self.former).chain(self.turns)
    }

    /// Bytes of all that it names, pages of memory included; of what others name, too.
    pub fn named_bytes(&self) -> u64 {
        let pages = self.guest.as_ref().map_or(0, |guest| u64::from(guest.memory.stored_pages) * PAGE_BYTES as u64);
        pages + self.chunks().map(|chunk| chunk.len_bytes).sum::<u64>()
    }

    /// Bytes of keys and values.
    pub fn kv_bytes(&self) -> u64 {
        self.sessions.iter().flat_map(|session| &session.blocks).flatten().map(|piece| piece.rows.len_bytes).sum()
    }
}

impl HeadGuest {
    fn check(&self) -> Result<(), Flaw> {
        let HeadMemory { bytes, leaves, .. } = &self.memory;
        let leaf_bytes = (LEAF_PAGES * PAGE_BYTES) as u64;
        require(*bytes <= limits::MEMORY_BYTES_MAX && bytes.is_multiple_of(PAGE_BYTES as u64), || {
            "its memory has an impossible size".into()
        })?;
        require((1..=limits::MODULE_BYTES_MAX).contains(&self.module.len_bytes), || "its module has an impossible size".into())?;
        require(leaves.len() as u64 == bytes.div_ceil(leaf_bytes), || "its memory has another number of leaves".into())?;
        let entries = |leaf: u64| (bytes - leaf * leaf_bytes).min(leaf_bytes) / PAGE_BYTES as u64;
        let fits = |(leaf, chunk): (u64, &Option<Chunk>)| chunk.is_none_or(|c| c.len_bytes == entries(leaf) * ENTRY_BYTES as u64);
        require((0..).zip(leaves).all(fits), || "a leaf of its memory has another length".into())
    }
}

impl HeadSession {
    /// Counts and lengths that must agree; what is wrong if they do not.
    fn check(&self, pool: &PoolInfo) -> Result<(), String> {
        pool.check().map_err(|e| e.to_string())?;
        let ids: u64 = self.ids.iter().map(|chunk| chunk.len_bytes.min(1 << 40)).sum();
        let whole = self.ids.iter().all(|chunk| chunk.len_bytes.is_multiple_of(4) && chunk.len_bytes > 0);
        let block_tokens = pool.block_tokens;
        let expected = |block: usize| (self.evaluated - block as u32 * block_tokens).min(block_tokens);
        if !whole || ids != 4 * u64::from(self.tokens) {
            return Err("its token ids have another length".into());
        }
        if self.evaluated > self.tokens || self.blocks.len() != self.evaluated.div_ceil(block_tokens) as usize {
            return Err("it has another number of blocks than its tokens need".into());
        }
        for (block, pieces) in self.blocks.iter().enumerate() {
            let tokens: u64 = pieces.iter().map(|piece| u64::from(piece.tokens)).sum();
            if tokens != u64::from(expected(block)) || pieces.iter().any(|piece| !piece.fits(pool)) {
                return Err(format!("the pieces of block {block} are not its rows"));
            }
        }
        Ok(())
    }

    /// The token ids, verified.
    ///
    /// # Errors
    /// If a chunk is missing or altered.
    pub fn token_ids(&self, chunks: &Chunks) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(self.tokens as usize);
        for chunk in &self.ids {
            let view = chunks.read(chunk)?;
            ids.extend(view.bytes().chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])));
        }
        Ok(ids)
    }
}

impl HeadPiece {
    /// Whether its chunk is as long as its rows.
    fn fits(&self, pool: &PoolInfo) -> bool {
        let packed = pool.rows_per_token() * pool.row_bytes() * u64::from(self.tokens);
        let bytes = if self.tokens == pool.block_tokens { pool.block_bytes } else { packed };
        self.tokens > 0 && self.tokens <= pool.block_tokens && self.rows.len_bytes == bytes
    }
}

impl HeadMemory {
    /// Writes the pages of a memory that are not all zero and not there yet.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(commit: &Commit<'_>, memory: &[u8]) -> Result<HeadMemory, Error> {
        let mut written = HeadMemory { bytes: memory.len() as u64, stored_pages: 0, leaves: Vec::new() };
        for leaf in memory.chunks(LEAF_PAGES * PAGE_BYTES) {
            let pages: Vec<&[u8]> = leaf.chunks_exact(PAGE_BYTES).collect();
            let used: Vec<usize> = (0..pages.len()).filter(|&page| pages[page].iter().any(|&byte| byte != 0)).collect();
            let slices: Vec<_> = used.iter().map(|&page| vec![pages[page]]).collect();
            let mut entries = vec![0; pages.len() * ENTRY_BYTES];
            for (page, chunk) in used.iter().zip(commit.put_all(&slices)?) {
                let entry = &mut entries[page * ENTRY_BYTES..][..ENTRY_BYTES];
                entry[..32].copy_from_slice(&chunk.hash.0);
                entry[32..40].copy_from_slice(&chunk.pack.0.to_le_bytes());
                entry[40..].copy_from_slice(&chunk.at_bytes.to_le_bytes());
            }
            written.stored_pages += used.len() as u32;
            written.leaves.push(if used.is_empty() { None } else { Some(commit.put(&entries)?) });
        }
        Ok(written)
    }

    /// The pages that are not all zero: index and chunk. Leaves are verified, pages are not looked at.
    ///
    /// # Errors
    /// If a leaf is missing or altered, or names other pages than it may.
    pub fn pages(&self, chunks: &Chunks) -> Result<Vec<(u32, Chunk)>, Error> {
        let mut pages = Vec::with_capacity(self.stored_pages as usize);
        for (leaf, chunk) in self.leaves.iter().enumerate() {
            let Some(chunk) = chunk else { continue };
            let view: View = chunks.read(chunk)?;
            for (at, entry) in view.bytes().chunks_exact(ENTRY_BYTES).enumerate().filter(|(_, entry)| entry.iter().any(|&b| b != 0)) {
                let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
                let hash = Hash(entry[..32].try_into().expect("32 bytes"));
                let (pack, at_bytes) = (crate::PackId(word(32)), word(40).min(1 << 60));
                pages.push(((leaf * LEAF_PAGES + at) as u32, Chunk { hash, pack, at_bytes, len_bytes: PAGE_BYTES as u64 }));
            }
        }
        let agrees = pages.len() == self.stored_pages as usize;
        let pack = self.leaves.iter().flatten().next().map_or(crate::PackId(0), |leaf| leaf.pack);
        if agrees { Ok(pages) } else { Err(Error::Altered { what: "the list of a memory's pages".into(), pack }) }
    }
}

/// Writes token ids that are not there yet.
///
/// # Errors
/// If the disk refuses.
pub fn write_ids(commit: &Commit<'_>, ids: &[u32]) -> Result<Vec<Chunk>, Error> {
    ids.chunks(TOKENS_PER_CHUNK).map(|ids| commit.put(bytemuck::cast_slice(ids))).collect()
}

/// What is wrong with a head.
#[derive(Debug, PartialEq)]
pub(crate) enum Flaw {
    Future(u32),
    Bad(String),
}

impl Flaw {
    fn at(self, path: &Path) -> Error {
        match self {
            Flaw::Future(found) => Error::FutureVersion { path: path.to_owned(), found, supported: HEAD_VERSION },
            Flaw::Bad(why) => Error::BadHead { path: path.to_owned(), why },
        }
    }
}

/// The hash of the rest.
fn first_line(line: &str) -> Result<Hash, Flaw> {
    let words: Vec<&str> = line.split(' ').collect();
    let [MAGIC, version, hash] = words[..] else { return Err(Flaw::Bad("it is no head".into())) };
    let version: u32 = version.parse().map_err(|_| Flaw::Bad("its version is no number".into()))?;
    if version > HEAD_VERSION {
        return Err(Flaw::Future(version));
    }
    hash.parse().map_err(|_| Flaw::Bad("its hash is none".into()))
}

fn read_at_most(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let file = std::fs::File::open(path).map_err(|e| Error::system("open", path, e))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(|e| Error::system("read", path, e))?;
    Ok(bytes)
}

pub(crate) fn require(ok: bool, why: impl FnOnce() -> String) -> Result<(), Flaw> {
    if ok { Ok(()) } else { Err(Flaw::Bad(why())) }
}
