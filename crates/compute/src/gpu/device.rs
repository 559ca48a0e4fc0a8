//! An opened device: what it offers, buffers, submission and waiting.
//!
//! Errors that wgpu reports out of line (validation, memory, loss) are kept and come back from the next [`Gpu::submit`] or [`Gpu::wait`].

#![allow(unsafe_code)]

use super::pipelines::Pipelines;
use super::{GpuError, Kernel, KernelSource};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use wgpu::BufferUsages as Usage;
use wgpu::Features;

/// The side of the matrix tiles that fast kernels multiply.
const COOPERATIVE_SIDE: u32 = 16;
/// What they count on besides: lanes of a subgroup, workgroup memory, and invocations of a workgroup.
const TILE_LANES: u32 = 32;
const TILE_WORKGROUP_BYTES: u32 = 48 << 10;
const TILE_INVOCATIONS: u32 = 512;

/// What a device is and offers.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuInfo {
    /// Its name, as the driver gives it.
    pub name: String,
    /// The driver and its version.
    pub driver: String,
    /// The graphics API.
    pub api: &'static str,
    /// Whether it computes in the host's own memory.
    pub unified: bool,
    /// Whether it is a program on the CPU, such as lavapipe.
    pub software: bool,
    /// Whether it multiplies 16x16 tiles of f16 with f32 sums, a tile a subgroup of 32, and has room for the kernels of `tiles`.
    pub cooperative: bool,
    /// Whether shaders may use f16.
    pub f16: bool,
    /// Shared pointers and lengths are multiples of this; 0 where no host memory can be shared.
    pub import_align_bytes: u64,
    /// Bindings begin at multiples of this.
    pub binding_align_bytes: u64,
    /// The longest range of a buffer that one binding takes.
    pub binding_bytes_max: u64,
    /// The longest buffer.
    pub buffer_bytes_max: u64,
    /// Workgroups of a dispatch along one axis.
    pub workgroups_max: u32,
}

/// A graphics processor, opened.
pub struct Gpu {
    info: GpuInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    kernels: Mutex<HashMap<(String, bool), Arc<Kernel>>>,
    pipelines: Option<Pipelines>,
    failure: Arc<Mutex<Option<GpuError>>>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({}, {})", self.info.name, self.info.driver)
    }
}

impl Gpu {
    /// Opens the best device of this machine: discrete before integrated before software. `name_contains`, in any case, narrows the
    /// choice.
    ///
    /// # Errors
    /// If there is none, or if its driver refuses.
    pub fn open(name_contains: Option<&str>) -> Result<Arc<Gpu>, GpuError> {
        Gpu::open_with_pipelines(name_contains, None)
    }

