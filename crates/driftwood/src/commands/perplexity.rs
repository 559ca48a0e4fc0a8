//! `driftwood perplexity`: how well a model predicts a text, as llama.cpp's tool of that name measures it.
//!
//! The text is cut into windows of `--ctx` tokens that do not overlap, each starts with the BOS token if the file asks for one, and the
//! second half of each window is scored, so that every scored token has at least half a window before it.

use crate::catalogue;
use crate::cli::Globals;
use crate::commands::generate::read_text;
use crate::decode::Runner;
use crate::failure::mistake;
use crate::output;
use anyhow::Result;
use clap::Args;
use driftwood_compute::KvDType;
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Logits, Work};
use serde::Serialize;
use std::path::PathBuf;

/// Logits that one step may write, so that memory stays bounded: rows times vocabulary.
const LOGITS_AT_ONCE_MAX: usize = 4 << 20;

/// Rows of logits in one step.
const ROWS_AT_ONCE_MAX: usize = 64;

const EXAMPLES: &str = "\
Examples:
  driftwood perplexity --file prose.txt
  driftwood perplexity --file prose.txt --ctx 1024 --exact --json";

/// Flags of `perplexity`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PerplexityArgs {
    /// A name that `driftwood models` lists, or the path of a GGUF file or a Hugging Face folder
    #[arg(long, default_value = catalogue::DEFAULT)]
    model: String,
    /// The text
    #[arg(long)]
    file: PathBuf,
    /// Tokens in a window
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ctx: u32,
    /// How to store keys and values: f16, f32 or q8 [default: f16, with --exact f32]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvDType>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    perplexity: f64,
    tokens: usize,
}

/// Measures.
///
/// # Errors
/// If the model or the text cannot be used, or the text is shorter than two windows.
pub fn run(globals: &Globals, args: &PerplexityArgs) -> Result<()> {
    let text = read_text(&args.file)?;
    let mut runner = Runner::open(&args.model, &globals.device, args.kv)?;
    let tokens = runner.model.tokenizer().encode(&text, Special { add: true, parse: false });
    let window = args.ctx as usize;
    if tokens.len() < window {
        return Err(mistake(format!(
            "the text has {} tokens, less than one window of {window}; give a longer text or a smaller --ctx",
            tokens.len()
        )));
    }
    let windows = tokens.len() / window;
    let bar = output::steps_bar(windows, "windows");
    let mut sum = Surprise::default();
    for chunk in tokens.chunks_exact(window) {
        score(&mut runner, chunk, &mut sum)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = Report { perplexity: (sum.nats / sum.tokens as f64).exp(), tokens: sum.tokens };
    if args.json {
        return output::json(&report);
    }
    output::line(&format!("perplexity {:.4} over {} tokens in {windows} windows of {window}", report.perplexity, report.tokens))
}

/// Negative log-likelihood and how many tokens it is of.
#[derive(Default)]
struct Surprise {
    nats: f64,
    tokens: usize,
}

/// Adds the second half of a window.
fn score(runner: &mut Runner, window: &[u32], sum: &mut Surprise) -> Result<()> {
    let mut tokens = window.to_vec();
    let tokenizer = runner.model.tokenizer();
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) {
        tokens[0] = bos;
    }
    let first = tokens.len() / 2;
    let mut session = runner.session(0)?;
    session.append(&tokens[..first])?;
    runner.step_many(&mut [Work::new(&mut session, Logits::None)])?;
    let vocabulary = runner.model.config().vocabulary;
    let rows_max = (LOGITS_AT_ONCE_MAX / vocabulary).clamp(1, ROWS_AT_ONCE_MAX);
    let mut logits = vec![0.0; rows_max * vocabulary]; // (row, vocabulary)
    let last = tokens.len() - 1; // its successor is not in the window
    for start in (first..last).step_by(rows_max) {
        let end = (start + rows_max).min(last);
        let logits = &mut logits[..(end - start) * vocabulary];
        session.append(&tokens[start..end])?;
        runner.step_all(&mut session, logits)?;
        for (row, &next) in logits.chunks_exact(vocabulary).zip(&tokens[start + 1..=end]) {
            sum.nats -= log_probability(row, next);
            sum.tokens += 1;
        }
    }
    Ok(())
}

/// The logarithm of the probability that these logits give a token.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_normalised() {
        let logits = [1.0, 2.0, 3.0, 1000.0];
        assert!(log_probability(&logits, 3).abs() < 1e-9);
        assert!((log_probability(&[0.0; 8], 5) + 8f64.ln()).abs() < 1e-12);
    }
}
