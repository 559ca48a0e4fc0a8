//! `driftwood generate`: the engine without an actor. Continues a prompt, and reports all that a comparison needs.

use crate::cli::Globals;
use crate::decode::{Runner, ms_since, peak_rss_bytes, per_second};
use crate::failure::mistake;
use crate::{catalogue, output};
use anyhow::{Context, Result};
use clap::Args;
use driftwood_compute::KvDType;
use driftwood_engine::template::Message;
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Residence, Sampler, SamplerParams, Session, top_logits};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  driftwood generate --prompt \"The capital of France is\" --max-tokens 20
  driftwood generate --model gemma3-270m --prompt-file story.txt --temperature 0.8 --seed 7
  driftwood generate --chat --prompt-file messages.json --json
  driftwood generate --exact --prompt Hello --max-tokens 0 --top-logits 10 --json

A raw prompt gets the special tokens that the model's file asks for; special strings inside it stay text. With --chat the prompt file is
a JSON array of {\"role\",\"content\"}, rendered by the model's template (a --prompt that is none is one user's message).";

/// Flags of `generate`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct GenerateArgs {
    /// A name that `driftwood models` lists, or the path of a GGUF file or a Hugging Face folder
    #[arg(long, default_value = catalogue::DEFAULT)]
    model: String,
    #[command(flatten)]
    prompt: PromptArgs,
    /// The most tokens to generate; 0 evaluates the prompt only
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Go on past the model's end tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Report the K largest logits of the first generated position
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_logits: usize,
    /// How to store keys and values: f16, f32 or q8 [default: f16, with --exact f32]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvDType>,
    /// The most tokens that the session holds [default: the model's own context]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    context: usize,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

/// Where the prompt comes from.
#[derive(Args, Debug)]
struct PromptArgs {
    #[command(flatten)]
    source: Source,
    /// The prompt is a chat: render it by the model's template
    #[arg(long, conflicts_with = "tokens_file")]
    chat: bool,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Source {
    /// The prompt itself
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file with the prompt
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A file with the prompt's token ids: a JSON array, or numbers between spaces
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<PathBuf>,
}

/// How tokens are chosen.
#[derive(Args, Debug)]
struct SamplingArgs {
    /// 0 takes the likeliest token, 1 samples from the model's own distribution
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f32,
    /// Sample from the K likeliest tokens only; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: u32,
    /// Sample from the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Sample from tokens at least this share as likely as the likeliest
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// Makes tokens of the last 64 less likely; 1 for none
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    repetition_penalty: f32,
    /// Where the random numbers start
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
}

impl SamplingArgs {
    fn sampler(&self) -> Result<Sampler> {
        let SamplingArgs { temperature, top_k, top_p, min_p, repetition_penalty, seed } = *self;
        let params = SamplerParams { temperature, top_k, top_p, min_p, repetition_penalty, seed, ..SamplerParams::default() };
        Ok(Sampler::new(params)?)
    }
}

#[derive(Serialize)]
struct Report {
    model: String,
    device: &'static str,
    numerics: String,
    residence: Residence,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    text: String,
    top_logits: Vec<(u32, f32)>,
    timings: Timings,
    peak_rss_bytes: Option<u64>,
}

#[derive(Default, Serialize)]
struct Timings {
    load_ms: f64,
    prefill_ms: f64,
    prefill_tokens_per_s: f64,
    decode_ms_per_token: f64,
    decode_tokens_per_s: f64,
}

/// Generates.
///
/// # Errors
/// If the model or the prompt cannot be used, or the prompt does not fit the context.
pub fn run(globals: &Globals, args: &GenerateArgs) -> Result<()> {
    let sampler = args.sampling.sampler()?;
    let mut runner = Runner::open(&args.model, &globals.device, args.kv)?;
    let prompt_tokens = args.prompt.tokens(&runner)?;
    let mut session = runner.session(args.context)?;
    session.set_sampler(sampler);
    let mut generation = Generation { args, runner: &mut runner, timings: Timings::default(), top_logits: Vec::new() };
    let tokens = generation.run(&mut session, &prompt_tokens)?;
    let Generation { timings, top_logits, .. } = generation;
    let text = String::from_utf8_lossy(&runner.model.tokenizer().decode(&tokens)).into_owned();
    let timings = Timings { load_ms: runner.load_ms, ..timings };
    let (model, numerics) = (runner.model.name().to_owned(), session.numerics_id());
    let residence = runner.model.residence(session.kv_layout().dtype);
    let report = Report {
        model,
        device: globals.device.name(),
        numerics,
        residence,
        prompt_tokens,
        tokens,
        text,
        top_logits,
        timings,
        peak_rss_bytes: peak_rss_bytes(),
    };
    if args.json { output::json(&report) } else { show(&report) }
}

struct Generation<'a> {
    args: &'a GenerateArgs,
    runner: &'a mut Runner,
    timings: Timings,
    top_logits: Vec<(u32, f32)>,
}

impl Generation<'_> {
    /// Evaluates the prompt and decodes after it.
    fn run(&mut self, session: &mut Session, prompt: &[u32]) -> Result<Vec<u32>> {
        let mut logits = self.runner.logits();
        let start = Instant::now();
        if prompt.is_empty() {
            return Err(mistake("the prompt is empty; give at least one token"));
        }
        self.runner.prefill(session, prompt, &mut logits)?;
        self.timings.prefill_ms = ms_since(start);
        self.timings.prefill_tokens_per_s = per_second(prompt.len(), self.timings.prefill_ms);
        self.top_logits = top_logits(&logits, self.args.top_logits);
        self.decode(session, &mut logits)
    }

    /// Decodes from the logits of the prompt's end.
    fn decode(&mut self, session: &mut Session, logits: &mut [f32]) -> Result<Vec<u32>> {
        let mut tokens = Vec::with_capacity(self.args.max_tokens.min(session.room()));
        let start = Instant::now();
        let mut steps = 0;
        let mut token = if self.args.max_tokens == 0 { 0 } else { session.sample(logits)? };
        while tokens.len() < self.args.max_tokens {
            tokens.push(token);
            let ended = self.runner.model.tokenizer().is_end(token) && !self.args.ignore_eos;
            if !self.args.json && !ended {
                output::stream(&self.runner.model.tokenizer().piece(token))?;
            }
            if ended || tokens.len() == self.args.max_tokens {
                break;
            }
            if session.room() == 0 {
                output::note("\ncontext full: the text ends here");
                break;
            }
            session.append(&[token])?;
            token = self.runner.next(session)?;
            steps += 1;
        }
        let decode_ms = ms_since(start);
        self.timings.decode_ms_per_token = if steps == 0 { 0.0 } else { decode_ms / steps as f64 };
        self.timings.decode_tokens_per_s = per_second(steps, decode_ms);
        Ok(tokens)
    }
}

