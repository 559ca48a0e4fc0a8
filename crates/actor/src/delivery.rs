//! The step loop: messages become futures, and the requests of all parked guests of one model become one step.
//!
//! A round polls every guest that can run. When all are parked (or those that still compute have had their patience), each model that
//! somebody waits for takes one step with all who wait. A guest that computes for long yields by the clock and neither holds up a step
//! nor escapes its limits.

use crate::actor::{Actor, Begun, Checkpoint};
use crate::desk::{Desk, lock};
use crate::host::Host;
use crate::instance::Instance;
use crate::limits::{HANDLED_AT_ONCE_MAX, STEP_PATIENCE};
use crate::log::Log;
use crate::tape::{Recording, Tape};
use crate::{Error, Event, Message, Outcome};
use driftwood_engine::Batch;
use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Who hears what actors say while they handle messages: the actor's name, and what it said.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(&str, Event<'_>);

type Handling = Pin<Box<dyn Future<Output = (Box<Instance>, wasmtime::Result<i32>)> + Send>>;

/// All messages of one call of [`Host::deliver`].
pub(crate) struct Delivery {
    waiting: VecDeque<(usize, Message, Option<Recording>)>,
    running: Vec<Running>,
    results: Vec<Option<Result<Outcome, Error>>>,
}

/// A message that is being handled.
struct Running {
    index: usize,
    name: String,
    actor: Actor,
    handling: Handling,
    checkpoint: Checkpoint,
    started: Instant,
    fuel: u64,
    memory_limit_bytes: usize,
    wall: Duration,
    reply: ReplyShown,
    parked: bool,
    /// How it ended, while the journal is not on disk that says so.
    settling: Option<Ended>,
}

/// How much of a reply was shown, and how much may be.
#[derive(Default)]
struct ReplyShown {
    bytes: usize,
    /// Lengths of the reply that may be shown once the record of that number is on disk.
    waiting: VecDeque<(u64, usize)>,
}

impl Delivery {
    pub(crate) fn new(messages: Vec<Message>) -> Delivery {
        let results = messages.iter().map(|_| None).collect();
        let waiting = messages.into_iter().enumerate().map(|(index, message)| (index, message, None)).collect();
        Delivery { waiting, running: Vec::new(), results }
    }

    /// The delivery of one message again, with what was recorded of it.
    pub(crate) fn again(message: Message, recorded: Recording) -> Delivery {
        Delivery { waiting: VecDeque::from([(0, message, Some(recorded))]), running: Vec::new(), results: vec![None] }
    }

    /// Handles every message.
    pub(crate) fn run(mut self, host: &mut Host, listener: Listener<'_>) -> Vec<Result<Outcome, Error>> {
        loop {
            self.start(host);
            if self.running.is_empty() && self.waiting.is_empty() {
                break;
            }
            host.runtime().guests_run(true);
            self.poll_all(host, listener);
            host.runtime().guests_run(false);
            self.step_all(host);
            self.wait_for_disk();
        }
        self.results.into_iter().map(|r| r.expect("every message was handled")).collect()
    }

    /// Starts messages whose actors are free, in their order.
    fn start(&mut self, host: &mut Host) {
        for _ in 0..self.waiting.len() {
            let Some((index, message, recorded)) = self.waiting.pop_front() else { break };
            let full = self.running.len() >= HANDLED_AT_ONCE_MAX;
            let ahead = |name: &str| self.waiting.iter().any(|(i, m, _)| *i < index && m.actor == name);
            if full || ahead(&message.actor) || self.running.iter().any(|r| r.name == message.actor) {
                self.waiting.push_back((index, message, recorded));
                continue;
            }
            match Running::start(host, index, message, recorded) {
                Ok(running) => self.running.push(running),
                Err(e) => self.results[index] = Some(Err(e)),
            }
        }
    }

    /// Polls guests until each is parked or done, or has used up the patience of those who wait.
    fn poll_all(&mut self, host: &mut Host, listener: Listener<'_>) {
        let started = Instant::now();
        loop {
            let mut computing = false;
            let mut at = 0;
            while at < self.running.len() {
                let running = &mut self.running[at];
                if running.is_computing()
                    && let Some(ended) = running.poll(listener)
                {
                    running.settle(host, ended);
                }
                if let Some(ended) = running.take_settled() {
                    let done = self.running.swap_remove(at);
                    let index = done.index;
                    self.results[index] = Some(done.end(host, ended, listener));
                    continue;
                }
                computing |= self.running[at].is_computing();
                at += 1;
            }
            if !computing || started.elapsed() >= STEP_PATIENCE {
                return;
            }
        }
    }

