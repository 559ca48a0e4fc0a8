//! `driftwood bench load`: how long until a model is ready, and how much memory it takes then and once it has decoded.
//!
//! Each run is a process of its own with the model's file in the system's cache: this program calls itself. The last of them also opens the model
//! again and again, which is what a host does that swaps models.

use super::machine::Machine;
use crate::catalogue;
use crate::cli::Globals;
use crate::decode::{Runner, median, ms_since, peak_rss_bytes};
use crate::failure::mistake;
use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use driftwood_engine::tokenizer::Special;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::process::Command;
use std::time::Instant;

/// Tokens that are decoded after the prompt, so that all weights were read.
const TOKENS: usize = 16;
const PROMPT: &str = "Once upon a time, a piece of driftwood came to a beach";

/// Flags of `bench load`.
#[derive(Args, Debug)]
pub struct LoadArgs {
    /// A name that `driftwood models` lists, or the path of a GGUF file or a Hugging Face folder
    #[arg(default_value = catalogue::DEFAULT)]
    model: String,
    /// Processes that are measured, after one that warms the system's cache
    #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Be one of those processes
    #[arg(long, hide = true)]
    once: bool,
}

/// What one process measured.
#[derive(Deserialize, Serialize)]
struct Once {
    /// From the flags to a model that is ready, the device included.
    ready_ms: f64,
    /// Opening the model alone.
    open_ms: f64,
    /// Opening it again.
    again_ms: f64,
    file_bytes: usize,
    ready_rss_bytes: Option<u64>,
    decoded_rss_bytes: Option<u64>,
    kv_bytes: usize,
}

/// A time's middle and best.
#[derive(Serialize)]
struct Times {
    median_ms: f64,
    min_ms: f64,
}

impl Times {
    fn of(runs: &[Once], ms: impl Fn(&Once) -> f64) -> Times {
        let all: Vec<f64> = runs.iter().map(ms).collect();
        Times { median_ms: median(&all), min_ms: all.iter().copied().fold(f64::INFINITY, f64::min) }
    }
}

/// Measures.
///
/// # Errors
/// If the model cannot be used, or this program cannot call itself.
pub fn run(globals: &Globals, args: &LoadArgs) -> Result<()> {
    if args.once {
        return output::json(&once(globals, args)?);
    }
    another()?; // the file is in the system's cache then
    let bar = output::steps_bar(args.runs.into(), "loading");
    let runs = (0..args.runs).map(|_| another().inspect(|_| bar.inc(1))).collect::<Result<Vec<Once>>>()?;
    bar.finish_and_clear();
    show(args, &runs)
}

/// Runs this very command in a process of its own.
fn another() -> Result<Once> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let output =
        Command::new(program).args(std::env::args_os().skip(1)).arg("--once").output().context("cannot start this program again")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(mistake(said.trim().trim_start_matches("driftwood: ").to_owned()));
    }
    serde_json::from_slice(&output.stdout).context("cannot understand what this program's other process says")
}

fn once(globals: &Globals, args: &LoadArgs) -> Result<Once> {
    let start = Instant::now();
    let mut runner = Runner::open(&args.model, &globals.device, None)?;
    let ready_ms = ms_since(start);
    let ready_rss_bytes = peak_rss_bytes();
    let (open_ms, file_bytes) = (runner.load_ms, runner.model.file_bytes());
    let mut session = runner.session(0)?;
    let prompt = runner.model.tokenizer().encode(PROMPT, Special { add: true, parse: false });
    session.append(&prompt)?;
    runner.greedy(&mut session, TOKENS)?;
    let kv_bytes = session.kv_bytes().0;
    let decoded_rss_bytes = peak_rss_bytes();
    drop((session, runner));
    let again_ms = Runner::open(&args.model, &globals.device, None)?.load_ms;
    Ok(Once { ready_ms, open_ms, again_ms, file_bytes, ready_rss_bytes, decoded_rss_bytes, kv_bytes })
}

fn show(args: &LoadArgs, runs: &[Once]) -> Result<()> {
    let times = [
        ("ready", Times::of(runs, |run| run.ready_ms)),
        ("opening the model", Times::of(runs, |run| run.open_ms)),
        ("opening it again", Times::of(runs, |run| run.again_ms)),
    ];
    let [(_, ready), (_, open), (_, again)] = &times;
    let Some(last) = runs.last() else { return Ok(()) };
    let machine = Machine::here();
    if args.json {
        let memory =
            json!({ "ready_rss_bytes": last.ready_rss_bytes, "decoded_rss_bytes": last.decoded_rss_bytes, "kv_bytes": last.kv_bytes });
        let shown =
            json!({ "model": args.model, "runs": runs.len(), "file_bytes": last.file_bytes, "ready": ready, "open": open, "again": again });
        return output::json(&json!({ "load": shown, "memory": memory, "machine": machine }));
    }
    let cells = |(what, times): &(&str, Times)| vec![(*what).to_owned(), output::human_ms(times.median_ms), output::human_ms(times.min_ms)];
    output::table(&["", ">median ms", ">min ms"], &times.iter().map(cells).collect::<Vec<_>>())?;
    let human = |bytes: Option<u64>| bytes.map_or_else(|| "not told".to_owned(), output::human_bytes);
    let rows = [
        ("file", human(Some(last.file_bytes as u64))),
        ("resident when ready", human(last.ready_rss_bytes)),
        (&*format!("resident after {TOKENS} tokens"), human(last.decoded_rss_bytes)),
        ("KV of them", human(Some(last.kv_bytes as u64))),
    ];
    output::line("")?;
    output::table(&["", ">memory"], &rows.map(|(what, size)| vec![what.to_owned(), size]))?;
    output::line(&format!("\n{} in {} processes; {}", args.model, runs.len(), machine.line()))
}
