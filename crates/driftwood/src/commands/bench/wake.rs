//! `driftwood bench wake`: a folder full of actors at rest: how long listing them takes, and waking one of them.
//!
//! The actors are forks of one. A wake is from taking hold of the actor to the logits of its next token: head, memory, instance, KV verified,
//! and one step over one token. The model is loaded and all files are in the page cache.

use super::guest::{self, NEXT};
use super::machine::{Machine, memory_bytes};
use super::{Common, check_counts, prompt};
use crate::cli::Globals;
use crate::decode::{Runner, median, ms_since};
use crate::{actors, output, paths};
use anyhow::{Context, Result};
use clap::Args;
use driftwood_actor::{Host, StateFolder, ThawOptions};
use driftwood_compute::KvDType;
use serde::Serialize;
use std::time::Instant;

/// The actor that the others are forks of.
const PARENT: &str = "parent";
/// Wakes that are not counted: the first compiles the guest.
const WARM_UP: usize = 3;
/// Listings that a median is of.
const LISTINGS: usize = 5;

/// Flags of `bench wake`.
#[derive(Args, Debug)]
pub struct WakeArgs {
    #[command(flatten)]
    common: Common,
    /// How many actors rest in the folder
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    actors: u32,
    /// Tokens of each
    #[arg(long, default_value_t = 1000, value_name = "N")]
    tokens: usize,
    /// How many of them are woken, one after the other
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    wakes: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    actors: u32,
    tokens: usize,
    wakes: u32,
    fork_ms: f64,
    list_ms: f64,
    list_bytes_each: f64,
    /// Until the actor is in the host.
    thaw_median_ms: f64,
    /// Until its next token's logits.
    wake_median_ms: f64,
    wake_p99_ms: f64,
    wake_max_ms: f64,
}

/// Measures.
///
/// # Errors
/// If the model cannot be used, the tokens exceed its context, or the state folder cannot be written.
pub fn run(globals: &Globals, args: &WakeArgs) -> Result<()> {
    let root = paths::state_folder(globals.state.as_deref())?;
    std::fs::create_dir_all(&root).with_context(|| format!("cannot make the state folder {}", root.display()))?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&root).context("cannot write to the state folder")?;
    let state = StateFolder::open(folder.path())?;
    let mut host = parent(globals, args, &state)?;
    let names: Vec<String> = (1..=args.actors).map(|n| format!("actor-{n}")).collect();
    let start = Instant::now();
    state.fork(&state.hold(PARENT)?, &names)?;
    let fork_ms = ms_since(start);
    let (list_ms, list_bytes) = list(&state)?;
    let (thaws, mut wakes) = wakes(&mut host, &state, &names, args.wakes as usize)?;
    wakes.sort_by(f64::total_cmp);
    let report = Report {
        machine: Machine::here(),
        actors: args.actors,
        tokens: args.tokens,
        wakes: args.wakes,
        fork_ms,
        list_ms,
        list_bytes_each: list_bytes as f64 / f64::from(args.actors),
        thaw_median_ms: median(&thaws),
        wake_median_ms: median(&wakes),
        wake_p99_ms: wakes[(wakes.len() * 99).div_ceil(100) - 1],
        wake_max_ms: wakes[wakes.len() - 1],
    };
    if args.common.json { output::json(&report) } else { show(&report) }
}

fn show(r: &Report) -> Result<()> {
    let row = |what: String, ms: f64| vec![what, output::human_ms(ms)];
    let rows = [
        row(format!("forking {} actors of {} tokens at rest", r.actors, r.tokens), r.fork_ms),
        row(format!("listing them ({:.0} bytes of memory each)", r.list_bytes_each), r.list_ms),
        row(format!("thawing one, median of {}", r.wakes), r.thaw_median_ms),
        row("to its next token's logits, median".into(), r.wake_median_ms),
        row("  99 of 100 within".into(), r.wake_p99_ms),
        row("  all within".into(), r.wake_max_ms),
    ];
    output::table(&["", ">ms"], &rows)?;
    output::line(&r.machine.line())
}

/// A host that has the model, and the actor saved in the state folder.
fn parent(globals: &Globals, args: &WakeArgs, state: &StateFolder) -> Result<Host> {
    let runner = Runner::open(&args.common.model, &globals.device, Some(KvDType::F16))?;
    check_counts(&runner, &[args.tokens], 1)?;
    let tokens: Vec<u32> = prompt(&runner, &args.common, args.tokens)?;
    let mut host = actors::host(globals)?;
    host.add_model(runner.model.clone());
    guest::open(&mut host, &runner, PARENT, &tokens)?;
    state.create(PARENT)?.save(&mut host)?;
    host.remove(PARENT)?;
    Ok(host)
}

/// Milliseconds of a listing, and bytes that this process takes more while it holds one.
fn list(state: &StateFolder) -> Result<(f64, u64)> {
    let mut times = Vec::new();
    let before_bytes = memory_bytes()?;
    let mut held = None;
    let mut bytes = 0;
    for run in 0..LISTINGS {
        let start = Instant::now();
        let listed = state.list()?;
        let summaries = state.summaries(&listed);
        times.push(ms_since(start));
        held = Some((listed, summaries));
        if run == 0 {
            bytes = memory_bytes()?.saturating_sub(before_bytes);
        }
    }
    drop(held);
    Ok((median(&times), bytes))
}

/// Wakes actors, each another one as far as they go round: milliseconds until each was in the host, and until its next token's logits.
fn wakes(host: &mut Host, state: &StateFolder, names: &[String], count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut thaws, mut wakes) = (Vec::new(), Vec::new());
    let bar = output::steps_bar(count, "wakes");
    for wake in 0..WARM_UP + count {
        // A step that shares no factor with most numbers leads all over the folder, the same way in each run.
        let name = &names[wake.wrapping_mul(7919) % names.len()];
        let start = Instant::now();
        let held = state.hold(name)?;
        held.thaw_into(host, ThawOptions::default())?;
        let thaw_ms = ms_since(start);
        guest::ask(host, name, &[NEXT, 1, 1])?;
        let wake_ms = ms_since(start);
        host.remove(name)?;
        if wake >= WARM_UP {
            thaws.push(thaw_ms);
            wakes.push(wake_ms);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok((thaws, wakes))
}
