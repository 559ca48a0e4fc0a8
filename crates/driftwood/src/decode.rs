//! The engine without an actor: what `generate`, `perplexity` and `bench` share.

use crate::device::DeviceArgs;
use crate::models::{Found, ModelsFolder};
use crate::output;
use anyhow::{Context, Result};
use driftwood_compute::KvDType;
use driftwood_engine::{Batch, Logits, Model, SampleError, Session, SessionOptions, Timed, Work, argmax};
use std::sync::Arc;
use std::time::Instant;

/// Tokens that prefill evaluates between two movements of its progress bar.
const PREFILL_CHUNK_TOKENS: usize = 512;
/// The same on a GPU.
const PREFILL_GPU_CHUNK_TOKENS: usize = 4096;

/// Prompts longer than this show a progress bar.
const PREFILL_SILENT_TOKENS: usize = 2 * PREFILL_CHUNK_TOKENS;

/// A model that is ready, with the scratch memory of its steps.
pub struct Runner {
    /// The model.
    pub model: Arc<Model>,
    /// How sessions store KV unless they say otherwise.
    pub kv: KvDType,
    /// How long opening it took.
    pub load_ms: f64,
    batch: Batch,
}

impl Runner {
    /// Opens a model by name or path.
    ///
    /// # Errors
    /// If it is not there or cannot be run.
    pub fn open(model: &str, device: &DeviceArgs, kv: Option<KvDType>) -> Result<Runner> {
        let place = device.open()?;
        let Found { name, path } = ModelsFolder::of_environment()?.find(model)?;
        let start = Instant::now();
        let opened = output::spinning("loading the model", || Model::open(&name, &path, place));
        let model = opened.with_context(|| format!("cannot use the model {}", path.display()))?;
        let batch = Batch::new(&model);
        Ok(Runner { model, kv: device.kv(kv), load_ms: ms_since(start), batch })
    }

    /// Another one on the same model, with scratch memory of its own.
    pub fn beside(&self) -> Runner {
        Runner { model: self.model.clone(), kv: self.kv, load_ms: 0.0, batch: Batch::new(&self.model) }
    }

    /// Opens a session; `context_max` 0 stands for the model's own.
    ///
    /// # Errors
    /// If the model cannot serve such a context.
    pub fn session(&self, context_max: usize) -> Result<Session> {
        Ok(Session::open(&self.model, SessionOptions { kv: self.kv, context_max })?)
    }

    /// Room for the logits of one position: (vocabulary).
    pub fn logits(&self) -> Vec<f32> {
        vec![0.0; self.model.config().vocabulary]
    }

    /// Evaluates what is appended, and writes the last position's logits.
    ///
    /// # Errors
    /// As `Batch::step`.
    pub fn step(&mut self, session: &mut Session, logits: &mut [f32]) -> Result<()> {
        Ok(self.batch.step(&mut [Work::new(session, Logits::Last(logits))])?)
    }

    /// Evaluates what is appended; the session's sampler chooses the next token, which is not appended.
    ///
    /// # Errors
    /// As `Batch::step`, or if no token can be chosen.
    pub fn next(&mut self, session: &mut Session) -> Result<u32> {
        let mut token = None;
        self.batch.step(&mut [Work::new(session, Logits::Next(&mut token))])?;
        Ok(token.ok_or(SampleError::NoCandidate)?)
    }

    /// Evaluates what is appended, and writes the logits after each of those tokens: (token, vocabulary).
    ///
    /// # Errors
    /// As `Batch::step`.
    pub fn step_all(&mut self, session: &mut Session, logits: &mut [f32]) -> Result<()> {
        Ok(self.batch.step(&mut [Work::new(session, Logits::All(logits))])?)
    }

    /// Evaluates what is appended to several sessions, without logits.
    ///
    /// # Errors
    /// As `Batch::step`.
    pub fn step_many(&mut self, work: &mut [Work<'_>]) -> Result<()> {
        Ok(self.batch.step(work)?)
    }

    /// As [`Runner::step_many`], with the times of a GPU's kernels.
    ///
    /// # Errors
    /// As `Batch::step_timed`.
    pub fn step_timed(&mut self, work: &mut [Work<'_>]) -> Result<Vec<Timed>> {
        Ok(self.batch.step_timed(work)?)
    }

    /// Appends and evaluates tokens, in chunks that move a progress bar where there are many, and writes the last position's logits.
    ///
    /// # Errors
    /// If there is no token, if they do not fit the context, or as `Batch::step`.
    pub fn prefill(&mut self, session: &mut Session, tokens: &[u32], logits: &mut [f32]) -> Result<()> {
        let on_gpu = self.model.device().gpu.is_some();
        let chunk_tokens = if on_gpu { PREFILL_GPU_CHUNK_TOKENS } else { PREFILL_CHUNK_TOKENS };
        let last = tokens.len().saturating_sub(1) / chunk_tokens * chunk_tokens;
        let bar = output::steps_bar(tokens.len(), "reading the prompt");
        for chunk in tokens[..last].chunks(chunk_tokens) {
            session.append(chunk)?;
            self.batch.step(&mut [Work::new(session, Logits::None)])?;
            if tokens.len() > PREFILL_SILENT_TOKENS {
                bar.inc(chunk.len() as u64);
            }
        }
        bar.finish_and_clear();
        session.append(&tokens[last..])?;
        self.step(session, logits)
    }

    /// Decodes greedily from the tokens that are appended: the tokens, and a hash of all logits on the way.
    ///
    /// # Errors
    /// If the context is too short, or as `Batch::step`.
    pub fn greedy(&mut self, session: &mut Session, count: usize) -> Result<(Vec<u32>, blake3::Hash)> {
        let mut logits = self.logits();
        let mut hasher = blake3::Hasher::new();
        let mut tokens = Vec::with_capacity(count);
        for _ in 0..count {
            self.step(session, &mut logits)?;
            hasher.update(&logits.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<u8>>());
            let token = argmax(&logits)?;
            session.append(&[token])?;
            tokens.push(token);
        }
        Ok((tokens, hasher.finalize()))
    }
}

/// Milliseconds since `start`.
pub fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// The middle value; the lower of the two where their number is even, 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// How many a second, from a count and milliseconds; 0 where there were none.
pub fn per_second(count: usize, ms: f64) -> f64 {
    if count == 0 || ms <= 0.0 { 0.0 } else { count as f64 * 1e3 / ms }
}

/// The most memory that this process has had resident, in bytes; nothing where the system does not say it in a file.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_rates() {
        assert_eq!([median(&[]), median(&[3.0]), median(&[9.0, 1.0, 5.0]), median(&[4.0, 1.0])], [0.0, 3.0, 5.0, 1.0]);
        assert_eq!([per_second(0, 5.0), per_second(10, 1000.0), per_second(10, 0.0)], [0.0, 10.0, 0.0]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn peak_memory_is_known() {
        assert!(peak_rss_bytes().unwrap() > 1 << 20);
    }
}
