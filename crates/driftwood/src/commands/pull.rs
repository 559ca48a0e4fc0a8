//! `driftwood pull`: fetches a model of the catalogue, or one out of a repository of the Hugging Face hub.

use crate::catalogue::{self, Entry};
use crate::failure::mistake;
use crate::models::ModelsFolder;
use crate::repository::{self, Pulled, Reference};
use crate::{fetch, output};
use anyhow::Result;
use clap::Args;
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  driftwood pull                                              the default model
  driftwood pull gemma3-270m                                  a model of the catalogue
  driftwood pull mlx-community/Llama-3.2-1B-Instruct-4bit     a repository's folder: then --model mlx-community/Llama-3.2-1B-Instruct-4bit
  driftwood pull Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf    one GGUF file of a repository: then --model Qwen3-0.6B-Q8_0
  driftwood pull Qwen/Qwen3-0.6B@main                         at a branch, a tag or a commit
  driftwood models                                            what there is

Models go to DRIFTWOOD_MODELS, or to the platform's cache folder. An interrupted pull goes on where it stopped. Gated and private repositories
need a token in HF_TOKEN, or the one that `hf auth login` keeps; HF_ENDPOINT names another hub.";

/// Flags of `pull`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PullArgs {
    /// A name of the catalogue, org/repo[@revision] for a repository's folder of weights, or org/repo[@revision]:FILE.gguf
    #[arg(default_value = catalogue::DEFAULT)]
    model: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Fetches the model.
///
/// # Errors
/// If the catalogue or the hub does not have it, or no source answers.
pub fn run(args: &PullArgs) -> Result<()> {
    let folder = ModelsFolder::of_environment()?;
    if args.model.contains('/') {
        return from_repository(args, &folder);
    }
    let entry = catalogue::find(&args.model).ok_or_else(|| unknown(&args.model))?;
    let there = folder.file_of(entry)?.is_some();
    let path = fetch::fetch(entry, &folder)?;
    if args.json {
        return output::json(&json!({ "model": entry.name, "file": path, "bytes": path.metadata()?.len(), "fetched": !there }));
    }
    let how = if there { "is here already" } else { "is ready" };
    output::line(&format!("{} {how}: {} ({})", entry.name, path.display(), output::human_bytes(path.metadata()?.len())))
}

fn from_repository(args: &PullArgs, folder: &ModelsFolder) -> Result<()> {
    let Pulled { name, path, origin, fetched } = repository::pull(&Reference::parse(&args.model)?, folder)?;
    if args.json {
        let shown = json!({ "model": name, "file": path, "bytes": origin.bytes, "fetched": fetched, "origin": origin });
        return output::json(&shown);
    }
    let how = if fetched { "is ready" } else { "is here already" };
    output::line(&format!("{name} {how}: {} ({}, commit {})", path.display(), output::human_bytes(origin.bytes), origin.commit))
}

fn unknown(name: &str) -> anyhow::Error {
    let names: Vec<&str> = catalogue::ENTRIES.iter().map(|entry: &Entry| entry.name).collect();
    mistake(format!(
        "the catalogue has no model `{name}`; it has {}. From the Hugging Face hub a model is pulled as org/repo or org/repo:FILE.gguf; \
         a GGUF file of your own needs no pull: give its path to --model",
        names.join(", ")
    ))
}
