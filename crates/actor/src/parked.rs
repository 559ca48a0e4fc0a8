//! A guest parked in a host call that waits for inference, and the window on its memory that the step writes logits through.
//!
//! The protocol, all on one thread: a host call puts a [`Request`] on its desk and its future answers *pending*; the step loop, which
//! polls no guest while it steps, turns the requests of one model into one batch, writes the answers and polls again.
//!
//! Who may touch which bytes: the call's future holds the guest's `Caller`, the only way to its linear memory, exclusively from the
//! moment the request is on the desk until it is taken off again, when the future resumes or is dropped. Meanwhile the guest cannot run,
//! so the bytes of the window belong to the step. The window keeps the region mapped, and a region's base never moves.

use crate::abi::Refused;
use crate::desk::{Desk, SharedDesk, lock};
use crate::instance::Guest;
use crate::limits::TICKS_BEFORE_YIELD;
use crate::{Error, LogLevel};
use driftwood_compute::gpu::Buffer;
use driftwood_engine::{Logits, Model, Work};
use driftwood_region::Region;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use wasmtime::{AsContextMut, Caller};

/// Where a step writes the logits of the next position.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Nowhere: the tokens are only evaluated.
    Nothing,
    /// Nowhere: the session's sampler chooses the next token, which is laid on the desk.
    Token,
    /// Into the guest's linear memory: bytes of an aligned range of f32 inside it.
    Guest(Range<usize>),
}

/// The place of a desk where a parked call and the step loop meet.
#[derive(Debug, Default)]
pub(crate) enum Slot {
    #[default]
    Empty,
    Asked(Request),
    Answered(Result<(), String>),
}

/// A step that a parked call waits for.
#[derive(Debug)]
pub(crate) struct Request {
    session: i32,
    logits: Option<Destination>,
    /// Tokens to evaluate that nobody generated in this message.
    prefill_tokens: usize,
}

#[derive(Debug)]
enum Destination {
    Token(Option<u32>),
    Guest(Window),
}

/// A range of f32 in the linear memory of a parked guest.
#[derive(Debug)]
struct Window {
    region: Arc<Region>,
    bytes: Range<usize>,
    /// The region as the session's device sees it, where the device writes logits itself.
    shared: Option<Buffer>,
}

impl Window {
    /// The floats.
    ///
    /// # Safety
    /// The guest must be parked: its `Caller` is held by the call that put this window on its desk.
    unsafe fn floats(&mut self) -> &mut [f32] {
        let len = self.bytes.len() / size_of::<f32>();
        debug_assert!(self.bytes.end <= self.region.open_bytes() && self.bytes.start.is_multiple_of(align_of::<f32>()));
        // SAFETY: `evaluate` was given a range inside the linear memory, which only grows and begins at the region's page-aligned base;
        // the range is aligned to f32, and any bytes are f32. The caller promises that nobody else touches them.
        unsafe { std::slice::from_raw_parts_mut(self.region.base().as_ptr().add(self.bytes.start).cast(), len) }
    }
}

/// Evaluates what is appended to a session in the next shared step, and hands its logits to `target`.
pub(crate) async fn evaluate(caller: &mut Caller<'_, Guest>, session: i32, target: Target) -> Result<(), Refused> {
    let desk = caller.data().desk.clone();
    let destination = match target {
        Target::Nothing => None,
        Target::Token => Some(Destination::Token(None)),
        Target::Guest(bytes) => {
            let shared = shared_memory(caller, session)?;
            Some(Destination::Guest(Window { region: caller.data().region()?, bytes, shared }))
        }
    };
    lock(&desk).ask(session, destination)?;
    let answer = Parked { _caller: caller, desk: &desk }.await;
    caller.as_context_mut().set_epoch_deadline(TICKS_BEFORE_YIELD); // parked time is not the guest's
    answer.map_err(|why| {
        let mut desk = lock(&desk);
        desk.log(LogLevel::Error, &why);
        desk.note(Error::Compute { why });
        Refused::ModelError
    })
}

