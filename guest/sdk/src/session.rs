//! Sessions: tokens, their keys and values, and a sampler, kept by the host from message to message.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use crate::{Bias, Model, Result, Sampler, Token, common_prefix, host};

/// One timeline of inference. It is closed when it is dropped, so keep it in a `State` to keep it.
#[derive(Debug)]
pub struct Session {
    handle: i32,
    model: Model,
}

/// How a session is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// How it stores keys and values.
    pub kv: Kv,
    /// The most tokens it can hold; 0: as many as the model was trained for.
    pub context_max: u32,
}

/// How a session stores keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kv {
    /// 16-bit floats.
    #[default]
    F16 = 0,
    /// 32-bit floats.
    F32 = 1,
    /// 8 bits, with a scale a block.
    Q8 = 2,
}

/// What to generate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generate<'a> {
    /// The most tokens.
    pub max_tokens: u32,
    /// Append the text to the reply as it comes.
    pub stream: bool,
    /// Go on past end tokens.
    pub ignore_end: bool,
    /// Texts that end the generation.
    pub stops: &'a [&'a str],
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// How many tokens; they are in the session.
    pub tokens: u32,
    /// Their text, without the end token. Bytes, since it may end inside a character.
    pub text: Vec<u8>,
    /// Why it ended.
    pub finish: Finish,
}

/// Why a generation ended: `dw_finish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn; the end token is the session's last.
    End,
    /// `max_tokens`.
    Length,
    /// A stop string.
    Stop,
    /// The session's context is full.
    Context,
    /// The user asked to end the reply.
    Interrupted,
    /// The limit of tokens of this message.
    TokenLimit,
    /// A reason of a later contract.
    Other(u32),
}

/// `dw_generate_options`.
#[repr(C)]
pub struct RawGenerate {
    pub max_tokens: u32,
    pub flags: u32,
    pub stops: u32,
    pub stops_bytes: u32,
    pub out_text: u32,
    pub out_text_capacity: u32,
    pub out_text_bytes: u32,
    pub out_finish: u32,
}

/// Bytes of text that room is made for at first, per token and at most.
const TEXT_BYTES_PER_TOKEN: u32 = 8;
const TEXT_BYTES_MAX: u32 = 1 << 16;

impl Session {
    /// Opens an empty session.
    ///
    /// # Errors
    /// If there is no such model, or the actor's limit of sessions is reached.
    pub fn open(model: &Model, options: SessionOptions) -> Result<Session> {
        let handle = host::session_open(model.name(), options.kv as u32, options.context_max)?;
        Ok(Session { handle, model: model.clone() })
    }

    /// A second session with the same tokens, keys and values (shared, not copied) and sampler.
    ///
    /// # Errors
    /// If the actor's limit of sessions is reached.
    pub fn fork(&self) -> Result<Session> {
        let handle = host::session_fork(self.handle)?;
        Ok(Session { handle, model: self.model.clone() })
    }

