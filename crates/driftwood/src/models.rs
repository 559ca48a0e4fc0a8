//! The models folder: from the name or path that a user gives to a file, or a folder of weights, that is what it should be.
//!
//! Files of the catalogue are checked against their sha256 once; a sidecar `FILE.sha256-ok` then says which size and time of change
//! that held for, so that no later start reads the whole file for it.

use crate::catalogue::{self, Entry};
use crate::failure::mistake;
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
        let in_folder = self.path.join(format!("{name_or_path}.gguf"));
        if !name_or_path.contains(['/', '\\']) && in_folder.is_file() {
            return Ok(Found { name: name_or_path.to_owned(), path: in_folder });
        }
        match fs::canonicalize(name_or_path) {
            Ok(path) if path.is_file() || path.join("config.json").is_file() => {
                Ok(Found { name: path.to_string_lossy().into_owned(), path })
            }
            Ok(path) => Err(mistake(format!(
                "{} is neither a file nor a folder with a `config.json`; give the path of a GGUF file or of such a folder",
                path.display()
            ))),
            Err(e) => Err(mistake(format!(
                "there is no model `{name_or_path}` ({e}); give the path of a GGUF file or of a Hugging Face folder, or a name that `driftwood models` lists"
            ))),
        }
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

    /// Files in the folder that the catalogue does not name.
    pub fn other_files(&self) -> Vec<PathBuf> {
        let of_catalogue = |path: &Path| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            catalogue::ENTRIES.iter().any(|entry| entry.file_name() == name || entry.hub.file == name)
        };
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let files = entries.flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "gguf") && !of_catalogue(path)).collect();
        files.sort();
        files
    }
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

/// Notes that a file was checked.
///
/// # Errors
/// If the file cannot be asked for its size.
pub fn remember_checked(path: &Path, sha256: &str) -> Result<()> {
    let _ = fs::write(sidecar(path), stamp(path, sha256)?);
    Ok(())
}

fn sidecar(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256-ok");
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
