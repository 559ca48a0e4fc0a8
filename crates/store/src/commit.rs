//! New chunks on their way to the disk: hashed, looked up, and where nobody has them, written; durable before a head may name them.

use crate::{Chunk, Chunks, Error, PackId};
use driftwood_snapshot::{ActorId, Hash, Temp};
use rustix::fs::FlockOperation;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files that one commit writes side by side: each has a lock of its own in the system, so that several threads fill the page cache.
const FILES_MAX: usize = 16;
/// Bytes for each further file at least.
const FILE_BYTES_MIN: usize = 4 << 20;
/// Chunks whose length is a multiple of this begin at one, so that they can be mapped on systems with large pages.
const LARGE_ALIGN_BYTES: u64 = 16 << 10;
/// All others.
const ALIGN_BYTES: u64 = 64;

/// A commit: chunks that are about to be named by a head. No garbage is collected while it lives, so keep it until the head is published.
#[derive(Debug)]
pub struct Commit<'a> {
    chunks: &'a Chunks,
    _lock: File,
    files: Vec<Mutex<Option<PackFile>>>,
    fresh: Mutex<HashMap<Hash, Chunk>>,
    written_bytes: AtomicU64,
}

#[derive(Debug)]
struct PackFile {
    id: PackId,
    temp: Temp,
    len_bytes: u64,
}

/// Bytes of one chunk, in slices one after the other.
pub type Slices<'a> = Vec<&'a [u8]>;

impl Chunks {
    /// Begins a commit. Waits while garbage is collected.
    ///
    /// # Errors
    /// If the lock cannot be taken.
    pub fn commit(&self) -> Result<Commit<'_>, Error> {
        let lock = self.lock(FlockOperation::LockShared)?;
        let files = (0..FILES_MAX).map(|_| Mutex::default()).collect();
        Ok(Commit { chunks: self, _lock: lock, files, fresh: Mutex::default(), written_bytes: AtomicU64::new(0) })
    }
}

impl Commit<'_> {
    /// A chunk of this name that is there, or comes with this commit.
    pub fn find(&self, hash: Hash) -> Option<Chunk> {
        let fresh = held(&self.fresh).get(&hash).copied();
        fresh.or_else(|| self.chunks.find(hash))
    }

    /// Hashes one chunk and writes it, unless it is there.
    ///
    /// # Errors
    /// If the disk is full or broken.
    pub fn put(&self, bytes: &[u8]) -> Result<Chunk, Error> {
        Ok(self.put_all(&[vec![bytes]])?[0])
    }

    /// Hashes chunks and writes those that are not there, on several threads where there is much; answers where each stands.
    ///
    /// # Errors
    /// If the disk is full or broken: the commit is then of no more use.
    pub fn put_all(&self, all: &[Slices<'_>]) -> Result<Vec<Chunk>, Error> {
        let len = |slices: &Slices<'_>| slices.iter().map(|s| s.len()).sum::<usize>();
        let bytes: usize = all.iter().map(len).sum();
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (bytes / FILE_BYTES_MIN).clamp(1, cores.min(FILES_MAX).min(all.len().max(1)));
        let next = AtomicUsize::new(0);
        let done = Mutex::new((Ok(()), vec![None; all.len()], 0));
        let work = |file: &Mutex<Option<PackFile>>| {
            let mut file = held(file);
            while let Some((index, slices)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, all.get(i)?))) {
                let placed = self.place(&mut file, slices);
                let mut done = held(&done);
                match placed {
                    Ok((chunk, written)) => (done.1[index], done.2) = (Some(chunk), done.2 + written),
                    Err(error) => {
                        next.store(all.len(), Ordering::Relaxed);
                        done.0 = Err(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for file in &self.files[1..threads] {
                scope.spawn(|| work(file));
            }
            work(&self.files[0]);
        });
        let (outcome, chunks, written) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome?;
        self.written_bytes.fetch_add(written, Ordering::Relaxed);
        Ok(chunks.into_iter().flatten().collect())
    }

    /// One chunk, and how many bytes were written for it.
    fn place(&self, file: &mut Option<PackFile>, slices: &Slices<'_>) -> Result<(Chunk, u64), Error> {
        let bytes = match slices[..] {
            [whole] => Cow::Borrowed(whole),
            _ => Cow::Owned(slices.concat()),
        };
        let hash = Hash::of(&bytes);
        if let Some(chunk) = self.find(hash) {
            return Ok((chunk, 0));
        }
        let file = match file {
            Some(file) => file,
            None => file.insert(PackFile::new(self.chunks)?),
        };
        let chunk = file.append(hash, &bytes)?;
        held(&self.fresh).insert(hash, chunk);
        Ok((chunk, chunk.len_bytes))
    }

    /// Bytes that were written because nobody had them.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Makes everything durable, after which heads may name it.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn seal(&mut self) -> Result<(), Error> {
        let files: Vec<PackFile> = self.files.iter().filter_map(|file| held(file).take()).collect();
        let packs = &*self.chunks.packs;
        std::thread::scope(|scope| {
            let others: Vec<_> = files.into_iter().map(|file| scope.spawn(move || packs.publish(file.id, file.temp))).collect();
            others.into_iter().try_for_each(|done| done.join().expect("publishing does not panic"))
        })?;
        for chunk in std::mem::take(&mut *held(&self.fresh)).into_values() {
            self.hint(&chunk);
        }
        Ok(())
    }

    /// Says where a chunk stands. If that fails, it may be written again by somebody else, which is no error.
    fn hint(&self, chunk: &Chunk) {
        let (path, place) = (self.chunks.hint(chunk.hash), chunk.place());
        let mut made = std::os::unix::fs::symlink(&place, &path);
        if made.is_err()
            && let Some(folder) = path.parent()
        {
            let _ = DirBuilder::new().mode(0o700).create(folder);
            let _ = std::fs::remove_file(&path); // one that leads nowhere
            made = std::os::unix::fs::symlink(&place, &path);
        }
        drop(made);
    }
}

impl PackFile {
    fn new(chunks: &Chunks) -> Result<PackFile, Error> {
        let id = ActorId::mint()?.0;
        let id = PackId(u64::from_le_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]]));
        Ok(PackFile { id, temp: chunks.packs.create(id)?, len_bytes: 0 })
    }

    fn append(&mut self, hash: Hash, bytes: &[u8]) -> Result<Chunk, Error> {
        let len_bytes = bytes.len() as u64;
        let align = if len_bytes.is_multiple_of(LARGE_ALIGN_BYTES) { LARGE_ALIGN_BYTES } else { ALIGN_BYTES };
        let chunk = Chunk { hash, pack: self.id, at_bytes: self.len_bytes.next_multiple_of(align), len_bytes };
        self.temp.file.write_all_at(bytes, chunk.at_bytes).map_err(|e| Error::system("write", &self.temp.path, e))?;
        self.len_bytes = chunk.at_bytes + len_bytes;
        Ok(chunk)
    }
}

/// No holder panics while it changes what the lock guards.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