    /// Closes the session, as dropping it does, and says if that failed.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn close(self) -> Result<()> {
        let handle = self.handle;
        core::mem::forget(self);
        host::session_close(handle)
    }

    /// The model it was opened on.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How many tokens it holds.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn length(&self) -> Result<u32> {
        host::session_length(self.handle)
    }

    /// How many tokens it can hold.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn context(&self) -> Result<u32> {
        host::session_context(self.handle)
    }

    /// Its tokens from `first` on.
    ///
    /// # Errors
    /// If it holds fewer than `first`.
    pub fn tokens(&self, first: u32) -> Result<Vec<Token>> {
        host::session_tokens(self.handle, first)
    }

    /// Forgets the tokens from `length` on.
    ///
    /// # Errors
    /// If it holds fewer than `length`.
    pub fn truncate(&self, length: u32) -> Result<()> {
        host::session_truncate(self.handle, length)
    }

    /// Makes the session hold exactly these tokens: keeps what it has in common with them, forgets and appends the rest. Answers how
    /// many it kept.
    ///
    /// # Errors
    /// If they don't fit the context.
    pub fn set_tokens(&self, tokens: &[Token]) -> Result<u32> {
        let kept = common_prefix(&self.tokens(0)?, tokens);
        self.truncate(kept as u32)?;
        self.append(&tokens[kept..])?;
        Ok(kept as u32)
    }

    /// Appends tokens and evaluates them. Answers the new length.
    ///
    /// # Errors
    /// If they don't fit the context or the message's limit of tokens.
    pub fn prefill(&self, tokens: &[Token]) -> Result<u32> {
        host::prefill(self.handle, tokens)
    }

    /// Appends tokens that the next `decode`, `next_token`, `generate` or `prefill` evaluates. Answers the new length.
    ///
    /// # Errors
    /// If they don't fit the context.
    pub fn append(&self, tokens: &[Token]) -> Result<u32> {
        host::append(self.handle, tokens)
    }

    /// Evaluates what is appended and writes the logits of the next position: one float for each token of the vocabulary.
    ///
    /// # Errors
    /// If `logits` is not as long as the vocabulary, or the session is empty.
    pub fn decode(&self, logits: &mut [f32]) -> Result<()> {
        host::decode(self.handle, logits)
    }

    /// Sets how tokens are chosen, and restarts the session's random generator from the seed.
    ///
    /// # Errors
    /// If a value makes no sense, or there are more than 1024 biases.
    pub fn set_sampler(&self, sampler: &Sampler, biases: &[Bias]) -> Result<()> {
        host::set_sampler(self.handle, &sampler.to_raw(), biases)
    }

    /// Chooses a token from logits by the session's sampler and history, without appending it.
    ///
    /// # Errors
    /// If `logits` is not as long as the vocabulary.
    pub fn sample(&self, logits: &[f32]) -> Result<Token> {
        host::sample(self.handle, logits)
    }

    /// Evaluates what is appended, chooses a token and appends it.
    ///
    /// # Errors
    /// If the context or the message's limit of tokens is full.
    pub fn next_token(&self) -> Result<Token> {
        host::next(self.handle)
    }

    /// Generates until the model ends its turn or something else of `Finish` happens.
    ///
    /// # Errors
    /// If the host can't begin; what ends a generation under way is told by `finish`.
    pub fn generate(&self, options: &Generate) -> Result<Generated> {
        let mut text = alloc::vec![0; text_capacity(options.max_tokens)];
        let before = self.length()?;
        let raw = host::generate(self.handle, options, &zero_ended(options.stops), &mut text)?;
        let finish = Finish::from_number(raw.finish);
        let whole = text.get(..raw.text_bytes).map(<[u8]>::to_vec);
        let text = whole.map_or_else(|| self.text_since(before, finish), Ok)?;
        Ok(Generated { tokens: raw.tokens, text, finish })
    }

    /// The text of the tokens from `first` on, for a text that outgrew its buffer. With a stop string it includes that string.
    fn text_since(&self, first: u32, finish: Finish) -> Result<Vec<u8>> {
        let mut tokens = self.tokens(first)?;
        if finish == Finish::End {
            tokens.pop();
        }
        self.model.detokenize(&tokens)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A handle that the host does not know any more is closed already.
        let _ = host::session_close(self.handle);
    }
}

impl Finish {
    fn from_number(number: u32) -> Finish {
        match number {
            0 => Finish::End,
            1 => Finish::Length,
            2 => Finish::Stop,
            3 => Finish::Context,
            4 => Finish::Interrupted,
            5 => Finish::TokenLimit,
            other => Finish::Other(other),
        }
    }
}

fn text_capacity(max_tokens: u32) -> usize {
    max_tokens.saturating_mul(TEXT_BYTES_PER_TOKEN).min(TEXT_BYTES_MAX) as usize
}

/// The stop strings as the contract wants them.
fn zero_ended(stops: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for stop in stops {
        bytes.extend_from_slice(stop.as_bytes());
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_end_with_zero_bytes() {
        assert_eq!(zero_ended(&[]), b"");
        assert_eq!(zero_ended(&["a", "bc"]), b"a\0bc\0");
    }

    #[test]
    fn text_buffers_are_bounded() {
        assert_eq!(text_capacity(4), 32);
        assert_eq!(text_capacity(u32::MAX), TEXT_BYTES_MAX as usize);
    }

    #[test]
    fn the_options_have_the_contracts_layout() {
        assert_eq!(size_of::<RawGenerate>(), 32);
        assert_eq!(size_of::<crate::raw::RawSampler>(), 40);
        assert_eq!(size_of::<Bias>(), 8);
        assert_eq!(size_of::<crate::ModelInfo>(), 16);
    }
}
