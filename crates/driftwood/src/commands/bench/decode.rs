//! `driftwood bench decode`: how fast prompts are read and tokens come, at several depths and for several sessions at once.

use super::{Common, check_counts, prompt};
use crate::cli::Globals;
use crate::decode::{Runner, median, ms_since, per_second};
use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use driftwood_compute::KvDType;
use driftwood_engine::{Logits, Session, Timed, Work, argmax};
use serde::Serialize;
use serde_json::json;
use std::time::Instant;

/// Steps at each depth, and steps before them: the first of a fork copies the block that it shares.
const STEPS: usize = 40;
const WARM_STEPS: usize = 4;

/// Flags of `bench decode`.
#[derive(Args, Debug)]
pub struct DecodeArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens in the session before decoding, several after commas
    #[arg(long, visible_alias = "context", value_delimiter = ',', default_value = "24,512,2048", value_name = "N,..")]
    tokens: Vec<usize>,
    /// Sessions that decode together
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    sessions: u16,
    /// How to store keys and values: f16, f32 or q8 [default: f16, with --exact f32]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvDType>,
    /// Also time each kernel of a step, by the GPU's own clock
    #[arg(long)]
    kernels: bool,
}

/// Kernels of one step that have one name.
#[derive(Serialize)]
struct KernelRow {
    kernel: String,
    times: usize,
    us: f64,
}

#[derive(Serialize)]
struct Row {
    tokens: usize,
    sessions: usize,
    prefill_ms: f64,
    prefill_tokens_per_s: f64,
    decode_ms: f64,
    decode_tokens_per_s: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prefill_kernels: Vec<KernelRow>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    decode_kernels: Vec<KernelRow>,
}

/// Measures.
///
/// # Errors
/// If the model cannot be used or a depth exceeds its context.
pub fn run(globals: &Globals, args: &DecodeArgs) -> Result<()> {
    let mut runner = Runner::open(&args.common.model, &globals.device, args.kv)?;
    check_counts(&runner, &args.tokens, WARM_STEPS + STEPS + 1)?;
    let cpu = format!("{}, {} threads", runner.model.device().cpu.simd(), runner.model.device().cpu.threads());
    let numerics = runner.session(0)?.numerics_id();
    let rows = args.tokens.iter().map(|&tokens| row(&mut runner, args, tokens)).collect::<Result<Vec<Row>>>()?;
    if args.common.json {
        return output::json(
            &json!({ "model": runner.model.name(), "device": globals.device.name(), "cpu": cpu, "numerics": numerics, "rows": rows }),
        );
    }
    let cells = |row: &Row| {
        let prefill = format!("{:.0}", row.prefill_tokens_per_s);
        vec![
            row.tokens.to_string(),
            row.sessions.to_string(),
            prefill,
            output::human_ms(row.decode_ms),
            format!("{:.1}", row.decode_tokens_per_s),
        ]
    };
    output::table(
        &[">tokens", ">sessions", ">prefill tokens/s", ">decode ms", ">decode tokens/s"],
        &rows.iter().map(cells).collect::<Vec<_>>(),
    )?;
    for row in &rows {
        show_kernels(&format!("the last pass of reading {} tokens", row.tokens), &row.prefill_kernels)?;
        show_kernels(&format!("a step of {} sessions at {} tokens", row.sessions, row.tokens), &row.decode_kernels)?;
    }
    output::line(&format!("\n{} on {cpu}, {numerics}", runner.model.name()))
}

fn show_kernels(what: &str, kernels: &[KernelRow]) -> Result<()> {
    if kernels.is_empty() {
        return Ok(());
    }
    output::line(&format!("\nkernels of {what}, {:.0} us together", kernels.iter().map(|k| k.us).sum::<f64>()))?;
    let cells = |k: &KernelRow| vec![k.kernel.clone(), k.times.to_string(), format!("{:.1}", k.us)];
    output::table(&["", ">times", ">us"], &kernels.iter().map(cells).collect::<Vec<_>>())
}

/// Times by name, in the order of their first.
fn by_kernel(times: Vec<Timed>) -> Vec<KernelRow> {
    let mut rows: Vec<KernelRow> = Vec::new();
    for Timed { label, us } in times {
        match rows.iter_mut().find(|row| row.kernel == label) {
            Some(row) => (row.times, row.us) = (row.times + 1, row.us + us),
            None => rows.push(KernelRow { kernel: label, times: 1, us }),
        }
    }
    rows
}

/// The kernels of reading a prompt, and of a step of `forks` after it.
fn kernels(runner: &mut Runner, prompt: &[u32], forks: &mut [Session]) -> Result<[Vec<KernelRow>; 2]> {
    let mut session = runner.session(0)?;
    session.append(prompt)?;
    let mut token = None;
    let prefill = runner.step_timed(&mut [Work::new(&mut session, Logits::Next(&mut token))])?;
    let mut tokens = vec![None; forks.len()];
    let mut work: Vec<Work<'_>> =
        forks.iter_mut().zip(&mut tokens).map(|(session, token)| Work::new(session, Logits::Next(token))).collect();
    Ok([by_kernel(prefill), by_kernel(runner.step_timed(&mut work)?)])
}

fn row(runner: &mut Runner, args: &DecodeArgs, tokens: usize) -> Result<Row> {
    let prompt = prompt(runner, &args.common, tokens)?;
    let mut logits = runner.logits();
    let (mut session, prefill_ms) = prefilled(runner, &prompt, &mut logits)?;
    session.append(&[argmax(&logits)?])?;
    let sessions = usize::from(args.sessions);
    let mut forks: Vec<Session> = (0..sessions).map(|_| session.fork()).collect();
    let mut tokens_next = vec![None; sessions];
    let mut steps = Vec::with_capacity(STEPS);
    for step in 0..WARM_STEPS + STEPS {
        let each = forks.iter_mut().zip(&mut tokens_next);
        let start = Instant::now();
        let mut work: Vec<Work<'_>> = each.map(|(session, token)| Work::new(session, Logits::Next(token))).collect();
        runner.step_many(&mut work)?;
        for (session, token) in forks.iter_mut().zip(&tokens_next) {
            session.append(&[token.context("no token can be chosen")?])?;
        }
        if step >= WARM_STEPS {
            steps.push(ms_since(start));
        }
    }
    let decode_ms = median(&steps);
    let prefill_tokens_per_s = per_second(tokens, prefill_ms);
    let [prefill_kernels, decode_kernels] = if args.kernels { kernels(runner, &prompt, &mut forks)? } else { [Vec::new(), Vec::new()] };
    let decode_tokens_per_s = per_second(sessions, decode_ms);
    Ok(Row { tokens, sessions, prefill_ms, prefill_tokens_per_s, decode_ms, decode_tokens_per_s, prefill_kernels, decode_kernels })
}

/// A session with the prompt, and the median time of reading it: once on the CPU; several times, after a first that compiles, on a GPU.
fn prefilled(runner: &mut Runner, prompt: &[u32], logits: &mut [f32]) -> Result<(Session, f64)> {
    let runs = if runner.model.device().gpu.is_some() { 4 } else { 1 };
    let mut times = Vec::with_capacity(runs);
    loop {
        let mut session = runner.session(0)?;
        let start = Instant::now();
        runner.prefill(&mut session, prompt, logits)?;
        times.push(ms_since(start));
        if times.len() == runs {
            return Ok((session, median(&times[usize::from(runs > 1)..])));
        }
    }
}
