//! A host for one command: actors come from the state folder and go back to it.

use crate::cli::Globals;
use crate::failure::{message, mistake};
use crate::models::ModelsFolder;
use crate::{catalogue, guests, output, paths};
use anyhow::{Context, Result};
use driftwood_actor::{
    ActorFolder, Event, Exactness, Host, HostOptions, Limits, LogLevel, Message, Outcome, SpawnSpec, StateFolder, ThawOptions, ThawReport,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A host and the folder where its actors are kept.
pub struct Stage {
    /// Runs actors.
    pub host: Host,
    /// Keeps them.
    pub state: StateFolder,
}

/// What an actor is spawned from.
pub struct Cast<'a> {
    /// Its name.
    pub name: &'a str,
    /// A guest's name or path.
    pub guest: &'a str,
    /// A model's name or path.
    pub model: &'a str,
    /// Its other settings.
    pub settings: BTreeMap<String, String>,
}

impl Stage {
    /// A host without actors, on the device and the state folder that the flags say.
    ///
    /// # Errors
    /// If the device is not there or the state folder cannot be made.
    pub fn open(globals: &Globals) -> Result<Stage> {
        let host = host(globals)?;
        Ok(Stage { host, state: open_state(globals)? })
    }

    /// Takes an actor out of the state folder, as the same actor. A message that was cut off is finished first.
    ///
    /// # Errors
    /// If there is none of that name, another process holds it, or its model is not here.
    pub fn wake(&mut self, name: &str, options: ThawOptions) -> Result<(ActorFolder, ThawReport)> {
        self.wake_for(None, name, options)
    }

    /// As [`Stage::wake`], for a message, which is recorded before anything else is done.
    ///
    /// # Errors
    /// As [`Stage::wake`], or if the message cannot be recorded.
    pub fn wake_for(&mut self, message: Option<&Message>, name: &str, options: ThawOptions) -> Result<(ActorFolder, ThawReport)> {
        let folder = self.state.hold(name)?;
        if folder.is_cut_off()? {
            self.thaw(&folder, ThawOptions { limits: options.limits.clone(), models: options.models.clone(), ..ThawOptions::default() })?;
            output::remark(&format!("finishing what `{name}` was in the middle of; `driftwood log {name}` shows it"));
            self.resume(&folder, true)?;
            self.host.remove(name)?;
        }
        message.filter(|_| folder.is_kept()).map_or(Ok(()), |message| folder.accept(message))?;
        let report = self.thaw(&folder, options)?;
        Ok((folder, report))
    }

    /// Takes an actor out of its folder as it is, even in the middle of a message.
    ///
    /// # Errors
    /// If its model is not here, or it is damaged.
    pub fn thaw(&mut self, folder: &ActorFolder, options: ThawOptions) -> Result<ThawReport> {
        let thawed = output::spinning("waking the actor", || folder.thaw_into(&mut self.host, options));
        let report = thawed.with_context(|| format!("cannot wake the actor `{}`", folder.name()))?;
        if !folder.is_kept() {
            folder.save(&mut self.host)?; // of an older form: from now on its messages can be recorded
        }
        Ok(report)
    }

    /// Finishes the messages that a thawed actor is in the middle of, and keeps what came of them. One that fails by its guest's fault had no
    /// effect, and is not tried again.
    ///
    /// # Errors
    /// If a message fails, or cannot be replayed: the actor is as before then.
    pub fn resume(&mut self, folder: &ActorFolder, silent: bool) -> Result<Vec<Outcome>> {
        let name = folder.name();
        let resumed = tell(silent, |on_event| self.host.resume(name, None, on_event));
        if self.host.is_parked(name)? {
            let hint = format!("`driftwood actor resume {name} --discard` goes back to before that message");
            return resumed.with_context(|| format!("cannot finish what `{name}` was in the middle of ({hint})"));
        }
        folder.save(&mut self.host)?;
        resumed
    }

    /// Makes an actor and its place in the state folder.
    ///
    /// # Errors
    /// If the name is taken or the guest is refused; nothing is left behind then.
    pub fn spawn(&mut self, cast: Cast<'_>) -> Result<ActorFolder> {
        let (name, spec) = (cast.name, spec(cast)?);
        let folder = self.state.create(name)?;
        match self.host.spawn(spec).and_then(|_| folder.save(&mut self.host)) {
            Ok(_) => Ok(folder),
            Err(why) => {
                folder.remove()?;
                Err(why.into())
            }
        }
    }

    /// Copies an actor that is awake, and saves the copy.
    ///
    /// # Errors
    /// If the new name is taken.
    pub fn fork(&mut self, name: &str, new_name: &str) -> Result<()> {
        let folder = self.state.create(new_name)?;
        match self.host.fork(name, new_name).and_then(|_| folder.save(&mut self.host)) {
            Ok(_) => Ok(self.host.remove(new_name)?),
            Err(why) => {
                folder.remove()?;
                Err(why.into())
            }
        }
    }
}

