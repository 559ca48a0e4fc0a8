//! Pulling a model out of a repository of the hub: a folder of weights, or one GGUF file.
//!
//! What comes collects in `MODELS/.partial/KEY/files`, where a later try finds it again and goes on, at the commit that the first one saw. Each file is
//! checked as it comes; the whole is published by one rename, as `MODELS/org--repo` or `MODELS/FILE.gguf`, with a note of where it is from.

use crate::failure::mistake;
use crate::fetch::Partial;
use crate::hub::{Hub, Listing, Remote, is_safe_path};
use crate::models::{self, ModelsFolder, with_suffix};
use crate::output;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files that a folder cannot do without.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Files that are read where a folder has them.
const OPTIONAL: [&str; 4] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"];
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The largest index of shards that is read.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Files that a refusal lists.
const LISTED_MAX: usize = 30;
/// The note of where a folder is from; behind a file's name, where a file is from.
const ORIGIN: &str = "origin.json";

/// What to pull: `org/repo[@revision][:file]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Reference {
    /// `org/repo`.
    pub repository: String,
    /// A branch, a tag or a commit, where one is named.
    pub revision: Option<String>,
    /// A file, by its path in the repository.
    pub file: Option<String>,
}

/// Where a model is from.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Origin {
    /// `org/repo`.
    pub repository: String,
    /// What was asked for.
    pub revision: String,
    /// What that was.
    pub commit: String,
    /// The file, where only one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Bytes of all files; 0 where it is not known yet.
    pub bytes: u64,
}

impl Origin {
    /// What to give to `pull`.
    pub fn reference(&self) -> String {
        let revision = if self.revision == "main" { String::new() } else { format!("@{}", self.revision) };
        let file = self.file.as_ref().map_or_else(String::new, |file| format!(":{file}"));
        format!("{}{revision}{file}", self.repository)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.reference(), self.commit.get(..10).unwrap_or(&self.commit))
    }
}

/// A model that is here now.
pub struct Pulled {
    /// What to give to `--model`.
    pub name: String,
    /// Its file or folder.
    pub path: PathBuf,
    /// Where it is from.
    pub origin: Origin,
    /// Whether this pull brought it.
    pub fetched: bool,
}

impl Reference {
    /// Reads `org/repo[@revision][:file]`.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &str) -> Result<Reference> {
        let wrong = |why: &str| {
            mistake(format!("`{}` {why}; write org/repo, org/repo:FILE.gguf or org/repo@REVISION:FILE.gguf", text.escape_debug()))
        };
        let (head, file) = text.split_once(':').map_or((text, None), |(head, file)| (head, Some(file)));
        let (repository, revision) = head.split_once('@').map_or((head, None), |(name, revision)| (name, Some(revision)));
        let is_name = |name: &str| {
            is_safe_path(name) && !name.starts_with(['.', '-']) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !repository.split_once('/').is_some_and(|(org, name)| is_name(org) && is_name(name) && !repository.contains("--")) {
            return Err(wrong("names no repository"));
        }
        if revision.is_some_and(|revision| !is_safe_path(revision)) {
            return Err(wrong("has no revision behind the `@`"));
        }
        if file.is_some_and(|file| !is_safe_path(file) || !file.ends_with(".gguf")) {
            return Err(wrong("names no GGUF file behind the `:`; other files come with their folder"));
        }
        if file.is_some_and(is_split) {
            return Err(wrong("is one part of a split file, which is not read; choose another file"));
        }
        Ok(Reference { repository: repository.to_owned(), revision: revision.map(str::to_owned), file: file.map(str::to_owned) })
    }

    /// The file or folder in the models folder: `org--repo`, or the file's own name.
    pub fn key(&self) -> String {
        match &self.file {
            Some(file) => file.rsplit('/').next().unwrap_or(file).to_owned(),
            None => models::folder_name(&self.repository),
        }
    }

    /// Whether this is where a model is from.
    pub fn is_at(&self, origin: &Origin) -> bool {
        let same_revision = self.revision.as_ref().is_none_or(|revision| *revision == origin.revision || *revision == origin.commit);
        self.repository == origin.repository && self.file == origin.file && same_revision
    }
}

/// Whether a file's name is that of one part of several: `-00001-of-00003.gguf`.
fn is_split(file: &str) -> bool {
    let Some((head, total)) = file.trim_end_matches(".gguf").rsplit_once("-of-") else { return false };
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits(total) && head.rsplit_once('-').is_some_and(|(_, number)| digits(number))
}

