//! The models of a host, opened when first named and kept.

use crate::Error;
use driftwood_compute::Cpu;
use driftwood_compute::gpu::Gpu;
use driftwood_engine::{Device, Model};
use driftwood_snapshot::Hash;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Finds the file of a model by its name; else says what the user can do.
pub type ModelResolver = Box<dyn Fn(&str) -> Result<PathBuf, String> + Send>;

/// What guests and the host share: a device, and models by name.
pub(crate) struct Models {
    device: Device,
    gpu: Mutex<Option<Arc<Gpu>>>,
    resolver: Mutex<ModelResolver>,
    open: Mutex<BTreeMap<String, Arc<Model>>>,
    vocabularies: Mutex<BTreeMap<String, Hash>>,
}

impl Models {
    pub(crate) fn new(device: Device, resolver: ModelResolver) -> Models {
        let gpu = Mutex::new(device.gpu.clone());
        Models { device, gpu, resolver: Mutex::new(resolver), open: Mutex::default(), vocabularies: Mutex::default() }
    }

    /// Whether models compute on a GPU.
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.device.gpu.is_some()
    }

    pub(crate) fn device(&self) -> &Cpu {
        &self.device.cpu
    }

    /// What guests compute on, if it is not the processor. One that was lost is opened again; if that fails, it stays lost.
    pub(crate) fn gpu(&self) -> Option<Arc<Gpu>> {
        let mut gpu = self.gpu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lost) = gpu.as_ref().filter(|gpu| gpu.is_lost())
            && let Ok(again) = lost.reopen()
        {
            *gpu = Some(again);
        }
        gpu.clone()
    }

    /// Keeps the kernels that messages had compiled, so that a host that is killed later does not lose them.
    pub(crate) fn save_pipelines(&self) {
        if let Some(gpu) = &*self.gpu.lock().unwrap_or_else(PoisonError::into_inner) {
            gpu.save_pipelines();
        }
    }

    pub(crate) fn set_gpu(&self, gpu: Arc<Gpu>) {
        *self.gpu.lock().unwrap_or_else(PoisonError::into_inner) = Some(gpu);
    }

    /// A model by name. One whose GPU was lost is opened again.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Model>, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = open.get(name).filter(|model| !model.is_lost()) {
            return Ok(model.clone());
        }
        let resolver = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        let path = resolver(name).map_err(|why| Error::NoSuchModel { name: name.to_owned(), why })?;
        let gpu = self.device.gpu.as_ref().and_then(|_| self.gpu());
        let model = Model::open(name, &path, Device { gpu, ..self.device.clone() })?;
        open.insert(name.to_owned(), model.clone());
        Ok(model)
    }

    pub(crate) fn add(&self, model: Arc<Model>) {
        let name = model.name().to_owned();
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(name, model);
    }

    /// A hash of every piece of a model's vocabulary: models with equal ones give token ids the same meaning.
    pub(crate) fn vocabulary(&self, model: &Model) -> Hash {
        let mut known = self.vocabularies.lock().unwrap_or_else(PoisonError::into_inner);
        *known.entry(model.name().to_owned()).or_insert_with(|| {
            let tokenizer = model.tokenizer();
            let mut hasher = blake3::Hasher::new();
            for token in 0..tokenizer.vocab_len() as u32 {
                let text = tokenizer.token_text(token).unwrap_or_default();
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            Hash(*hasher.finalize().as_bytes())
        })
    }
}
