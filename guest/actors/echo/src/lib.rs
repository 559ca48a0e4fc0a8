//! The smallest whole actor: it counts what it is told, asks the model for a word on it, and says so.
#![cfg_attr(target_family = "wasm", no_std)]
use driftwood_guest::{Generate, Message, Model, Result, Session, SessionOptions, State, actor, reply};

actor!(echo);

/// How many messages there were: plain linear memory, so it survives freeze, thaw and fork.
static MESSAGES: State<u32> = State::new();

fn echo(message: &str) -> Result<()> {
    let number = MESSAGES.with(|messages| {
        *messages += 1;
        *messages
    });
    reply!("{number}: {message}\n")?;
    let model = Model::default();
    let session = Session::open(&model, SessionOptions::default())?;
    session.prefill(&model.tokenize_rendered(&model.render(&[Message::user(message)], true)?)?)?;
    session.generate(&Generate { max_tokens: 32, stream: true, ..Generate::default() })?;
    Ok(())
}
