//! Where guests' matrix products are computed, and the linear memory as a GPU sees it.
//!
//! With a GPU ([`crate::Host::set_gpu`]) a product is computed in the guest's own memory, which the GPU has imported. Any other way has a
//! name in [`GpuPath`], and the actor's [`ComputeReport`] says which was taken and why.

use crate::abi::Refused;
use crate::instance::Guest;
use driftwood_compute::gpu::{Gpu, GpuError, Imported};
use std::sync::Arc;

/// Where a product was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuPath {
    /// On the GPU, in the guest's own memory.
    Shared,
    /// On the GPU, from copies of the matrices: the GPU cannot share this memory.
    Copied,
    /// On the processor: the host has no GPU, or the product is beyond its limits.
    Processor,
}

/// What became of an actor's products and kernels since it came into this host, failed messages included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComputeReport {
    /// Products computed on the GPU in the guest's own memory.
    pub shared: u64,
    /// Products computed on the GPU from copies.
    pub copied: u64,
    /// Products computed on the processor.
    pub processor: u64,
    /// Kernels of its own that ran on the GPU, in its own memory.
    pub dispatched: u64,
    /// Where the last product was computed.
    pub last: Option<GpuPath>,
    /// Why the last one that a GPU was there for was not shared.
    pub why: Option<String>,
    /// The addresses of the last shared one.
    pub addresses: Option<SharedAddresses>,
}

/// One memory as three sides know it. The chain holds if they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedAddresses {
    /// Where the region was mapped.
    pub region: usize,
    /// What the GPU's driver was given.
    pub imported: usize,
    /// Where Wasmtime has the linear memory.
    pub linear_memory: usize,
}

impl ComputeReport {
    pub(crate) fn count(&mut self, path: GpuPath, why: Option<String>) {
        let counter = match path {
            GpuPath::Shared => &mut self.shared,
            GpuPath::Copied => &mut self.copied,
            GpuPath::Processor => &mut self.processor,
        };
        *counter += 1;
        self.last = Some(path);
        if why.is_some() {
            self.why = why;
        }
    }
}

/// A linear memory in the hands of a GPU, or why it is not. It is asked for once for each size of the memory: a driver that refused is
/// not asked again in vain.
pub(crate) struct Share {
    gpu: Arc<Gpu>,
    bytes: usize,
    imported: Result<Imported, GpuError>,
}

impl Guest {
    /// The linear memory as the GPU sees it, imported anew after growth.
    pub(crate) fn imported(&mut self, gpu: &Arc<Gpu>) -> Result<Result<&Imported, &GpuError>, Refused> {
        let region = self.region()?;
        let bytes = region.open_bytes();
        let fits = |share: &Share| Arc::ptr_eq(&share.gpu, gpu) && share.bytes == bytes;
        if !self.share.as_ref().is_some_and(fits) {
            self.share = None; // the old import ends before the new one begins
            self.share = Some(Share { gpu: gpu.clone(), bytes, imported: gpu.import(&region) });
        }
        Ok(self.share.as_ref().ok_or(Refused::ModelError)?.imported.as_ref())
    }
}