    /// As [`Gpu::open`], with a folder that keeps compiled kernels, one file a device, where the driver can hand them out. Kernels found
    /// there are not compiled again. Whatever is wrong with the folder or a file in it, it only costs time.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn open_with_pipelines(name_contains: Option<&str>, folder: Option<&Path>) -> Result<Arc<Gpu>, GpuError> {
        let adapter = choose(name_contains)?;
        let opened = super::Opened::open(&adapter)?;
        let failure = Arc::new(Mutex::new(None));
        watch(&opened.device, &failure);
        let info = describe(&adapter, &opened);
        let pipelines = folder.and_then(|folder| Pipelines::open(folder, &adapter.get_info(), &opened.device));
        let mut gpu = Gpu { info, device: opened.device, queue: opened.queue, kernels: Mutex::default(), pipelines, failure };
        if gpu.check().is_err() {
            gpu.pipelines = None; // the driver refused what was kept; a loss is reported again
        }
        Ok(Arc::new(gpu))
    }

    /// Opens the same device again, after it was lost. What was made with the lost one stays lost.
    ///
    /// # Errors
    /// If it is gone for good.
    pub fn reopen(&self) -> Result<Arc<Gpu>, GpuError> {
        Gpu::open_with_pipelines(Some(&self.info.name), self.pipelines.as_ref().map(Pipelines::folder))
    }

    /// Writes the kernels compiled since the last time into the folder of pipelines, if there is one; otherwise does nothing. What cannot
    /// be written is compiled again at the next start. Dropping the device does the same.
    pub fn save_pipelines(&self) {
        if let Some(pipelines) = self.pipelines.as_ref().filter(|_| !self.is_lost()) {
            pipelines.save();
        }
    }

    /// Whether a submit or a wait has found the device gone.
    pub fn is_lost(&self) -> bool {
        matches!(*lock(&self.failure), Some(GpuError::Lost { .. }))
    }

    /// What it is and offers.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// What bits of the plain kernels depend on, besides arithmetic and KV type: equal ids promise equal bits.
    pub fn numerics_id(&self) -> String {
        self.id_of("plain", super::GPU_KERNEL_VERSION)
    }

    /// The same of tiles.
    pub fn tiles_numerics_id(&self) -> String {
        self.id_of("tiles", super::TILE_KERNEL_VERSION)
    }

    fn id_of(&self, kernels: &str, version: u32) -> String {
        let GpuInfo { api, name, driver, .. } = &self.info;
        // A slash separates the parts of an id, a plus its history.
        let word = |text: &str| text.replace(['/', '+', ' '], "-");
        format!("gpu-{api}/{}/{}/{kernels}-{version}", word(name), word(driver))
    }

    /// wgpu's device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// wgpu's queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// A buffer in the device's own memory that kernels and copies use, zero at first.
    ///
    /// # Errors
    /// If it is longer than the device allows.
    pub fn buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        self.new_buffer(label, bytes, Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST)
    }

    /// A buffer that the host maps to read what was copied there.
    ///
    /// # Errors
    /// If it is longer than the device allows.
    pub fn readback(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        self.new_buffer(label, bytes, Usage::MAP_READ | Usage::COPY_DST)
    }

    /// A buffer in the device's own memory that starts with a copy of `bytes`.
    ///
    /// # Errors
    /// If it is longer than the device allows.
    pub fn upload(&self, label: &str, bytes: &[u8]) -> Result<wgpu::Buffer, GpuError> {
        let buffer = self.buffer(label, bytes.len() as u64)?;
        let whole = bytes.len() / 4 * 4;
        self.queue.write_buffer(&buffer, 0, &bytes[..whole]);
        if whole < bytes.len() {
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.queue.write_buffer(&buffer, whole as u64, &last);
        }
        self.check()?;
        Ok(buffer)
    }

    fn new_buffer(&self, label: &str, bytes: u64, usage: Usage) -> Result<wgpu::Buffer, GpuError> {
        if bytes > self.info.buffer_bytes_max {
            return Err(GpuError::BeyondLimit { what: "the bytes of a buffer", asked: bytes, limit: self.info.buffer_bytes_max });
        }
        let size = bytes.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT).max(wgpu::COPY_BUFFER_ALIGNMENT);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false });
        self.check()?;
        Ok(buffer)
    }

    /// A kernel, compiled once for its text.
    ///
    /// # Errors
    /// If it does not compile; for our own kernels that is a bug.
    pub fn kernel(&self, label: &str, source: KernelSource<'_>) -> Result<Arc<Kernel>, GpuError> {
        let key = match source {
            KernelSource::Checked(text) => (text.to_owned(), true),
            KernelSource::Trusted(text) => (text.to_owned(), false),
        };
        if let Some(kernel) = lock(&self.kernels).get(&key) {
            return Ok(kernel.clone());
        }
        let kernel = Arc::new(Kernel::compile(&self.device, label, source, self.pipelines.as_ref().map(Pipelines::for_compiling)));
        self.check()?;
        lock(&self.kernels).insert(key, kernel.clone());
        Ok(kernel)
    }

    /// Hands recorded commands to the device.
    ///
    /// # Errors
    /// If they are refused or the device is lost.
    pub fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<(), GpuError> {
        self.queue.submit([encoder.finish()]);
        self.check()
    }

    /// As [`Gpu::submit`]; says which submission it was, to be waited for.
    ///
    /// # Errors
    /// As [`Gpu::submit`].
    pub fn submit_numbered(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex, GpuError> {
        self.submit_commands(encoder.finish())
    }

    /// The same with commands that were encoded before.
    ///
    /// # Errors
    /// As [`Gpu::submit`].
    pub fn submit_commands(&self, commands: wgpu::CommandBuffer) -> Result<wgpu::SubmissionIndex, GpuError> {
        let number = self.queue.submit([commands]);
        self.check().map(|()| number)
    }

    /// Waits until a submission is done.
    ///
    /// # Errors
    /// If the device is lost, or if an earlier operation failed.
    pub fn wait_for(&self, number: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index: Some(number), timeout: None });
        self.check()?;
        polled.map(drop).map_err(|e| GpuError::Driver { why: e.to_string() })
    }

    /// Waits until everything submitted is done.
    ///
    /// # Errors
    /// If the device is lost, or if an earlier operation failed.
    pub fn wait(&self) -> Result<(), GpuError> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        polled.map(drop).map_err(|e| GpuError::Driver { why: e.to_string() })
    }

    /// Copies a range of a buffer out. Waits for everything submitted.
    ///
    /// # Errors
    /// If the device is lost or the range is not within the buffer.
    pub fn read(&self, buffer: &wgpu::Buffer, offset_bytes: u64, out: &mut [u8]) -> Result<(), GpuError> {
        let bytes = (out.len() as u64).next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT);
        let staging = self.readback("read", bytes)?;
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(buffer, offset_bytes, &staging, 0, bytes);
        self.submit(encoder)?;
        self.read_mapped(&staging, out)
    }

    /// Waits for everything submitted and copies out of the start of a buffer from [`Gpu::readback`].
    ///
    /// # Errors
    /// If the device is lost.
    pub fn read_mapped(&self, staging: &wgpu::Buffer, out: &mut [u8]) -> Result<(), GpuError> {
        let bytes = (out.len() as u64).next_multiple_of(wgpu::MAP_ALIGNMENT).min(staging.size());
        let slice = staging.slice(..bytes);
        slice.map_async(wgpu::MapMode::Read, |_| {});
        self.wait()?;
        let mapped = slice.get_mapped_range().map_err(|e| GpuError::Driver { why: e.to_string() })?;
        out.copy_from_slice(&mapped[..out.len()]);
        drop(mapped);
        staging.unmap();
        Ok(())
    }

    /// Where compiled kernels are kept, if they are.
    #[cfg(test)]
    pub(super) fn pipelines(&self) -> Option<&Pipelines> {
        self.pipelines.as_ref()
    }

    /// The failure that wgpu reported since the last call, if any. A loss stays.
    pub(super) fn check(&self) -> Result<(), GpuError> {
        if lock(&self.failure).is_none() {
            return Ok(());
        }
        let _ = self.device.poll(wgpu::PollType::Poll); // a lost device may refuse work before the news of its loss comes
        let mut failure = lock(&self.failure);
        match &*failure {
            Some(lost @ GpuError::Lost { .. }) => Err(lost.clone()),
            _ => failure.take().map_or(Ok(()), Err),
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.save_pipelines();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the first failure that wgpu reports out of line.
fn watch(device: &wgpu::Device, failure: &Arc<Mutex<Option<GpuError>>>) {
    let seen = failure.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        lock(&seen).get_or_insert(GpuError::Driver { why: error.to_string() });
    }));
    let seen = failure.clone();
    device.set_device_lost_callback(move |_, why| *lock(&seen) = Some(GpuError::Lost { why }));
}