    /// Waits for the journal where nobody has anything else to do.
    fn wait_for_disk(&mut self) {
        if self.running.iter().all(|running| running.settling.is_some())
            && let Some(first) = self.running.first()
        {
            first.wait_for_disk();
        }
    }

    /// One step for each model that somebody waits for.
    fn step_all(&mut self, host: &mut Host) {
        while let Some(model) = self.running.iter().filter(|r| r.parked).find_map(|r| lock(&r.actor.desk).asked_model()) {
            let waits = |r: &&mut Running| r.parked && lock(&r.actor.desk).asked_model().is_some_and(|m| Arc::ptr_eq(&m, &model));
            let mut waiting: Vec<&mut Running> = self.running.iter_mut().filter(waits).collect();
            step(host.batch(&model), &mut waiting);
        }
    }
}

impl Running {
    fn start(host: &mut Host, index: usize, message: Message, recorded: Option<Recording>) -> Result<Running, Error> {
        let name = message.actor.clone();
        let mut actor = host.take_actor(&name)?;
        let kind = message.kind;
        let memory_limit_bytes = message.limits.as_ref().unwrap_or(&actor.limits).memory_bytes;
        let Begun { instance, checkpoint, fuel, wall } = match actor.begin(host.runtime(), message, recorded) {
            Ok(begun) => begun,
            Err(e) => {
                host.put_actor(actor);
                return Err(e);
            }
        };
        let (handling, started): (Handling, _) = (Box::pin(instance.handle(kind, fuel)), Instant::now());
        let (reply, parked, settling) = (ReplyShown::default(), false, None);
        Ok(Running { index, name, actor, handling, checkpoint, started, fuel, memory_limit_bytes, wall, reply, parked, settling })
    }

