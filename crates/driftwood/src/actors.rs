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

    /// Takes an actor out of the state folder, as the same actor.
    ///
    /// # Errors
    /// If there is none of that name, another process holds it, or its model is not here.
    pub fn wake(&mut self, name: &str, options: ThawOptions) -> Result<(ActorFolder, ThawReport)> {
        let folder = self.state.hold(name)?;
        let thawed = output::spinning("waking the actor", || folder.thaw_into(&mut self.host, options));
        let report = thawed.with_context(|| format!("cannot wake the actor `{name}`"))?;
        Ok((folder, report))
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
    Ok(StateFolder::open(&paths::state_folder(globals.state.as_deref())?)?)
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
    let mut closed = None;
    let outcome = host.send(message, &mut |event| match event {
        Event::Reply(bytes) if !silent && closed.is_none() => closed = output::stream(bytes).err(),
        event => heard(event),
    })?;
    closed.map_or(Ok(outcome), Err)
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
