//! `driftwood inspect`: what an actor, a snapshot file or a model holds. Reads a head or headers only.

use super::inspect_model;
use crate::actors;
use crate::catalogue;
use crate::cli::Globals;
use crate::failure::mistake;
use crate::models::{self, ModelsFolder};
use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use driftwood_actor::{Error, InState};
use driftwood_snapshot::{Inspection, Manifest, TensorInfo};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  driftwood inspect alice
  driftwood inspect alice.safetensors --json
  driftwood inspect smollm2-135m
  driftwood inspect org/repo --json          a model that was pulled from there

An actor goes before a model of the same name.";

/// Flags of `inspect`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// An actor's name, the path of a snapshot file, or a model as `--model` takes it
    #[arg(value_name = "NAME|PATH")]
    what: String,
    /// Print one JSON object: the manifest and all sizes, or all that is known of the model
    #[arg(long)]
    json: bool,
}

/// Shows it.
///
/// # Errors
/// If there is no such actor, file or model, or it is not understood.
pub fn run(globals: &Globals, args: &InspectArgs) -> Result<()> {
    match find(globals, &args.what)? {
        Found::Actor(actor) => {
            show(args, &actor.manifest, &actor.path, actor.bytes, json!({ "kv_bytes": actor.kv_bytes, "cut_off": actor.cut_off }))
        }
        Found::Model(model) => inspect_model::show(&model, args.json),
        Found::File(path) => {
            let inspection = driftwood_snapshot::inspect(&path).with_context(|| format!("cannot inspect {}", path.display()))?;
            show(args, &inspection.manifest, &path, inspection.file_bytes, sizes(&inspection))
        }
    }
}

enum Found {
    Actor(Box<InState>),
    File(PathBuf),
    Model(models::Found),
}

/// An actor of that name, else a snapshot file, else a model.
fn find(globals: &Globals, what: &str) -> Result<Found> {
    if driftwood_actor::valid_name(what).is_ok() {
        match actors::open_state(globals)?.inspect(what) {
            Err(Error::NoSuchActor { .. }) => {}
            found => return Ok(Found::Actor(Box::new(found.with_context(|| format!("cannot inspect the actor `{what}`"))?))),
        }
    }
    let file = PathBuf::from(what);
    if file.is_file() && !inspect_model::is_gguf(&file) {
        return Ok(Found::File(file));
    }
    match ModelsFolder::of_environment()?.find(what) {
        Ok(model) => Ok(Found::Model(model)),
        Err(why) if file.exists() || catalogue::find(what).is_some() => Err(why),
        Err(_) => Err(mistake(format!(
            "there is no actor, no model and no file `{what}`; `driftwood actor ls` lists the actors, `driftwood models` the models"
        ))),
    }
}

/// What only a file has.
fn sizes(inspection: &Inspection) -> Value {
    let kv = |t: &&TensorInfo| t.name.starts_with("kv.") || t.name.ends_with(".tail");
    let tensor = |t: &TensorInfo| json!({ "name": t.name, "dtype": t.dtype.to_string(), "shape": t.shape, "bytes": t.bytes });
    json!({
        "kv_bytes": inspection.tensors.iter().filter(kv).map(|t| t.bytes).sum::<u64>(),
        "header_bytes": inspection.header_bytes,
        "tensors": inspection.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}

fn show(args: &InspectArgs, manifest: &Manifest, path: &Path, bytes: u64, sizes: Value) -> Result<()> {
    if args.json {
        let mut all = json!({ "file": path, "bytes": bytes, "manifest": manifest });
        let (Some(all_fields), Value::Object(sizes)) = (all.as_object_mut(), sizes) else { return Ok(()) };
        all_fields.extend(sizes);
        return output::json(&all);
    }
    let Manifest { identity, writer, .. } = manifest;
    let parent = identity.parent.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let mut rows = vec![
        ["actor".to_owned(), identity.name.clone()],
        ["identity".to_owned(), identity.id.to_string()],
        ["parent".to_owned(), parent],
        ["written by".to_owned(), writer.clone()],
        ["size".to_owned(), output::human_bytes(bytes)],
    ];
    rows.extend(guest_rows(manifest));
    for pool in &manifest.pools {
        let kv = format!("{} blocks of {}", pool.block_hashes.len(), output::human_bytes(pool.info.block_bytes));
        rows.push(["kv".to_owned(), format!("{} ({}), {kv}", pool.info.model, pool.info.numerics)]);
    }
    for session in &manifest.sessions {
        let tokens = format!("{} tokens, {} in the KV, at most {}", session.tokens, session.evaluated, session.state.context_max);
        let what = if session.state.is_open() { format!("session {}", session.state.handle) } else { "kept".to_owned() };
        rows.push([what, tokens]);
    }
    output::pairs(&rows)
}

fn guest_rows(manifest: &Manifest) -> Vec<[String; 2]> {
    let Some(guest) = &manifest.guest else { return Vec::new() };
    let memory = format!(
        "{}, of which {} pages of {} B are not zero",
        output::human_bytes(guest.memory.bytes),
        guest.memory.stored_pages,
        guest.memory.stored_page_bytes
    );
    let mut rows = vec![
        ["guest".to_owned(), guest.module_hash.to_string()],
        ["memory".to_owned(), memory],
        ["messages".to_owned(), guest.state.messages_handled.to_string()],
    ];
    rows.extend(guest.state.settings.iter().map(|(key, value)| [format!("setting {key}"), value.replace('\n', "\\n")]));
    rows
}
