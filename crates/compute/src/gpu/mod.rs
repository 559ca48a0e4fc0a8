//! The graphics processor as a device, through wgpu: the same WGSL on Vulkan and on Metal.
//!
//! - `device.rs`: [`Gpu`], an opened device: what it offers, buffers, kernels, submission, loss.
//! - `import.rs`: a host region as a GPU buffer without a copy; `import_vulkan.rs` and `import_metal.rs` are the two APIs behind it.
//! - `kernel.rs`: a kernel compiled from WGSL, and what a step dispatches.
//! - `pipelines.rs`: compiled kernels, kept in a file from one start to the next.
//! - `plain.rs`: the kernels of a decoder that run on every device; their texts are in `wgsl/`.
//! - `weight.rs`: a stored matrix as they bind it.
//! - `sample.rs`: the next token, chosen on the device.
//! - `guest_kernel.rs`: [`GuestKernel`], a kernel that a guest brings, made harmless before it is submitted.
//! - `guest_dispatch.rs`: [`GuestDispatch`], such a kernel compiled, and run on ranges of the guest's own memory.
//! - `gemm.rs`: a plain product of f32 matrices, for guests and for `doctor.rs`, which measures what a machine can share.
//! - `tiles/`: matrix products and attention for devices with cooperative matrices.
//!
//! On *unified* memory (integrated graphics, Apple Silicon, software devices) everything stays in shared regions. On a discrete device
//! weights and KV live in the device's own memory and the shared window carries tokens, logits and snapshots.
//!
//! Files with `unsafe`: `device.rs`, `doctor.rs`, `import.rs`, `import_vulkan.rs`, `import_metal.rs`, `kernel.rs`, `pipelines.rs`.

mod device;
pub mod doctor;
mod error;
mod gemm;
mod guest_dispatch;
mod guest_kernel;
mod import;
#[cfg(target_vendor = "apple")]
mod import_metal;
#[cfg(not(target_vendor = "apple"))]
mod import_vulkan;
mod kernel;
mod pipelines;
mod plain;
#[cfg(test)]
mod plain_tests;
mod sample;
#[cfg(test)]
pub(crate) mod tests;
pub mod tiles;
mod weight;

#[cfg(target_vendor = "apple")]
use import_metal::Opened;
#[cfg(not(target_vendor = "apple"))]
use import_vulkan::Opened;

pub use device::{Gpu, GpuInfo};
pub use error::GpuError;
pub use gemm::{Gemm, GemmRanges, GemmShape};
pub use guest_dispatch::{GuestDispatch, GuestDispatchError};
pub use guest_kernel::{GuestBinding, GuestKernel, GuestKernelError, GuestKernelLimits};
pub use import::{Imported, Window};
pub use kernel::{Binding, Dispatch, Kernel, KernelSource, Timed, record, show_host};
pub use plain::{Each, Heads, KvBinding, Pairs, Plain, Product, RowDispatch, Scores};
pub use sample::{Draw, NO_TOKEN, Sample};
pub use weight::{Groups, Span, Weight, WeightPart};
pub use wgpu::{Buffer, CommandBuffer, CommandEncoder, SubmissionIndex};

/// Changes whenever a GPU kernel's results change in any bit; part of the numerics id.
pub const GPU_KERNEL_VERSION: u32 = 2;

/// The same of the kernels in `tiles/`.
pub const TILE_KERNEL_VERSION: u32 = 1;