    /// Lets the guest run until it parks, yields or ends.
    fn poll(&mut self, listener: Listener<'_>) -> Option<Ended> {
        let started = Instant::now();
        let mut context = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| self.handling.as_mut().poll(&mut context)));
        let ended = match polled {
            Err(panic) => Some(Ended::Failed(Error::Bug { why: panic_text(&*panic) })),
            Ok(Poll::Ready((instance, returned))) => Some(Ended::Returned(instance, returned)),
            Ok(Poll::Pending) if self.started.elapsed() >= self.wall => {
                Some(Ended::Failed(Error::LimitWall { limit_ms: self.wall.as_millis() as u64 }))
            }
            Ok(Poll::Pending) => {
                self.parked = lock(&self.actor.desk).asked_model().is_some();
                None
            }
        };
        self.tell(listener, started.elapsed(), false);
        ended
    }

    /// Passes on what the guest said and may be shown: of a recorded message what the records on disk lead to, unless `all` of them are.
    fn tell(&mut self, listener: Listener<'_>, guest: Duration, all: bool) {
        let desk = self.actor.desk.clone();
        let mut desk = lock(&desk);
        let Some(turn) = &mut desk.turn else { return };
        turn.tally.guest += guest;
        for (level, text) in turn.logs.drain(..) {
            listener(&self.name, Event::Log { level, text: &text });
        }
        let log = turn.tape.as_mut().and_then(Tape::log).filter(|_| !all);
        let end = self.reply.may_show(turn.reply.len(), log.as_deref());
        if end > self.reply.bytes {
            listener(&self.name, Event::Reply(&turn.reply[self.reply.bytes..end]));
            self.reply.bytes = end;
        }
    }

    fn is_computing(&self) -> bool {
        !self.parked && self.settling.is_none()
    }

    /// Notes how the message ended. What was handled waits for the disk, while others go on.
    fn settle(&mut self, host: &mut Host, ended: Ended) {
        let ended = match ended {
            Ended::Returned(instance, Ok(0)) => match host.evaluate_replayed(&self.actor.desk) {
                Ok(()) => Ended::Returned(instance, Ok(0)),
                Err(error) => Ended::Failed(error),
            },
            ended => ended,
        };
        let done = ended.is_done();
        let mut desk = lock(&self.actor.desk);
        let parked = desk.turn.as_ref().is_some_and(|turn| matches!(turn.noted, Some(Error::Parked { .. })));
        let noted = match desk.turn.as_mut().and_then(|turn| turn.tape.as_mut()) {
            Some(tape) if !parked => tape.end(done),
            _ => Ok(()),
        };
        self.settling = Some(match noted {
            Err(error) if done => Ended::Failed(error),
            _ => ended, // if it failed, it did before the journal could
        });
    }

    /// How it ended, once that is on disk.
    fn take_settled(&mut self) -> Option<Ended> {
        let done = self.settling.as_ref()?.is_done();
        let mut desk = lock(&self.actor.desk);
        match desk.turn.as_mut().and_then(|turn| turn.tape.as_mut()?.log()) {
            Some(log) if done => match log.is_settled()? {
                Ok(()) => self.settling.take(),
                Err(error) => {
                    self.settling = None;
                    Some(Ended::Failed(error))
                }
            },
            _ => self.settling.take(),
        }
    }

    fn wait_for_disk(&self) {
        if let Some(log) = lock(&self.actor.desk).turn.as_mut().and_then(|turn| turn.tape.as_mut()?.log()) {
            let _ = log.wait(); // who asks next is told
        }
    }

    /// Commits or rolls back, and gives the actor back to the host.
    fn end(mut self, host: &mut Host, ended: Ended, listener: Listener<'_>) -> Result<Outcome, Error> {
        self.tell(listener, Duration::ZERO, ended.is_done());
        let Running { mut actor, handling, checkpoint, started, fuel, memory_limit_bytes, .. } = self;
        let result = match ended {
            Ended::Returned(instance, Ok(0)) => {
                let fuel_used = fuel - instance.store.get_fuel().unwrap_or(0).min(fuel);
                Ok(actor.commit(instance, started.elapsed(), fuel_used))
            }
            Ended::Returned(instance, returned) => Err(actor.failure(&instance, returned, (fuel, memory_limit_bytes))),
            Ended::Failed(e) => Err(e),
        };
        drop(handling); // unwinds a guest that is still on its stack, before its desk is set back
        if let Err(error) = &result {
            actor.roll_back(checkpoint, matches!(error, Error::Parked { .. }));
        }
        host.put_actor(actor);
        result
    }
}

impl ReplyShown {
    /// How much of a reply of `len` bytes may be shown.
    fn may_show(&mut self, len: usize, log: Option<&Log>) -> usize {
        let Some(log) = log else { return len };
        if self.waiting.back().is_none_or(|(_, known)| *known < len) && len > self.bytes {
            self.waiting.push_back((log.last(), len));
        }
        let mut end = self.bytes;
        while let Some((_, len)) = self.waiting.pop_front_if(|(number, _)| log.is_durable(*number)) {
            end = len;
        }
        end
    }
}

/// How a message ended.
enum Ended {
    Returned(Box<Instance>, wasmtime::Result<i32>),
    Failed(Error),
}

impl Ended {
    /// Whether the message was handled.
    fn is_done(&self) -> bool {
        matches!(self, Ended::Returned(_, Ok(0)))
    }
}

/// One step for all who wait for one model. If it fails, each is tried alone, so that only the guilty hear of it.
fn step(batch: &mut Batch, waiting: &mut [&mut Running]) {
    let started = Instant::now();
    let outcome = try_step(batch, waiting);
    if outcome.is_err() && waiting.len() > 1 {
        for one in waiting.chunks_mut(1) {
            step(batch, one);
        }
        return;
    }
    let took = started.elapsed();
    for running in waiting {
        lock(&running.actor.desk).answer(outcome.clone(), took);
        running.parked = false;
    }
}

fn try_step(batch: &mut Batch, waiting: &[&mut Running]) -> Result<(), String> {
    let mut desks: Vec<MutexGuard<'_, Desk>> = waiting.iter().map(|r| lock(&r.actor.desk)).collect();
    let mut work: Vec<_> = desks.iter_mut().filter_map(|desk| desk.work()).collect();
    match catch_unwind(AssertUnwindSafe(|| batch.step(&mut work))) {
        Ok(outcome) => outcome.map_err(|e| e.to_string()),
        Err(panic) => Err(format!("the engine has a bug: {}", panic_text(&*panic))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without text".into())
}
