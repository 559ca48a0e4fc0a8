//! Packs and leases that are not this machine's folder and locks: what a store of objects and a lease service would do.

use driftwood_region::Region;
use driftwood_snapshot::Temp;
use driftwood_store::{Chunk, Chunks, Error, Leases, LockFiles, PackFolder, PackId, PackUsage, Packs};
use std::path::{Path, PathBuf};

/// Packs that rest far away: each is sent there whole, and fetched when it is first asked for.
#[derive(Debug)]
struct Far {
    far: PathBuf,
    cache: PackFolder,
}

impl Far {
    fn object(&self, id: PackId) -> PathBuf {
        self.far.join(id.to_string())
    }

    fn system(&self, source: std::io::Error) -> Error {
        Error::System { operation: "reach", path: self.far.clone(), source }
    }

    fn objects(&self) -> Result<Vec<(PackId, u64)>, Error> {
        let entries = std::fs::read_dir(&self.far).map_err(|e| self.system(e))?;
        Ok(entries.flatten().map(|entry| (entry.file_name().to_str().unwrap().parse().unwrap(), entry.metadata().unwrap().len())).collect())
    }
}

impl Packs for Far {
    fn create(&self, id: PackId) -> Result<Temp, Error> {
        self.cache.create(id)
    }

    fn publish(&self, id: PackId, pack: Temp) -> Result<(), Error> {
        std::fs::copy(&pack.path, self.object(id)).map_err(|e| self.system(e))?;
        self.cache.publish(id, pack)
    }

    fn len_bytes(&self, id: PackId) -> Option<u64> {
        self.object(id).metadata().ok().map(|metadata| metadata.len())
    }

    fn map(&self, id: PackId) -> Result<Option<Region>, Error> {
        if let Some(region) = self.cache.map(id)? {
            return Ok(Some(region));
        }
        if !self.object(id).exists() {
            return Ok(None);
        }
        let fetched = self.cache.create(id)?;
        std::fs::copy(self.object(id), &fetched.path).map_err(|e| self.system(e))?;
        self.cache.publish(id, fetched)?;
        self.cache.map(id)
    }

    fn usage(&self) -> Result<PackUsage, Error> {
        let objects = self.objects()?;
        Ok(PackUsage { files: objects.len(), bytes: objects.iter().map(|(_, bytes)| bytes).sum() })
    }

    fn sweep(&self, live: &dyn Fn(PackId) -> bool) -> Result<PackUsage, Error> {
        let mut swept = PackUsage::default();
        for (id, bytes) in self.objects()?.into_iter().filter(|(id, _)| !live(*id)) {
            std::fs::remove_file(self.object(id)).map_err(|e| self.system(e))?;
            swept = PackUsage { files: swept.files + 1, bytes: swept.bytes + bytes };
        }
        self.cache.sweep(live)?;
        Ok(swept)
    }
}

/// A machine of its own, with packs that all share.
fn machine(root: &Path, far: &Path) -> Chunks {
    let cache = PackFolder::open(&root.join("cache")).unwrap();
    Chunks::on(root, Box::new(Far { far: far.to_owned(), cache })).unwrap()
}

fn put(chunks: &Chunks, bytes: &[u8]) -> Chunk {
    let mut commit = chunks.commit().unwrap();
    let chunk = commit.put(bytes).unwrap();
    commit.seal().unwrap();
    chunk
}

#[test]
fn packs_may_rest_where_several_machines_reach_them() {
    let [here, there, far] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (one, other) = (machine(here.path(), far.path()), machine(there.path(), far.path()));
    let chunk = put(&one, b"some bytes");
    assert_eq!(one.find(chunk.hash), Some(chunk));
    assert_eq!(other.read(&chunk).unwrap().bytes(), b"some bytes", "fetched");
    std::fs::remove_dir_all(far.path()).unwrap();
    std::fs::create_dir(far.path()).unwrap();
    assert_eq!(other.read(&chunk).unwrap().bytes(), b"some bytes", "from the cache");
    assert_eq!(one.find(chunk.hash), None, "what is not there any more is not named again");

    let altered = put(&one, b"other bytes");
    std::fs::write(far.path().join(altered.pack.to_string()), b"other bytez").unwrap();
    assert!(matches!(other.read(&altered), Err(Error::Altered { .. })), "what is fetched is not trusted");
    let usage = one.stats(&[]).unwrap();
    assert_eq!((usage.files, usage.file_bytes), (1, 11));
    let swept = one.sweep::<Error>(|| Ok(Vec::new())).unwrap();
    assert_eq!((swept.files, swept.bytes, swept.hints), (1, 11, 2));
    assert!(matches!(other.read(&put(&one, b"more")).map(|view| view.bytes().len()), Ok(4)));
}

#[test]
fn a_lease_is_one_holders_and_notices_when_it_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let leases = LockFiles::new(root.path());
    let lease = leases.take("ada").unwrap();
    lease.check().unwrap();
    let me = format!("process {}", std::process::id());
    assert!(leases.holder("ada").is_some_and(|by| by.contains(&me)));
    assert!(matches!(leases.take("ada"), Err(Error::Held { name, by }) if name == "ada" && by.contains(&me)));
    leases.take("bob").unwrap();
    assert!(leases.holder("bob").is_none() && leases.holder("nobody").is_none());
    std::fs::remove_dir_all(root.path().join("ada")).unwrap();
    let new = leases.take("ada").unwrap();
    assert!(matches!(lease.check(), Err(Error::LeaseLost { .. })), "the name is another's now");
    new.check().unwrap();
}
