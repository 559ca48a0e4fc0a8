//! File to contents: mapped, checked once, then trusted. Hashing the data is a step of its own, so that a thaw can do it lazily.

use crate::header::{self, Header, START_BYTES, Tensor};
use crate::layout::{self, Layout};
use crate::limits::THREADS_MAX;
use crate::manifest::{PoolInfo, STORED_PAGE_BYTES, require};
use crate::{Error, Hash, Manifest};
use driftwood_region::{Region, View};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// An actor at rest, its file mapped.
///
/// Pools and sessions are named by their index in the [`Manifest`]. Everything that is handed out is a window on the mapping: views keep
/// it alive, slices borrow from the snapshot, and nothing is copied but by [`Snapshot::unpack_tail`].
///
/// ```no_run
/// # use driftwood_snapshot::Snapshot;
/// # fn thaw(path: &std::path::Path, memory: &mut [u8]) -> Result<(), driftwood_snapshot::Error> {
/// let snapshot = Snapshot::open(path)?;
/// snapshot.verify_small()?;
/// memory.fill(0);
/// for (page, bytes) in snapshot.pages() {
///     memory[page as usize * 4096..][..4096].copy_from_slice(bytes);
/// }
/// for (s, session) in snapshot.manifest().sessions.iter().enumerate() {
///     let pool = session.state.pool as usize;
///     snapshot.verify_blocks(pool, 0..snapshot.manifest().pools[pool].block_hashes.len(), 2)?;
///     let kv = session.blocks.iter().map(|&b| snapshot.block(pool, b as usize));
///     println!("{} tokens, {} full blocks", snapshot.tokens(s).len(), kv.count());
/// }
/// # Ok(())
/// # }
/// ```
///
/// Whoever truncates a mapped file kills its readers, so open only files that the state folder owns; [`crate::import`] brings others in.
#[derive(Debug)]
pub struct Snapshot {
    manifest: Manifest,
    file_bytes: u64,
    parts: Parts,
    /// Every tensor with a hash of its own.
    hashed: Vec<(String, View, Hash)>,
    padding: Vec<View>,
}

/// Every tensor that the manifest gives a meaning; `layout.rs` made sure that each is what it should be.
#[derive(Debug)]
struct Parts {
    module: Option<View>,
    pages: Option<View>,
    index: Option<View>,
    journal: Option<View>,
    pools: Vec<Option<View>>,
    tokens: Vec<Option<View>>,
    tails: Vec<Option<View>>,
}

impl Snapshot {
    /// Maps `path` and checks its header: limits, places and shapes of all tensors, every reference of the manifest. Reads no KV and hashes
    /// none of the data: that is [`Snapshot::verify_all`] and its parts.
    ///
    /// # Errors
    /// One for each way in which a file can be bad; see [`Error`].
    pub fn open(path: &Path) -> Result<Snapshot, Error> {
        let file = File::open(path).map_err(|e| Error::system("open", path, e))?;
        Self::of_file(&file, path)
    }

    /// As [`Snapshot::open`]; `path` is for messages.
    pub(crate) fn of_file(file: &File, path: &Path) -> Result<Snapshot, Error> {
        let file_bytes = file.metadata().map_err(|e| Error::system("size", path, e))?.len();
        if file_bytes == 0 {
            return Err(Error::Truncated { expected_bytes: header::DATA_ALIGN_BYTES, found_bytes: 0 });
        }
        let mapped = |source| Error::Map { path: path.to_owned(), source };
        let region = Arc::new(Region::map_file(file).map_err(mapped)?);
        let whole = View::whole(&region).map_err(mapped)?;
        let bytes = whole.bytes();
        let header_bytes = header::size(&bytes[..bytes.len().min(START_BYTES)], bytes.len() as u64)?;
        let header = header::parse(&bytes[..header_bytes as usize], bytes.len() as u64)?;
        let layout = layout::assign(&header)?;
        Self::of_parts(header, layout, &region, file_bytes).map_err(|e| e.unwrap_or_else(mapped))
    }

