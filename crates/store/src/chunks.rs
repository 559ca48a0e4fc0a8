//! Chunks in files, found by hash: `packs/ID.pack` hold the bytes, one chunk behind the other; `hints/XX/HASH` are symbolic links whose
//! target is no path but says where a chunk stands. A link costs an inode and no block, is made in one step, and any number of processes may look one up.
//!
//! Hints are hints: heads name places themselves, so a lost or false hint costs a chunk written twice or a look in vain, never state.

use crate::{Chunk, Error, PackFolder, PackId, Packs};
use driftwood_region::{DType, Region, Shape, View};
use driftwood_snapshot::{Hash, make_folder_durably};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The chunks of a state folder.
#[derive(Debug)]
pub struct Chunks {
    root: PathBuf,
    pub(crate) packs: Box<dyn Packs>,
    mapped: Mutex<HashMap<PackId, Weak<Region>>>,
}

impl Chunks {
    /// Opens the folder `root`, making it if there is none.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(root: &Path) -> Result<Chunks, Error> {
        Chunks::on(root, Box::new(PackFolder::open(&root.join("packs"))?))
    }

    /// The same, with packs that rest elsewhere: the folder has the hints of this machine, and the lock.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn on(root: &Path, packs: Box<dyn Packs>) -> Result<Chunks, Error> {
        make_folder_durably(&root.join("hints"))?;
        Ok(Chunks { root: root.to_owned(), packs, mapped: Mutex::default() })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a chunk of this name stands, if a hint says so and its file is there.
    pub fn find(&self, hash: Hash) -> Option<Chunk> {
        let place = std::fs::read_link(self.hint(hash)).ok()?;
        let chunk = Chunk::at_place(hash, place.to_str()?).ok()?;
        self.is_there(&chunk).then_some(chunk)
    }

    /// The bytes of a chunk, mapped and not verified.
    ///
    /// # Errors
    /// [`Error::Missing`], or if its file cannot be mapped.
    pub fn view(&self, chunk: &Chunk) -> Result<View, Error> {
        let missing = || Error::Missing { what: format!("chunk {}", chunk.hash), pack: chunk.pack };
        let region = self.map(chunk.pack)?.ok_or_else(missing)?;
        let shape = Shape::new(&[usize::try_from(chunk.len_bytes).map_err(|_| missing())?]).ok_or_else(missing)?;
        View::new(&region, usize::try_from(chunk.at_bytes).map_err(|_| missing())?, DType::U8, shape).map_err(|_| missing())
    }

    /// The bytes of a chunk, verified.
    ///
    /// # Errors
    /// As [`Chunks::view`], or [`Error::Altered`].
    pub fn read(&self, chunk: &Chunk) -> Result<View, Error> {
        let view = self.view(chunk)?;
        let intact = Hash::of(view.bytes()) == chunk.hash;
        if intact { Ok(view) } else { Err(Error::Altered { what: format!("chunk {}", chunk.hash), pack: chunk.pack }) }
    }

    /// Whether a chunk's file is there and long enough.
    pub(crate) fn is_there(&self, chunk: &Chunk) -> bool {
        let end = chunk.at_bytes + chunk.len_bytes;
        self.packs.len_bytes(chunk.pack).is_some_and(|len_bytes| len_bytes >= end)
    }

    fn map(&self, pack: PackId) -> Result<Option<Arc<Region>>, Error> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(region) = mapped.get(&pack).and_then(Weak::upgrade) {
            return Ok(Some(region));
        }
        let Some(region) = self.packs.map(pack)?.map(Arc::new) else { return Ok(None) };
        mapped.retain(|_, region| region.strong_count() > 0);
        mapped.insert(pack, Arc::downgrade(&region));
        Ok(Some(region))
    }

    pub(crate) fn hints(&self) -> PathBuf {
        self.root.join("hints")
    }

    pub(crate) fn hint(&self, hash: Hash) -> PathBuf {
        let name = hash.to_string();
        self.root.join("hints").join(&name[..2]).join(name)
    }

    /// Keeps out, or waits for, whoever holds the lock in a way that does not go together with `how`.
    pub(crate) fn lock(&self, how: FlockOperation) -> Result<File, Error> {
        let path = self.root.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(|e| Error::system("open the lock", &path, e))?;
        flock(&file, how).map_err(|e| Error::system("lock", &path, e))?;
        Ok(file)
    }
}
