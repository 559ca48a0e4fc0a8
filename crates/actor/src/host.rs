//! The host: models and many actors in one process, driven by one thread.

use crate::actor::{Actor, Body, check_settings};
use crate::delivery::Delivery;
use crate::desk::{Desk, Interrupt, SharedDesk, lock};
use crate::history::Past;
use crate::instance::Instance;
use crate::kernels::Kernels;
use crate::limits::{ACTORS_MAX, Limits};
use crate::models::{ModelResolver, Models};
use crate::parked::Slot;
use crate::products::ComputeReport;
use crate::random::Random;
use crate::runtime::Runtime;
use crate::sessions::Sessions;
use crate::shelf::KeptKv;
use crate::state::valid_name;
use crate::{Error, Event, Message, Outcome};
use driftwood_compute::KvDType;
use driftwood_compute::gpu::Gpu;
use driftwood_engine::{Batch, Device, Model, Residence};
use driftwood_snapshot::{Hash, Identity};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a host is made of.
pub struct HostOptions {
    /// Where models compute.
    pub device: Device,
    /// Finds the file of a model that a guest names.
    pub models: ModelResolver,
}

/// What an actor is spawned from.
pub struct SpawnSpec {
    /// Its name in this host.
    pub name: String,
    /// The guest: a core Wasm module.
    pub module: Arc<[u8]>,
    /// Settings that it can ask for.
    pub settings: BTreeMap<String, String>,
    /// What it may use.
    pub limits: Limits,
    /// Names of the models that it may use; if empty, the one that the setting `model` names.
    pub models: Vec<String>,
}

/// What there is to know of an actor without waking it.
#[derive(Clone, Debug)]
pub struct ActorInfo {
    /// Who it is.
    pub identity: Identity,
    /// The hash of its module.
    pub module_hash: Hash,
    /// Bytes of its linear memory; 0 before its first message.
    pub memory_bytes: usize,
    /// Bytes of its pages that differ from those that it woke with and shares with its forks; 0 unless it is awake.
    pub memory_own_bytes: usize,
    /// Messages that it handled, failed ones not counted.
    pub messages_handled: u64,
    /// Its settings.
    pub settings: BTreeMap<String, String>,
    /// Its open sessions, by handle.
    pub sessions: Vec<SessionInfo>,
    /// KV that is kept for models that it left, the oldest first.
    pub kept: Vec<KeptKv>,
}

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The guest's name for it.
    pub handle: u32,
    /// Its model.
    pub model: String,
    /// How its KV is stored.
    pub kv: KvDType,
    /// Tokens in it.
    pub tokens: usize,
    /// How many of them have KV.
    pub evaluated: usize,
    /// The most that it can hold.
    pub context_max: usize,
    /// Bytes of KV that it alone holds.
    pub kv_own_bytes: usize,
    /// Bytes of KV that it holds with others.
    pub kv_shared_bytes: usize,
    /// Where its bytes are.
    pub residence: Residence,
}

/// Bytes in an actor's linear memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundInMemory {
    /// Where they begin.
    pub address: usize,
    /// Where the region begins that is the linear memory.
    pub region_address: usize,
    /// Bytes of it that are open: the size of the linear memory.
    pub region_bytes: usize,
}

/// Owns models and actors. Every method runs on the caller's thread and returns when its work is done.
pub struct Host {
    pub(crate) actors: BTreeMap<String, Actor>,
    pub(crate) models: Arc<Models>,
    /// By the address of the model, which its batch keeps alive.
    batches: BTreeMap<usize, Batch>,
    interrupt: Interrupt,
    runtime: Arc<Runtime>,
}

impl Host {
    /// A host without actors.
    ///
    /// # Errors
    /// If Wasmtime cannot run on this machine.
    pub fn new(options: HostOptions) -> Result<Host, Error> {
        Ok(Host {
            actors: BTreeMap::new(),
            models: Arc::new(Models::new(options.device, options.models)),
            batches: BTreeMap::new(),
            interrupt: Interrupt::default(),
            runtime: Arc::new(Runtime::new()?),
        })
    }

    /// Has guests compute on a GPU from now on, in their own memory where it can be shared. A GPU that is lost is opened again when a
    /// guest next asks for it.
    pub fn set_gpu(&mut self, gpu: Arc<Gpu>) {
        self.models.set_gpu(gpu);
    }

    /// A model by name, opened when first asked for.
    ///
    /// # Errors
    /// If there is none of that name, or its file cannot be run.
    pub fn model(&self, name: &str) -> Result<Arc<Model>, Error> {
        self.models.get(name)
    }

    /// Takes in a model that is open already, under its own name.
    pub fn add_model(&mut self, model: Arc<Model>) {
        self.models.add(model);
    }

