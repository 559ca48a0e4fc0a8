//! Messages: receive, reply, log, settings, time and random bytes.

use super::{MODULE, answer, text_fuel, with_desk};
use crate::LogLevel;
use crate::abi::Refused;
use crate::desk::Desk;
use crate::instance::Guest;
use crate::memory::GuestMemory;
use crate::tape::fuel_used;
use std::time::{SystemTime, UNIX_EPOCH};
use wasmtime::{Caller, Linker};

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "receive", |mut c: Caller<'_, Guest>, buffer: u32, capacity: u32| {
        answer(&mut c, capacity.into(), |m, d| m.answer(buffer, capacity, &d.turn().message))
    })?;
    linker.func_wrap(MODULE, "reply", |mut c: Caller<'_, Guest>, bytes: u32, length: u32| {
        answer(&mut c, length.into(), |m, d| d.reply(m.bytes(bytes, length)?).map(|()| 0))
    })?;
    linker.func_wrap(MODULE, "log", |mut c: Caller<'_, Guest>, level: u32, text: u32, length: u32| {
        answer(&mut c, length.into(), |m, d| log(m, d, level, text, length))
    })?;
    linker.func_wrap(MODULE, "setting", |mut c: Caller<'_, Guest>, name: u32, name_length: u32, buffer: u32, capacity: u32| {
        answer(&mut c, text_fuel(name_length), |m, d| setting(m, d, (name, name_length), (buffer, capacity)))
    })?;
    linker.func_wrap(MODULE, "time_ms", |mut c: Caller<'_, Guest>| {
        let fuel = fuel_used(&c)?;
        let time = with_desk(&mut c, 0, |_, desk| desk.time_ms(fuel, time_ms()))?;
        Ok::<i64, wasmtime::Error>(time.unwrap_or_else(|refused| refused as i64))
    })?;
    linker.func_wrap(MODULE, "random", |mut c: Caller<'_, Guest>, buffer: u32, length: u32| {
        answer(&mut c, length.into(), |m, d| {
            d.random.fill(m.bytes_mut(buffer, length)?);
            Ok(0)
        })
    })?;
    Ok(())
}

fn log(memory: &GuestMemory<'_>, desk: &mut Desk, level: u32, text: u32, length: u32) -> Result<i32, Refused> {
    let level = LogLevel::from_number(level).ok_or(Refused::BadArgument)?;
    if desk.log(level, memory.text(text, length)?) { Ok(0) } else { Err(Refused::Limit) }
}

fn setting(memory: &mut GuestMemory<'_>, desk: &Desk, name: (u32, u32), buffer: (u32, u32)) -> Result<i32, Refused> {
    let value = desk.setting(memory.text(name.0, name.1)?);
    memory.range(buffer.0, buffer.1 as usize)?;
    memory.answer(buffer.0, buffer.1, value.ok_or(Refused::NotFound)?.as_bytes())
}

fn time_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