/// The drivers, loaded once: after some twenty instances in one process NVIDIA's offers no device any more.
static INSTANCE: LazyLock<wgpu::Instance> = LazyLock::new(|| {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL;
    wgpu::Instance::new(descriptor)
});

/// The adapters of this machine, the best first.
fn choose(name_contains: Option<&str>) -> Result<wgpu::Adapter, GpuError> {
    let wanted = name_contains.unwrap_or_default().to_lowercase();
    let mut adapters = pollster::block_on(INSTANCE.enumerate_adapters(wgpu::Backends::all()));
    let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
    adapters.retain(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted));
    let rank = |adapter: &wgpu::Adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Cpu => 3,
        wgpu::DeviceType::Other => 4,
    };
    adapters.into_iter().min_by_key(rank).ok_or_else(|| GpuError::NoDevice {
        why: match (names.is_empty(), wanted.is_empty()) {
            (true, _) => "no Vulkan or Metal driver offers a device".to_owned(),
            (false, _) => format!("none is called {wanted:?}; there are: {}", names.join(", ")),
        },
    })
}

/// What we ask for, where it is offered.
pub(super) fn wanted_features(adapter: &wgpu::Adapter) -> Features {
    let wanted = Features::SHADER_F16
        | Features::SUBGROUP
        | Features::SUBGROUP_BARRIER
        | Features::TIMESTAMP_QUERY
        | Features::TIMESTAMP_QUERY_INSIDE_PASSES
        | Features::PIPELINE_CACHE
        | Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    adapter.features() & wanted
}

/// The description that a device is opened with: all its limits, the features we use.
pub(super) fn device_descriptor(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
    wgpu::DeviceDescriptor {
        label: Some("driftwood"),
        required_features: wanted_features(adapter),
        required_limits: adapter.limits(),
        // SAFETY: cooperative matrices are the one experimental feature asked for; only kernels of ours use them.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        memory_hints: wgpu::MemoryHints::Performance,
        trace: wgpu::Trace::Off,
    }
}

fn describe(adapter: &wgpu::Adapter, opened: &super::Opened) -> GpuInfo {
    let (info, limits, features) = (adapter.get_info(), opened.device.limits(), opened.device.features());
    let tile = |p: &wgpu::CooperativeMatrixProperties| {
        [p.m_size, p.n_size, p.k_size] == [COOPERATIVE_SIDE; 3]
            && p.ab_type == wgpu::CooperativeScalarType::F16
            && p.cr_type == wgpu::CooperativeScalarType::F32
    };
    GpuInfo {
        driver: format!("{} {}", info.driver, info.driver_info),
        api: if info.backend == wgpu::Backend::Metal { "metal" } else { "vulkan" },
        unified: opened.unified,
        software: info.device_type == wgpu::DeviceType::Cpu,
        cooperative: features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16)
            && adapter.cooperative_matrix_properties().iter().any(tile)
            && info.subgroup_min_size == TILE_LANES
            && info.subgroup_max_size == TILE_LANES
            && limits.max_compute_workgroup_storage_size >= TILE_WORKGROUP_BYTES
            && limits.max_compute_invocations_per_workgroup >= TILE_INVOCATIONS,
        f16: features.contains(Features::SHADER_F16),
        import_align_bytes: opened.import_align_bytes,
        binding_align_bytes: limits.min_storage_buffer_offset_alignment.into(),
        binding_bytes_max: limits.max_storage_buffer_binding_size,
        buffer_bytes_max: limits.max_buffer_size,
        workgroups_max: limits.max_compute_workgroups_per_dimension,
        name: info.name,
    }
}
