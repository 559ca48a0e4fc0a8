//! Sessions: open, close, fork, truncate, append and prefill, logits into linear memory, samplers and sampling.

use super::models::named;
use super::{Answer, MODULE, answer, granted, number, with_desk};
use crate::Error;
use crate::abi::{Bias, Refused, SamplerOptions};
use crate::desk::Desk;
use crate::instance::Guest;
use crate::limits::PREFILL_CHUNK_TOKENS;
use crate::memory::GuestMemory;
use crate::parked::{Target, evaluate};
use driftwood_compute::KvDType;
use driftwood_engine::{Sampler, SamplerParams, Session, SessionOptions};
use wasmtime::{Caller, Linker};

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    link_table(linker)?;
    link_tokens(linker)?;
    linker.func_wrap(MODULE, "set_sampler", |mut c: Caller<'_, Guest>, session: i32, sampler: u32, biases: u32, count: u32| {
        answer(&mut c, u64::from(count), |m, d| set_sampler(m, d, session, sampler, (biases, count)))
    })?;
    linker.func_wrap(MODULE, "sample", |mut c: Caller<'_, Guest>, session: i32, logits: u32, count: u32| {
        answer(&mut c, u64::from(count), |m, d| sample(m, d, session, (logits, count)))
    })?;
    linker.func_wrap_async(MODULE, "decode", |c, (session, logits, count): (i32, u32, u32)| -> Answer<'_> {
        Box::new(decode(c, session, logits, count))
    })?;
    Ok(())
}

fn link_table(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "session_open", |mut c: Caller<'_, Guest>, name: u32, length: u32, kv: u32, context_max: u32| {
        answer(&mut c, 0, |m, d| open(m, d, (name, length), kv, context_max))
    })?;
    linker.func_wrap(MODULE, "session_close", |mut c: Caller<'_, Guest>, session: i32| {
        answer(&mut c, 0, |_, d| d.close(session).map(|()| 0))
    })?;
    linker.func_wrap(MODULE, "session_fork", |mut c: Caller<'_, Guest>, session: i32| answer(&mut c, 0, |_, d| fork(d, session)))?;
    linker.func_wrap(MODULE, "session_length", |mut c: Caller<'_, Guest>, session: i32| {
        answer(&mut c, 0, |_, d| Ok(d.sessions.get(session)?.tokens().len() as i32))
    })?;
    linker.func_wrap(MODULE, "session_context", |mut c: Caller<'_, Guest>, session: i32| {
        answer(&mut c, 0, |_, d| Ok(d.sessions.get(session)?.context_max() as i32))
    })?;
    Ok(())
}

fn link_tokens(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "session_truncate", |mut c: Caller<'_, Guest>, session: i32, length: u32| {
        answer(&mut c, 0, |_, d| d.sessions.entry(session)?.truncate(length as usize).map(|()| 0))
    })?;
    linker.func_wrap(MODULE, "session_tokens", |mut c: Caller<'_, Guest>, session: i32, first: u32, tokens: u32, capacity: u32| {
        answer(&mut c, capacity.into(), |m, d| {
            let from = d.sessions.get(session)?.tokens().get(first as usize..).ok_or(Refused::BadArgument)?;
            m.answer(tokens, capacity, from)
        })
    })?;
    linker.func_wrap(MODULE, "append", |mut c: Caller<'_, Guest>, session: i32, tokens: u32, count: u32| {
        answer(&mut c, count.into(), |m, d| {
            d.append(session, m.slice(tokens, count)?)?;
            Ok(d.sessions.get(session)?.tokens().len() as i32)
        })
    })?;
    linker.func_wrap_async(MODULE, "prefill", |c, (session, tokens, count): (i32, u32, u32)| -> Answer<'_> {
        Box::new(prefill(c, session, tokens, count))
    })?;
    Ok(())
}

fn open(memory: &GuestMemory<'_>, desk: &mut Desk, name: (u32, u32), kv: u32, context_max: u32) -> Result<i32, Refused> {
    let kv = match kv {
        0 => KvDType::F16,
        1 => KvDType::F32,
        2 => KvDType::Q8,
        _ => return Err(Refused::BadArgument),
    };
    desk.check_session_count()?;
    let model = named(memory, desk, name)?;
    let session = Session::open(&model, SessionOptions { kv, context_max: context_max as usize });
    let session = session.map_err(|error| match error {
        driftwood_engine::Error::ContextTooLong { .. } => Refused::BadArgument,
        error => {
            desk.note(Error::Engine(error));
            Refused::ModelError
        }
    })?;
    Ok(desk.sessions.insert(session))
}