/// The guest's memory as the session's device sees it; `None` where the host copies logits.
fn shared_memory(caller: &mut Caller<'_, Guest>, session: i32) -> Result<Option<Buffer>, Refused> {
    let gpu = lock(&caller.data().desk).sessions.get(session)?.model().logits_device().cloned();
    let Some(gpu) = gpu else { return Ok(None) };
    Ok(caller.data_mut().imported(&gpu)?.ok().map(|imported| imported.buffer().clone()))
}

/// A parked call. Dropping it takes its request off the desk, and with it the window.
struct Parked<'a, 'c> {
    _caller: &'a mut Caller<'c, Guest>,
    desk: &'a SharedDesk,
}

impl Future for Parked<'_, '_> {
    type Output = Result<(), String>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let mut desk = lock(self.desk);
        match std::mem::take(&mut desk.slot) {
            Slot::Answered(answer) => Poll::Ready(answer),
            asked => {
                desk.slot = asked;
                Poll::Pending
            }
        }
    }
}

impl Drop for Parked<'_, '_> {
    fn drop(&mut self) {
        lock(self.desk).slot = Slot::Empty;
    }
}

impl Desk {
    /// Charges a step to the message and puts the request into the slot.
    fn ask(&mut self, handle: i32, logits: Option<Destination>) -> Result<(), Refused> {
        let entry = self.sessions.entry(handle)?;
        if entry.session.tokens().len() > entry.evaluated() + entry.fresh {
            self.take_back(handle);
        }
        let entry = self.sessions.entry(handle)?;
        let (tokens, evaluated) = (entry.session.tokens().len(), entry.evaluated());
        if logits.is_some() && tokens == 0 {
            return Err(Refused::BadArgument);
        }
        let rows = (tokens - evaluated).max(usize::from(logits.is_some()));
        let prefill_tokens = (tokens - evaluated).saturating_sub(entry.fresh);
        let turn = self.turn.as_mut().expect("host calls are answered only while a message is handled");
        let limit = turn.limits.tokens;
        if rows > limit - turn.tally.evaluated_tokens {
            self.note(Error::LimitTokens { limit });
            return Err(Refused::TokenLimit);
        }
        turn.tally.evaluated_tokens += rows;
        turn.tally.prefilled_tokens += prefill_tokens;
        turn.tally.steps += 1;
        self.slot = Slot::Asked(Request { session: handle, logits, prefill_tokens });
        Ok(())
    }

    /// The model that a parked call waits for.
    pub(crate) fn asked_model(&self) -> Option<Arc<Model>> {
        match &self.slot {
            Slot::Asked(request) => self.sessions.get(request.session).ok().map(|s| s.model().clone()),
            Slot::Empty | Slot::Answered(_) => None,
        }
    }

    /// The parked call's part in a step.
    ///
    /// The step loop alone calls this, between polls.
    pub(crate) fn work(&mut self) -> Option<Work<'_>> {
        let Slot::Asked(request) = &mut self.slot else { return None };
        let entry = self.sessions.entry(request.session).ok()?;
        let session = &mut entry.session;
        Some(match &mut request.logits {
            None => Work::new(session, Logits::None),
            Some(Destination::Token(token)) => Work::new(session, Logits::Next(token)),
            Some(Destination::Guest(window)) => {
                let (shared, at) = (window.shared.clone(), window.bytes.start as u64);
                // SAFETY: a window is on the desk only while `Parked` holds the guest's `Caller`, and the loop is not polling it now.
                let work = Work::new(session, Logits::Last(unsafe { window.floats() }));
                match shared {
                    Some(buffer) => work.shared_with_device(buffer, at),
                    None => work,
                }
            }
        })
    }

    /// Ends the parked call's wait with the outcome of a step that took so long.
    pub(crate) fn answer(&mut self, outcome: Result<(), String>, took: Duration) {
        let Slot::Asked(request) = std::mem::replace(&mut self.slot, Slot::Answered(outcome)) else { return };
        if let Some(Destination::Token(token)) = request.logits {
            self.token = token;
        }
        if let Ok(entry) = self.sessions.entry(request.session) {
            entry.fresh = 0;
        }
        let tally = &mut self.turn().tally;
        let sum = if request.prefill_tokens > 0 { &mut tally.prefill } else { &mut tally.decode };
        *sum += took;
    }
}
