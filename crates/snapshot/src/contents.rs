//! What a caller hands to the writer, and the plan of the file that is made of it: slices are borrowed, none is copied.

use crate::header::{DATA_ALIGN_BYTES, Header, PADDING_PREFIX, Tensor};
use crate::layout::{INDEX_TENSOR, JOURNAL_TENSOR, MODULE_TENSOR, PAGES_TENSOR, TENSOR_ALIGN_BYTES, blocks_shape, tail_shape};
use crate::limits::MODULE_BYTES_MAX;
use crate::manifest::*;
use crate::{Error, Hash, header, layout};
use driftwood_region::{DType, Shape};
use std::collections::{BTreeMap, HashMap};

/// An actor, to be written. Its bytes are borrowed: they must not change until [`crate::serialise`] returns, which the borrow sees to.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    /// The program that writes, and its version.
    pub writer: &'a str,
    /// Who the actor is.
    pub identity: &'a Identity,
    /// Its program part.
    pub guest: Option<GuestContents<'a>>,
    /// Its KV blocks, one pool for each model and way of storing.
    pub pools: Vec<PoolContents<'a>>,
    /// Its inference timelines.
    pub sessions: Vec<SessionContents<'a>>,
    /// What the actor was told in a message that it is in the middle of, in the writer's own words; empty for one at rest between messages.
    pub journal: &'a [u8],
    /// Anything for people or later versions.
    pub notes: BTreeMap<String, serde_json::Value>,
}

/// The program part of an actor, to be written.
#[derive(Clone, Debug)]
pub struct GuestContents<'a> {
    /// Its state outside linear memory.
    pub state: GuestState,
    /// The module's bytes.
    pub module: &'a [u8],
    /// All of linear memory; pages of zeros are found and left out.
    pub memory: &'a [u8],
}

/// KV blocks of one model, to be written.
#[derive(Clone, Debug)]
pub struct PoolContents<'a> {
    /// Whose they are and how they are laid out.
    pub info: PoolInfo,
    /// The full blocks of all sessions, each once.
    pub blocks: Vec<Block<'a>>,
}

/// One full block.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// `block_bytes` bytes: (layer, k or v, kv_head, token, head_dim), rounded up.
    pub bytes: &'a [u8],
    /// Its hash where the caller knows it, from an earlier [`Manifest`]; believed.
    pub hash: Option<Hash>,
}

/// One inference timeline, to be written.
#[derive(Clone, Debug)]
pub struct SessionContents<'a> {
    /// Its handle, pool, bound and sampler.
    pub state: SessionState,
    /// All its tokens.
    pub tokens: &'a [u32],
    /// How many of them have keys and values.
    pub evaluated: u32,
    /// Its full blocks, as indices in the pool.
    pub blocks: Vec<u32>,
    /// The partly filled last block, whole as it lies in memory: its rows are picked out. Where two sessions give the same
    /// slice, it is stored once.
    pub tail: Option<&'a [u8]>,
}

/// Where the bytes of a tensor come from.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    /// Slices, one after the other.
    Pieces(Vec<&'a [u8]>),
    /// Made for the file.
    Owned(Vec<u8>),
    /// The blocks of this pool.
    Pool(usize),
    /// Zeros, which a fresh file has by itself.
    Padding,
}

/// A file, ready to be filled: hashes are still [`Hash::ZERO`], offsets count from the start of the data.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub manifest: Manifest,
    pub tensors: Vec<Tensor>,
    pub sources: Vec<Source<'a>>,
    pub header_bytes: u64,
    pub data_bytes: u64,
}

/// Plans the file.
///
/// # Errors
/// If the contents contradict themselves or exceed a limit: whatever this lets pass, the reader takes.
pub(crate) fn plan<'a>(contents: &Contents<'a>) -> Result<Plan<'a>, Error> {
    let manifest = Manifest {
        writer: contents.writer.to_owned(),
        identity: contents.identity.clone(),
        guest: None,
        pools: Vec::new(),
        sessions: Vec::new(),
        hashes: BTreeMap::new(),
        journal_bytes: contents.journal.len() as u64,
        notes: contents.notes.clone(),
    };
    let mut plan = Plan { manifest, tensors: Vec::new(), sources: Vec::new(), header_bytes: 0, data_bytes: 0 };
    // Small things first: a reader of the head of the file has all of them, and KV is the end.
    contents.guest.as_ref().map_or(Ok(()), |guest| plan.add_guest(guest))?;
    if !contents.journal.is_empty() {
        plan.add(JOURNAL_TENSOR.into(), DType::U8, &[contents.journal.len() as u64], Source::Pieces(vec![contents.journal]))?;
    }
    plan.describe_pools(&contents.pools)?;
    plan.add_sessions(&contents.sessions)?;
    plan.add_pools()?;
    plan.check()?;
    Ok(plan)
}

