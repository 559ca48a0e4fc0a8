//! Contents to file: threads hash and write the tensors, then the header goes in front of them.

use crate::contents::{Block, Contents, Plan, Source, plan};
use crate::header::{self, Tensor};
use crate::publish::Temp;
use crate::{Error, Existing, Hash, Manifest};
use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// One thread copies into the page cache while the others hash: more would queue at the file's lock.
const WRITE_THREADS_MAX: usize = 8;
/// Less KV than this is not worth a second thread.
const PARALLEL_BYTES_MIN: u64 = 4 << 20;
/// Small slices are gathered into writes of about this size.
const GATHER_BYTES: usize = 256 << 10;

/// What was written, and how long it took.
#[derive(Clone, Debug)]
pub struct WriteReport {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of keys and values in it, tails included.
    pub kv_bytes: u64,
    /// KV blocks whose hash was not known before.
    pub blocks_hashed: usize,
    /// From the call to the last write, hashes done, in milliseconds.
    pub serialise_ms: f64,
    /// From there to a durable name, in milliseconds.
    pub sync_ms: f64,
    /// With all hashes: those of the blocks serve the next write.
    pub manifest: Manifest,
}

/// A snapshot that is written but has no name yet; dropped, it is gone.
#[derive(Debug)]
pub struct Unpublished {
    temp: Temp,
    report: WriteReport,
}

/// Writes a snapshot and publishes it: [`serialise`], then [`Unpublished::publish`].
///
/// Blocks whose hash the caller knows are not hashed again, so an actor that is saved after each turn hands over what the last
/// [`WriteReport`] said:
///
/// ```
/// # use driftwood_snapshot::*;
/// # fn save(mut contents: Contents<'_>, path: &std::path::Path) -> Result<(), Error> {
/// let first = write(&contents, path, Existing::Replace)?;
/// let known = &first.manifest.pools[0].block_hashes;
/// for (block, hash) in contents.pools[0].blocks.iter_mut().zip(known) {
///     block.hash = Some(*hash);
/// }
/// let second = write(&contents, path, Existing::Replace)?;
/// assert_eq!(second.blocks_hashed, 0);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As these two.
pub fn write(contents: &Contents<'_>, path: &Path, existing: Existing) -> Result<WriteReport, Error> {
    serialise(contents, path)?.publish(existing)
}

/// Hashes and writes everything into a private file beside `path`.
///
/// The slices of `contents` are hashed and written where they lie, the pages of memory that are all zero left out. Several threads share
/// the work where there is much KV. The header comes last, since it holds the hashes; it has its final size from the start.
///
/// # Errors
/// [`Error::Contents`] if they contradict themselves, [`Error::System`] if the file cannot be written. Nothing is left behind.
pub fn serialise(contents: &Contents<'_>, path: &Path) -> Result<Unpublished, Error> {
    let begun = Instant::now();
    let mut plan = plan(contents)?;
    let temp = Temp::beside(path)?;
    let hashes = write_data(contents, &plan, &temp)?;
    let blocks_hashed = enter_hashes(contents, &mut plan, hashes);
    let header = header::emit(&plan.manifest, &plan.tensors);
    assert_eq!(header.len() as u64, plan.header_bytes, "hashes have a fixed width");
    temp.file.write_all_at(&header, 0).map_err(|e| Error::system("write", &temp.path, e))?;
    let kv_bytes = plan.tensors.iter().filter(|t| t.name.starts_with("kv.") || t.name.ends_with(".tail")).map(|t| t.len_bytes).sum();
    let report = WriteReport {
        bytes: plan.header_bytes + plan.data_bytes,
        kv_bytes,
        blocks_hashed,
        serialise_ms: begun.elapsed().as_secs_f64() * 1e3,
        sync_ms: 0.0,
        manifest: plan.manifest,
    };
    Ok(Unpublished { temp, report })
}

impl Unpublished {
    /// What was written so far.
    pub fn report(&self) -> &WriteReport {
        &self.report
    }

    /// Makes it durable and gives it the name that [`serialise`] was told.
    ///
    /// # Errors
    /// [`Error::Exists`] if the target is there and was not to be replaced; [`Error::System`]. Before the rename nothing is left behind.
    pub fn publish(self, existing: Existing) -> Result<WriteReport, Error> {
        let begun = Instant::now();
        self.temp.publish(existing)?;
        Ok(WriteReport { sync_ms: begun.elapsed().as_secs_f64() * 1e3, ..self.report })
    }
}