    /// Makes the views. That they lie within the file is known; only the page index is still to be looked at.
    fn of_parts(header: Header, layout: Layout, region: &Arc<Region>, file_bytes: u64) -> Result<Snapshot, Fault> {
        let view = |t: usize| {
            let Tensor { dtype, shape, offset_bytes, .. } = header.tensors[t];
            View::new(region, offset_bytes as usize, dtype, shape).map_err(Fault::Region)
        };
        let one = |part: Option<usize>| part.map(view).transpose();
        let each = |parts: &[Option<usize>]| parts.iter().map(|&part| one(part)).collect::<Result<Vec<_>, _>>();
        let parts = Parts {
            module: one(layout.module)?,
            pages: one(layout.pages)?,
            index: one(layout.index)?,
            journal: one(layout.journal)?,
            pools: each(&layout.pools)?,
            tokens: each(&layout.tokens)?,
            tails: each(&layout.tails)?,
        };
        let hashed = layout.hashed.iter().map(|&t| {
            let name = header.tensors[t].name.clone();
            let hash = header.manifest.hashes[&name];
            Ok((name, view(t)?, hash))
        });
        let hashed = hashed.collect::<Result<Vec<_>, Fault>>()?;
        let padding = layout.padding.iter().map(|&t| view(t)).collect::<Result<Vec<_>, _>>()?;
        let snapshot = Snapshot { manifest: header.manifest, file_bytes, parts, hashed, padding };
        snapshot.check_page_index().map_err(Fault::Format)?;
        Ok(snapshot)
    }

    /// The only data that others are found by: whoever copies pages into a memory relies on their places.
    fn check_page_index(&self) -> Result<(), Error> {
        let Some(guest) = &self.manifest.guest else { return Ok(()) };
        let pages = guest.memory.bytes / STORED_PAGE_BYTES as u64;
        let index = as_u32s(self.parts.index.as_ref());
        let bad = |why: &str| (layout::INDEX_TENSOR.to_owned(), why.to_owned());
        require(index.is_sorted_by(|a, b| a < b), || bad("is not strictly increasing"))?;
        require(index.last().is_none_or(|&p| u64::from(p) < pages), || bad("names a page outside the memory"))
    }

    /// What the tensors mean.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of keys and values, tails included.
    pub fn kv_bytes(&self) -> u64 {
        let tails = self.hashed.iter().filter(|(name, ..)| name.ends_with(".tail")).map(|(_, view, _)| view);
        self.parts.pools.iter().flatten().chain(tails).map(|view| view.bytes().len() as u64).sum()
    }

    /// The guest's module.
    pub fn module(&self) -> Option<&View> {
        self.parts.module.as_ref()
    }

    /// The pages of linear memory that are not zero, each with its index in pages of 4096 bytes, in rising order.
    pub fn pages(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let pages = self.parts.pages.as_ref().map_or(&[][..], View::bytes);
        as_u32s(self.parts.index.as_ref()).iter().copied().zip(pages.chunks_exact(STORED_PAGE_BYTES))
    }

    /// What the actor was told in the message that it is in the middle of, in the writer's own words.
    pub fn journal(&self) -> Option<&View> {
        self.parts.journal.as_ref()
    }

    /// All blocks of a pool, as one tensor; none if it has no blocks.
    ///
    /// # Panics
    /// If there is no such pool.
    pub fn blocks(&self, pool: usize) -> Option<&View> {
        self.parts.pools[pool].as_ref()
    }

    /// One block of a pool. It starts at a multiple of 16 KiB of the file.
    ///
    /// # Panics
    /// If there is no such pool or block.
    pub fn block(&self, pool: usize, block: usize) -> &[u8] {
        let block_bytes = self.manifest.pools[pool].info.block_bytes as usize;
        let blocks = self.parts.pools[pool].as_ref().expect("a pool with blocks");
        &blocks.bytes()[block * block_bytes..][..block_bytes]
    }

    /// The token ids of a session: all of them, also those that have no KV yet.
    ///
    /// # Panics
    /// If there is no such session.
    pub fn tokens(&self, session: usize) -> &[u32] {
        as_u32s(self.parts.tokens[session].as_ref())
    }

    /// The rows of a session's last block: (layer, k or v, kv_head, tail token, head_dim); none if that block is full.
    ///
    /// # Panics
    /// If there is no such session.
    pub fn tail(&self, session: usize) -> Option<&View> {
        self.parts.tails[session].as_ref()
    }

