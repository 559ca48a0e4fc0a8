//! What journals of dead processes hold: read by whoever goes on with an actor, and removed once nothing continues from it.

use super::record::{Base, JOURNAL_VERSION, Left, Version, read_streams, read_version};
use super::{journals, lock_folder};
use crate::Error;
use driftwood_snapshot::Hash;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a journal may stay locked that has what is looked for: the system closes a killed process's files one by one, and whoever waited
/// for the actor can be here before it comes to the journal.
const PATIENCE: Duration = Duration::from_millis(100);

/// The stream that continues exactly this base, from the journals of dead processes; the longest one if there are several. The journal of
/// a process that lives is ignored, and those of `own` are not even looked into. Records that a killed writer left torn are no error: they are not there.
///
/// # Errors
/// If a journal cannot be read, or [`Error::FutureVersion`]: it may have what is looked for.
pub fn left_behind(folder: &Path, own: &[PathBuf], base: &Base) -> Result<Option<Left>, Error> {
    let mut longest: Option<Left> = None;
    for path in journals(folder)?.into_iter().filter(|path| !own.contains(path)) {
        let Some(file) = open(&path)? else { continue };
        let has_it = |left: Vec<Left>| left.into_iter().filter(|left| left.base == *base).max_by_key(|left| left.records.len());
        // Living journals are looked into, too: only where one has it is there something to wait for.
        let looked = match streams(&file, &path, |_| false) {
            Err(Error::FutureVersion { .. }) if !is_dead(&file, &path)? => continue,
            looked => looked?,
        };
        if has_it(looked).is_some() && is_dead_soon(&file, &path)? {
            let left = has_it(streams(&file, &path, |found| found == base)?);
            longest = left.into_iter().chain(longest).max_by_key(|left| left.records.len());
        }
    }
    Ok(longest)
}

/// Removes the journals of dead processes none of whose streams continues a head that is there, and says how many. `head_of` answers the
/// hash of an actor's present head, or none if there is no such actor.
///
/// # Errors
/// If a journal cannot be read or removed. Those of later versions are left alone.
pub fn sweep_journals(folder: &Path, head_of: impl Fn(&str) -> Option<Hash>) -> Result<usize, Error> {
    let Some(_lock) = lock_folder(folder, FlockOperation::LockExclusive)? else { return Ok(0) };
    let mut removed = 0;
    for path in journals(folder)? {
        let Some(file) = open(&path)? else { continue };
        if !is_dead(&file, &path)? {
            continue;
        }
        let left = match streams(&file, &path, |_| false) {
            Err(Error::FutureVersion { .. }) => continue,
            left => left?,
        };
        if !left.iter().any(|left| head_of(&left.base.name) == Some(left.base.head)) {
            std::fs::remove_file(&path).map_err(|e| Error::system("remove", &path, e))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// All journals of a folder, those of living processes included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalFiles {
    /// How many there are.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Those that do not begin as a journal does: the disk has altered what was written once.
    pub damaged: Vec<PathBuf>,
}

/// Counts journals, and looks at the first page of each.
///
/// # Errors
/// If the folder or a journal cannot be read.
pub fn journal_files(folder: &Path) -> Result<JournalFiles, Error> {
    let mut found = JournalFiles::default();
    for path in journals(folder)? {
        let Some(mut file) = open(&path)? else { continue };
        let read = |e| Error::system("read", &path, e);
        (found.files, found.bytes) = (found.files + 1, found.bytes + file.metadata().map_err(read)?.len());
        if read_version(&mut file).map_err(read)? == Version::Damaged {
            found.damaged.push(path);
        }
    }
    Ok(found)
}

/// The streams that are open in a journal, from its beginning. Records are checked one by one: a damaged first page takes none of them away.
fn streams(mut file: &File, path: &Path, wanted: impl Fn(&Base) -> bool) -> Result<Vec<Left>, Error> {
    let read = |e| Error::system("read", path, e);
    file.rewind().map_err(read)?;
    match read_version(&mut file).map_err(read)? {
        Version::None => Ok(Vec::new()),
        Version::Future(found) => Err(Error::FutureVersion { path: path.to_owned(), found, supported: JOURNAL_VERSION }),
        Version::Known | Version::Damaged => read_streams(BufReader::with_capacity(256 << 10, file), wanted).map_err(read),
    }
}

/// The file, if it is one.
fn open(path: &Path) -> Result<Option<File>, Error> {
    // Whatever stands there under a journal's name, opening it neither follows nor waits.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::OPNOTSUPP) => return Ok(None),
        Err(e) => return Err(Error::system("open", path, e)),
    };
    let is_file = file.metadata().map_err(|e| Error::system("open", path, e))?.is_file();
    Ok(is_file.then_some(file))
}

/// Whether no process that lives has it. The lock is shared, so that several may look at once; it lasts as long as `file`.
fn is_dead(file: &File, path: &Path) -> Result<bool, Error> {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(Error::system("lock", path, e)),
    }
}

/// The same, for a process that may be dying.
fn is_dead_soon(file: &File, path: &Path) -> Result<bool, Error> {
    let begun = Instant::now();
    while !is_dead(file, path)? {
        if begun.elapsed() > PATIENCE {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(true)
}