/// One thing to hash and write: a tensor, or one block of a pool.
#[derive(Clone, Copy)]
struct Job {
    tensor: usize,
    block: Option<usize>,
}

/// Writes all tensors and gives the hash of each job.
fn write_data(contents: &Contents<'_>, plan: &Plan<'_>, temp: &Temp) -> Result<Vec<(Job, Hash)>, Error> {
    let jobs = jobs(plan);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Ok(Vec::with_capacity(jobs.len())));
    let work = || {
        while let Some(&job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let hash = run(job, contents, plan, &temp.file);
            let mut done = done.lock().expect("no worker panics");
            match (hash, done.as_mut()) {
                (Ok(hash), Ok(hashes)) => hashes.push((job, hash)),
                (Err(e), _) => *done = Err(Error::system("write", &temp.path, e)),
                (Ok(_), Err(_)) => return,
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).clamp(2, WRITE_THREADS_MAX);
        let helpers = if plan.data_bytes < PARALLEL_BYTES_MIN { 0 } else { threads - 1 };
        (0..helpers).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    done.into_inner().expect("no worker panics")
}

/// In the order of the file, so that the page cache is filled front to back.
fn jobs(plan: &Plan<'_>) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (tensor, source) in plan.sources.iter().enumerate() {
        match source {
            Source::Padding => {}
            Source::Pool(p) => jobs.extend((0..plan.manifest.pools[*p].block_hashes.len()).map(|b| Job { tensor, block: Some(b) })),
            Source::Pieces(_) | Source::Owned(_) => jobs.push(Job { tensor, block: None }),
        }
    }
    jobs
}

/// Hashes and writes one thing.
fn run(job: Job, contents: &Contents<'_>, plan: &Plan<'_>, file: &File) -> std::io::Result<Hash> {
    let at_bytes = plan.header_bytes + plan.tensors[job.tensor].offset_bytes;
    match (&plan.sources[job.tensor], job.block) {
        (Source::Pool(p), Some(b)) => {
            let Block { bytes, hash } = contents.pools[*p].blocks[b];
            let hash = hash.unwrap_or_else(|| Hash::of(bytes));
            file.write_all_at(bytes, at_bytes + (b * bytes.len()) as u64)?;
            Ok(hash)
        }
        (Source::Pieces(pieces), _) => write_pieces(pieces, at_bytes, file),
        (Source::Owned(bytes), _) => write_pieces(&[bytes], at_bytes, file),
        (Source::Padding | Source::Pool(_), _) => unreachable!("padding has no job, and a pool's jobs are its blocks"),
    }
}

/// Writes slices one after the other; small ones are gathered first.
fn write_pieces(pieces: &[&[u8]], mut at_bytes: u64, file: &File) -> std::io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut gathered = Vec::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all_at(bytes, at_bytes)?;
        at_bytes += bytes.len() as u64;
        Ok::<(), std::io::Error>(())
    };
    for piece in pieces {
        if gathered.len() + piece.len() > GATHER_BYTES {
            put(&gathered)?;
            gathered.clear();
        }
        if piece.len() > GATHER_BYTES {
            put(piece)?;
        } else {
            gathered.extend_from_slice(piece);
        }
    }
    put(&gathered)?;
    Ok(Hash(*hasher.finalize().as_bytes()))
}

/// Puts the hashes where the manifest wants them, and counts the blocks that had none.
fn enter_hashes(contents: &Contents<'_>, plan: &mut Plan<'_>, hashes: Vec<(Job, Hash)>) -> usize {
    for (job, hash) in hashes {
        let Tensor { name, .. } = &plan.tensors[job.tensor];
        match (&plan.sources[job.tensor], job.block) {
            (Source::Pool(p), Some(b)) => plan.manifest.pools[*p].block_hashes[b] = hash,
            _ => drop(plan.manifest.hashes.insert(name.clone(), hash)),
        }
    }
    if let Some(guest) = &mut plan.manifest.guest {
        guest.module_hash = plan.manifest.hashes[crate::layout::MODULE_TENSOR];
    }
    contents.pools.iter().flat_map(|pool| &pool.blocks).filter(|block| block.hash.is_none()).count()
}