/// The state folder that the flags say.
///
/// # Errors
/// If it cannot be made.
pub fn open_state(globals: &Globals) -> Result<StateFolder> {
    let state = StateFolder::open(&paths::state_folder(globals.state.as_deref())?)?;
    Ok(state.with_durability(globals.durability.into()))
}

/// A host on the device that the flags say.
///
/// # Errors
/// If the device is not there.
pub fn host(globals: &Globals) -> Result<Host> {
    let device = globals.device.open()?;
    let folder = ModelsFolder::of_environment()?;
    let models = Box::new(move |name: &str| folder.find(name).map(|found| found.path).map_err(|why| message(&why)));
    Ok(Host::new(HostOptions { device, models })?)
}

/// What the host needs to know to spawn an actor.
///
/// # Errors
/// If the guest or the model is not there.
pub fn spec(cast: Cast<'_>) -> Result<SpawnSpec> {
    let model = ModelsFolder::of_environment()?.find(cast.model)?.name;
    let mut settings = cast.settings;
    settings.insert("model".to_owned(), model);
    let module = guests::find(cast.guest)?;
    Ok(SpawnSpec { name: cast.name.to_owned(), module, settings, limits: Limits::default(), models: Vec::new() })
}

/// The guest and the model for those who name none.
pub fn defaults(guest: Option<&String>, model: Option<&String>) -> (String, String) {
    let or = |given: Option<&String>, default: &str| given.cloned().unwrap_or_else(|| default.to_owned());
    (or(guest, guests::DEFAULT), or(model, catalogue::DEFAULT))
}

/// Settings from `KEY=VALUE` words, and what the device implies: with --exact, f32 KV.
///
/// # Errors
/// If a word has no `=`.
pub fn settings(globals: &Globals, words: &[String]) -> Result<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    if globals.device.exact {
        settings.insert("kv".to_owned(), "f32".to_owned());
    }
    for word in words {
        let (key, value) = word
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| mistake(format!("--set takes KEY=VALUE, not `{word}`; for example --set temperature=0")))?;
        settings.insert(key.to_owned(), value.to_owned());
    }
    Ok(settings)
}

/// Sends a message; the reply streams to stdout unless `silent`, and what the guest logs goes to stderr.
///
/// # Errors
/// If the message failed: the actor is then as it was before.
pub fn send(host: &mut Host, message: Message, silent: bool) -> Result<Outcome> {
    tell(silent, |on_event| host.send(message, on_event))
}

/// Does something in which actors speak: replies stream to stdout unless `silent`, and what guests log goes to stderr.
fn tell<T>(silent: bool, work: impl FnOnce(&mut dyn FnMut(Event<'_>)) -> Result<T, driftwood_actor::Error>) -> Result<T> {
    let mut closed = None;
    let done = work(&mut |event| match event {
        Event::Reply(bytes) if !silent && closed.is_none() => closed = output::stream(bytes).err(),
        event => heard(event),
    })?;
    closed.map_or(Ok(done), Err)
}

/// Passes on what a guest logs; its reply is nobody's here.
pub fn heard(event: Event<'_>) {
    if let Event::Log { level, text } = event {
        log(level, text);
    }
}

fn log(level: LogLevel, text: &str) {
    match level {
        LogLevel::Error => output::remark(&format!("error: {text}")),
        LogLevel::Warning => output::remark(&format!("warning: {text}")),
        LogLevel::Notice => output::remark(text),
        LogLevel::Debug => tracing::debug!("guest: {text}"),
    }
}

/// One line about a thaw.
pub fn thawed(verb: &str, name: &str, report: &ThawReport) -> String {
    let ThawReport { restored_tokens, recomputed_tokens, exactness, .. } = report;
    let line = format!("{verb} `{name}`: {restored_tokens} tokens restored, {recomputed_tokens} recomputed");
    if matches!(exactness, Exactness::SameBits) { line } else { format!("{line} ({exactness})") }
}

/// What a command adds to the guest's own timings.
pub fn timings(outcome: &Outcome, thaw_ms: f64, save_ms: f64) -> Value {
    let t = &outcome.timings;
    json!({
        "thaw_ms": thaw_ms,
        "total_ms": t.total_ms,
        "guest_ms": t.guest_ms,
        "prefill_ms": t.prefill_ms,
        "decode_ms": t.decode_ms,
        "steps": t.steps,
        "save_ms": save_ms,
    })
}

/// Milliseconds since 1970, for listings.
pub fn unix_ms(time: std::time::SystemTime) -> u64 {
    time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