impl<'a> Plan<'a> {
    /// Linear memory and module.
    fn add_guest(&mut self, guest: &GuestContents<'a>) -> Result<(), Error> {
        if guest.module.is_empty() || guest.module.len() as u64 > MODULE_BYTES_MAX {
            return Err(Error::contents(MODULE_TENSOR, format!("a module has 1 to {MODULE_BYTES_MAX} bytes")));
        }
        if !guest.memory.len().is_multiple_of(STORED_PAGE_BYTES) {
            return Err(Error::contents("guest.memory", "must be whole pages of 4096 bytes"));
        }
        let (index, runs) = pages_in_use(guest.memory);
        self.manifest.guest = Some(Guest {
            state: guest.state.clone(),
            module_hash: Hash::ZERO,
            memory: Memory {
                bytes: guest.memory.len() as u64,
                stored_page_bytes: STORED_PAGE_BYTES as u32,
                stored_pages: u32::try_from(index.len()).map_err(|_| Error::contents("guest.memory", "too large"))?,
            },
        });
        let pages = index.len() as u64;
        if pages > 0 {
            self.add(PAGES_TENSOR.into(), DType::U8, &[pages, STORED_PAGE_BYTES as u64], Source::Pieces(runs))?;
            self.add(INDEX_TENSOR.into(), DType::U32, &[pages], Source::Owned(bytemuck::cast_slice(&index).to_vec()))?;
        }
        self.add(MODULE_TENSOR.into(), DType::U8, &[guest.module.len() as u64], Source::Pieces(vec![guest.module]))
    }

