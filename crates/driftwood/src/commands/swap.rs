//! `driftwood actor model`: which model an actor has, or another one for it. `chat` gives another one by the same way.

use crate::actors::{self, Stage};
use crate::cli::Globals;
use crate::decode::ms_since;
use crate::models::ModelsFolder;
use crate::output;
use anyhow::Result;
use clap::Args;
use driftwood_actor::{ActorFolder, Host, SwapReport, ThawOptions, ThawReport};
use serde_json::json;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  driftwood actor model alice
  driftwood actor model alice gemma3-270m
  driftwood actor model alice smollm2-135m --json
  driftwood actor model alice ./smollm2-135m-q8_0.gguf --keep-kv

The actor keeps its name, its memory and the conversation, which the new model reads by its own tokenizer and template. What the former model had read
is kept: on the way back only what is new is read. Another quantisation is another model; --keep-kv takes what was read by the one for the other, which
is quick and approximate.";

/// Flags of `actor model`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ModelArgs {
    /// The actor
    name: String,
    /// Its new model: a name that `driftwood models` lists, or a path [default: none, and the present one is shown]
    other: Option<String>,
    /// Use the KV of the former model as the new one's: for another quantisation of the same model
    #[arg(long, requires = "other")]
    keep_kv: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Shows or changes an actor's model.
///
/// # Errors
/// If there is no such actor or model, or the actor cannot have it: it is then as it was before.
pub fn run(globals: &Globals, args: &ModelArgs) -> Result<()> {
    let Some(other) = &args.other else { return show(globals, args) };
    let mut stage = Stage::open(globals)?;
    let start = Instant::now();
    let (folder, _) = wake(&mut stage, &args.name, other, ThawOptions::default())?;
    let thaw_ms = ms_since(start);
    let report = swap(&mut stage.host, &args.name, other, args.keep_kv)?;
    let start = Instant::now();
    folder.save(&mut stage.host)?;
    if args.json {
        return output::json(&json!({
            "name": args.name,
            "from": report.from,
            "to": report.to,
            "restored_tokens": report.restored_tokens,
            "recomputed_tokens": report.recomputed_tokens,
            "told": report.told,
            "ms": report.ms,
            "thaw_ms": thaw_ms,
            "save_ms": ms_since(start),
        }));
    }
    output::line(&said(&args.name, &report))
}

fn show(globals: &Globals, args: &ModelArgs) -> Result<()> {
    let resting = actors::open_state(globals)?.inspect(&args.name)?;
    let model = resting.manifest.guest.and_then(|guest| guest.state.settings.get("model").cloned());
    if args.json {
        return output::json(&json!({ "name": args.name, "model": model }));
    }
    output::line(model.as_deref().unwrap_or("none"))
}

/// Wakes an actor that is to have another model. Where its own is not there any more, the other takes its place if it is the same file.
///
/// # Errors
/// As [`Stage::wake`].
pub fn wake(stage: &mut Stage, name: &str, other: &str, options: ThawOptions) -> Result<(ActorFolder, ThawReport)> {
    stage.wake(name, options.clone()).or_else(|why| {
        let model = ModelsFolder::of_environment()?.find(other)?.name;
        stage.wake(name, ThawOptions { model: Some(model), ..options }).map_err(|_| why)
    })
}

/// Gives an actor that is awake another model, by name or path. What the guest says of it goes to stderr.
///
/// # Errors
/// As [`Host::swap_model`].
pub fn swap(host: &mut Host, name: &str, other: &str, keep_kv: bool) -> Result<SwapReport> {
    let model = ModelsFolder::of_environment()?.find(other)?.name;
    let swapped = output::spinning("changing the model", || host.swap_model(name, &model, keep_kv, &mut actors::heard));
    Ok(swapped?)
}

/// One line about it.
pub fn said(name: &str, report: &SwapReport) -> String {
    let SwapReport { from, to, restored_tokens, recomputed_tokens, told, ms } = report;
    if from == to {
        return format!("`{name}` is on {to} already");
    }
    let told = if *told { "" } else { "; its guest was not told and finds out by itself" };
    format!(
        "`{name}` went from {from} to {to}: {restored_tokens} tokens restored, {recomputed_tokens} computed, {} ms{told}",
        output::human_ms(*ms)
    )
}
