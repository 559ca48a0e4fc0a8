//! `driftwood thaw`: an actor out of a file, under a new identity.

use crate::actors::{self, Stage};
use crate::cli::Globals;
use crate::models::ModelsFolder;
use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use driftwood_actor::ThawOptions;
use serde_json::json;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  driftwood thaw alice.safetensors
  driftwood thaw alice.safetensors --as alice2
  driftwood thaw alice.safetensors --as alice3 --model gemma3-270m --reprefill

KV that was computed with the same numerics continues bit for bit. With another model's file, --reprefill computes it again.";

/// Flags of `thaw`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ThawArgs {
    /// The file that `driftwood freeze` wrote
    file: PathBuf,
    /// The actor's new name [default: the one in the file]
    #[arg(long = "as", value_name = "NAME")]
    new_name: Option<String>,
    /// A model instead of the one that the file names: a name or a path
    #[arg(long)]
    model: Option<String>,
    /// Where the model's file is not the one that the KV came from, compute the KV again
    #[arg(long)]
    reprefill: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Wakes the actor and keeps it in the state folder.
///
/// # Errors
/// If the file is none of ours or altered, the name is taken, or the model is another one.
pub fn run(globals: &Globals, args: &ThawArgs) -> Result<()> {
    let model = args.model.as_ref().map(|model| ModelsFolder::of_environment()?.find(model)).transpose()?;
    let reading = || format!("cannot thaw {}", args.file.display());
    let name = match &args.new_name {
        Some(name) => name.clone(),
        None => driftwood_snapshot::inspect(&args.file).with_context(reading)?.manifest.identity.name,
    };
    let mut stage = Stage::open(globals)?;
    let folder = stage.state.import(&args.file, &name).with_context(reading)?;
    let options = ThawOptions { reprefill: args.reprefill, model: model.map(|found| found.name), ..ThawOptions::default() };
    let thawed = output::spinning("thawing", || folder.thaw_into(&mut stage.host, options));
    let report = match thawed.and_then(|report| folder.save(&mut stage.host).map(|_| report)) {
        Ok(report) => report,
        Err(why) => {
            folder.remove()?;
            return Err(anyhow::Error::from(why).context(reading()));
        }
    };
    if args.json {
        return output::json(&json!({
            "name": name,
            "identity": report.identity,
            "restored_tokens": report.restored_tokens,
            "recomputed_tokens": report.recomputed_tokens,
            "exactness": report.exactness.to_string(),
        }));
    }
    output::line(&actors::thawed("thawed", &name, &report))?;
    output::line(&format!("talk to it with `driftwood actor send {name} TEXT` or `driftwood chat {name}`"))
}