/// Brings a model here, if it is not here yet.
///
/// # Errors
/// If the hub does not have it or cannot be reached, if the disk has no room, or if something else is in its place.
pub fn pull(reference: &Reference, folder: &ModelsFolder) -> Result<Pulled> {
    let key = reference.key();
    let target = folder.path().join(&key);
    if let Some(pulled) = here(reference, &target)? {
        return Ok(pulled);
    }
    let partial = Partial::open(folder, &key)?;
    if let Some(pulled) = here(reference, &target)? {
        return Ok(pulled); // another process brought it meanwhile
    }
    let hub = Hub::of_environment()?;
    let files = partial.path().join("files");
    fs::create_dir_all(&files).with_context(|| format!("cannot make the folder {}", files.display()))?;
    let (listing, mut origin) = pinned(&hub, reference, partial.path())?;
    let wanted = match &reference.file {
        Some(file) => vec![one_file(&listing, file)?],
        None => whole_folder(&hub, &listing, &files)?,
    };
    origin.bytes = wanted.iter().fold(0, |sum, file| file.bytes.saturating_add(sum));
    write_origin(&partial.path().join(ORIGIN), &origin)?;
    check_room(&files, &wanted)?;
    bring(&hub, &listing, &wanted, &files)?;
    publish(reference, &files, &target, &origin)?;
    partial.remove();
    Ok(pulled(&target, origin, true))
}

fn pulled(target: &Path, origin: Origin, fetched: bool) -> Pulled {
    Pulled { name: models::name_of(target), path: target.to_owned(), origin, fetched }
}

/// The model at `target`, if it is the one that was asked for. `None` if nothing is there.
fn here(reference: &Reference, target: &Path) -> Result<Option<Pulled>> {
    if !target.exists() {
        return Ok(None);
    }
    let remedy = "move it away or remove it, then pull again";
    match origin_of(target) {
        Some(origin) if reference.is_at(&origin) => Ok(Some(pulled(target, origin, false))),
        Some(Origin { repository, revision, commit, .. }) => {
            Err(mistake(format!("{} is there already, from `{repository}` at `{revision}` ({commit}); {remedy}", target.display())))
        }
        None => Err(mistake(format!("{} is there already, and no pull brought it; {remedy}", target.display()))),
    }
}

/// Where a file or folder is from, if a pull brought it.
pub fn origin_of(model: &Path) -> Option<Origin> {
    let note = if model.is_dir() { model.join(ORIGIN) } else { with_suffix(model, &format!(".{ORIGIN}")) };
    serde_json::from_slice(&fs::read(note).ok()?).ok()
}

fn write_origin(path: &Path, origin: &Origin) -> Result<()> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(&serde_json::to_vec(origin)?)?;
        file.sync_all()
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The repository at the commit that an earlier try saw, else as it is now; that is noted.
fn pinned(hub: &Hub, reference: &Reference, partial: &Path) -> Result<(Listing, Origin)> {
    let revision = reference.revision.clone().unwrap_or_else(|| "main".to_owned());
    let same = |origin: &Origin| origin.repository == reference.repository && origin.revision == revision && origin.file == reference.file;
    let listing = match origin_of(partial).filter(same) {
        Some(earlier) => hub
            .list(&earlier.repository, &earlier.commit)
            .with_context(|| format!("cannot go on with an earlier pull (to begin anew, remove {})", partial.display()))?,
        None => {
            let files = partial.join("files"); // what lies there is from something else
            fs::remove_dir_all(&files)
                .and_then(|()| fs::create_dir(&files))
                .with_context(|| format!("cannot empty {}", files.display()))?;
            hub.list(&reference.repository, &revision)?
        }
    };
    let Listing { repository, commit, .. } = &listing;
    let origin = Origin { repository: repository.clone(), commit: commit.clone(), revision, file: reference.file.clone(), bytes: 0 };
    write_origin(&partial.join(ORIGIN), &origin)?;
    Ok((listing, origin))
}

fn one_file<'a>(listing: &'a Listing, file: &str) -> Result<&'a Remote> {
    listing.file(file).ok_or_else(|| {
        let Listing { repository, .. } = listing;
        mistake(format!("`{repository}` has no file `{file}`; {}", gguf_files(listing)))
    })
}

/// The GGUF files of a repository, as advice.
fn gguf_files(listing: &Listing) -> String {
    let names: Vec<&str> = listing.files.iter().map(|file| &*file.path).filter(|path| path.ends_with(".gguf")).collect();
    match names.len() {
        0 => "it has no GGUF file".to_owned(),
        n if n > LISTED_MAX => format!("it has {n} GGUF files, among them {}", names[..LISTED_MAX].join(", ")),
        _ => format!("it has {}", names.join(", ")),
    }
}

/// The files that make a folder of weights.
fn whole_folder<'a>(hub: &Hub, listing: &'a Listing, files: &Path) -> Result<Vec<&'a Remote>> {
    let repository = &listing.repository;
    let is_lacking = |name: &str| {
        let advice = format!("a GGUF file is pulled by `driftwood pull {repository}:FILE.gguf`, and {}", gguf_files(listing));
        mistake(format!("`{repository}` is no folder of weights that is read here: it has no `{name}`; {advice}"))
    };
    let mut wanted = NEEDED.iter().map(|name| listing.file(name).ok_or_else(|| is_lacking(name))).collect::<Result<Vec<_>>>()?;
    wanted.extend(OPTIONAL.iter().filter_map(|name| listing.file(name)));
    if let Some(weights) = listing.file(WHOLE) {
        wanted.push(weights);
        return Ok(wanted);
    }
    let index = listing.file(INDEX).ok_or_else(|| is_lacking(WHOLE))?;
    if index.bytes > INDEX_BYTES_MAX {
        return Err(mistake(format!("`{INDEX}` of `{repository}` has {} bytes; at most {INDEX_BYTES_MAX} are read", index.bytes)));
    }
    bring(hub, listing, &[index], files)?;
    wanted.push(index);
    for name in shards(&files.join(INDEX)).with_context(|| format!("cannot understand `{INDEX}` of `{repository}`"))? {
        let lacking = || mistake(format!("`{INDEX}` of `{repository}` names the file `{}`, which is not there", name.escape_debug()));
        wanted.push(listing.file(&name).filter(|_| !name.contains('/')).ok_or_else(lacking)?);
    }
    Ok(wanted)
}

