//! From logits to a token: penalties, filters, temperature, and a random generator whose whole state is two numbers.
//!
//! The order is the one users know from llama.cpp: logit bias, penalties, top-k, top-p, min-p, temperature. Filters look at
//! probabilities at temperature 1. Ties are broken by the lower token id, and every function used here is our own or exact, so
//! equal logits give equal tokens on every machine.

use crate::Error;
use crate::limits::{BIASES_MAX, PENALTY_WINDOW_MAX};
use driftwood_compute::gpu::{Draw, NO_TOKEN};
use driftwood_compute::math;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Why no token could be chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A parameter outside its range.
    #[error("{name} is {value}; it must lie between {low} and {high}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: f32,
        /// The least allowed.
        low: f32,
        /// The most allowed.
        high: f32,
    },
    /// Every logit is NaN or negative infinity.
    #[error("no token can be chosen: every logit is forbidden or not a number")]
    NoCandidate,
    /// A stored sampler that is none.
    #[error("a stored sampler cannot be read: {0}")]
    Malformed(String),
}

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerParams {
    /// 0 takes the likeliest token; 1 samples from the model's own distribution.
    pub temperature: f32,
    /// Only the k likeliest tokens; 0 for all.
    pub top_k: u32,
    /// The smallest set of likeliest tokens whose probabilities reach this; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this share as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Divides (or, below zero, multiplies) the logits of tokens seen in the window; 1 for none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens seen in the window.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was seen in the window.
    pub frequency_penalty: f32,
    /// How many of the last tokens the penalties look at.
    pub penalty_window: u32,
    /// Where the random generator starts.
    pub seed: u64,
    /// Added to logits, (token, bias); negative infinity forbids a token.
    #[serde(default, with = "bias_bits")]
    pub bias: Vec<(u32, f32)>,
}

impl Default for SamplerParams {
    /// Greedy, without penalties.
    fn default() -> Self {
        SamplerParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            seed: 0,
            bias: Vec::new(),
        }
    }
}

impl SamplerParams {
    /// Checks every number once.
    ///
    /// # Errors
    /// [`SampleError`] naming the first parameter outside its range.
    pub fn validate(&self) -> Result<(), SampleError> {
        let in_range = |name, value: f32, low: f32, high: f32| {
            if value >= low && value <= high { Ok(()) } else { Err(SampleError::OutOfRange { name, value, low, high }) }
        };
        in_range("temperature", self.temperature, 0.0, 100.0)?;
        in_range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        in_range("min_p", self.min_p, 0.0, 1.0)?;
        in_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        in_range("presence_penalty", self.presence_penalty, -1000.0, 1000.0)?;
        in_range("frequency_penalty", self.frequency_penalty, -1000.0, 1000.0)?;
        in_range("penalty_window", self.penalty_window as f32, 0.0, PENALTY_WINDOW_MAX as f32)?;
        in_range("number of logit biases", self.bias.len() as f32, 0.0, BIASES_MAX as f32)?;
        match self.bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            Some(&(_, value)) => Err(SampleError::OutOfRange { name: "logit bias", value, low: f32::NEG_INFINITY, high: f32::MAX }),
            None => Ok(()),
        }
    }
}

/// A sampler: its parameters and how many random numbers it has drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    params: SamplerParams,
    draws: u64,
    #[serde(skip)]
    scratch: Scratch,
}

#[derive(Clone, Debug, Default)]
struct Scratch {
    altered: Vec<f32>, // (vocabulary): logits after bias and penalties
    seen: Vec<u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    probability: f32,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// As [`SamplerParams::validate`].
    pub fn new(params: SamplerParams) -> Result<Sampler, SampleError> {
        params.validate()?;
        Ok(Sampler { params, draws: 0, scratch: Scratch::default() })
    }

    /// A sampler as it stood in a snapshot.
    ///
    /// # Errors
    /// If the value is not a sampler, or as [`SamplerParams::validate`].
    pub fn from_json(value: serde_json::Value) -> Result<Sampler, Error> {
        let sampler: Sampler = serde_json::from_value(value).map_err(|e| SampleError::Malformed(e.to_string()))?;
        sampler.params.validate()?;
        Ok(sampler)
    }

