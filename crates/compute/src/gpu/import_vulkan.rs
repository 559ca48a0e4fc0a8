//! Vulkan: `VK_EXT_external_memory_host` (Khronos' registry describes it), a layer below wgpu.

#![allow(unsafe_code)]

use super::device::{device_descriptor, wanted_features};
use super::{Gpu, GpuError};
use ash::ext::external_memory_host;
use ash::vk;
use driftwood_region::Region;
use std::ffi::c_void;
use std::sync::Arc;
use wgpu_hal::api::Vulkan;

/// How host pointers are imported: as allocations of the process.
const HANDLE: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;

/// An opened device and what its API can share.
pub(super) struct Opened {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// 0 where host memory cannot be shared.
    pub(super) import_align_bytes: u64,
    /// Whether the device computes in the host's own memory.
    pub(super) unified: bool,
}

impl Opened {
    /// Opens a device with the import extension if it has it.
    pub(super) fn open(adapter: &wgpu::Adapter) -> Result<Opened, GpuError> {
        let descriptor = device_descriptor(adapter);
        // SAFETY: the adapter is alive and only read here.
        let hal = unsafe { adapter.as_hal::<Vulkan>() };
        let hal = hal.ok_or_else(|| GpuError::NoDevice { why: "the adapter is not a Vulkan one".to_owned() })?;
        let importing = hal.physical_device_capabilities().supports_extension(external_memory_host::NAME);
        let import_align_bytes = if importing { import_align_bytes(&hal) } else { 0 };
        let with_import = Box::new(move |args: wgpu_hal::vulkan::CreateDeviceCallbackArgs<'_, '_, '_>| {
            if importing {
                args.extensions.push(external_memory_host::NAME);
            }
        });
        let (features, limits) = (wanted_features(adapter), descriptor.required_limits.clone());
        // SAFETY: the callback adds one extension that the device has, and takes nothing away.
        let open = unsafe { hal.open_with_callback(features, &limits, &wgpu::MemoryHints::Performance, Some(with_import)) };
        let open = open.map_err(|e| GpuError::Driver { why: e.to_string() })?;
        drop(hal);
        // SAFETY: the device was opened from this very adapter, with these features and limits.
        let made = unsafe { adapter.create_device_from_hal::<Vulkan>(open, &descriptor) };
        let (device, queue) = made.map_err(|e| GpuError::Driver { why: e.to_string() })?;
        // Vulkan has no such property; what an integrated GPU or a program on the CPU computes in is the host's memory.
        let unified = matches!(adapter.get_info().device_type, wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu);
        Ok(Opened { device, queue, import_align_bytes, unified })
    }
}

fn import_align_bytes(hal: &wgpu_hal::vulkan::Adapter) -> u64 {
    let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut host);
    // SAFETY: the instance and the physical device are alive; the chain is well formed.
    unsafe { hal.shared_instance().raw_instance().get_physical_device_properties2(hal.raw_physical_device(), &mut properties) };
    host.min_imported_host_pointer_alignment
}

impl Gpu {
    /// Imports `bytes` from the base of a region that passed all checks.
    pub(super) fn import_raw(&self, region: &Arc<Region>, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        // SAFETY: the device is alive; the guard is dropped at the end of this function.
        let hal = unsafe { self.device().as_hal::<Vulkan>() }.expect("this device was opened through Vulkan");
        let pointer: *mut c_void = region.base().as_ptr().cast();
        let memory_types = pointer_memory_types(&hal, pointer)?;
        let buffer = create_buffer(&hal, bytes)?;
        let memory = bind_memory(&hal, buffer, pointer, bytes, memory_types).inspect_err(|_| {
            // SAFETY: the buffer was just made and nobody else has it.
            unsafe { hal.raw_device().destroy_buffer(buffer, None) };
        })?;
        let (raw, keep) = (hal.raw_device().clone(), region.clone());
        let when_dropped = Box::new(move || {
            // SAFETY: wgpu drops the buffer after the device's last use of it; both handles are ours alone.
            unsafe {
                raw.destroy_buffer(buffer, None);
                raw.free_memory(memory, None);
            }
            drop(keep);
        });
        // SAFETY: the buffer lives until the callback, which keeps the region until then.
        let hal_buffer = unsafe { wgpu_hal::vulkan::Buffer::from_raw_externally_owned(buffer, when_dropped) };
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: Some("shared region"), size: bytes, usage, mapped_at_creation: false };
        // SAFETY: size and usage are those that the buffer was created with.
        Ok(unsafe { self.device().create_buffer_from_hal::<Vulkan>(hal_buffer, &descriptor) })
    }
}

