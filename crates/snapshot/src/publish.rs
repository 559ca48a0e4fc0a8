//! From private bytes to a file that others see: whole or not at all, and still there after a power cut.
//!
//! A [`Temp`] is written beside its target under a name of its own (exclusive, mode 0600) and renamed onto it after an fsync;
//! then the folder is synced. Whatever fails before the rename removes it.

use crate::{ActorId, Error};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const TEMP_PREFIX: &str = ".driftwood-";
const TEMP_SUFFIX: &str = ".tmp";

/// What to do where the target exists.
///
/// An actor's own state is replaced turn by turn; what a user names (`freeze -o`, `thaw --as`) is never overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Take its place in one step: a reader sees the old file or the new one.
    Replace,
    /// Leave it and fail with [`Error::Exists`].
    Refuse,
}

/// A file that nobody knows yet; dropped, it is removed.
#[derive(Debug)]
pub struct Temp {
    /// Open for reading and writing.
    pub file: File,
    /// Where it stands until it has its name: for messages.
    pub path: PathBuf,
    target: PathBuf,
    folder: PathBuf,
    published: bool,
}

impl Temp {
    /// A new, empty file in the folder of `target`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn beside(target: &Path) -> Result<Temp, Error> {
        let no_name = || Error::system("write", target, Errno::ISDIR);
        target.file_name().ok_or_else(no_name)?;
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let path = folder.join(OsString::from(format!("{TEMP_PREFIX}{}{TEMP_SUFFIX}", ActorId::mint()?)));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| Error::system("create", &path, e))?;
        Ok(Temp { file: File::from(file), path, target: target.to_owned(), folder, published: false })
    }

    /// Makes the bytes durable and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Exists`] if the target is there and was not to be replaced, or if the system refuses.
    pub fn publish(mut self, existing: Existing) -> Result<(), Error> {
        self.file.sync_all().map_err(|e| Error::system("make durable", &self.path, e))?;
        match existing {
            Existing::Replace => std::fs::rename(&self.path, &self.target).map_err(|e| Error::system("publish", &self.target, e))?,
            Existing::Refuse => self.rename_if_absent()?,
        }
        self.published = true;
        sync_folder(&self.folder)
    }

    /// The target must not be replaced, not even where another process makes it between our look and our rename.
    fn rename_if_absent(&self) -> Result<(), Error> {
        match rustix::fs::renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // Some file systems know no exclusive rename; a hard link is exclusive everywhere.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => self.link_if_absent(),
            Err(e) => Err(self.refusal(e.into())),
        }
    }

    /// The target gets a second name of the same file, and the first is taken away.
    fn link_if_absent(&self) -> Result<(), Error> {
        std::fs::hard_link(&self.path, &self.target).map_err(|e| self.refusal(e))?;
        std::fs::remove_file(&self.path).map_err(|e| Error::system("remove", &self.path, e))
    }

    /// Tells an occupied name from a failing system.
    fn refusal(&self, source: std::io::Error) -> Error {
        match source.kind() {
            ErrorKind::AlreadyExists => Error::Exists { path: self.target.clone() },
            _ => Error::system("publish", &self.target, source),
        }
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.published {
            // Nothing more can be done about a file that cannot be removed; `remove_stale_temps` will find it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes a folder (mode 0700) and those above it that are missing. The name of each that it makes is durable when this returns: a file
/// that is published in it is still there after a power cut.
///
/// # Errors
/// If the system refuses, or something that is no folder has the name.
pub fn make_folder_durably(path: &Path) -> Result<(), Error> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()).collect();
    for folder in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {} // another process made it meanwhile
            made => made.map_err(|e| Error::system("make the folder", folder, e))?,
        }
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = File::open(path).map_err(|e| Error::system("open", path, e))?;
    folder.sync_all().map_err(|e| Error::system("make durable", path, e))
}

/// Removes what a process left that was killed while it wrote into `folder`, and says how many files that were.
///
/// Only for whoever holds the folder's lock: it would take the file of a writer at work.
///
/// # Errors
/// If the folder cannot be read or a file not removed.
pub fn remove_stale_temps(folder: &Path) -> Result<usize, Error> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder).map_err(|e| Error::system("list", folder, e))? {
        let path = entry.map_err(|e| Error::system("list", folder, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let middle = name.strip_prefix(TEMP_PREFIX).and_then(|rest| rest.strip_suffix(TEMP_SUFFIX));
        if middle.is_some_and(|id| id.parse::<ActorId>().is_ok()) {
            std::fs::remove_file(&path).map_err(|e| Error::system("remove", &path, e))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn temp(target: &Path, text: &str) -> Temp {
        let mut temp = Temp::beside(target).unwrap();
        temp.file.write_all(text.as_bytes()).unwrap();
        temp
    }

    #[test]
    fn refuse_leaves_what_is_there_and_replace_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        temp(&target, "one").publish(Existing::Refuse).unwrap();
        assert!(matches!(temp(&target, "two").publish(Existing::Refuse), Err(Error::Exists { .. })));
        assert!(matches!(temp(&target, "two").link_if_absent(), Err(Error::Exists { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "one");
        temp(&target, "two").publish(Existing::Replace).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn folders_are_made_with_those_above_them_for_their_owner() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b/c");
        make_folder_durably(&folder).unwrap();
        make_folder_durably(&folder).unwrap();
        let modes = folder.ancestors().take(3).map(|f| f.metadata().unwrap().permissions().mode() & 0o777);
        assert_eq!(modes.collect::<Vec<_>>(), [0o700; 3]);
        std::fs::write(root.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("link")).unwrap();
        for name in ["file", "file/below", "link"] {
            let error = make_folder_durably(&root.path().join(name)).unwrap_err();
            assert!(error.to_string().contains("make the folder"), "{error}");
        }
    }

    #[test]
    fn stale_temps_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".driftwood-notes.tmp"), "mine").unwrap();
        std::mem::forget(temp(&folder.path().join("a"), "stale"));
        assert_eq!(remove_stale_temps(folder.path()).unwrap(), 1);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