    /// The sampler's whole state.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("numbers and lists always serialise")
    }

    /// How tokens are chosen.
    pub fn params(&self) -> &SamplerParams {
        &self.params
    }

    /// The next token, from `logits` (vocabulary) and the tokens so far.
    ///
    /// # Errors
    /// [`SampleError::NoCandidate`] if every logit is NaN or negative infinity.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SampleError> {
        if self.params.bias.is_empty() && !self.penalises() {
            return self.choose(logits);
        }
        let mut altered = std::mem::take(&mut self.scratch.altered);
        altered.clear();
        altered.extend_from_slice(logits);
        for &(token, bias) in &self.params.bias {
            if let Some(logit) = altered.get_mut(token as usize) {
                *logit += bias;
            }
        }
        self.penalise(&mut altered, history);
        let chosen = self.choose(&altered);
        self.scratch.altered = altered;
        chosen
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        if self.params.temperature == 0.0 {
            return argmax(logits);
        }
        if self.unfiltered() {
            return self.draw_from_all(logits);
        }
        self.collect_candidates(logits)?;
        self.filter();
        Ok(self.draw())
    }

    /// How a device chooses the next token by itself: greedily, or at a temperature alone. The same text stands in `sample.wgsl`.
    pub(crate) fn draw_on_device(&self) -> Option<Draw> {
        let p = &self.params;
        let alone = p.bias.is_empty() && !self.penalises() && (p.temperature == 0.0 || self.unfiltered());
        let inverse_temperature = if p.temperature == 0.0 { 0.0 } else { 1.0 / p.temperature };
        alone.then(|| Draw { inverse_temperature, ..self.noise() })
    }

    /// The noise of the next draw.
    fn noise(&self) -> Draw {
        let p = &self.params;
        Draw { inverse_temperature: 1.0 / p.temperature, seed: [p.seed as u32, (p.seed >> 32) as u32], draw: self.draws as u32 }
    }

    /// Takes note of a token that a device chose so.
    pub(crate) fn take_drawn(&mut self, token: u32) -> Result<u32, SampleError> {
        if token == NO_TOKEN {
            return Err(SampleError::NoCandidate);
        }
        self.draws += u64::from(self.params.temperature != 0.0);
        Ok(token)
    }

    /// Whether every token may be drawn.
    fn unfiltered(&self) -> bool {
        self.params.top_k == 0 && self.params.top_p == 1.0 && self.params.min_p == 0.0
    }

    fn penalises(&self) -> bool {
        let p = &self.params;
        p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0
    }

    /// The token of the largest sum of logit over temperature and Gumbel noise: a draw from the softmax (Gumbel, 1954).
    fn draw_from_all(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let draw = self.noise();
        let mut best = (f32::NEG_INFINITY, NO_TOKEN);
        for (&logit, token) in logits.iter().zip(0..).filter(|(logit, _)| **logit > f32::NEG_INFINITY) {
            let key = logit.mul_add(draw.inverse_temperature, draw.gumbel(token));
            if key > best.0 {
                best = (key, token);
            }
        }
        self.take_drawn(best.1)
    }

    fn penalise(&mut self, logits: &mut [f32], history: &[u32]) {
        if !self.penalises() {
            return;
        }
        let p = &self.params;
        let window = &history[history.len().saturating_sub(p.penalty_window as usize)..];
        let seen = &mut self.scratch.seen;
        seen.clear();
        seen.extend_from_slice(window);
        seen.sort_unstable();
        for run in seen.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(run[0] as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
            *logit -= p.presence_penalty + p.frequency_penalty * run.len() as f32;
        }
    }

    /// Candidates with probabilities at temperature 1, likeliest first where a filter needs that order.
    fn collect_candidates(&mut self, logits: &[f32]) -> Result<(), SampleError> {
        let p = &self.params;
        let candidates = &mut self.scratch.candidates;
        candidates.clear();
        let usable = logits.iter().enumerate().filter(|(_, l)| **l > f32::NEG_INFINITY);
        candidates.extend(usable.map(|(i, &logit)| Candidate { token: i as u32, logit, probability: 0.0 }));
        if candidates.is_empty() {
            return Err(SampleError::NoCandidate);
        }
        let k = if p.top_k == 0 { candidates.len() } else { candidates.len().min(p.top_k as usize) };
        if k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, likelier);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(likelier);
        normalise(candidates, 1.0);
        Ok(())
    }

    fn filter(&mut self) {
        let p = &self.params;
        let candidates = &mut self.scratch.candidates;
        if p.top_p < 1.0 {
            let mut sum = 0.0;
            let reached = candidates.iter().position(|c| {
                sum += c.probability;
                sum >= p.top_p
            });
            candidates.truncate(reached.map_or(candidates.len(), |i| i + 1));
        }
        if p.min_p > 0.0 {
            let floor = candidates[0].probability * p.min_p;
            let kept = candidates.iter().take_while(|c| c.probability >= floor).count();
            candidates.truncate(kept.max(1));
        }
        normalise(candidates, p.temperature);
    }

    fn draw(&mut self) -> u32 {
        let unit = unit_random(self.params.seed, self.draws);
        self.draws += 1;
        let candidates = &self.scratch.candidates;
        let mut sum = 0.0f64;
        for candidate in candidates {
            sum += f64::from(candidate.probability);
            if unit < sum {
                return candidate.token;
            }
        }
        candidates.last().expect("at least one candidate").token
    }
}

