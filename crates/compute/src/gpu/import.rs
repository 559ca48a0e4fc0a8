//! A host region as a GPU buffer without a copy.
//!
//! Everything that a driver might refuse is checked here first: on some drivers one refused import damages the process. The region
//! lives until the GPU is done with the buffer, and while it is imported nobody may remap, protect or unmap its pages; its bytes may be
//! written in place. After growth import again: what was imported covers the bytes that were open then.

#![allow(unsafe_code)]

use super::{Gpu, GpuError};
use driftwood_region::{Backing, Region, page_bytes};
use std::sync::Arc;

/// A region's open bytes, seen by the GPU as a storage buffer.
#[derive(Debug)]
pub struct Imported {
    buffer: wgpu::Buffer,
    address: usize,
}

impl Imported {
    /// The buffer: bindable, and source and target of copies.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// The address that the driver was given, for the identity check of `doctor`.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Bytes that the GPU sees.
    pub fn bytes(&self) -> u64 {
        self.buffer.size()
    }
}

/// Host memory, zero at first, that is shared with the device: for a step's logits, or for bytes on their way in.
#[derive(Debug)]
pub struct Window {
    region: Arc<Region>,
    imported: Imported,
}

impl Window {
    /// The buffer that kernels write.
    pub fn buffer(&self) -> &wgpu::Buffer {
        self.imported.buffer()
    }

    /// What stands there: to be read after [`Gpu::wait`], when no work that writes it is in flight.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the region is ours alone, open over its whole length, and lives as long as `self`; on the host's side nothing writes it.
        unsafe { std::slice::from_raw_parts(self.region.base().as_ptr(), self.region.open_bytes()) }
    }

    /// The same, to be written when no work that reads or writes it is in flight.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it exclusive on the host's side.
        unsafe { std::slice::from_raw_parts_mut(self.region.base().as_ptr(), self.region.open_bytes()) }
    }
}

impl Gpu {
    /// Makes a window of `bytes`, rounded up to pages.
    ///
    /// # Errors
    /// As [`Gpu::import`], or if the system has no memory.
    pub fn window(&self, bytes: usize) -> Result<Window, GpuError> {
        let no_memory = |e: driftwood_region::Error| GpuError::NotImportable { why: e.to_string() };
        let region = Arc::new(Region::reserve(bytes).map_err(no_memory)?);
        region.commit(bytes).map_err(no_memory)?;
        Ok(Window { imported: self.import(&region)?, region })
    }

    /// Shares the open bytes of a region with the device.
    ///
    /// Who may touch them when: the device between a submit and the end of its work, the host otherwise.
    ///
    /// # Errors
    /// [`GpuError::NotImportable`] if the device, the backing or the size does not allow it: the caller then asks for a copying path by
    /// name.
    pub fn import(&self, region: &Arc<Region>) -> Result<Imported, GpuError> {
        // A mapped file ends within a page, the mapping with it.
        let bytes = (region.open_bytes() as u64).next_multiple_of(page_bytes() as u64);
        let address = region.base().as_ptr() as usize;
        self.check_importable(region.backing(), address as u64, bytes)?;
        let buffer = self.import_raw(region, bytes)?;
        Ok(Imported { buffer, address })
    }

    /// All preconditions, so that the driver is never asked in vain.
    fn check_importable(&self, backing: Backing, address: u64, bytes: u64) -> Result<(), GpuError> {
        let info = self.info();
        let refuse = |why: String| Err(GpuError::NotImportable { why });
        if info.import_align_bytes == 0 {
            return refuse(format!("{} cannot import host memory; a copying path must be asked for", info.name));
        }
        if backing == Backing::File && !info.unified {
            return refuse("a discrete GPU cannot import a file that is mapped read-only".to_owned());
        }
        if bytes == 0 {
            return refuse("the region has no open bytes".to_owned());
        }
        if !address.is_multiple_of(info.import_align_bytes) || !bytes.is_multiple_of(info.import_align_bytes) {
            return refuse(format!(
                "address and length must be multiples of {}, they are {address:#x} and {bytes}",
                info.import_align_bytes
            ));
        }
        if bytes > info.buffer_bytes_max {
            return Err(GpuError::BeyondLimit { what: "the bytes of a shared region", asked: bytes, limit: info.buffer_bytes_max });
        }
        Ok(())
    }
}
