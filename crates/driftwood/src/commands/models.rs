//! `driftwood models`: the catalogue, and which of it is here.

use crate::catalogue::{self, Entry};
use crate::models::ModelsFolder;
use crate::output;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  driftwood models
  driftwood models --json

`--model` takes a name of this list or the path of a GGUF file or a Hugging Face folder, everywhere.";

/// Flags of `models`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ModelsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    about: String,
    bytes: Option<u64>,
    file: Option<PathBuf>,
    default: bool,
}

/// Lists the models.
///
/// # Errors
/// If stdout is closed.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let folder = ModelsFolder::of_environment()?;
    let mut models: Vec<Listed> = catalogue::ENTRIES.iter().map(|entry| in_catalogue(entry, &folder)).collect();
    models.extend(folder.other_files().iter().map(|path| local(path)));
    if args.json {
        return output::json(&json!({ "folder": folder.path(), "models": models }));
    }
    output::table(&["model", ">size", "", "about"], &models.iter().map(row).collect::<Vec<_>>())?;
    output::line(&format!("\nfolder: {}", folder.path().display()))
}

fn in_catalogue(entry: &Entry, folder: &ModelsFolder) -> Listed {
    // A file of that name with other bytes counts as not here; whoever uses it is told.
    let file = folder.file_of(entry).ok().flatten();
    let bytes = file.as_deref().and_then(bytes_of).or(entry.bytes);
    Listed { name: entry.name.to_owned(), about: entry.about.to_owned(), bytes, file, default: entry.name == catalogue::DEFAULT }
}

fn local(path: &Path) -> Listed {
    let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Listed { name, about: "local file".to_owned(), bytes: bytes_of(path), file: Some(path.to_owned()), default: false }
}

fn bytes_of(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|metadata| metadata.len())
}

fn row(model: &Listed) -> Vec<String> {
    let here = if model.file.is_some() { "here" } else { "" };
    vec![model.name.clone(), model.bytes.map(output::human_bytes).unwrap_or_default(), here.to_owned(), model.about.clone()]
}