/// The token of the largest logit, the lowest id among equals.
///
/// # Errors
/// [`SampleError::NoCandidate`] if every logit is NaN or negative infinity.
pub fn argmax(logits: &[f32]) -> Result<u32, SampleError> {
    let largest = largest(logits);
    let first = (largest > f32::NEG_INFINITY).then(|| logits.iter().position(|&logit| logit == largest)).flatten();
    first.map(|token| token as u32).ok_or(SampleError::NoCandidate)
}

/// The largest logit that is a number, in lanes that the compiler can keep in vector registers.
fn largest(logits: &[f32]) -> f32 {
    const LANES: usize = 64;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, &logit| larger(largest, logit))
}

/// The `count` largest logits with their tokens, largest first, the lower id first among equals.
pub fn top_logits(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<_> = logits
        .iter()
        .enumerate()
        .filter(|(_, l)| !l.is_nan())
        .map(|(i, &logit)| Candidate { token: i as u32, logit, probability: 0.0 })
        .collect();
    let count = count.min(all.len());
    if count > 0 && count < all.len() {
        all.select_nth_unstable_by(count - 1, likelier);
    }
    all.truncate(count);
    all.sort_unstable_by(likelier);
    all.into_iter().map(|c| (c.token, c.logit)).collect()
}

fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Softmax of candidates sorted likeliest first, at a temperature.
fn normalise(candidates: &mut [Candidate], temperature: f32) {
    let largest = candidates[0].logit;
    let mut sum = 0.0f64;
    for c in candidates.iter_mut() {
        c.probability = if c.logit == largest { 1.0 } else { math::exp((c.logit - largest) / temperature) };
        sum += f64::from(c.probability);
    }
    for c in candidates {
        c.probability = (f64::from(c.probability) / sum) as f32;
    }
}

