//! The journal of a process: what its actors were told since their heads, durable before anybody sees what came of it.
//!
//! One file takes the records of all actors, so that one sync makes a whole group of them durable, on a thread of its own. `journal/record.rs`
//! is the format, `journal/writer.rs` the thread, `journal/left.rs` what is found after a process died.

use crate::Error;
use driftwood_snapshot::ActorId;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fmt;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

mod left;
mod record;
mod writer;

pub use left::{JournalFiles, journal_files, left_behind, sweep_journals};
pub use record::{Base, JOURNAL_BYTES_MAX, JOURNAL_VERSION, Left, RECORD_BYTES_MAX};

use record::{Kind, Record, check_len, first_page};
use writer::{Disk, STEP_BYTES, Shared};

/// How a journal's file is named, behind 32 hex digits.
const SUFFIX: &str = ".journal";

/// How durable is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On the disk: it survives a power cut.
    Disk,
    /// With the system: it survives the process's death.
    Process,
}

/// The journal of one process: a file that stays locked while the process lives.
///
/// It lives as long as anybody has it or a [`Stream`] of it. Then its file is removed if all streams were ended, and stays for the next
/// process if not.
pub struct Journal {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    /// A new, empty journal in `folder`, which is made if there is none.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn create(folder: &Path, durability: Durability) -> Result<Arc<Journal>, Error> {
        let syncs = durability == Durability::Disk;
        make_folder(folder, syncs)?;
        // Held until the file is locked: a sweep would take it for a dead process's.
        let _lock = lock_folder(folder, FlockOperation::LockShared)?;
        let path = folder.join(format!("{}{SUFFIX}", ActorId::mint()?));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| Error::system("create", &path, e))?;
        let file = File::from(file);
        let filled = fill(&file, &path, syncs).and_then(|()| if syncs { sync_folder(folder) } else { Ok(()) });
        let journal = filled.and_then(|()| Journal::on(Box::new(file), path.clone(), durability));
        journal.inspect_err(|_| drop(std::fs::remove_file(&path)))
    }

    /// A journal on a file that is there.
    fn on(disk: Box<dyn Disk>, path: PathBuf, durability: Durability) -> Result<Arc<Journal>, Error> {
        let shared = Arc::new(Shared::new(path.clone()));
        let writer = shared.clone();
        let thread = std::thread::Builder::new().name("journal".into());
        let spawned = thread.spawn(move || writer.run(disk, durability == Durability::Disk));
        let thread = spawned.map_err(|e| Error::system("start the thread of", &path, e))?;
        Ok(Arc::new(Journal { path, shared, thread: Some(thread) }))
    }

    /// Begins the records of an actor since `base`.
    ///
    /// # Errors
    /// [`Error::JournalFull`], [`Error::LongRecord`] if the name is too long, or what the disk answered before.
    pub fn begin(self: &Arc<Journal>, base: &Base) -> Result<Stream, Error> {
        let (salt, number) = self.shared.begin(base)?;
        Ok(Stream { journal: self.clone(), salt, number })
    }

    /// The highest sequence number up to which everything is durable.
    pub fn durable(&self) -> u64 {
        self.shared.durable()
    }

    /// Waits until everything up to this sequence number is durable.
    ///
    /// # Errors
    /// If the disk refuses, or did so before: nothing becomes durable any more then.
    pub fn wait(&self, sequence: u64) -> Result<(), Error> {
        self.shared.wait(sequence)
    }

    /// Whether the disk has refused: nothing becomes durable here any more.
    pub fn has_failed(&self) -> bool {
        self.shared.has_failed()
    }

    /// Bytes that are in use. While streams are open the file only grows: far below [`JOURNAL_BYTES_MAX`], let new streams begin in
    /// another journal.
    pub fn len_bytes(&self) -> u64 {
        self.shared.len_bytes()
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.close();
        // The thread does not panic; had it done so, the file would stay as it is.
        let written = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        if written && self.shared.is_over() {
            let _ = std::fs::remove_file(&self.path); // the next sweep finds it
        }
    }
}

/// The records of one actor since its base. Dropped without [`Stream::end`], they stay for whoever goes on with the actor.
#[derive(Debug)]
pub struct Stream {
    journal: Arc<Journal>,
    salt: u64,
    number: u32,
}

impl Stream {
    /// Appends a record and answers its sequence number: a copy into a buffer; what is durable says [`Journal::wait`]. Where the disk is far
    /// behind, this waits for it.
    ///
    /// # Errors
    /// [`Error::LongRecord`], [`Error::JournalFull`], or what the disk answered before.
    pub fn append(&self, record: &[u8]) -> Result<u64, Error> {
        check_len(Kind::Record, record)?;
        self.journal.shared.append(&self.record(Kind::Record, record).seal())
    }

    /// Where it stands.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Says that the records are of no more use: a head that has all of them is published, or nothing of them is to be gone on with. They may
    /// come back if the process is killed before that is durable: wait for the answered sequence number where it matters.
    ///
    /// # Errors
    /// What the disk answered before.
    pub fn end(self) -> Result<u64, Error> {
        self.journal.shared.end(&self.record(Kind::End, &[]).seal())
    }

    fn record<'a>(&self, kind: Kind, payload: &'a [u8]) -> Record<'a> {
        Record { salt: self.salt, stream: self.number, kind, payload }
    }
}

/// Makes a folder that lasts.
fn make_folder(folder: &Path, syncs: bool) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|e| Error::system("make the folder", folder, e))?;
    match folder.parent() {
        Some(parent) if syncs && !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    let synced = File::open(folder).and_then(|opened| opened.sync_all());
    synced.map_err(|e| Error::system("make durable", folder, e))
}

/// Locks a new file and fills it: with zeros, which every system has, and over which records are written without the file system having
/// anything to note. Space that is only reserved (`fallocate`) changes its state with the first write to it.
fn fill(file: &File, path: &Path, syncs: bool) -> Result<(), Error> {
    flock(file, FlockOperation::LockExclusive).map_err(|e| Error::system("lock", path, e))?;
    let mut bytes = first_page();
    bytes.resize(bytes.len() + STEP_BYTES as usize, 0);
    file.write_all_at(&bytes, 0).map_err(|e| Error::system("write", path, e))?;
    let synced = if syncs { file.sync_all() } else { Ok(()) };
    synced.map_err(|e| Error::system("make durable", path, e))
}

/// The lock that keeps sweeps away from journals that are being made; none if there is no folder.
fn lock_folder(folder: &Path, how: FlockOperation) -> Result<Option<File>, Error> {
    let opened = match File::open(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|e| Error::system("open", folder, e))?,
    };
    flock(&opened, how).map_err(|e| Error::system("lock", folder, e))?;
    Ok(Some(opened))
}

/// The paths of all journals; none if there is no folder.
fn journals(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = |e| Error::system("read the folder", folder, e);
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(list)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(list)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.strip_suffix(SUFFIX).is_some_and(|id| id.parse::<ActorId>().is_ok()) {
            paths.push(path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests;
