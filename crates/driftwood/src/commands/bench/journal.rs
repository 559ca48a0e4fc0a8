//! `driftwood bench journal`: what it costs to record every token durably before it is shown.
//!
//! Two sets of actors in one host take turns at the same work, token by token: the messages of one set go to a journal in the state folder, the
//! other's do not. The guest (`guest/bench/bench.wat`) says a byte after each token, so that it is seen when a token may be shown.

use super::guest::{self, NEXT, REWIND};
use super::machine::Machine;
use super::{Common, prompt};
use crate::cli::Globals;
use crate::decode::{Runner, median};
use crate::{actors, output, paths};
use anyhow::{Context, Result};
use clap::Args;
use driftwood_actor::{Event, Host, StateFolder};
use driftwood_compute::KvDType;
use serde::Serialize;
use std::time::Instant;

/// Tokens of the prompt.
const PROMPT_TOKENS: usize = 16;
/// Rounds that a median is of. In each both sets take a turn; which begins alternates.
const ROUNDS: usize = 12;

/// Flags of `bench journal`.
#[derive(Args, Debug)]
pub struct JournalArgs {
    #[command(flatten)]
    common: Common,
    /// How many actors talk at once, with a comma between several counts
    #[arg(long, value_delimiter = ',', default_value = "1,32", value_name = "N,..")]
    sessions: Vec<u16>,
    /// Tokens that each takes in a round
    #[arg(long, default_value_t = 64, value_name = "N")]
    tokens: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    sessions: usize,
    tokens: u32,
    /// Without a journal.
    plain_tokens_per_s: f64,
    /// With one.
    journal_tokens_per_s: f64,
    /// How much of the throughput is lost: the median over rounds of one turn against the other.
    lost: f64,
    /// How much later a token is shown, on average.
    added_latency_ms: f64,
    /// What the journal takes for one token.
    journal_bytes_per_token: f64,
}

/// One turn of a set.
struct Turn {
    ms: f64,
    /// When a token was shown, on average over all.
    shown_ms: f64,
}

/// Measures.
///
/// # Errors
/// If the model cannot be used or the state folder cannot be written.
pub fn run(globals: &Globals, args: &JournalArgs) -> Result<()> {
    let runner = Runner::open(&args.common.model, &globals.device, Some(KvDType::F16))?;
    let prompt = prompt(&runner, &args.common, PROMPT_TOKENS)?;
    let bar = output::steps_bar(args.sessions.len() * (ROUNDS + 1), "rounds");
    let mut rows = Vec::new();
    for &sessions in &args.sessions {
        rows.push(row(globals, &runner, &prompt, usize::from(sessions.max(1)), args.tokens, &mut || bar.inc(1))?);
    }
    bar.finish_and_clear();
    let report = Report { machine: Machine::here(), rows };
    if args.common.json { output::json(&report) } else { show(&report) }
}

fn row(globals: &Globals, runner: &Runner, prompt: &[u32], sessions: usize, tokens: u32, round_done: &mut dyn FnMut()) -> Result<Row> {
    let root = paths::state_folder(globals.state.as_deref())?;
    std::fs::create_dir_all(&root).with_context(|| format!("cannot make the state folder {}", root.display()))?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&root).context("cannot write to the state folder")?;
    let state = StateFolder::open(folder.path())?.with_durability(globals.durability.into());
    let mut host = actors::host(globals)?;
    host.add_model(runner.model.clone());
    let sets = ["plain", "journal"].map(|set| (1..=sessions).map(|n| format!("{set}-{n}")).collect::<Vec<_>>());
    for name in sets.iter().flatten() {
        guest::open(&mut host, runner, name, prompt)?;
    }
    let held = sets[1].iter().map(|name| state.create(name)).collect::<Result<Vec<_>, _>>()?;
    held.iter().try_for_each(|held| held.save(&mut host).map(drop))?; // from here on their messages are recorded
    let (mut turns, mut journal_bytes) = ([Vec::new(), Vec::new()], 0);
    for round in 0..ROUNDS + 1 {
        for set in if round.is_multiple_of(2) { [0, 1] } else { [1, 0] } {
            let turn = take_turn(&mut host, &sets[set], tokens)?;
            if round > 0 {
                turns[set].push(turn); // the first round warms up
            }
        }
        journal_bytes = journal_bytes.max(files_bytes(&folder.path().join("journals")));
        held.iter().try_for_each(|held| held.save(&mut host).map(drop))?;
        round_done();
    }
    let [plain, journal] = &turns;
    let per_second =
        |turns: &[Turn]| 1e3 * sessions as f64 * f64::from(tokens) / median(&turns.iter().map(|turn| turn.ms).collect::<Vec<_>>());
    let pairs = || plain.iter().zip(journal);
    Ok(Row {
        sessions,
        tokens,
        plain_tokens_per_s: per_second(plain),
        journal_tokens_per_s: per_second(journal),
        lost: median(&pairs().map(|(plain, journal)| 1.0 - plain.ms / journal.ms).collect::<Vec<_>>()),
        added_latency_ms: median(&pairs().map(|(plain, journal)| journal.shown_ms - plain.shown_ms).collect::<Vec<_>>()),
        journal_bytes_per_token: journal_bytes as f64 / (sessions as f64 * f64::from(tokens)),
    })
}

/// Every actor of a set takes its tokens, all in one delivery, and goes back to the prompt's end after it.
fn take_turn(host: &mut Host, names: &[String], tokens: u32) -> Result<Turn> {
    let messages = names.iter().map(|name| guest::message(name, &[NEXT, tokens, 1])).collect();
    let (mut shown_ms, mut shown) = (0.0, 0);
    let start = Instant::now();
    let results = host.deliver(messages, &mut |_, event| {
        if let Event::Reply(bytes) = event {
            shown_ms += start.elapsed().as_secs_f64() * 1e3 * bytes.len() as f64;
            shown += bytes.len();
        }
    });
    let ms = start.elapsed().as_secs_f64() * 1e3;
    results.into_iter().try_for_each(|result| result.map(drop)).context(guest::FAILED)?;
    for name in names {
        guest::ask(host, name, &[REWIND])?;
    }
    Ok(Turn { ms, shown_ms: shown_ms / f64::from(shown as u32) })
}

/// Bytes that are in use in the files of a folder: journals are filled with zeros ahead of what they hold.
fn files_bytes(folder: &std::path::Path) -> usize {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| std::fs::read(file.path()).ok())
        .map(|bytes| bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1))
        .sum()
}

fn show(report: &Report) -> Result<()> {
    let row = |row: &Row| {
        vec![
            row.sessions.to_string(),
            format!("{:.1}", row.plain_tokens_per_s),
            format!("{:.1}", row.journal_tokens_per_s),
            format!("{:.2}%", 100.0 * row.lost),
            output::human_ms(row.added_latency_ms),
            format!("{:.0}", row.journal_bytes_per_token),
        ]
    };
    let rows: Vec<Vec<String>> = report.rows.iter().map(row).collect();
    output::table(&[">sessions", ">tokens/s", ">with journal", ">lost", ">shown later ms", ">journal B/token"], &rows)?;
    output::line(&report.machine.line())
}
