//! A model: its mapped files, its decoder, tokenizer and chat template, on one device. Immutable, shared by all its sessions.

use crate::Error;
use crate::config::Config;
use crate::gpu::{GpuWeights, tile_attention, upload_tiles};
use crate::kv::{KvHome, KvPools};
use crate::models::{self, Decoder};
use crate::source::{self, Source};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use driftwood_compute::gpu::Gpu;
use driftwood_compute::{Arithmetic, Cpu, GROUPS_KERNEL_VERSION, KERNEL_VERSION, KvDType, KvLayout};
use driftwood_region::View;
use serde::Serialize;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Where a model computes.
#[derive(Clone, Debug)]
pub struct Device {
    /// Threads and arithmetic mode. Beside a GPU it hashes, samples and copies.
    pub cpu: Arc<Cpu>,
    /// The graphics processor that runs the decoder, if one does.
    pub gpu: Option<Arc<Gpu>>,
}

/// Where the bytes of a session are, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Residence {
    /// Its model's weights.
    pub weights: &'static str,
    /// Bytes of weights that were copied to the device so far.
    pub copied_weight_bytes: usize,
    /// Its keys and values.
    pub kv: &'static str,
    /// Its logits.
    pub logits: &'static str,
}

impl From<Arc<Cpu>> for Device {
    fn from(cpu: Arc<Cpu>) -> Device {
        Device { cpu, gpu: None }
    }
}

/// A model that is ready to serve sessions.
#[derive(Debug)]
pub struct Model {
    name: String,
    files: Vec<View>,
    is_grouped: bool,
    decoder: Decoder,
    tokenizer: Tokenizer,
    template: Result<ChatTemplate, String>,
    device: Device,
    gpu_weights: Option<GpuWeights>,
    kv_pools: KvPools,
    fingerprint: OnceLock<[u8; 32]>,
}

