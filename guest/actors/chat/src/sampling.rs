//! How the settings want tokens to be chosen.

use driftwood_guest::{Result, Sampler, random_u64, setting, setting_or};

/// The settings "temperature" (0.7), "top_k" (40), "top_p" (0.95), "min_p" (0), "repetition_penalty" (1) and "seed" (by chance).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    seed: Option<u64>,
}

impl Sampling {
    /// What the settings say now.
    ///
    /// # Errors
    /// If a setting is no number.
    pub fn read() -> Result<Sampling> {
        Ok(Sampling {
            temperature: setting_or("temperature", 0.7)?,
            top_k: setting_or("top_k", 40)?,
            top_p: setting_or("top_p", 0.95)?,
            min_p: setting_or("min_p", 0.0)?,
            repetition_penalty: setting_or("repetition_penalty", 1.0)?,
            seed: setting("seed")?,
        })
    }

    /// The sampler, its seed drawn where none is set.
    ///
    /// # Errors
    /// If the host gives no random bytes.
    pub fn sampler(&self) -> Result<Sampler> {
        Ok(Sampler {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed.map_or_else(random_u64, Ok)?,
            ..Sampler::default()
        })
    }
}
