//! The host functions of the contract: `guest/include/driftwood.h` is the specification, each function here is one of its lines.
//!
//! Every function checks its arguments at the border (`memory.rs`), works on the actor's desk and answers a number. None panics or
//! blocks on another actor; the four that need inference park their guest (`parked.rs`). A call costs fuel for the host's work.

mod compute;
mod dispatch;
mod generate;
mod messages;
mod models;
mod sessions;

use crate::abi::{MODULE, Refused};
use crate::desk::{Desk, lock};
use crate::instance::Guest;
use crate::limits::{CALL_FUEL, TEXT_BYTE_FUEL};
use crate::memory::GuestMemory;
use driftwood_snapshot::Hash;
use std::future::Future;
use std::ops::Range;
use wasmtime::{AsContextMut, Caller, Linker};

/// All functions of the contract.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    messages::link(&mut linker)?;
    models::link(&mut linker)?;
    sessions::link(&mut linker)?;
    generate::link(&mut linker)?;
    compute::link(&mut linker)?;
    dispatch::link(&mut linker)?;
    Ok(linker)
}

/// Runs a host call: charges fuel, takes memory and desk, and turns a refusal into its number.
fn answer(
    caller: &mut Caller<'_, Guest>,
    fuel: u64,
    call: impl FnOnce(&mut GuestMemory<'_>, &mut Desk) -> Result<i32, Refused>,
) -> wasmtime::Result<i32> {
    with_desk(caller, fuel, call).map(number)
}

/// As [`answer`], for a part of a call.
fn with_desk<R>(
    caller: &mut Caller<'_, Guest>,
    fuel: u64,
    call: impl FnOnce(&mut GuestMemory<'_>, &mut Desk) -> Result<R, Refused>,
) -> wasmtime::Result<Result<R, Refused>> {
    let Some(memory) = caller.data().memory else { return Ok(Err(NO_MESSAGE)) };
    let most = TEXT_BYTE_FUEL * memory.data_size(&*caller) as u64; // a wild length is refused for what it is, not for its cost
    charge(caller, fuel.min(most))?;
    check_call(caller)?;
    let answer = on_desk(caller, call);
    check_doom(caller)?;
    Ok(answer)
}

/// Ends the message here if it is to be parked in this call, or is doomed.
fn check_call(caller: &Caller<'_, Guest>) -> wasmtime::Result<()> {
    if lock(&caller.data().desk).may_call() { Ok(()) } else { Err(doomed()) }
}

/// Ends the message if it fails whatever the guest does.
pub(crate) fn check_doom(caller: &Caller<'_, Guest>) -> wasmtime::Result<()> {
    if lock(&caller.data().desk).turn.as_ref().is_some_and(|turn| turn.doomed) { Err(doomed()) } else { Ok(()) }
}

/// The trap of a message whose true error is noted on its desk.
fn doomed() -> wasmtime::Error {
    wasmtime::Error::msg("the host ended the message")
}

/// As [`with_desk`], for a part of a call that is paid for.
fn on_desk<R>(
    caller: &mut Caller<'_, Guest>,
    call: impl FnOnce(&mut GuestMemory<'_>, &mut Desk) -> Result<R, Refused>,
) -> Result<R, Refused> {
    let memory = caller.data().memory.ok_or(NO_MESSAGE)?;
    let (bytes, guest) = memory.data_and_store_mut(caller.as_context_mut());
    let desk = guest.desk.clone();
    let mut desk = lock(&desk);
    if desk.turn.is_none() {
        return Err(NO_MESSAGE);
    }
    call(&mut GuestMemory::new(bytes), &mut desk)
}

/// What every call answers from `start` and `_initialize`, so that an actor's birth is the same wherever it happens.
const NO_MESSAGE: Refused = Refused::BadArgument;

/// Notes what was computed in ranges of the guest's memory, or compares it with what once was.
fn note_computed(caller: &mut Caller<'_, Guest>, fuel_used: u64, ranges: &[Range<usize>]) -> Result<(), Refused> {
    if !lock(&caller.data().desk).is_taped() {
        return Ok(());
    }
    on_desk(caller, |memory, desk| {
        let mut hasher = blake3::Hasher::new();
        for range in ranges {
            hasher.update(memory.bytes(range.start as u32, range.len() as u32)?);
        }
        desk.computed(fuel_used, Hash(*hasher.finalize().as_bytes()))
    })
}

/// Takes fuel for work that the host does; a guest that has too little left ends as it would by its own instructions.
fn charge(caller: &mut Caller<'_, Guest>, fuel: u64) -> wasmtime::Result<()> {
    let left = caller.get_fuel()?.checked_sub(fuel.saturating_add(CALL_FUEL));
    caller.set_fuel(left.unwrap_or(0))?;
    if left.is_some() { Ok(()) } else { Err(wasmtime::Trap::OutOfFuel.into()) }
}

/// Fuel for a text of so many bytes.
fn text_fuel(bytes: u32) -> u64 {
    u64::from(bytes) * TEXT_BYTE_FUEL
}

fn number(answer: Result<i32, Refused>) -> i32 {
    answer.unwrap_or_else(|refused| refused as i32)
}

/// What an asynchronous host function returns to Wasmtime.
type Answer<'a> = Box<dyn Future<Output = wasmtime::Result<i32>> + Send + 'a>;

/// Ends an asynchronous host function early with a refusal, as `?` does in others.
macro_rules! granted {
    ($answer:expr) => {
        match $answer {
            Ok(value) => value,
            Err(refused) => return Ok(refused as i32),
        }
    };
}
use granted;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::FUNCTIONS;
    use wasmtime::ExternType;

    /// The linker defines exactly the functions of the contract, with the types that admission asks for.
    #[test]
    fn every_function_of_the_contract_is_linked() {
        let engine = wasmtime::Engine::default();
        let linker = linker(&engine).unwrap();
        let mut imports = String::new();
        for (name, parameters, result) in FUNCTIONS {
            let parameters = "i32 ".repeat(parameters);
            imports += &format!("(import \"{MODULE}\" \"{name}\" (func (param {parameters}) (result {result})))");
        }
        let module = wasmtime::Module::new(&engine, wat::parse_str(format!("(module {imports})")).unwrap()).unwrap();
        assert_eq!(module.imports().filter(|i| matches!(i.ty(), ExternType::Func(_))).count(), FUNCTIONS.len());
        linker.instantiate_pre(&module).unwrap();
    }
}