impl Model {
    /// Maps a GGUF file, or a folder as Hugging Face or MLX has it. Weights stay where they are in the mapping; nothing is converted.
    ///
    /// `name` is what guests and snapshots call it.
    ///
    /// # Errors
    /// If the file is not one that this version can run; the error names what it lacks.
    pub fn open(name: &str, path: &Path, device: impl Into<Device>) -> Result<Arc<Model>, Error> {
        let device = device.into();
        let source = source::open(path)?;
        let decoder = models::load(&*source)?;
        let config = decoder.config();
        let (tokenizer, gpu_weights) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| tokenizer(&*source, config));
            let gpu_weights = device.gpu.as_ref().map(|gpu| upload(gpu, &device, &decoder)).transpose();
            (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), gpu_weights)
        });
        let (tokenizer, gpu_weights) = (tokenizer?, gpu_weights?);
        let template = source.chat_template().and_then(|t| ChatTemplate::new(t, config.architecture, &tokenizer));
        Ok(Arc::new(Model {
            name: name.to_owned(),
            files: source.files().into_iter().map(|(_, file)| file).collect(),
            is_grouped: source.is_grouped(),
            decoder,
            tokenizer,
            template: template.map_err(|e| e.to_string()),
            gpu_weights,
            device,
            kv_pools: KvPools::default(),
            fingerprint: OnceLock::new(),
        }))
    }

    /// The device on which it runs on tiles, with f16 KV in the device's own memory.
    pub(crate) fn tiles_on(&self) -> Option<&Arc<Gpu>> {
        tiles_on(&self.device, self.config())
    }

    /// The device that writes logits itself into memory that is shared with it, if one does: see [`crate::Work::shared_with_device`].
    pub fn logits_device(&self) -> Option<&Arc<Gpu>> {
        self.tiles_on()
    }

    /// Where the KV blocks of a layout are.
    pub(crate) fn kv_home(&self, layout: KvLayout) -> Result<KvHome, Error> {
        self.kv_pools.get(layout, self.tiles_on().filter(|_| layout.dtype == KvDType::F16))
    }

    /// What guests and snapshots call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its extents.
    pub fn config(&self) -> &Config {
        self.decoder.config()
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Its chat template.
    ///
    /// # Errors
    /// If the file has none that can be used and its family has none of its own.
    pub fn chat_template(&self) -> Result<&ChatTemplate, Error> {
        self.template.as_ref().map_err(|why| Error::Template { why: why.clone() })
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the GPU that it runs on was lost, and its weights there with it: open it again.
    pub fn is_lost(&self) -> bool {
        self.device.gpu.as_ref().is_some_and(|gpu| gpu.is_lost())
    }

    /// Where the bytes of a session with KV of this type are, and what was copied to get there.
    pub fn residence(&self, kv: KvDType) -> Residence {
        let copied_weight_bytes = self.gpu_weights.as_ref().map_or(0, GpuWeights::copied_bytes);
        let tiles = kv == KvDType::F16 && self.tiles_on().is_some();
        let (weights, kv, logits) = match &self.device.gpu {
            None => ("the mapped file", "the host's memory", "the host's memory, or the guest's where it asked for them"),
            Some(_) if tiles => ("the device's memory, repacked", "the device's memory", "copied by the device to whoever asked for them"),
            Some(gpu) => {
                let weights = if gpu.info().unified { "the mapped file, shared with the device" } else { "the device's memory" };
                (weights, "memory shared with the device", "memory shared with the device, copied to whoever asked for them")
            }
        };
        Residence { weights, copied_weight_bytes, kv, logits }
    }

    /// Its weights on the GPU.
    ///
    /// # Panics
    /// If it runs on the CPU.
    pub(crate) fn gpu_weights(&self) -> &GpuWeights {
        self.gpu_weights.as_ref().expect("a model on a GPU")
    }

    pub(crate) fn cpu(&self) -> &Cpu {
        &self.device.cpu
    }

    /// The blake3 hash of its file, computed when first asked for: it names the weights in snapshots. Of a folder, it is the hash of the
    /// hashes of all files that were read.
    pub fn fingerprint(&self) -> [u8; 32] {
        let hash = |file: &View| *blake3::hash(file.bytes()).as_bytes();
        *self.fingerprint.get_or_init(|| match &self.files[..] {
            [file] => hash(file),
            files => *blake3::hash(files.iter().map(hash).collect::<Vec<_>>().as_flattened()).as_bytes(),
        })
    }

    /// Bytes of the mapped files.
    pub fn file_bytes(&self) -> usize {
        self.files.iter().map(|file| file.bytes().len()).sum()
    }

    /// What the bits of a session depend on: device class, kernel version, arithmetic and KV dtype.
    pub fn numerics_id(&self, kv: KvDType) -> String {
        let arithmetic = self.cpu().arithmetic();
        match &self.device.gpu {
            None => format!("cpu/kernels-{}/{arithmetic}/kv-{kv}", if self.is_grouped { GROUPS_KERNEL_VERSION } else { KERNEL_VERSION }),
            Some(gpu) => {
                let tiles = kv == KvDType::F16 && self.tiles_on().is_some();
                format!("{}/{arithmetic}/kv-{kv}", if tiles { gpu.tiles_numerics_id() } else { gpu.numerics_id() })
            }
        }
    }

    /// How a block of KV of this model is laid out.
    pub fn kv_layout(&self, dtype: KvDType) -> KvLayout {
        self.config().kv_layout(dtype)
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }
}

/// The device on which a model of these extents runs on tiles.
fn tiles_on<'a>(device: &'a Device, config: &Config) -> Option<&'a Arc<Gpu>> {
    let gpu = device.gpu.as_ref()?;
    let fits = tile_attention(&config.attention(0, None)).is_ok() && config.width.is_multiple_of(4);
    (gpu.info().cooperative && device.cpu.arithmetic() == Arithmetic::Fast && fits).then_some(gpu)
}

/// The weights on a device: all of them if they are tiles, else those that steps ask for, as they do.
fn upload(gpu: &Arc<Gpu>, device: &Device, decoder: &Decoder) -> Result<GpuWeights, Error> {
    let weights = GpuWeights::new(gpu);
    if tiles_on(device, decoder.config()).is_some() {
        upload_tiles(&weights, decoder)?;
    }
    Ok(weights)
}

/// The tokenizer of a model, which knows no token that the embedding has no row for.
pub(crate) fn tokenizer(source: &dyn Source, config: &Config) -> Result<Tokenizer, Error> {
    source.tokenizer()?.with_rows(config.vocabulary)
}