    /// Pools enter the manifest first, since sessions refer to them; their tensors come last.
    fn describe_pools(&mut self, pools: &[PoolContents<'a>]) -> Result<(), Error> {
        for (p, pool) in pools.iter().enumerate() {
            if let Some(b) = pool.blocks.iter().position(|b| b.bytes.len() as u64 != pool.info.block_bytes) {
                return Err(Error::contents(format!("pools[{p}].blocks[{b}]"), format!("must have {} bytes", pool.info.block_bytes)));
            }
            let block_hashes = pool.blocks.iter().map(|b| b.hash.unwrap_or(Hash::ZERO)).collect();
            let pool = KvPool { info: pool.info.clone(), tensor: blocks_tensor(p), block_hashes };
            pool.check(p).map_err(Error::into_contents)?;
            self.manifest.pools.push(pool);
        }
        Ok(())
    }

    /// Token ids and tails.
    fn add_sessions(&mut self, sessions: &[SessionContents<'a>]) -> Result<(), Error> {
        let mut tails = HashMap::new();
        for (s, session) in sessions.iter().enumerate() {
            let field = |name: &str| format!("sessions[{s}].{name}");
            let tokens = u32::try_from(session.tokens.len()).map_err(|_| Error::contents(field("tokens"), "too many"))?;
            let pool = self.manifest.pools.get(session.state.pool as usize);
            let pool = pool.ok_or_else(|| Error::contents(field("pool"), "there is no such pool"))?.clone();
            let tail_tokens = session.evaluated.checked_rem(pool.info.block_tokens).unwrap_or(0);
            let entry = Session {
                state: session.state.clone(),
                tokens,
                evaluated: session.evaluated,
                blocks: session.blocks.clone(),
                tail: None,
                tail_tokens,
            };
            self.manifest.sessions.push(entry);
            let handle = session.state.handle;
            if tokens > 0 {
                let bytes = bytemuck::cast_slice(session.tokens);
                self.add(tokens_tensor(handle), DType::U32, &[u64::from(tokens)], Source::Pieces(vec![bytes]))?;
            }
            let Some(block) = session.tail.filter(|_| tail_tokens > 0) else { continue };
            if (block.len() as u64) < pool.info.payload_bytes() {
                return Err(Error::contents(field("tail"), format!("must be a whole block of {} bytes", pool.info.payload_bytes())));
            }
            let same_rows = (block.as_ptr(), session.state.pool, tail_tokens);
            let name = tails.entry(same_rows).or_insert_with(|| tail_tensor(handle)).clone();
            self.manifest.sessions[s].tail = Some(name.clone());
            if name == tail_tensor(handle) {
                let (dtype, extents) = tail_shape(&pool, tail_tokens);
                self.add(name, dtype, &extents, Source::Pieces(tail_rows(&pool.info, block, tail_tokens)))?;
            }
        }
        Ok(())
    }

    /// The tensors of the blocks.
    fn add_pools(&mut self) -> Result<(), Error> {
        for p in 0..self.manifest.pools.len() {
            let pool = &self.manifest.pools[p];
            let (dtype, extents) = blocks_shape(pool);
            if !pool.block_hashes.is_empty() {
                self.add(blocks_tensor(p), dtype, &extents, Source::Pool(p))?;
            }
        }
        Ok(())
    }

    /// Appends a tensor, and padding before it where its place is not aligned.
    fn add(&mut self, name: String, dtype: DType, extents: &[u64], source: Source<'a>) -> Result<(), Error> {
        let align_bytes = match source {
            Source::Pool(_) => DATA_ALIGN_BYTES,
            _ => TENSOR_ALIGN_BYTES,
        };
        let padding_bytes = self.data_bytes.next_multiple_of(align_bytes) - self.data_bytes;
        if padding_bytes > 0 {
            let name = format!("{PADDING_PREFIX}{}", self.tensors.len());
            self.push(name, DType::U8, &[padding_bytes], Source::Padding)?;
        }
        if !matches!(source, Source::Pool(_)) {
            self.manifest.hashes.insert(name.clone(), Hash::ZERO);
        }
        self.push(name, dtype, extents, source)
    }

    /// Appends a tensor right behind the last one.
    fn push(&mut self, name: String, dtype: DType, extents: &[u64], source: Source<'a>) -> Result<(), Error> {
        let too_large = || Error::contents(name.clone(), "too large");
        let extents = extents.iter().map(|&e| usize::try_from(e).ok()).collect::<Option<Vec<_>>>().ok_or_else(too_large)?;
        let shape = Shape::new(&extents).ok_or_else(too_large)?;
        let len_bytes = shape.len().checked_mul(dtype.block_bytes()).ok_or_else(too_large)? as u64;
        let offset_bytes = self.data_bytes;
        self.data_bytes = offset_bytes.checked_add(len_bytes).ok_or_else(too_large)?;
        self.tensors.push(Tensor { name, dtype, shape, offset_bytes, len_bytes });
        self.sources.push(source);
        Ok(())
    }

    /// Reads the header that will be written (but for its hashes), so that nothing is written that would be refused later.
    fn check(&mut self) -> Result<(), Error> {
        self.manifest.check().map_err(Error::into_contents)?;
        let header = header::emit(&self.manifest, &self.tensors);
        self.header_bytes = header.len() as u64;
        let file_bytes = self.header_bytes + self.data_bytes;
        header::size(&header[..header::START_BYTES], file_bytes).map_err(Error::into_contents)?;
        let header: Header = header::parse(&header, file_bytes).map_err(Error::into_contents)?;
        layout::assign(&header).map_err(Error::into_contents)?;
        Ok(())
    }
}

/// The indices of the pages that are not all zero, and their bytes as runs of neighbours.
fn pages_in_use(memory: &[u8]) -> (Vec<u32>, Vec<&[u8]>) {
    const ZEROS: [u8; STORED_PAGE_BYTES] = [0; STORED_PAGE_BYTES];
    let mut index: Vec<u32> = Vec::new();
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (p, page) in memory.chunks_exact(STORED_PAGE_BYTES).enumerate() {
        if *page == ZEROS {
            continue;
        }
        index.push(p as u32);
        match runs.last_mut() {
            Some(run) if run.end == p => run.end += 1,
            _ => runs.push(p..p + 1),
        }
    }
    let bytes = |run: std::ops::Range<usize>| &memory[run.start * STORED_PAGE_BYTES..run.end * STORED_PAGE_BYTES];
    (index, runs.into_iter().map(bytes).collect())
}

/// The first `tail_tokens` rows of each (layer, k or v, kv_head) of a block.
fn tail_rows<'a>(info: &PoolInfo, block: &'a [u8], tail_tokens: u32) -> Vec<&'a [u8]> {
    let row_bytes = info.row_bytes() as usize;
    let head_bytes = info.block_tokens as usize * row_bytes;
    let heads = block[..info.payload_bytes() as usize].chunks_exact(head_bytes);
    heads.map(|head| &head[..tail_tokens as usize * row_bytes]).collect()
}
