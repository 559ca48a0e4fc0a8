//! Where packs rest: a trait, so that an object store can take the place of the folder, and the folder.

use crate::sweep::entries;
use crate::{Error, PackId};
use driftwood_region::Region;
use driftwood_snapshot::{Existing, Temp, make_folder_durably};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where the bytes of packs rest. A pack is written once, under a random id, and never changed, so whatever keeps bytes under a name will do.
/// What it hands out need not be trusted: chunks are verified by their hash.
pub trait Packs: fmt::Debug + Send + Sync {
    /// A new pack: a file on this machine that nobody finds yet.
    ///
    /// # Errors
    /// If the disk refuses.
    fn create(&self, id: PackId) -> Result<Temp, Error>;

    /// Makes a pack durable, and known under its id to whoever shares these packs.
    ///
    /// # Errors
    /// If the disk, or whoever else keeps the bytes, refuses.
    fn publish(&self, id: PackId, pack: Temp) -> Result<(), Error>;

    /// Its length; none if there is no such pack.
    fn len_bytes(&self, id: PackId) -> Option<u64>;

    /// Its bytes, mapped; none if there is no such pack.
    ///
    /// # Errors
    /// If it cannot be had.
    fn map(&self, id: PackId) -> Result<Option<Region>, Error>;

    /// How much there is, remains of writers that died included.
    ///
    /// # Errors
    /// If it cannot be listed.
    fn usage(&self) -> Result<PackUsage, Error>;

    /// Removes the packs that are not `live` and what writers that died have left, and says how much that was. Nobody writes meanwhile; who has a
    /// pack mapped keeps its bytes.
    ///
    /// # Errors
    /// If something cannot be removed.
    fn sweep(&self, live: &dyn Fn(PackId) -> bool) -> Result<PackUsage, Error>;
}

/// A number of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackUsage {
    /// How many.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Packs in a folder of this machine, as files `ID.pack`.
#[derive(Debug)]
pub struct PackFolder {
    path: PathBuf,
}

impl PackFolder {
    /// Opens the folder, making it if there is none.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(path: &Path) -> Result<PackFolder, Error> {
        make_folder_durably(path)?;
        Ok(PackFolder { path: path.to_owned() })
    }

    fn pack(&self, id: PackId) -> PathBuf {
        self.path.join(format!("{id}.pack"))
    }

    /// All files with their sizes; what is no pack has no id.
    fn files(&self) -> Result<Vec<(Option<PackId>, PathBuf, u64)>, Error> {
        let mut files = Vec::new();
        for path in entries(&self.path)? {
            let id = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".pack")?.parse().ok());
            let Ok(metadata) = path.metadata() else { continue }; // removed meanwhile
            files.push((id, path, metadata.len()));
        }
        Ok(files)
    }
}

impl Packs for PackFolder {
    fn create(&self, id: PackId) -> Result<Temp, Error> {
        Ok(Temp::beside(&self.pack(id))?)
    }

    fn publish(&self, _: PackId, pack: Temp) -> Result<(), Error> {
        Ok(pack.publish(Existing::Refuse)?)
    }

    fn len_bytes(&self, id: PackId) -> Option<u64> {
        std::fs::metadata(self.pack(id)).ok().map(|metadata| metadata.len())
    }

    fn map(&self, id: PackId) -> Result<Option<Region>, Error> {
        let path = self.pack(id);
        match Region::map_path(&path) {
            Ok(region) => Ok(Some(region)),
            Err(_) if !path.exists() => Ok(None),
            Err(e) => Err(Error::system("map", &path, std::io::Error::other(e))),
        }
    }

    fn usage(&self) -> Result<PackUsage, Error> {
        let files = self.files()?;
        Ok(PackUsage { files: files.len(), bytes: files.iter().map(|(.., bytes)| bytes).sum() })
    }

    fn sweep(&self, live: &dyn Fn(PackId) -> bool) -> Result<PackUsage, Error> {
        let mut swept = PackUsage::default();
        for (id, path, bytes) in self.files()? {
            if !id.is_some_and(live) {
                std::fs::remove_file(&path).map_err(|e| Error::system("remove", &path, e))?;
                swept = PackUsage { files: swept.files + 1, bytes: swept.bytes + bytes };
            }
        }
        Ok(swept)
    }
}