/// The names of the files that an index distributes tensors over.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&fs::read(index)?).map_err(|e| mistake(e.to_string()))?;
    Ok(index.weight_map.into_values().collect())
}

/// Refuses what does not fit the disk.
fn check_room(files: &Path, wanted: &[&Remote]) -> Result<()> {
    let bytes_of = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    let missing = |file: &&Remote| {
        let path = files.join(local_name(file));
        file.bytes.saturating_sub(bytes_of(&path).max(bytes_of(&with_suffix(&path, ".part"))))
    };
    let needed = wanted.iter().map(missing).fold(0, u64::saturating_add);
    let disk = rustix::fs::statvfs(files).with_context(|| format!("cannot ask how full the disk of {} is", files.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed <= free {
        return Ok(());
    }
    let [needed, free] = [needed, free].map(output::human_bytes);
    Err(mistake(format!(
        "{needed} are to come, and {} has room for {free}; make room, or set DRIFTWOOD_MODELS to a folder on a larger disk",
        files.display()
    )))
}

/// What a file is called here: all lie in one folder.
fn local_name(file: &Remote) -> &str {
    file.path.rsplit('/').next().unwrap_or(&file.path)
}

/// Downloads what is not here yet, under one bar.
fn bring(hub: &Hub, listing: &Listing, wanted: &[&Remote], files: &Path) -> Result<()> {
    let bar = output::bytes_bar(wanted.iter().map(|file| file.bytes).fold(0, u64::saturating_add), &listing.repository);
    let mut done_bytes = 0;
    for file in wanted {
        let to = files.join(local_name(file));
        if models::checked_sha256(&to).is_none_or(|sha256| file.sha256.as_ref().is_some_and(|announced| *announced != sha256)) {
            bar.set_message(file.path.clone());
            if bar.is_hidden() {
                output::note(&format!("{} ({})", file.path, output::human_bytes(file.bytes)));
            }
            let sha256 = hub.download(listing, file, &to, |bytes| bar.set_position(done_bytes + bytes))?;
            models::remember_checked(&to, &sha256)?;
        }
        done_bytes += file.bytes;
        bar.set_position(done_bytes);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Moves what is whole to where models are.
fn publish(reference: &Reference, files: &Path, target: &Path, origin: &Origin) -> Result<()> {
    let moving = || format!("cannot move the model to {}", target.display());
    if reference.file.is_some() {
        let file = files.join(target.file_name().unwrap_or_default());
        write_origin(&with_suffix(target, &format!(".{ORIGIN}")), origin)?;
        models::move_checked(&file, target).with_context(moving)?;
    } else {
        write_origin(&files.join(ORIGIN), origin)?;
        sync_folder(files)?;
        fs::rename(files, target).with_context(moving)?;
    }
    sync_folder(target.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a folder durable.
fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("cannot write {} to disk", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_a_repository_and_perhaps_a_revision_and_a_file() {
        let of = |repository: &str, revision: Option<&str>, file: Option<&str>| Reference {
            repository: repository.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        };
        for (text, expected) in [
            ("a/b", of("a/b", None, None)),
            ("a/b-1.5_x@refs/pr/1", of("a/b-1.5_x", Some("refs/pr/1"), None)),
            ("a/b:c.gguf", of("a/b", None, Some("c.gguf"))),
            ("a/b@v1:d/c.gguf", of("a/b", Some("v1"), Some("d/c.gguf"))),
        ] {
            assert_eq!(Reference::parse(text).unwrap(), expected);
        }
        for (text, why) in [
            ("", "names no repository"),
            ("a", "names no repository"),
            ("a/b/c", "names no repository"),
            ("../b", "names no repository"),
            ("a/.b", "names no repository"),
            ("a/b?c", "names no repository"),
            ("a--b/c", "names no repository"),
            ("https://huggingface.co/a/b", "names no repository"),
            ("a/b@", "no revision"),
            ("a/b@../x", "no revision"),
            ("a/b:", "names no GGUF file"),
            ("a/b:x.bin", "names no GGUF file"),
            ("a/b:../x.gguf", "names no GGUF file"),
            ("a/b:/etc/x.gguf", "names no GGUF file"),
            ("a/b:x-00001-of-00003.gguf", "split file"),
        ] {
            let said = Reference::parse(text).unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
