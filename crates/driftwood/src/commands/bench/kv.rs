//! `driftwood bench kv`: freezing and thawing a session's KV, against computing it again.
//!
//! The session is as an actor between two tokens: N tokens in the KV and one more that is chosen but not evaluated. All figures are medians of
//! seven, with the files in the page cache; every run writes and opens them anew.

use super::{Common, check_counts, prompt};
use crate::cli::Globals;
use crate::decode::{Runner, median, ms_since};
use crate::{output, paths};
use anyhow::{Context, Result};
use clap::Args;
use driftwood_compute::KvDType;
use driftwood_engine::{Session, argmax};
use driftwood_snapshot::Identity;
use driftwood_store::{Chunks, Commit, Head};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// The head's name in its folder.
const HEAD: &str = "head";

/// Runs that a median is of.
const RUNS: usize = 7;

/// Greedy tokens over which the restored session is compared with the one that never stopped.
const TOKENS_COMPARED: usize = 32;

/// Flags of `bench kv`.
#[derive(Args, Debug)]
pub struct KvArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens in the KV, several after commas
    #[arg(long, value_delimiter = ',', default_value = "24,512,2048,4096", value_name = "N,..")]
    tokens: Vec<usize>,
    /// How to store keys and values: f16, f32 or q8 [default: f16, with --exact f32]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvDType>,
}

#[derive(Serialize)]
struct Row {
    tokens: usize,
    bytes: u64,
    bytes_per_token: f64,
    serialise_ms: f64,
    write_ms: f64,
    restore_ms: f64,
    first_token_ms: f64,
    decode_ms: f64,
    reprefill_ms: f64,
    tokens_agree: bool,
    bits_agree: bool,
}

/// Measures.
///
/// # Errors
/// If the model cannot be used, a count exceeds its context, or the state folder cannot be written.
pub fn run(globals: &Globals, args: &KvArgs) -> Result<()> {
    let mut runner = Runner::open(&args.common.model, &globals.device, args.kv)?;
    check_counts(&runner, &args.tokens, TOKENS_COMPARED + 1)?;
    let state = paths::state_folder(globals.state.as_deref())?;
    std::fs::create_dir_all(&state).with_context(|| format!("cannot make the state folder {}", state.display()))?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&state).context("cannot write to the state folder")?;
    let rows = args.tokens.iter().map(|&tokens| row(&mut runner, args, tokens, folder.path())).collect::<Result<Vec<Row>>>()?;
    if args.common.json { output::json(&json!({ "rows": rows })) } else { show(&rows) }
}

fn show(rows: &[Row]) -> Result<()> {
    let ms = |ms: f64| output::human_ms(ms);
    let yes = |yes: bool| if yes { "yes" } else { "NO" }.to_owned();
    let cells = |r: &Row| {
        let sizes = vec![r.tokens.to_string(), output::human_bytes(r.bytes), format!("{:.0}", r.bytes_per_token)];
        let times = [r.serialise_ms, r.write_ms, r.restore_ms, r.first_token_ms, r.decode_ms, r.reprefill_ms].map(ms);
        [sizes, times.to_vec(), vec![yes(r.tokens_agree), yes(r.bits_agree)]].concat()
    };
    let titles =
        [">tokens", ">file", ">B/token", ">serialise ms", ">write ms", ">restore ms", ">first token ms", ">decode ms", ">reprefill ms"];
    output::table(&[&titles[..], &["same tokens", "same bits"]].concat(), &rows.iter().map(cells).collect::<Vec<_>>())
}

