//! The models folder: from the name or path that a user gives to a file, or a folder of weights, that is what it should be.
//!
//! Files of the catalogue are checked against their sha256 once; a sidecar `FILE.sha256-ok` then says which size and time of change
//! that held for, so that no later start reads the whole file for it.

use crate::catalogue::{self, Entry};
use crate::failure::mistake;
use crate::repository::{self, Reference};
use crate::{output, paths};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The folder of model files.
#[derive(Clone, Debug)]
pub struct ModelsFolder {
    path: PathBuf,
}

/// A model that is there.
#[derive(Clone, Debug)]
pub struct Found {
    /// What actors and snapshots call it.
    pub name: String,
    /// Its file or folder.
    pub path: PathBuf,
}

impl ModelsFolder {
    /// The folder that the environment names. It need not exist.
    ///
    /// # Errors
    /// If there is no home folder to put it in.
    pub fn of_environment() -> Result<ModelsFolder> {
        Ok(ModelsFolder { path: paths::models_folder()? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model of that name: in the catalogue, in the folder, or a path.
    ///
    /// # Errors
    /// If it is not there or not what the catalogue says; the error says what to do.
    pub fn find(&self, name_or_path: &str) -> Result<Found> {
        if let Some(entry) = catalogue::find(name_or_path) {
            let hint = || mistake(format!("the model `{0}` is not here yet; fetch it with `driftwood pull {0}`", entry.name));
            let path = self.file_of(entry)?.ok_or_else(hint)?;
            return Ok(Found { name: entry.name.to_owned(), path });
        }
        if let Some(found) = self.pulled(name_or_path) {
            return Ok(found);
        }
        match fs::canonicalize(name_or_path) {
            Ok(path) if path.is_file() || path.join("config.json").is_file() => {
                Ok(Found { name: path.to_string_lossy().into_owned(), path })
            }
            Ok(path) => Err(mistake(format!(
                "{} is neither a file nor a folder with a `config.json`; give the path of a GGUF file or of such a folder",
                path.display()
            ))),
            Err(_) if Reference::parse(name_or_path).is_ok() => {
                Err(mistake(format!("the model `{name_or_path}` is not here; fetch it with `driftwood pull {name_or_path}`")))
            }
            Err(e) => Err(mistake(format!(
                "there is no model `{name_or_path}` ({e}); give the path of a GGUF file or of a Hugging Face folder, or a name that `driftwood models` lists"
            ))),
        }
    }

    /// The model in the folder that a reference names as `pull` takes it, or the name of a folder or of a GGUF file without its ending.
    fn pulled(&self, name: &str) -> Option<Found> {
        let reference = Reference::parse(name).ok();
        let is_plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']);
        let key = reference.as_ref().map(Reference::key).or_else(|| is_plain.then(|| name.to_owned()))?;
        let is_file = |path: &PathBuf| path.extension().is_some_and(|e| e == "gguf") && path.is_file();
        let is_model = |path: &PathBuf| is_file(path) || path.join("config.json").is_file();
        let path = [self.path.join(format!("{key}.gguf")), self.path.join(&key)].into_iter().find(is_model)?;
        // What somebody put there under a repository's name is taken for what it is called.
        let is_meant = reference.is_none_or(|reference| repository::origin_of(&path).is_none_or(|origin| reference.is_at(&origin)));
        is_meant.then(|| Found { name: name_of(&path), path })
    }

    /// Folders in which models from repositories collect: pulls that were interrupted, or are under way.
    pub fn partials(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.partial()).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }

    /// Where models collect that are being fetched.
    pub fn partial(&self) -> PathBuf {
        self.path.join(".partial")
    }

    /// The entry's file, if it is in the folder under its own name or under the one that its publisher gave it.
    ///
    /// # Errors
    /// If a file of its own name has other bytes than the catalogue says, or cannot be read.
    pub fn file_of(&self, entry: &Entry) -> Result<Option<PathBuf>> {
        let own = self.path.join(entry.file_name());
        if own.is_file() {
            if !is_intact(&own, entry)? {
                let path = own.display();
                return Err(mistake(format!(
                    "{path} is not the file that the catalogue calls `{0}` (its sha256 differs); remove it and run `driftwood pull {0}`",
                    entry.name
                )));
            }
            return Ok(Some(own));
        }
        let published = self.path.join(entry.hub.file);
        Ok((published.is_file() && is_intact(&published, entry)?).then_some(published))
    }

    /// Models in the folder that the catalogue does not name: files, and folders of weights.
    pub fn others(&self) -> Vec<PathBuf> {
        let of_catalogue = |path: &Path| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            catalogue::ENTRIES.iter().any(|entry| entry.file_name() == name || entry.hub.file == name)
        };
        let is_model = |path: &Path| path.extension().is_some_and(|e| e == "gguf") || path.join("config.json").is_file();
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let paths = entries.flatten().map(|entry| entry.path());
        let mut models: Vec<PathBuf> = paths.filter(|path| is_model(path) && !of_catalogue(path)).collect();
        models.sort();
        models
    }
}

/// What the folder of a repository is called: `org--repo` for `org/repo`.
pub fn folder_name(repository: &str) -> String {
    repository.replacen('/', "--", 1)
}

/// What users call a file or a folder in the models folder: a file's name without its ending, `org/repo` for `org--repo`.
pub fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(".gguf").map_or_else(|| name.replacen("--", "/", 1), str::to_owned)
}

