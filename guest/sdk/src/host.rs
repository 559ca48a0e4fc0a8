//! The imports made safe: slices in, results out. The one place that calls `raw`.
//!
//! The same argument holds for every call: pointer and length are those of a slice that outlives the call, and the host touches
//! linear memory only within the ranges named and only until it answers.

use alloc::vec::Vec;

use crate::{
    Bias, Error, Grid, ModelInfo, Result, Token,
    compute::Binding,
    error::answer,
    raw,
    session::{Generate, RawGenerate},
};

/// Asks for a whole buffer: once with the capacity guessed, and again where the answer was longer.
fn filled<T: Copy + Default>(call: &'static str, guess: usize, mut ask: impl FnMut(&mut [T]) -> i32) -> Result<Vec<T>> {
    let mut buffer = alloc::vec![T::default(); guess];
    loop {
        let whole = answer(call, ask(&mut buffer))? as usize;
        let enough = whole <= buffer.len();
        buffer.resize(whole, T::default());
        if enough {
            return Ok(buffer);
        }
    }
}

pub fn receive() -> Result<Vec<u8>> {
    // SAFETY: the range is the slice's own.
    filled("receive", 4096, |buffer| unsafe { raw::receive(buffer.as_mut_ptr(), buffer.len() as u32) })
}

pub fn reply(bytes: &[u8]) -> Result<()> {
    // SAFETY: the range is the slice's own.
    let number = unsafe { raw::reply(bytes.as_ptr(), bytes.len() as u32) };
    answer("reply", number).map(drop)
}

pub fn log(level: u32, text: &str) {
    // SAFETY: the range is the text's own. There is nothing to do about a log that fails.
    unsafe { raw::log(level, text.as_ptr(), text.len() as u32) };
}

pub fn setting(name: &str) -> Result<Vec<u8>> {
    filled("setting", 64, |buffer| {
        // SAFETY: both ranges are the slices' own.
        unsafe { raw::setting(name.as_ptr(), name.len() as u32, buffer.as_mut_ptr(), buffer.len() as u32) }
    })
}

pub fn time_ms() -> i64 {
    // SAFETY: the function takes nothing.
    unsafe { raw::time_ms() }
}

pub fn random(buffer: &mut [u8]) -> Result<()> {
    // SAFETY: the range is the slice's own.
    let number = unsafe { raw::random(buffer.as_mut_ptr(), buffer.len() as u32) };
    answer("random", number).map(drop)
}

pub fn model_info(model: &str) -> Result<ModelInfo> {
    let mut info = ModelInfo::default();
    // SAFETY: the name's range is its own, and `info` has the layout of `dw_model_info`.
    let number = unsafe { raw::model_info(model.as_ptr(), model.len() as u32, &mut info) };
    answer("model_info", number).map(|_| info)
}

pub fn tokenize(model: &str, text: &str, flags: u32) -> Result<Vec<Token>> {
    filled("tokenize", text.len() / 3 + 8, |tokens: &mut [Token]| {
        let (name, name_bytes) = (model.as_ptr(), model.len() as u32);
        // SAFETY: all three ranges are the slices' own; a token is one u32.
        unsafe { raw::tokenize(name, name_bytes, text.as_ptr(), text.len() as u32, flags, tokens.as_mut_ptr(), tokens.len() as u32) }
    })
}

pub fn detokenize(model: &str, tokens: &[Token]) -> Result<Vec<u8>> {
    filled("detokenize", tokens.len() * 8, |buffer| {
        let (name, name_bytes) = (model.as_ptr(), model.len() as u32);
        // SAFETY: all three ranges are the slices' own; a token is one u32.
        unsafe { raw::detokenize(name, name_bytes, tokens.as_ptr(), tokens.len() as u32, buffer.as_mut_ptr(), buffer.len() as u32) }
    })
}

pub fn is_end(model: &str, token: Token) -> Result<bool> {
    // SAFETY: the range is the name's own.
    let number = unsafe { raw::is_end(model.as_ptr(), model.len() as u32, token) };
    answer("is_end", number).map(|yes| yes != 0)
}

pub fn chat_template(model: &str, messages: &str, add_prompt: bool) -> Result<Vec<u8>> {
    filled("chat_template", messages.len() + 256, |buffer| {
        let (name, name_bytes) = (model.as_ptr(), model.len() as u32);
        let (json, json_bytes) = (messages.as_ptr(), messages.len() as u32);
        // SAFETY: all three ranges are the slices' own.
        unsafe { raw::chat_template(name, name_bytes, json, json_bytes, add_prompt.into(), buffer.as_mut_ptr(), buffer.len() as u32) }
    })
}

pub fn session_open(model: &str, kv: u32, context_max: u32) -> Result<i32> {
    // SAFETY: the range is the name's own.
    let number = unsafe { raw::session_open(model.as_ptr(), model.len() as u32, kv, context_max) };
    answer("session_open", number).map(|handle| handle as i32)
}

pub fn session_close(session: i32) -> Result<()> {
    // SAFETY: the function takes no memory.
    answer("session_close", unsafe { raw::session_close(session) }).map(drop)
}

pub fn session_fork(session: i32) -> Result<i32> {
    // SAFETY: the function takes no memory.
    answer("session_fork", unsafe { raw::session_fork(session) }).map(|handle| handle as i32)
}