/// The `draw`-th number in [0, 1) of a seed's sequence: SplitMix64 (Steele, Lea and Flood, 2014) evaluated at a counter.
fn unit_random(seed: u64, draw: u64) -> f64 {
    let mut z = seed.wrapping_add(draw.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// JSON has no infinities: a bias travels as the bits of its float.
mod bias_bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(bias: &[(u32, f32)], serializer: S) -> Result<S::Ok, S::Error> {
        bias.iter().map(|&(token, bias)| (token, bias.to_bits())).collect::<Vec<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(u32, f32)>, D::Error> {
        let bits = Vec::<(u32, u32)>::deserialize(deserializer)?;
        Ok(bits.into_iter().map(|(token, bits)| (token, f32::from_bits(bits))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut SamplerParams)) -> Sampler {
        let mut params = SamplerParams { temperature: 1.0, ..Default::default() };
        change(&mut params);
        Sampler::new(params).unwrap()
    }

    /// How often each of four tokens comes, of `n` draws.
    fn histogram(sampler: &mut Sampler, logits: [f32; 4], n: usize) -> [usize; 4] {
        let mut counts = [0; 4];
        for _ in 0..n {
            counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1;
        }
        counts
    }

    const LOGITS: [f32; 4] = [0.0, 3.0, 1.0, 2.0];

    #[test]
    fn frequencies_follow_the_distribution() {
        let counts = histogram(&mut sampler(|_| ()), LOGITS, 20_000);
        let weights: Vec<f64> = LOGITS.iter().map(|&l| f64::from(l).exp()).collect();
        for (count, weight) in counts.iter().zip(&weights) {
            let expected = 20_000.0 * weight / weights.iter().sum::<f64>();
            assert!((*count as f64 - expected).abs() < 4.0 * expected.sqrt() + 1.0, "{count} for {expected}");
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let kept = |s: &mut Sampler| histogram(s, LOGITS, 2000).map(|n| n > 0);
        assert_eq!(kept(&mut sampler(|p| p.top_k = 2)), [false, true, false, true]);
        assert_eq!(kept(&mut sampler(|p| p.top_p = 0.8)), [false, true, false, true]);
        assert_eq!(kept(&mut sampler(|p| p.top_p = 0.5)), [false, true, false, false]);
        assert_eq!(kept(&mut sampler(|p| p.min_p = 0.2)), [false, true, false, true]);
        assert_eq!(kept(&mut sampler(|p| p.temperature = 0.0)), [false, true, false, false]);
        assert_eq!(kept(&mut sampler(|p| p.bias = vec![(1, f32::NEG_INFINITY)])), [true, false, true, true]);
    }

    #[test]
    fn penalties_move_greedy_choices() {
        let greedy = |change: fn(&mut SamplerParams), history: &[u32]| {
            let mut s = sampler(|p| {
                p.temperature = 0.0;
                change(p);
            });
            s.sample(&LOGITS, history).unwrap()
        };
        assert_eq!(greedy(|_| (), &[1]), 1);
        assert_eq!(greedy(|p| p.repetition_penalty = 2.0, &[1]), 3);
        assert_eq!(greedy(|p| p.presence_penalty = 1.5, &[1]), 3);
        assert_eq!(greedy(|p| p.frequency_penalty = 0.6, &[1]), 1);
        assert_eq!(greedy(|p| p.frequency_penalty = 0.6, &[1, 1]), 3);
        let outside = |p: &mut SamplerParams| {
            p.presence_penalty = 1.5;
            p.penalty_window = 1;
        };
        assert_eq!(greedy(outside, &[1, 0]), 1, "the window has one token");
    }

    #[test]
    fn state_survives_json_and_continues() {
        let mut a = sampler(|p| {
            p.seed = 7;
            p.bias = vec![(0, f32::NEG_INFINITY)];
        });
        let _ = histogram(&mut a, LOGITS, 5);
        let mut b = Sampler::from_json(a.to_json()).unwrap();
        for _ in 0..50 {
            assert_eq!(a.sample(&LOGITS, &[]), b.sample(&LOGITS, &[]));
        }
    }

    #[test]
    fn bad_parameters_and_logits_are_refused() {
        let bad = |change: fn(&mut SamplerParams)| {
            let mut p = SamplerParams::default();
            change(&mut p);
            Sampler::new(p).is_err()
        };
        assert!(bad(|p| p.temperature = f32::NAN));
        assert!(bad(|p| p.temperature = -1.0));
        assert!(bad(|p| p.top_p = 0.0));
        assert!(bad(|p| p.repetition_penalty = 0.0));
        assert!(bad(|p| p.bias = vec![(0, f32::NAN)]));
        assert!(bad(|p| p.bias = vec![(0, 0.0); BIASES_MAX + 1]));
        assert!(Sampler::from_json(serde_json::json!({"draws": 1})).is_err());
        let mut s = sampler(|_| ());
        assert_eq!(s.sample(&[f32::NAN; 3], &[]), Err(SampleError::NoCandidate));
        assert_eq!(argmax(&[f32::NEG_INFINITY]), Err(SampleError::NoCandidate));
        assert_eq!(argmax(&[1.0, 2.0, 2.0]), Ok(1));
    }
}
