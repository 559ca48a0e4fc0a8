//! `driftwood pull`: fetches a model of the catalogue.

use crate::catalogue::{self, Entry};
use crate::failure::mistake;
use crate::models::ModelsFolder;
use crate::{fetch, output};
use anyhow::Result;
use clap::Args;
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  driftwood pull                 the default model
  driftwood pull gemma3-270m
  driftwood models               what there is

Models go to DRIFTWOOD_MODELS, or to the platform's cache folder. An interrupted pull goes on where it stopped.";

/// Flags of `pull`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PullArgs {
    /// The model's name in the catalogue
    #[arg(default_value = catalogue::DEFAULT)]
    model: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Fetches the model.
///
/// # Errors
/// If the catalogue does not have it or no source answers.
pub fn run(args: &PullArgs) -> Result<()> {
    let entry = catalogue::find(&args.model).ok_or_else(|| unknown(&args.model))?;
    let folder = ModelsFolder::of_environment()?;
    let there = folder.file_of(entry)?.is_some();
    let path = fetch::fetch(entry, &folder)?;
    if args.json {
        return output::json(&json!({ "model": entry.name, "file": path, "bytes": path.metadata()?.len(), "fetched": !there }));
    }
    let how = if there { "is here already" } else { "is ready" };
    output::line(&format!("{} {how}: {} ({})", entry.name, path.display(), output::human_bytes(path.metadata()?.len())))
}

fn unknown(name: &str) -> anyhow::Error {
    let names: Vec<&str> = catalogue::ENTRIES.iter().map(|entry: &Entry| entry.name).collect();
    mistake(format!(
        "the catalogue has no model `{name}`; it has {}. A GGUF file of your own needs no pull: give its path to --model",
        names.join(", ")
    ))
}