pub fn session_truncate(session: i32, length: u32) -> Result<()> {
    // SAFETY: the function takes no memory.
    answer("session_truncate", unsafe { raw::session_truncate(session, length) }).map(drop)
}

pub fn session_length(session: i32) -> Result<u32> {
    // SAFETY: the function takes no memory.
    answer("session_length", unsafe { raw::session_length(session) })
}

pub fn session_context(session: i32) -> Result<u32> {
    // SAFETY: the function takes no memory.
    answer("session_context", unsafe { raw::session_context(session) })
}

pub fn session_tokens(session: i32, first: u32) -> Result<Vec<Token>> {
    let guess = session_length(session)?.saturating_sub(first);
    filled("session_tokens", guess as usize, |tokens: &mut [Token]| {
        // SAFETY: the range is the slice's own; a token is one u32.
        unsafe { raw::session_tokens(session, first, tokens.as_mut_ptr(), tokens.len() as u32) }
    })
}

pub fn prefill(session: i32, tokens: &[Token]) -> Result<u32> {
    // SAFETY: the range is the slice's own; a token is one u32.
    answer("prefill", unsafe { raw::prefill(session, tokens.as_ptr(), tokens.len() as u32) })
}

pub fn append(session: i32, tokens: &[Token]) -> Result<u32> {
    // SAFETY: the range is the slice's own; a token is one u32.
    answer("append", unsafe { raw::append(session, tokens.as_ptr(), tokens.len() as u32) })
}

pub fn decode(session: i32, logits: &mut [f32]) -> Result<()> {
    // SAFETY: the range is the slice's own, and any bits that the host writes are an f32.
    answer("decode", unsafe { raw::decode(session, logits.as_mut_ptr(), logits.len() as u32) }).map(drop)
}

pub fn set_sampler(session: i32, sampler: &raw::RawSampler, biases: &[Bias]) -> Result<()> {
    // SAFETY: `RawSampler` and `Bias` have the layouts of `dw_sampler` and `dw_bias`; the range is the slice's own.
    let number = unsafe { raw::set_sampler(session, sampler, biases.as_ptr(), biases.len() as u32) };
    answer("set_sampler", number).map(drop)
}

pub fn sample(session: i32, logits: &[f32]) -> Result<Token> {
    // SAFETY: the range is the slice's own.
    answer("sample", unsafe { raw::sample(session, logits.as_ptr(), logits.len() as u32) })
}

pub fn next(session: i32) -> Result<Token> {
    // SAFETY: the function takes no memory.
    answer("next", unsafe { raw::next(session) })
}

/// What the host says of a generation: tokens, bytes of the whole text, `dw_finish`.
pub struct RawGenerated {
    pub tokens: u32,
    pub text_bytes: usize,
    pub finish: u32,
}

/// Generates; the text, as much of it as fits, goes to `text`. `stops` holds the stop strings, each ended by a zero byte.
pub fn generate(session: i32, options: &Generate, stops: &[u8], text: &mut [u8]) -> Result<RawGenerated> {
    let mut raw_options = RawGenerate {
        max_tokens: options.max_tokens,
        flags: u32::from(options.stream) | u32::from(options.ignore_end) << 1,
        stops: stops.as_ptr() as usize as u32,
        stops_bytes: stops.len() as u32,
        out_text: text.as_mut_ptr() as usize as u32,
        out_text_capacity: text.len() as u32,
        out_text_bytes: 0,
        out_finish: 0,
    };
    // SAFETY: `RawGenerate` has the layout of `dw_generate_options`, and the ranges inside it are those of the two slices.
    let tokens = answer("generate", unsafe { raw::generate(session, &mut raw_options) })?;
    Ok(RawGenerated { tokens, text_bytes: raw_options.out_text_bytes as usize, finish: raw_options.out_finish })
}

/// The lengths of `a`, `b` and `c` must be those of the shape.
pub fn matmul(a: &[f32], b: &[f32], c: &mut [f32], [m, k, n]: [u32; 3]) -> Result<()> {
    let fits = |slice: &[f32], rows: u32, columns: u32| slice.len() as u64 == u64::from(rows) * u64::from(columns);
    if !(fits(a, m, k) && fits(b, k, n) && fits(c, m, n)) {
        return Err(Error::Failed(alloc::format!("matmul: the slices are not of the shapes ({m}, {k}) and ({k}, {n}) to ({m}, {n})")));
    }
    // SAFETY: the three slices have just been seen to hold what the shape names.
    answer("matmul", unsafe { raw::matmul(a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), m, k, n) }).map(drop)
}

pub fn dispatch(wgsl: &str, bindings: &mut [Binding<'_>], grid: &Grid) -> Result<()> {
    let (text, text_bytes) = (wgsl.as_ptr(), wgsl.len() as u32);
    // SAFETY: the text's range is its own; a `Binding` has the layout of `dw_binding` and is a slice that it has borrowed for writing, any
    // bits of which are a value; `Grid` has the layout of `dw_grid`.
    answer("dispatch", unsafe { raw::dispatch(text, text_bytes, bindings.as_ptr().cast(), bindings.len() as u32, grid) }).map(drop)
}
