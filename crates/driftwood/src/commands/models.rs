//! `driftwood models`: the catalogue, which of it is here, what else is here, and what is on its way.

use crate::catalogue::{self, Entry};
use crate::models::{self, ModelsFolder};
use crate::output;
use crate::repository;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  driftwood models
  driftwood models --json
  driftwood inspect smollm2-135m        what one of them is

`--model` takes a name of this list or the path of a GGUF file or a Hugging Face folder, everywhere.";

/// Flags of `models`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ModelsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What there is of a model.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Here,
    Partial,
    Absent,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    about: String,
    /// Its whole size, where it is known.
    bytes: Option<u64>,
    bytes_here: u64,
    file: Option<PathBuf>,
    state: State,
    default: bool,
}

/// Lists the models.
///
/// # Errors
/// If stdout is closed.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let folder = ModelsFolder::of_environment()?;
    let mut models: Vec<Listed> = catalogue::ENTRIES.iter().map(|entry| in_catalogue(entry, &folder)).collect();
    models.extend(folder.others().iter().map(|path| local(path)));
    models.extend(folder.partials().iter().filter_map(|path| on_its_way(path)));
    if args.json {
        return output::json(&json!({ "folder": folder.path(), "models": models }));
    }
    output::table(&["model", ">size", "", "about"], &models.iter().map(row).collect::<Vec<_>>())?;
    output::line(&format!("\nfolder: {}", folder.path().display()))
}

fn in_catalogue(entry: &Entry, folder: &ModelsFolder) -> Listed {
    // A file of that name with other bytes counts as not here; whoever uses it is told.
    let file = folder.file_of(entry).ok().flatten();
    let bytes_here = models::bytes_under(&file.clone().unwrap_or_else(|| folder.partial().join(entry.name)));
    let state = match &file {
        Some(_) => State::Here,
        None if bytes_here > 0 => State::Partial,
        None => State::Absent,
    };
    let bytes = if file.is_some() { Some(bytes_here) } else { entry.bytes };
    let default = entry.name == catalogue::DEFAULT;
    Listed { name: entry.name.to_owned(), about: entry.about.to_owned(), bytes, bytes_here, file, state, default }
}

/// A file or a folder that no catalogue names.
fn local(path: &Path) -> Listed {
    let name = models::name_of(path);
    let about = repository::origin_of(path).map_or_else(|| "local".to_owned(), |origin| format!("from {origin}"));
    let bytes = models::bytes_under(path);
    Listed { name, about, bytes: Some(bytes), bytes_here: bytes, file: Some(path.to_owned()), state: State::Here, default: false }
}

/// A pull from a repository that was interrupted, or is under way.
fn on_its_way(partial: &Path) -> Option<Listed> {
    let origin = repository::origin_of(partial)?;
    let bytes_here = models::bytes_under(partial);
    let (name, about) = (models::name_of(partial), format!("from {origin}; `driftwood pull {}` goes on", origin.reference()));
    let bytes = Some(origin.bytes).filter(|bytes| *bytes > 0);
    Some(Listed { name, about, bytes, bytes_here, file: None, state: State::Partial, default: false })
}

fn row(model: &Listed) -> Vec<String> {
    let state = match model.state {
        State::Here => "here".to_owned(),
        State::Partial => format!("partial ({})", output::human_bytes(model.bytes_here)),
        State::Absent => String::new(),
    };
    vec![model.name.clone(), model.bytes.map(output::human_bytes).unwrap_or_default(), state, model.about.clone()]
}