/// Bytes of a file, or of all files in a folder and below it; 0 if nothing is there.
pub fn bytes_under(path: &Path) -> u64 {
    if !path.is_dir() {
        return path.metadata().map_or(0, |metadata| metadata.len());
    }
    let bytes = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_symlink() && entry.path().is_dir() => 0, // it may lead around in a circle
        _ => bytes_under(&entry.path()),
    };
    fs::read_dir(path).map_or(0, |entries| entries.flatten().map(bytes).sum())
}

/// Whether the file's sha256 is the entry's. True where none is pinned.
fn is_intact(path: &Path, entry: &Entry) -> Result<bool> {
    let Some(expected) = entry.sha256 else { return Ok(true) };
    let stamp = stamp(path, expected)?;
    if fs::read_to_string(sidecar(path)).is_ok_and(|kept| kept == stamp) {
        return Ok(true);
    }
    let intact = output::spinning("checking the model file", || sha256_of(path))? == expected;
    if intact {
        // Where the folder can't be written, the next start checks again.
        let _ = fs::write(sidecar(path), stamp);
    }
    Ok(intact)
}

/// The sha256 that a file was found to have, if it has not changed since.
pub fn checked_sha256(path: &Path) -> Option<String> {
    let kept = fs::read_to_string(sidecar(path)).ok()?;
    let sha256 = kept.split_whitespace().last()?;
    (stamp(path, sha256).ok()? == kept).then(|| sha256.to_owned())
}

/// Moves a file that was checked, with the note of that.
///
/// # Errors
/// If the system refuses.
pub fn move_checked(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::rename(sidecar(from), sidecar(to))?;
    fs::rename(from, to)
}

/// Notes that a file was checked.
///
/// # Errors
/// If the file cannot be asked for its size.
pub fn remember_checked(path: &Path, sha256: &str) -> Result<()> {
    let _ = fs::write(sidecar(path), stamp(path, sha256)?);
    Ok(())
}

fn sidecar(path: &Path) -> PathBuf {
    with_suffix(path, ".sha256-ok")
}

/// The path with something behind its last name.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn stamp(path: &Path, sha256: &str) -> Result<String> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let changed_ns = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    Ok(format!("{} {changed_ns} {sha256}\n", metadata.len()))
}

/// The sha256 of a file in hex.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(reading)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once_for_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of(&path).unwrap(), hash);
        remember_checked(&path, hash).unwrap();
        assert_eq!(fs::read_to_string(sidecar(&path)).unwrap(), stamp(&path, hash).unwrap());
        fs::write(&path, "abcd").unwrap();
        assert_ne!(fs::read_to_string(sidecar(&path)).unwrap(), stamp(&path, hash).unwrap());
    }

    #[test]
    fn names_that_are_nothing_are_refused_with_advice() {
        let folder = ModelsFolder { path: tempfile::tempdir().unwrap().path().to_owned() };
        assert!(folder.find("smollm2-135m").unwrap_err().to_string().contains("driftwood pull smollm2-135m"));
        assert!(folder.find("no-such-model").unwrap_err().to_string().contains("driftwood models"));
    }
}