    /// Admits a guest's module and gives birth to an actor.
    ///
    /// # Errors
    /// If the name is taken or none, the module is refused, or its start fails.
    pub fn spawn(&mut self, spec: SpawnSpec) -> Result<Identity, Error> {
        self.check_free(&spec.name)?;
        check_settings(&spec.settings, &spec.limits)?;
        let compiled = self.runtime.compile(&spec.module)?;
        let identity = Identity::mint(&spec.name, None)?;
        let desk = self.desk(spec.models, spec.settings, Random::seeded()?, Sessions::default(), 0);
        let instance = Instance::first(&self.runtime, &compiled, &desk, &spec.limits)?;
        let body = Body::Unborn(Some(Box::new(instance)));
        self.actors.insert(
            spec.name,
            Actor { identity: identity.clone(), compiled, limits: spec.limits, desk, body, past: Past::default(), log: None, parked: None },
        );
        Ok(identity)
    }

    /// Delivers messages and drives all their actors until every message is handled or has failed. Messages of one actor are handled one
    /// after another, those of different actors side by side. Results stand in the order of the messages. A message that failed had no
    /// effect.
    ///
    /// What actors say meanwhile goes to `on_event` with the actor's name. Text that a failed message streamed has been shown all the same.
    pub fn deliver(&mut self, messages: Vec<Message>, on_event: &mut dyn FnMut(&str, Event<'_>)) -> Vec<Result<Outcome, Error>> {
        self.interrupt.clear();
        let runtime = self.runtime.clone();
        let _ticking = runtime.ticking();
        let results = Delivery::new(messages).run(self, on_event);
        self.models.save_pipelines();
        results
    }

    /// [`Host::deliver`] of one message.
    ///
    /// # Errors
    /// If the message failed; it had no effect then.
    pub fn send(&mut self, message: Message, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Outcome, Error> {
        let mut results = self.deliver(vec![message], &mut |_, event| on_event(event));
        results.pop().expect("one message has one result")
    }

    /// What ends replies early. Each delivery begins with it cleared.
    pub fn interrupt_handle(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// A second actor that is in all but its name and identity what the first is now. KV and memory are shared until one of them writes.
    /// Their random numbers are the same, too. The first one falls asleep, so that a thousand forks share one image with it.
    ///
    /// # Errors
    /// If there is no such actor, or the new name is taken or none.
    pub fn fork(&mut self, name: &str, new_name: &str) -> Result<Identity, Error> {
        self.check_free(new_name)?;
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        let identity = Identity::mint(new_name, Some(actor.identity.id))?;
        let body = match actor.fall_asleep() {
            Some(image) => Body::Asleep(image),
            None => Body::Unborn(None),
        };
        let (compiled, limits, desk, past) = (actor.compiled.clone(), actor.limits.clone(), actor.desk.clone(), actor.past.clone());
        let desk = lock(&desk);
        let copy = self.desk(desk.grants.clone(), desk.settings.clone(), desk.random.clone(), desk.sessions.clone(), desk.messages_handled);
        self.actors.insert(
            new_name.to_owned(),
            Actor { identity: identity.clone(), compiled, limits, desk: copy, body, past, log: None, parked: None },
        );
        Ok(identity)
    }

    /// Forgets an actor.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.actors.remove(name).map(drop).ok_or_else(|| no_such(name))
    }

    /// The names of all actors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.actors.keys().map(String::as_str)
    }

    /// What there is to know of an actor.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn info(&self, name: &str) -> Result<ActorInfo, Error> {
        let actor = self.actors.get(name).ok_or_else(|| no_such(name))?;
        let desk = lock(&actor.desk);
        let memory_bytes = match &actor.body {
            Body::Awake(instance) | Body::Unborn(Some(instance)) => instance.memory().len(),
            Body::Asleep(image) => image.memory_bytes,
            Body::Unborn(None) | Body::Away => 0,
        };
        let memory_own_bytes = if let Body::Awake(instance) = &actor.body { instance.own_bytes() } else { 0 };
        Ok(ActorInfo {
            memory_own_bytes,
            identity: actor.identity.clone(),
            module_hash: actor.compiled.hash,
            memory_bytes,
            messages_handled: desk.messages_handled,
            settings: desk.settings.clone(),
            kept: desk.sessions.kept().collect(),
            sessions: desk.sessions.iter().map(|(handle, session)| session_info(handle, session)).collect(),
        })
    }

