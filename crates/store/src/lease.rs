//! Who may change what rests under a name: a trait, so that a lease service can take the place of the system's locks, and those locks.

use crate::Error;
use driftwood_snapshot::make_folder_durably;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read, Result as IoResult, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const LOCK_FILE: &str = "lock";
/// Bytes that are read of what a holder wrote about itself.
const HOLDER_BYTES_MAX: u64 = 256;

/// Who may change what rests under a name. Names are valid file names.
pub trait Leases: fmt::Debug + Send + Sync {
    /// Takes a name, until the answer is dropped.
    ///
    /// # Errors
    /// [`Error::Held`] with who has it, or if that cannot be found out.
    fn take(&self, name: &str) -> Result<Box<dyn Lease>, Error>;

    /// Who has a name now.
    fn holder(&self, name: &str) -> Option<String>;
}

/// A name that is held.
pub trait Lease: fmt::Debug + Send + Sync {
    /// Asked before anything is published under the name.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if somebody else may have it by now.
    fn check(&self) -> Result<(), Error>;
}

/// Locks of the system on files `NAME/lock` in a folder: whoever has one writes its program and process id into it, for those who wait.
#[derive(Debug)]
pub struct LockFiles {
    folder: PathBuf,
}

#[derive(Debug)]
struct Lock {
    file: File,
    path: PathBuf,
}

impl LockFiles {
    /// Locks in this folder.
    pub fn new(folder: &Path) -> LockFiles {
        LockFiles { folder: folder.to_owned() }
    }
}

impl Leases for LockFiles {
    fn take(&self, name: &str) -> Result<Box<dyn Lease>, Error> {
        let folder = self.folder.join(name);
        let path = folder.join(LOCK_FILE);
        loop {
            make_folder_durably(&folder)?;
            let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let mut file = open.map_err(|e| Error::system("open the lock", &path, e))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(Error::Held { name: name.to_owned(), by: said_holder(&file) }),
                Err(e) => return Err(Error::system("lock", &path, e)),
            }
            if !is_at(&file, &path) {
                continue; // it was removed between opening and locking
            }
            write_holder(&mut file).map_err(|e| Error::system("write the lock", &path, e))?;
            return Ok(Box::new(Lock { file, path }));
        }
    }

    fn holder(&self, name: &str) -> Option<String> {
        let file = File::open(self.folder.join(name).join(LOCK_FILE)).ok()?;
        flock(&file, FlockOperation::NonBlockingLockShared).is_err().then(|| said_holder(&file))
    }
}

impl Lease for Lock {
    fn check(&self) -> Result<(), Error> {
        if is_at(&self.file, &self.path) { Ok(()) } else { Err(Error::LeaseLost { path: self.path.clone() }) }
    }
}

/// Whether a file is still the one at its path.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: IoResult<Metadata>| metadata.ok().map(|m| (m.dev(), m.ino()));
    let open = id(file.metadata());
    open.is_some() && open == id(std::fs::metadata(path))
}

fn said_holder(file: &File) -> String {
    let mut text = String::new();
    let read = file.take(HOLDER_BYTES_MAX).read_to_string(&mut text);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if read.is_ok() && !text.is_empty() { text } else { "another process".into() }
}

fn write_holder(file: &mut File) -> IoResult<()> {
    let program = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    file.set_len(0)?;
    file.write_all(format!("{program} (process {})\n", std::process::id()).as_bytes())
}
