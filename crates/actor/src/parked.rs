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
use crate::tape::{Answer, fuel_used};
use crate::{Error, LogLevel};
use driftwood_compute::gpu::Buffer;
use driftwood_engine::{Logits, Model, Work};
use driftwood_region::Region;
use driftwood_snapshot::Hash;
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
    /// Whether it evaluates tokens that nobody generated in this message.
    prefills: bool,
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

/// Evaluates what is appended to a session in the next shared step, and hands its logits to `target`; or plays what came of it once.
///
/// # Errors
/// Ends the guest if the message is doomed. The inner error is what the guest is answered.
pub(crate) async fn evaluate(caller: &mut Caller<'_, Guest>, session: i32, target: Target) -> wasmtime::Result<Result<(), Refused>> {
    let fuel = fuel_used(caller)?;
    let answer = match play(caller, session, &target, fuel) {
        Ok(Played::Done) => Ok(()),
        Ok(Played::Not(expected)) => live(caller, session, target, fuel, expected).await,
        Err(refused) => Err(refused),
    };
    crate::calls::check_doom(caller)?;
    Ok(answer)
}

/// What the tape had for a step.
enum Played {
    /// All of it.
    Done,
    /// Nothing, or only the hash of the logits: the step is taken.
    Not(Option<Hash>),
}

/// Charges the step, and plays it if the tape is playing.
fn play(caller: &mut Caller<'_, Guest>, session: i32, target: &Target, fuel: u64) -> Result<Played, Refused> {
    let desk = caller.data().desk.clone();
    let mut desk = lock(&desk);
    desk.charge(session, target)?;
    if !desk.is_playing() {
        return Ok(Played::Not(None));
    }
    if let Some(why) = desk.play_if(fuel, |answer| if let Answer::Failed(why) = answer { Some(why.clone()) } else { None }) {
        return Err(desk.refuse_step(why));
    }
    match target {
        Target::Nothing => {}
        Target::Token => {
            let token = desk.play(fuel, "a token", |answer| if let Answer::Token(token) = answer { Some(*token) } else { None })?;
            let entry = desk.sessions.entry(session)?;
            entry.session.take_drawn(token).map_err(|_| Refused::ModelError)?;
            desk.token = Some(token);
        }
        Target::Guest(bytes) => {
            let logits = |answer: &Answer| if let Answer::Logits(hash, carried) = answer { Some((*hash, carried.clone())) } else { None };
            let (hash, carried) = desk.play(fuel, "logits", logits)?;
            let Some(carried) = carried else { return Ok(Played::Not(Some(hash))) };
            let memory = caller.data().memory.ok_or(Refused::ModelError)?;
            let fits = memory.data_mut(caller.as_context_mut()).get_mut(bytes.clone()).filter(|to| to.len() == carried.len());
            fits.ok_or(Refused::ModelError)?.copy_from_slice(&carried);
        }
    }
    desk.sessions.entry(session)?.count_as_evaluated();
    Ok(Played::Done)
}

/// Takes the step with all who wait for one, and notes what came of it before the guest sees it.
async fn live(caller: &mut Caller<'_, Guest>, session: i32, target: Target, fuel: u64, expected: Option<Hash>) -> Result<(), Refused> {
    let desk = caller.data().desk.clone();
    let destination = match &target {
        Target::Nothing => None,
        Target::Token => Some(Destination::Token(None)),
        Target::Guest(bytes) => {
            let shared = shared_memory(caller, session)?;
            Some(Destination::Guest(Window { region: caller.data().region()?, bytes: bytes.clone(), shared }))
        }
    };
    lock(&desk).ask(session, destination);
    let answer = Parked { _caller: caller, desk: &desk }.await;
    caller.as_context_mut().set_epoch_deadline(TICKS_BEFORE_YIELD); // parked time is not the guest's
    let mut desk = lock(&desk);
    if let Err(why) = answer {
        desk.record(fuel, Answer::Failed(why.clone()))?;
        return Err(desk.refuse_step(why));
    }
    match target {
        Target::Token if desk.is_taped() => {
            let token = desk.token.ok_or(Refused::ModelError)?;
            desk.record(fuel, Answer::Token(token))
        }
        Target::Guest(bytes) if desk.is_taped() => {
            let memory = caller.data().memory.ok_or(Refused::ModelError)?;
            let logits = memory.data(&*caller).get(bytes).ok_or(Refused::ModelError)?;
            desk.note_logits(fuel, logits, expected)
        }
        _ => Ok(()),
    }
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
    /// Charges a step to the message.
    fn charge(&mut self, handle: i32, target: &Target) -> Result<(), Refused> {
        let entry = self.sessions.entry(handle)?;
        if entry.session.tokens().len() > entry.evaluated() + entry.fresh {
            self.take_back(handle);
        }
        let entry = self.sessions.entry(handle)?;
        let (tokens, evaluated) = (entry.session.tokens().len(), entry.evaluated());
        let wants_logits = !matches!(target, Target::Nothing);
        if wants_logits && tokens == 0 {
            return Err(Refused::BadArgument);
        }
        let rows = (tokens - evaluated).max(usize::from(wants_logits));
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
        turn.prefills = prefill_tokens > 0;
        Ok(())
    }

    /// Puts the request into the slot.
    fn ask(&mut self, session: i32, logits: Option<Destination>) {
        if let Ok(entry) = self.sessions.entry(session)
            && entry.lacks() > 0
        {
            entry.adopt(&self.ahead.ahead);
        }
        let prefills = self.turn().prefills;
        self.slot = Slot::Asked(Request { session, logits, prefills });
    }

    /// Tells the log and the message's error why a step failed; the guest gets a number.
    fn refuse_step(&mut self, why: String) -> Refused {
        self.log(LogLevel::Error, &why);
        self.note(Error::Compute { why });
        Refused::ModelError
    }

    /// Notes the hash of logits that the guest is about to see, and them if the actor carries them; or compares it with what it once saw.
    fn note_logits(&mut self, fuel: u64, logits: &[u8], expected: Option<Hash>) -> Result<(), Refused> {
        let hash = Hash::of(logits);
        match expected {
            Some(then) if then == hash => Ok(()),
            Some(_) => {
                self.doom(Error::OtherLogits);
                Err(Refused::ModelError)
            }
            None => {
                let carried = self.carries_logits().then(|| logits.into());
                self.record(fuel, Answer::Logits(hash, carried))
            }
        }
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
        let sum = if request.prefills { &mut tally.prefill } else { &mut tally.decode };
        *sum += took;
    }
}
