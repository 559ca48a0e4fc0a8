//! What comes to an actor and goes from it: message, reply, log, time and chance.
#![forbid(unsafe_code)]

use alloc::{string::String, vec::Vec};

use crate::{Code, Error, Result, host};

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error = 0,
    /// Something is odd.
    Warning = 1,
    /// The user is shown it beside the reply.
    Notice = 2,
    /// For whoever looks for a fault.
    Debug = 3,
}

/// The bytes of the message being handled.
///
/// # Errors
/// If the host refuses.
pub fn receive() -> Result<Vec<u8>> {
    host::receive()
}

/// Appends text to the reply; it is streamed to whoever waits. `reply!` formats.
///
/// # Errors
/// If the host refuses, at the limit of a reply's length for one.
pub fn reply(text: &str) -> Result<()> {
    host::reply(text.as_bytes())
}

/// Says something beside the reply. `log!` formats.
pub fn log(level: Level, text: &str) {
    host::log(level as u32, text);
}

/// Milliseconds since 1970-01-01 UTC.
pub fn now_ms() -> i64 {
    host::time_ms()
}

/// Fills a buffer from the actor's own random generator, whose state is part of its snapshot.
///
/// # Errors
/// If the host refuses.
pub fn random(buffer: &mut [u8]) -> Result<()> {
    host::random(buffer)
}

/// Eight random bytes as a number.
///
/// # Errors
/// If the host refuses.
pub fn random_u64() -> Result<u64> {
    let mut bytes = [0; 8];
    random(&mut bytes).map(|()| u64::from_le_bytes(bytes))
}

/// Text that the host gave, which has to be UTF-8.
pub(crate) fn utf8(call: &'static str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::Host { call, code: Code::BadText })
}
