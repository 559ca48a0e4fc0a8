//! Over all heads: how much is shared, what nobody names any more, and whether what is named is there and intact.

use crate::{Chunk, Chunks, Error, Head, PackId};
use driftwood_snapshot::Hash;
use rustix::fs::FlockOperation;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// What stands in the folder, and what of it is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Heads: actors at rest.
    pub heads: usize,
    /// Bytes that the heads name, each counted as often as it is named.
    pub named_bytes: u64,
    /// The same, each counted once.
    pub unique_bytes: u64,
    /// Bytes that only former heads name, each counted once: what actors can be rewound to.
    pub history_bytes: u64,
    /// Former heads.
    pub former_heads: usize,
    /// Bytes of all files of chunks.
    pub file_bytes: u64,
    /// How many files that are.
    pub files: usize,
}

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Swept {
    /// Files in which no head names anything.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Hints to what is gone.
    pub hints: usize,
}

/// A chunk that a head names and that is not what it should be.
#[derive(Debug)]
pub struct Flawed {
    /// Whose.
    pub head: PathBuf,
    /// What is wrong.
    pub error: Error,
}

impl Chunks {
    /// Sums over heads.
    ///
    /// # Errors
    /// If a head cannot be read.
    pub fn stats(&self, heads: &[PathBuf]) -> Result<Stats, Error> {
        let mut stats = Stats { heads: heads.len(), ..Stats::default() };
        let (mut present, mut past) = (HashMap::new(), HashMap::new());
        let mut seen = HashSet::new();
        for path in heads {
            let walked = self.each_head(path, &seen, &mut |former, chunk| {
                let named: &mut HashMap<(PackId, u64), u64> = if former { &mut past } else { &mut present };
                stats.named_bytes += if former { 0 } else { chunk.len_bytes };
                named.insert((chunk.pack, chunk.at_bytes), chunk.len_bytes);
            })?;
            seen.extend(walked);
        }
        stats.former_heads = seen.len();
        stats.unique_bytes = present.values().sum();
        past.retain(|place, _| !present.contains_key(place));
        stats.history_bytes = past.values().sum();
        let usage = self.packs.usage()?;
        (stats.files, stats.file_bytes) = (usage.files, usage.bytes);
        Ok(stats)
    }

    /// Removes files of chunks that none of the heads names anything in, and none of the heads before them. Waits for commits that are under way, and they for this; who has
    /// such a file mapped keeps its bytes. `heads` is asked once nobody commits any more.
    ///
    /// # Errors
    /// If a head cannot be read: nothing is removed then.
    pub fn sweep<E: From<Error>>(&self, heads: impl FnOnce() -> Result<Vec<PathBuf>, E>) -> Result<Swept, E> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let mut live: HashSet<PackId> = HashSet::new();
        let mut seen = HashSet::new();
        for path in heads()? {
            let walked = self.each_head(&path, &seen, &mut |_, chunk| {
                live.insert(chunk.pack);
            })?;
            seen.extend(walked);
        }
        let removed = self.packs.sweep(&|pack| live.contains(&pack))?;
        Ok(Swept { files: removed.files, bytes: removed.bytes, hints: self.sweep_hints(&live)? })
    }

    fn sweep_hints(&self, live: &HashSet<PackId>) -> Result<usize, Error> {
        let mut removed = 0;
        for folder in entries(&self.hints())? {
            for hint in entries(&folder)? {
                let target = std::fs::read_link(&hint).ok();
                let pack = target.as_ref().and_then(|t| t.to_str()?.split(' ').next()?.parse().ok());
                if pack.is_none_or(|pack: PackId| !live.contains(&pack)) {
                    std::fs::remove_file(&hint).map_err(|e| Error::system("remove", &hint, e))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Reads everything that heads and those before them name, each chunk once unless it is flawed, and says what is missing or altered: of each
    /// head, even where several name one chunk.
    pub fn check(&self, heads: &[PathBuf]) -> Vec<Flawed> {
        let mut known: BTreeSet<Chunk> = BTreeSet::new();
        let mut seen = HashSet::new();
        let mut flawed: Vec<Flawed> = Vec::new();
        for path in heads {
            let first = flawed.len();
            let mut missed: BTreeSet<Chunk> = BTreeSet::new(); // one head after the other names the same chunks
            let mut flaw = |error| flawed.push(Flawed { head: path.clone(), error });
            let walked = self.each_head(path, &seen, &mut |_, chunk| {
                if known.contains(&chunk) || missed.contains(&chunk) {
                    return;
                }
                match self.read(&chunk) {
                    Ok(_) => drop(known.insert(chunk)),
                    Err(error) => {
                        missed.insert(chunk);
                        flaw(error);
                    }
                }
            });
            let told = |error: &Error| flawed[first..].iter().any(|flaw| flaw.error.to_string() == error.to_string());
            match walked {
                Ok(walked) if flawed.len() == first => seen.extend(walked),
                Err(error) if !told(&error) => flawed.push(Flawed { head: path.clone(), error }),
                _ => {} // whoever shares this past has its flaws, too
            }
        }
        flawed
    }

    /// Shows `visit` every chunk that a head and those before it name, and whether a former one does. Former heads that `seen` has, and
    /// what they follow, are left out. Answers the former heads that were not.
    fn each_head(&self, path: &Path, seen: &HashSet<Hash>, visit: &mut dyn FnMut(bool, Chunk)) -> Result<Vec<Hash>, Error> {
        let mut history = Head::read(path)?.history(self);
        let mut walked = Vec::new();
        while let Some(head) = history.next() {
            self.named_by(&head?)?.into_iter().for_each(|chunk| visit(!walked.is_empty(), chunk));
            match history.upcoming() {
                Some(hash) if !seen.contains(&hash) => walked.push(hash),
                _ => break,
            }
        }
        Ok(walked)
    }

    /// Every chunk that a head names, pages of memory included.
    fn named_by(&self, head: &Head) -> Result<Vec<Chunk>, Error> {
        let mut named: Vec<Chunk> = head.chunks().collect();
        if let Some(guest) = &head.guest {
            named.extend(guest.memory.pages(self)?.into_iter().map(|(_, chunk)| chunk));
        }
        Ok(named)
    }
}

/// The paths in a folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = |e| Error::system("read the folder", folder, e);
    std::fs::read_dir(folder).map_err(list)?.map(|entry| entry.map(|entry| entry.path()).map_err(list)).collect()
}