    /// Puts the rows of a session's last block where they belong in a block in memory, and leaves its other bytes alone.
    ///
    /// # Panics
    /// If there is no such session or `block` is smaller than a block's rows.
    pub fn unpack_tail(&self, session: usize, block: &mut [u8]) {
        let Some(tail) = self.tail(session) else { return };
        let Snapshot { manifest, .. } = self;
        let info: &PoolInfo = &manifest.pools[manifest.sessions[session].state.pool as usize].info;
        let row_bytes = info.row_bytes() as usize;
        let tail_bytes = manifest.sessions[session].tail_tokens as usize * row_bytes;
        let heads = block[..info.payload_bytes() as usize].chunks_exact_mut(info.block_tokens as usize * row_bytes);
        for (head, rows) in heads.zip(tail.bytes().chunks_exact(tail_bytes)) {
            head[..tail_bytes].copy_from_slice(rows);
        }
    }

    /// Compares everything but KV blocks with its hash, and padding with zero.
    ///
    /// # Errors
    /// [`Error::Altered`], with the tensor's name.
    pub fn verify_small(&self) -> Result<(), Error> {
        if self.padding.iter().any(|view| view.bytes().iter().any(|&b| b != 0)) {
            return Err(Error::Altered { what: "padding".into() });
        }
        self.hashed.iter().try_for_each(|(name, view, hash)| compare(view.bytes(), *hash, || format!("tensor {name}")))
    }

    /// Compares a range of a pool's blocks with their hashes, on so many threads (at least one, at most
    /// [`limits::THREADS_MAX`](crate::limits::THREADS_MAX)).
    ///
    /// A thaw that wants its first token early verifies the blocks that attention reads, and only those.
    ///
    /// # Errors
    /// [`Error::Altered`], with the pool and the block.
    ///
    /// # Panics
    /// If there is no such pool or the range leaves it.
    pub fn verify_blocks(&self, pool: usize, blocks: Range<usize>, threads: usize) -> Result<(), Error> {
        let hashes = &self.manifest.pools[pool].block_hashes[blocks.clone()];
        let next = AtomicUsize::new(0);
        let result = Mutex::new(Ok(()));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(hash) = hashes.get(index) else { return };
                let block = blocks.start + index;
                let compared = compare(self.block(pool, block), *hash, || format!("block {block} of kv pool {pool}"));
                if compared.is_err() {
                    next.store(hashes.len(), Ordering::Relaxed);
                    *result.lock().expect("no worker panics") = compared;
                }
            }
        };
        std::thread::scope(|scope| {
            let helpers = threads.clamp(1, THREADS_MAX).min(hashes.len().max(1)) - 1;
            (0..helpers).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        result.into_inner().expect("no worker panics")
    }

    /// Compares every byte that no header hash covers.
    ///
    /// # Errors
    /// [`Error::Altered`].
    pub fn verify_all(&self, threads: usize) -> Result<(), Error> {
        self.verify_small()?;
        let pools = self.manifest.pools.iter().enumerate();
        pools.into_iter().try_for_each(|(p, pool)| self.verify_blocks(p, 0..pool.block_hashes.len(), threads))
    }
}

/// What can fail while views are made; only the caller knows the path.
enum Fault {
    Format(Error),
    Region(driftwood_region::Error),
}

impl Fault {
    fn unwrap_or_else(self, mapped: impl FnOnce(driftwood_region::Error) -> Error) -> Error {
        match self {
            Fault::Format(error) => error,
            Fault::Region(error) => mapped(error),
        }
    }
}

/// The one place where data meets its hash.
fn compare(bytes: &[u8], expected: Hash, what: impl FnOnce() -> String) -> Result<(), Error> {
    if Hash::of(bytes) == expected { Ok(()) } else { Err(Error::Altered { what: what() }) }
}

/// Tensors start at multiples of 64 bytes of a mapping, so the cast cannot fail.
fn as_u32s(view: Option<&View>) -> &[u32] {
    view.map_or(&[], |view| bytemuck::cast_slice(view.bytes()))
}
