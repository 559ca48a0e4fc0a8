//! Metal: `newBufferWithBytesNoCopy` (Apple's documentation of `MTLDevice` describes it), a layer below wgpu.
//!
//! Metal asks for one mapping of whole pages; a region's open prefix is that. The buffer's storage mode is *shared*: processor and GPU
//! see the same bytes, coherent once a command buffer has ended.

#![allow(unsafe_code)]

use super::device::device_descriptor;
use super::{Gpu, GpuError};
use block2::RcBlock;
use driftwood_region::{Region, page_bytes};
use objc2_metal::{MTLBuffer, MTLDevice, MTLResourceOptions};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use wgpu_hal::api::Metal;

/// An opened device and what its API can share.
pub(super) struct Opened {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// The page size: 16 KiB on Apple Silicon.
    pub(super) import_align_bytes: u64,
    /// Whether processor and GPU have one memory.
    pub(super) unified: bool,
}

impl Opened {
    /// Opens a device. Every Metal device shares host memory, on a discrete GPU over the bus.
    pub(super) fn open(adapter: &wgpu::Adapter) -> Result<Opened, GpuError> {
        let opened = pollster::block_on(adapter.request_device(&device_descriptor(adapter)));
        let (device, queue) = opened.map_err(|e| GpuError::Driver { why: e.to_string() })?;
        // SAFETY: the adapter is alive and only read here.
        let hal = unsafe { adapter.as_hal::<Metal>() };
        let hal = hal.ok_or_else(|| GpuError::NoDevice { why: "the adapter is not a Metal one".to_owned() })?;
        let unified = hal.raw_device().hasUnifiedMemory();
        Ok(Opened { device, queue, import_align_bytes: page_bytes() as u64, unified })
    }
}

impl Gpu {
    /// Imports `bytes` from the base of a region that passed all checks.
    pub(super) fn import_raw(&self, region: &Arc<Region>, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        // SAFETY: the device is alive; the guard is dropped at the end of this function.
        let hal = unsafe { self.device().as_hal::<Metal>() }.expect("this device was opened through Metal");
        let pointer: NonNull<c_void> = region.base().cast();
        let keep = region.clone();
        // Metal copies the block and gives it up, with the region in it, when it frees the buffer: after the GPU's last use.
        let deallocator = RcBlock::new(move |_: NonNull<c_void>, _: usize| {
            let _ = &keep;
        });
        // SAFETY: pointer and length are whole pages of one living mapping; the block holds nothing but an `Arc` that any thread may drop.
        let raw = unsafe {
            hal.raw_device().newBufferWithBytesNoCopy_length_options_deallocator(
                pointer,
                bytes as usize,
                MTLResourceOptions::StorageModeShared,
                Some(&deallocator),
            )
        };
        let raw = raw.ok_or_else(|| GpuError::Driver { why: "newBufferWithBytesNoCopy returned nil".to_owned() })?;
        if raw.contents() != pointer {
            return Err(GpuError::Driver { why: format!("Metal made a copy at {:p} of the memory at {pointer:p}", raw.contents()) });
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: Some("shared region"), size: bytes, usage, mapped_at_creation: false };
        // SAFETY: the buffer is fresh and as long as is said; shared storage serves every usage that is asked for.
        Ok(unsafe {
            let buffer = wgpu_hal::metal::Device::buffer_from_raw(raw, bytes);
            self.device().create_buffer_from_hal::<Metal>(buffer, &descriptor)
        })
    }
}
