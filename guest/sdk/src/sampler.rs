//! How a session chooses its tokens.
#![forbid(unsafe_code)]

use crate::{Token, raw::RawSampler};

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Among how many of the likeliest tokens; 0: all.
    pub top_k: u32,
    /// Among the likeliest tokens that together have this probability; 1: all.
    pub top_p: f32,
    /// Among the tokens at least this likely beside the likeliest one; 0: all.
    pub min_p: f32,
    /// Divides the logits of recent tokens; 1: none.
    pub repetition_penalty: f32,
    /// Taken once from the logits of recent tokens; 0: none.
    pub presence_penalty: f32,
    /// Taken from the logits of recent tokens as often as they occur; 0: none.
    pub frequency_penalty: f32,
    /// How many last tokens the penalties look at.
    pub penalty_window: u32,
    /// Where the session's random generator begins.
    pub seed: u64,
}

/// A number added to one token's logit; minus infinity forbids it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bias {
    /// The token.
    pub token: Token,
    /// What is added.
    pub bias: f32,
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            seed: 0,
        }
    }
}

impl Sampler {
    /// The same in the contract's layout.
    pub(crate) fn to_raw(self) -> RawSampler {
        RawSampler {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_window: self.penalty_window,
            seed_low: self.seed as u32,
            seed_high: (self.seed >> 32) as u32,
        }
    }
}