fn row(runner: &mut Runner, args: &KvArgs, tokens: usize, folder: &Path) -> Result<Row> {
    let prompt = prompt(runner, &args.common, tokens)?;
    let bar = output::steps_bar(4 * RUNS, &format!("{tokens} tokens"));
    let (mut session, mut reprefill) = (None, Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        session = Some(prefilled(runner, &prompt)?);
        reprefill.push(ms_since(start));
        bar.inc(1);
    }
    let session = session.context("there is at least one run")?;
    let path = folder.join("store");
    let (written, bytes) = timed_writes(runner, &session, &path)?;
    bar.inc(RUNS as u64);
    let (restore, first_token) = timed_restores(runner, &session, &path)?;
    bar.inc(RUNS as u64);
    let decode = timed_steps(runner, &session)?;
    bar.finish_and_clear();
    let (expected, expected_bits) = runner.greedy(&mut session.fork(), TOKENS_COMPARED)?;
    let (found, found_bits) = runner.greedy(&mut restore_from(runner, &path)?, TOKENS_COMPARED)?;
    Ok(Row {
        tokens,
        bytes,
        bytes_per_token: bytes as f64 / tokens as f64,
        serialise_ms: median(&written.serialise),
        write_ms: median(&written.write),
        restore_ms: median(&restore),
        first_token_ms: median(&first_token),
        decode_ms: median(&decode),
        reprefill_ms: median(&reprefill),
        tokens_agree: expected == found,
        bits_agree: expected_bits == found_bits,
    })
}

/// A session with the prompt in its KV and the next token chosen.
fn prefilled(runner: &mut Runner, prompt: &[u32]) -> Result<Session> {
    let mut session = runner.session(0)?;
    let mut logits = runner.logits();
    runner.prefill(&mut session, prompt, &mut logits)?;
    session.append(&[argmax(&logits)?])?;
    Ok(session)
}

#[derive(Default)]
struct Written {
    serialise: Vec<f64>,
    write: Vec<f64>,
}

/// Times keeping the session in a state folder of its own, and answers what that wrote. The last one stays, and its head.
fn timed_writes(runner: &Runner, session: &Session, folder: &Path) -> Result<(Written, u64)> {
    runner.model.fingerprint(); // once a process, not once a freeze
    let mut written = Written::default();
    let mut bytes = 0;
    for _ in 0..RUNS {
        let _ = std::fs::remove_dir_all(folder); // the first time there is none
        let chunks = Chunks::open(folder)?;
        let start = Instant::now();
        let mut commit = chunks.commit()?;
        let head = head(session, &commit)?;
        written.serialise.push(ms_since(start));
        commit.seal()?;
        bytes = commit.written_bytes() + head.publish(&folder.join(HEAD))?.bytes;
        written.write.push(ms_since(start));
    }
    Ok((written, bytes))
}

/// Saves the KV and names it. It is not noted as saved, so that the next time saves it again.
fn head(session: &Session, commit: &Commit<'_>) -> Result<Head> {
    let kv = driftwood_actor::save_kv(session, commit)?;
    Ok(Head {
        writer: concat!("driftwood ", env!("CARGO_PKG_VERSION")).to_owned(),
        identity: Identity::mint("bench", None)?,
        guest: None,
        pools: vec![driftwood_actor::pool_info(session)],
        sessions: vec![driftwood_actor::head_session(1, session, 0, &kv, commit)?],
        former: None,
        turns: None,
        given_up: 0,
        notes: BTreeMap::new(),
    })
}

/// Times opening the head to a session that is ready, and to its next token's logits, with every byte verified that they depend on.
fn timed_restores(runner: &mut Runner, session: &Session, folder: &Path) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut logits = runner.logits();
    let (mut restore, mut first_token) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        let mut restored = restore_from(runner, folder)?;
        restore.push(ms_since(start));
        runner.step(&mut restored, &mut logits)?;
        first_token.push(ms_since(start));
        anyhow::ensure!(restored.tokens() == session.tokens(), "the restored session has other tokens");
    }
    Ok((restore, first_token))
}

/// A session from a head: small parts are verified here, whole blocks of KV before the first step that reads them.
fn restore_from(runner: &Runner, folder: &Path) -> Result<Session> {
    let head = Head::read(&folder.join(HEAD))?;
    Ok(driftwood_actor::restore_session(&runner.model, &head, 0, &Chunks::open(folder)?, runner.kv)?)
}

/// Times single steps at the session's depth.
fn timed_steps(runner: &mut Runner, session: &Session) -> Result<Vec<f64>> {
    let mut logits = runner.logits();
    let mut session = session.fork();
    runner.step(&mut session, &mut logits)?; // the first one copies the block that the fork shares
    let mut steps = Vec::new();
    for _ in 0..RUNS {
        let token = argmax(&logits)?;
        session.append(&[token])?;
        let start = Instant::now();
        runner.step(&mut session, &mut logits)?;
        steps.push(ms_since(start));
    }
    Ok(steps)
}