fn fork(desk: &mut Desk, session: i32) -> Result<i32, Refused> {
    desk.check_session_count()?;
    let forked = desk.sessions.get(session)?.fork();
    let handle = desk.sessions.insert(forked);
    desk.check_kv().inspect_err(|_| {
        let closed = desk.sessions.close(handle);
        debug_assert!(closed.is_ok());
    })?;
    Ok(handle)
}

fn set_sampler(memory: &GuestMemory<'_>, desk: &mut Desk, session: i32, sampler: u32, biases: (u32, u32)) -> Result<i32, Refused> {
    let options: SamplerOptions = memory.read(sampler)?;
    let biases = memory.slice::<Bias>(biases.0, biases.1)?;
    let entry = desk.sessions.entry(session)?;
    let vocabulary = entry.session.model().config().vocabulary;
    if biases.len() > driftwood_engine::limits::BIASES_MAX || biases.iter().any(|b| b.token as usize >= vocabulary) {
        return Err(Refused::BadArgument);
    }
    let params = SamplerParams {
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        repetition_penalty: options.repetition_penalty,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        penalty_window: options.penalty_window,
        seed: u64::from(options.seed_high) << 32 | u64::from(options.seed_low),
        bias: biases.iter().map(|b| (b.token, b.bias)).collect(),
    };
    entry.session.set_sampler(Sampler::new(params).map_err(|_| Refused::BadArgument)?);
    Ok(0)
}

/// Samples; the guest's logits stay as they are.
fn sample(memory: &GuestMemory<'_>, desk: &mut Desk, session: i32, logits: (u32, u32)) -> Result<i32, Refused> {
    let vocabulary = desk.sessions.get(session)?.model().config().vocabulary;
    let source = memory.slice::<f32>(logits.0, logits.1)?;
    if source.len() != vocabulary {
        return Err(Refused::BadArgument);
    }
    let sampled = desk.sessions.entry(session)?.session.sample(source);
    sampled.map(|token| token as i32).map_err(|_| Refused::BadArgument)
}

async fn decode(mut caller: Caller<'_, Guest>, session: i32, logits: u32, count: u32) -> wasmtime::Result<i32> {
    let checked = with_desk(&mut caller, 0, |memory, desk| {
        let vocabulary = desk.sessions.get(session)?.model().config().vocabulary;
        let bytes = memory.range_of::<f32>(logits, count)?;
        if count as usize == vocabulary { Ok(bytes) } else { Err(Refused::BadArgument) }
    });
    let bytes = granted!(checked?);
    Ok(number(evaluate(&mut caller, session, Target::Guest(bytes)).await?.map(|()| 0)))
}

/// Long prefills go in chunks, so that others get their turn; the bits are the same.
async fn prefill(mut caller: Caller<'_, Guest>, session: i32, tokens: u32, count: u32) -> wasmtime::Result<i32> {
    let room = with_desk(&mut caller, count.into(), |memory, desk| {
        let session = desk.sessions.get(session)?;
        let vocabulary = session.model().config().vocabulary;
        let tokens = memory.slice::<u32>(tokens, count)?;
        if tokens.iter().any(|&t| t as usize >= vocabulary) {
            return Err(Refused::BadArgument);
        }
        if tokens.len() > session.room() { Err(Refused::ContextFull) } else { Ok(()) }
    });
    granted!(room?);
    let mut done = 0;
    loop {
        let chunk = (count - done).min(PREFILL_CHUNK_TOKENS as u32);
        let appended = with_desk(&mut caller, 0, |memory, desk| desk.append(session, memory.slice(tokens + 4 * done, chunk)?));
        granted!(appended?);
        granted!(evaluate(&mut caller, session, Target::Nothing).await?);
        done += chunk;
        if done == count {
            break;
        }
    }
    answer(&mut caller, 0, |_, desk| Ok(desk.sessions.get(session)?.tokens().len() as i32))
}
