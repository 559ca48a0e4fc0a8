//! Models: what they are, tokens and text, chat templates.

use super::{MODULE, answer, text_fuel};
use crate::abi::{ADD_SPECIAL, ModelInfo, PARSE_SPECIAL, Refused};
use crate::desk::Desk;
use crate::instance::Guest;
use crate::limits::CHAT_MESSAGES_MAX;
use crate::memory::GuestMemory;
use crate::{Error, LogLevel};
use driftwood_engine::Model;
use driftwood_engine::template::Message;
use driftwood_engine::tokenizer::Special;
use std::sync::Arc;
use wasmtime::{Caller, Linker};

/// A pointer and a length, or a capacity.
type Span = (u32, u32);

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "model_info", |mut c: Caller<'_, Guest>, name: u32, length: u32, out: u32| {
        answer(&mut c, text_fuel(length), |m, d| model_info(m, d, (name, length), out))
    })?;
    linker.func_wrap(
        MODULE,
        "tokenize",
        |mut c: Caller<'_, Guest>, name: u32, length: u32, text: u32, text_length: u32, flags: u32, tokens: u32, capacity: u32| {
            answer(&mut c, text_fuel(text_length), |m, d| tokenize(m, d, (name, length), (text, text_length), flags, (tokens, capacity)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "detokenize",
        |mut c: Caller<'_, Guest>, name: u32, length: u32, tokens: u32, count: u32, buffer: u32, capacity: u32| {
            answer(&mut c, text_fuel(count), |m, d| detokenize(m, d, (name, length), (tokens, count), (buffer, capacity)))
        },
    )?;
    linker.func_wrap(MODULE, "is_end", |mut c: Caller<'_, Guest>, name: u32, length: u32, token: u32| {
        answer(&mut c, 0, |m, d| Ok(i32::from(named(m, d, (name, length))?.tokenizer().is_end(token))))
    })?;
    linker.func_wrap(
        MODULE,
        "chat_template",
        |mut c: Caller<'_, Guest>, name: u32, length: u32, json: u32, json_length: u32, add_prompt: u32, buffer: u32, capacity: u32| {
            let fuel = text_fuel(json_length);
            answer(&mut c, fuel, |m, d| chat_template(m, d, (name, length), (json, json_length), add_prompt, (buffer, capacity)))
        },
    )?;
    Ok(())
}

/// The model that a guest names.
pub(super) fn named(memory: &GuestMemory<'_>, desk: &mut Desk, name: Span) -> Result<Arc<Model>, Refused> {
    desk.model(memory.text(name.0, name.1)?)
}

fn model_info(memory: &mut GuestMemory<'_>, desk: &mut Desk, name: Span, out: u32) -> Result<i32, Refused> {
    let model = named(memory, desk, name)?;
    let id = |token: Option<u32>| token.and_then(|t| i32::try_from(t).ok()).unwrap_or(-1);
    let info = ModelInfo {
        vocabulary: model.config().vocabulary as u32,
        context_max: model.config().context_max as u32,
        bos: id(model.tokenizer().bos()),
        eos: id(model.tokenizer().eos()),
    };
    memory.write(out, info).map(|()| 0)
}

fn tokenize(memory: &mut GuestMemory<'_>, desk: &mut Desk, name: Span, text: Span, flags: u32, tokens: Span) -> Result<i32, Refused> {
    if flags & !(ADD_SPECIAL | PARSE_SPECIAL) != 0 {
        return Err(Refused::BadArgument);
    }
    let text = memory.text(text.0, text.1)?;
    memory.range_of::<u32>(tokens.0, tokens.1)?;
    let model = named(memory, desk, name)?;
    let tokenizer = model.tokenizer();
    let ids = match (flags & ADD_SPECIAL != 0, flags & PARSE_SPECIAL != 0) {
        (true, true) => tokenizer.encode_rendered(text), // a rendering may begin with BOS already
        (add, parse) => tokenizer.encode(text, Special { add, parse }),
    };
    memory.answer(tokens.0, tokens.1, &ids)
}

fn detokenize(memory: &mut GuestMemory<'_>, desk: &mut Desk, name: Span, tokens: Span, buffer: Span) -> Result<i32, Refused> {
    memory.range(buffer.0, buffer.1 as usize)?;
    let ids = memory.slice::<u32>(tokens.0, tokens.1)?;
    let model = named(memory, desk, name)?;
    if ids.iter().any(|&id| id as usize >= model.config().vocabulary) {
        return Err(Refused::BadArgument);
    }
    let text = model.tokenizer().decode(ids);
    memory.answer(buffer.0, buffer.1, &text)
}

fn chat_template(
    memory: &mut GuestMemory<'_>,
    desk: &mut Desk,
    name: Span,
    json: Span,
    add_prompt: u32,
    buffer: Span,
) -> Result<i32, Refused> {
    if add_prompt > 1 {
        return Err(Refused::BadArgument);
    }
    memory.range(buffer.0, buffer.1 as usize)?;
    let messages: Vec<Message> = serde_json::from_str(memory.text(json.0, json.1)?).map_err(|_| Refused::BadText)?;
    if messages.len() > CHAT_MESSAGES_MAX {
        return Err(Refused::BadArgument);
    }
    let model = named(memory, desk, name)?;
    let rendered = model.chat_template().and_then(|template| template.render(&messages, add_prompt == 1));
    let text = rendered.map_err(|error| {
        desk.log(LogLevel::Error, &error.to_string());
        desk.note(Error::Engine(error));
        Refused::ModelError
    })?;
    memory.answer(buffer.0, buffer.1, text.as_bytes())
}