/// What follows streamed text: a newline, and the figures on stderr.
fn show(report: &Report) -> Result<()> {
    output::line("")?;
    for (token, logit) in &report.top_logits {
        output::line(&format!("{token:>8}  {logit:.4}"))?;
    }
    let Timings { prefill_tokens_per_s, decode_tokens_per_s, .. } = report.timings;
    output::remark(&format!(
        "{} prompt tokens at {prefill_tokens_per_s:.0}/s, {} new tokens at {decode_tokens_per_s:.1}/s, peak memory {}",
        report.prompt_tokens.len(),
        report.tokens.len(),
        report.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), output::human_bytes)
    ));
    Ok(())
}

impl PromptArgs {
    /// The prompt as tokens.
    fn tokens(&self, runner: &Runner) -> Result<Vec<u32>> {
        if let Some(path) = &self.source.tokens_file {
            return read_tokens(path);
        }
        let text = match (&self.source.prompt, &self.source.prompt_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read_text(path)?,
            (None, None) => unreachable!("clap requires one source"),
        };
        let tokenizer = runner.model.tokenizer();
        if !self.chat {
            return Ok(tokenizer.encode(&text, Special { add: true, parse: false }));
        }
        let rendered = runner.model.chat_template()?.render(&self.messages(&text)?, true)?;
        Ok(tokenizer.encode_rendered(&rendered))
    }

    fn messages(&self, text: &str) -> Result<Vec<Message>> {
        match serde_json::from_str(text) {
            Ok(messages) => Ok(messages),
            Err(_) if self.source.prompt.is_some() => Ok(vec![Message::new("user", text)]),
            Err(why) => Err(mistake(format!("the prompt file is no JSON array of {{\"role\",\"content\"}}: {why}; or leave --chat out"))),
        }
    }
}

/// A text file as it is.
///
/// # Errors
/// If it cannot be read as UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|e| mistake(format!("cannot read {}: {e}", path.display())))?;
    String::from_utf8(bytes).map_err(|e| mistake(format!("{} is not UTF-8 text: {e}", path.display())))
}

fn read_tokens(path: &Path) -> Result<Vec<u32>> {
    let text = read_text(path)?;
    let parsed = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text).map_err(|e| e.to_string())
    } else {
        text.split_whitespace().map(|word| word.parse::<u32>().map_err(|e| format!("`{word}`: {e}"))).collect()
    };
    let wrong =
        |why: String| mistake(format!("{} is no list of token ids: {why}; give a JSON array or numbers between spaces", path.display()));
    parsed.map_err(wrong).context("cannot read --tokens-file")
}