    /// Where an actor's matrix products were computed.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn compute_report(&self, name: &str) -> Result<ComputeReport, Error> {
        let actor = self.actors.get(name).ok_or_else(|| no_such(name))?;
        Ok(lock(&actor.desk).products.clone())
    }

    /// The address at which bytes lie in an actor's linear memory and, with it, the region that the memory is. `None` if they are not
    /// there or the actor is not awake. This is how `doctor` shows that a guest's memory is a region of ours.
    ///
    /// # Errors
    /// If there is no actor of that name.
    pub fn find_in_memory(&self, name: &str, bytes: &[u8]) -> Result<Option<FoundInMemory>, Error> {
        let actor = self.actors.get(name).ok_or_else(|| no_such(name))?;
        let Body::Awake(instance) = &actor.body else { return Ok(None) };
        let memory = instance.memory();
        let offset = memory.windows(bytes.len().max(1)).position(|window| window == bytes);
        let region = self.runtime.memories.region_at(memory.as_ptr());
        Ok(offset.zip(region).map(|(offset, region)| FoundInMemory {
            address: memory.as_ptr() as usize + offset,
            region_address: region.base().as_ptr() as usize,
            region_bytes: region.open_bytes(),
        }))
    }

    /// A hash of everything that a message may change and a snapshot holds, but the bytes of KV: equal before a message that failed and
    /// after it, and for an actor and its thawed self.
    ///
    /// # Errors
    /// If there is no such actor, or it cannot be woken.
    pub fn state_hash(&mut self, name: &str) -> Result<Hash, Error> {
        let runtime = self.runtime.clone();
        self.actors.get_mut(name).ok_or_else(|| no_such(name))?.state_hash(&runtime)
    }

    /// Changes a setting of an actor. Its messages are recorded again once it is kept.
    ///
    /// # Errors
    /// If there is no such actor, or its settings become too long.
    pub fn set_setting(&mut self, name: &str, key: &str, value: &str) -> Result<(), Error> {
        let actor = self.actors.get_mut(name).ok_or_else(|| no_such(name))?;
        let mut desk = lock(&actor.desk);
        let mut settings = desk.settings.clone();
        settings.insert(key.to_owned(), value.to_owned());
        check_settings(&settings, &actor.limits)?;
        desk.settings = settings;
        actor.log = None; // what follows does not continue the head that is there
        Ok(())
    }

    pub(crate) fn check_free(&self, name: &str) -> Result<(), Error> {
        valid_name(name)?;
        if self.actors.contains_key(name) {
            return Err(Error::NameTaken { name: name.to_owned() });
        }
        if self.actors.len() >= ACTORS_MAX { Err(Error::LimitActors { limit: ACTORS_MAX }) } else { Ok(()) }
    }

    pub(crate) fn desk(
        &self,
        grants: Vec<String>,
        settings: BTreeMap<String, String>,
        random: Random,
        sessions: Sessions,
        messages_handled: u64,
    ) -> SharedDesk {
        Arc::new(Mutex::new(Desk {
            models: self.models.clone(),
            interrupt: self.interrupt.clone(),
            grants,
            settings,
            sessions,
            random,
            messages_handled,
            turn: None,
            slot: Slot::default(),
            token: None,
            ahead: Arc::default(),
            products: ComputeReport::default(),
            kernels: Kernels::default(),
        }))
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The same, to hold while an actor is borrowed.
    pub(crate) fn shared_runtime(&self) -> Arc<Runtime> {
        self.runtime.clone()
    }

    pub(crate) fn take_actor(&mut self, name: &str) -> Result<Actor, Error> {
        self.actors.remove(name).ok_or_else(|| no_such(name))
    }

    pub(crate) fn put_actor(&mut self, actor: Actor) {
        self.actors.insert(actor.identity.name.clone(), actor);
    }

    /// The scratch memory of a model's steps.
    pub(crate) fn batch(&mut self, model: &Arc<Model>) -> &mut Batch {
        let key = Arc::as_ptr(model) as usize;
        if !self.batches.contains_key(&key) {
            self.batches.retain(|_, batch| !batch.model().is_lost());
        }
        self.batches.entry(key).or_insert_with(|| Batch::new(model))
    }
}

pub(crate) fn no_such(name: &str) -> Error {
    Error::NoSuchActor { name: name.to_owned() }
}

fn session_info(handle: u32, session: &driftwood_engine::Session) -> SessionInfo {
    let (kv_own_bytes, kv_shared_bytes) = session.kv_bytes();
    SessionInfo {
        handle,
        model: session.model().name().to_owned(),
        kv: session.kv_layout().dtype,
        tokens: session.tokens().len(),
        evaluated: session.evaluated(),
        context_max: session.context_max(),
        kv_own_bytes,
        residence: session.model().residence(session.kv_layout().dtype),
        kv_shared_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server may move a host to a thread of its own.
    #[test]
    fn a_host_can_be_sent_to_another_thread() {
        fn sendable<T: Send>() {}
        sendable::<Host>();
        sendable::<Interrupt>();
    }
}