fn refused(call: &'static str) -> impl Fn(vk::Result) -> GpuError {
    move |code| GpuError::Driver { why: format!("{call}: {code}") }
}

/// The memory types that this pointer can be imported as, a bit each.
fn pointer_memory_types(hal: &wgpu_hal::vulkan::Device, pointer: *mut c_void) -> Result<u32, GpuError> {
    let extension = external_memory_host::Device::new(hal.shared_instance().raw_instance(), hal.raw_device());
    let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
    let query = extension.fp().get_memory_host_pointer_properties_ext;
    // SAFETY: the extension is enabled on this device; the pointer is the base of a living region. ash has no wrapper for this call.
    unsafe { query(hal.raw_device().handle(), HANDLE, pointer, &mut properties) }
        .result()
        .map_err(refused("vkGetMemoryHostPointerPropertiesEXT"))?;
    Ok(properties.memory_type_bits)
}

fn create_buffer(hal: &wgpu_hal::vulkan::Device, bytes: u64) -> Result<vk::Buffer, GpuError> {
    let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(HANDLE);
    let usage = vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
    let info = vk::BufferCreateInfo::default().size(bytes).usage(usage).push_next(&mut external);
    // SAFETY: the description is complete and the device alive.
    unsafe { hal.raw_device().create_buffer(&info, None) }.map_err(refused("vkCreateBuffer"))
}

/// Imports the pointer as memory and binds the buffer to it.
fn bind_memory(
    hal: &wgpu_hal::vulkan::Device,
    buffer: vk::Buffer,
    pointer: *mut c_void,
    bytes: u64,
    pointer_types: u32,
) -> Result<vk::DeviceMemory, GpuError> {
    let device = hal.raw_device();
    // SAFETY: the buffer and the physical device are alive.
    let (needs, offers) = unsafe {
        let instance = hal.shared_instance().raw_instance();
        (device.get_buffer_memory_requirements(buffer), instance.get_physical_device_memory_properties(hal.raw_physical_device()))
    };
    let memory_type = best_type(&offers, pointer_types & needs.memory_type_bits)?;
    let mut import = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(HANDLE).host_pointer(pointer);
    let info = vk::MemoryAllocateInfo::default().allocation_size(bytes).memory_type_index(memory_type).push_next(&mut import);
    // SAFETY: pointer and length are aligned as the device asks, and all pages are accessible: `check_importable` saw to it.
    let memory = unsafe { device.allocate_memory(&info, None) }.map_err(refused("vkAllocateMemory"))?;
    // SAFETY: the memory is fresh and as long as the buffer.
    if let Err(code) = unsafe { device.bind_buffer_memory(buffer, memory, 0) } {
        // SAFETY: nothing uses the memory.
        unsafe { device.free_memory(memory, None) };
        return Err(refused("vkBindBufferMemory")(code));
    }
    Ok(memory)
}

/// Of the types that fit, one that the host sees without flushing, cached if possible.
fn best_type(offers: &vk::PhysicalDeviceMemoryProperties, fitting: u32) -> Result<u32, GpuError> {
    use vk::MemoryPropertyFlags as Flags;
    let coherent = |index: &u32| offers.memory_types[*index as usize].property_flags.contains(Flags::HOST_VISIBLE | Flags::HOST_COHERENT);
    let cached = |index: &u32| offers.memory_types[*index as usize].property_flags.contains(Flags::HOST_CACHED);
    let fits = (0..offers.memory_type_count).filter(|index| fitting & (1 << index) != 0);
    fits.filter(coherent)
        .max_by_key(cached)
        .ok_or_else(|| GpuError::NotImportable { why: "no memory type of the device fits this pointer and is coherent".to_owned() })
}
