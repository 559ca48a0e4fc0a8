//! Many actors at rest: forks by the thousand in one durable commit, and a listing that stays short of reading them.
//!
//! Forks are made whole in a folder that no listing shows, made durable together, and then each gets its name by one rename of its folder. So
//! whoever is killed in between leaves some forks whole and the others not at all.

use crate::state::{ActorFolder, HEAD_FILE, Listed, StateFolder, system, valid_name};
use crate::{Error, Identity};
use driftwood_store::{Head, Summary};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where forks are made; no actor can have such a name.
const STAGING_FOLDER: &str = ".forks";
/// Held by whoever makes forks: one at a time.
const STAGING_LOCK: &str = ".forks.lock";

impl StateFolder {
    /// Forks an actor that rests as a head, many times at once, without waking it and without its model: each fork shares every chunk and
    /// has an identity of its own. All names are checked first. Answers the identities in the order of the names.
    ///
    /// It takes hold of none of the forks. Whoever is killed in it leaves some of them whole and the others not at all.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::BadName`] or [`Error::Held`] for one of the names, or if the disk refuses: no fork is made then.
    pub fn fork(&self, parent: &ActorFolder, new_names: &[String]) -> Result<Vec<Identity>, Error> {
        let mut head = Head::read(&parent.head())?;
        let parent_id = head.identity.id;
        let _one_at_a_time = self.lock_staging()?;
        self.check_free(new_names)?;
        // Keeps garbage from being collected: a collection might list the folder before the forks are in it, and after the parent left it.
        let _commit = self.chunks().commit()?;
        let staging = Staging::new(self.actors())?;
        let mut identities = Vec::with_capacity(new_names.len());
        for name in new_names {
            head.identity = Identity::mint(name, Some(parent_id))?;
            staging.add(&head)?;
            identities.push(head.identity.clone());
        }
        staging.publish(new_names)?;
        Ok(identities)
    }

    /// What each of the listed says of itself in a few words; `None` of one that cannot be read.
    pub fn summaries(&self, listed: &[Listed]) -> Vec<Option<Summary>> {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let share = listed.len().div_ceil(threads).max(1);
        let of = |listed: &[Listed]| listed.iter().map(|actor| self.summary(&actor.name)).collect::<Vec<_>>();
        std::thread::scope(|scope| {
            let parts: Vec<_> = listed.chunks(share).map(|part| scope.spawn(move || of(part))).collect();
            parts.into_iter().flat_map(|part| part.join().expect("reading does not panic")).collect()
        })
    }

    fn summary(&self, name: &str) -> Option<Summary> {
        let head = self.actors().join(name).join(HEAD_FILE);
        match Summary::read(&head) {
            Err(driftwood_store::Error::System { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            read => return read.ok(),
        }
        let file = self.inspect(name).ok()?; // of the first version, or imported
        let model = file.manifest.guest.as_ref().and_then(|guest| guest.state.settings.get("model").cloned());
        let tokens = file.manifest.sessions.iter().map(|session| u64::from(session.tokens)).sum();
        Some(Summary { model, tokens, bytes: file.bytes })
    }

    fn lock_staging(&self) -> Result<File, Error> {
        let path = self.actors().join(STAGING_LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(|e| system("open the lock", &path, e))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| system("lock", &path, e.into()))?;
        Ok(file)
    }

    /// Whether nobody has any of these names. Folders that failed or killed makers left are removed.
    fn check_free(&self, names: &[String]) -> Result<(), Error> {
        let mut seen = HashSet::new();
        for name in names {
            valid_name(name)?;
            if !seen.insert(name) {
                return Err(Error::NameTaken { name: name.clone() });
            }
        }
        if let Some(name) = names.iter().find(|name| self.at_rest(name)) {
            return Err(Error::NameTaken { name: name.clone() });
        }
        let mut left = names.iter().filter(|name| self.actors().join(name).exists());
        left.try_for_each(|name| self.create(name)?.remove())
    }
}

/// Forks on their way; what has no name yet when this is dropped is removed.
struct Staging<'a> {
    actors: &'a Path,
    folder: PathBuf,
}

impl<'a> Staging<'a> {
    /// An empty one, in place of what a killed process left. For whoever holds the lock.
    fn new(actors: &'a Path) -> Result<Staging<'a>, Error> {
        let folder = actors.join(STAGING_FOLDER);
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(system("remove the folder", &folder, e)),
            _ => {}
        }
        make_folder(&folder)?;
        Ok(Staging { actors, folder })
    }

    /// Writes a fork under the name of its identity.
    fn add(&self, head: &Head) -> Result<(), Error> {
        let folder = self.folder.join(&head.identity.name);
        make_folder(&folder)?;
        let path = folder.join(HEAD_FILE);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(|e| system("create", &path, e))?;
        let text = head.text()?;
        file.write_all(text.as_bytes()).map_err(|e| system("write", &path, e))?;
        if cfg!(target_os = "linux") { Ok(()) } else { make_durable_each(&file, &folder) }
    }

    /// Makes all forks durable, and gives them their names.
    fn publish(&self, names: &[String]) -> Result<(), Error> {
        make_durable(&self.folder)?;
        for (done, name) in names.iter().enumerate() {
            if let Err(error) = self.give_name(name) {
                for taken_back in &names[..done] {
                    let _ = std::fs::rename(self.actors.join(taken_back), self.folder.join(taken_back)); // else it stays, whole
                }
                return Err(error);
            }
        }
        make_durable(self.actors)
    }

    /// An actor's folder is never empty, so the rename takes no one's place.
    fn give_name(&self, name: &str) -> Result<(), Error> {
        let path = self.actors.join(name);
        std::fs::rename(self.folder.join(name), &path).map_err(|e| match e.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => Error::NameTaken { name: name.to_owned() },
            _ => system("publish", &path, e),
        })
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // else whoever forks next removes it
    }
}

fn make_folder(path: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(path).map_err(|e| system("make the folder", path, e))
}

/// Everything that was written to the file system of a folder: once for a thousand files.
#[cfg(target_os = "linux")]
fn make_durable(folder: &Path) -> Result<(), Error> {
    let file = File::open(folder).map_err(|e| system("open", folder, e))?;
    rustix::fs::syncfs(&file).map_err(|e| system("make durable", folder, e.into()))
}

/// A folder's names: what is in its files was made durable before.
#[cfg(not(target_os = "linux"))]
fn make_durable(folder: &Path) -> Result<(), Error> {
    let file = File::open(folder).map_err(|e| system("open", folder, e))?;
    file.sync_all().map_err(|e| system("make durable", folder, e))
}

/// One file and the folder that it is in, where there is no `syncfs`.
fn make_durable_each(file: &File, folder: &Path) -> Result<(), Error> {
    file.sync_all().map_err(|e| system("make durable", folder, e))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| system("make durable", folder, e))
}
