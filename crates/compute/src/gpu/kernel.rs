//! A kernel compiled from WGSL, and what a step dispatches.

#![allow(unsafe_code)]

use super::{Gpu, GpuError, GuestKernel, Imported};
use std::borrow::Cow;
use std::num::NonZeroU64;
use std::sync::Arc;

/// Where a kernel's text comes from, which decides how its accesses are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelSource<'a> {
    /// WGSL from anywhere: every access is checked against its binding, and workgroup memory starts as zeros.
    Checked(&'a str),
    /// WGSL of our own, for shapes that were checked before: no bounds checks, and workgroup memory starts as anything.
    Trusted(&'a str),
}

/// A compiled kernel. Its bindings stand in group 0.
#[derive(Debug)]
pub struct Kernel {
    label: String,
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// A range of a buffer that a kernel reads or writes.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The buffer.
    pub buffer: &'a wgpu::Buffer,
    /// Where the range begins, a multiple of [`super::GpuInfo::binding_align_bytes`].
    pub offset_bytes: u64,
    /// How long it is, a multiple of 4.
    pub bytes: u64,
}

impl<'a> Binding<'a> {
    /// All of a buffer.
    pub fn whole(buffer: &'a wgpu::Buffer) -> Binding<'a> {
        Binding { buffer, offset_bytes: 0, bytes: buffer.size() }
    }

    fn entry(self, binding: u32) -> wgpu::BindGroupEntry<'a> {
        let range = wgpu::BufferBinding { buffer: self.buffer, offset: self.offset_bytes, size: NonZeroU64::new(self.bytes) };
        wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(range) }
    }
}

/// How long a dispatch took.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// The name of its kernel.
    pub label: String,
    /// Microseconds.
    pub us: f64,
}

/// One dispatch: a kernel, what it is bound to, and how many workgroups.
#[derive(Clone, Debug)]
pub struct Dispatch {
    kernel: Arc<Kernel>,
    bindings: wgpu::BindGroup,
    /// Workgroups in x, y and z.
    pub workgroups: [u32; 3],
}

impl Dispatch {
    /// The same with another second extent, along which rows lie.
    pub fn for_rows(&self, rows: u32) -> Dispatch {
        let [x, _, z] = self.workgroups;
        Dispatch { workgroups: [x, rows, z], ..self.clone() }
    }
}

impl Kernel {
    pub(super) fn compile(device: &wgpu::Device, label: &str, source: KernelSource<'_>, cache: Option<&wgpu::PipelineCache>) -> Kernel {
        let descriptor =
            |text: &str| wgpu::ShaderModuleDescriptor { label: Some(label), source: wgpu::ShaderSource::Wgsl(text.to_owned().into()) };
        let (module, zero_workgroup_memory) = match source {
            KernelSource::Checked(text) => (device.create_shader_module(descriptor(text)), true),
            KernelSource::Trusted(text) => {
                // SAFETY: the text is ours; its callers check shapes against bindings, and its loops have constant or checked bounds.
                let module = unsafe { device.create_shader_module_trusted(descriptor(text), wgpu::ShaderRuntimeChecks::unchecked()) };
                (module, false)
            }
        };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: zero_workgroup_memory,
            },
            cache,
        });
        let layout = pipeline.get_bind_group_layout(0);
        Kernel { label: label.to_owned(), pipeline, layout }
    }

    /// Compiles a guest's kernel with everything that wgpu can check switched on, and a layout of what it says it binds.
    pub(super) fn compile_guest(device: &wgpu::Device, checked: &GuestKernel) -> Kernel {
        let label = "a guest's kernel";
        let entries: Vec<_> = (0..).zip(checked.bindings()).map(|(index, binding)| guest_entry(index, binding.bytes_min)).collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries });
        let source = wgpu::ShaderSource::Naga(Cow::Owned(checked.module_for_one_buffer()));
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: Some(
                &device
                    .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor { bind_group_layouts: &[Some(&layout)], ..Default::default() }),
            ),
            module: &device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(label), source }),
            entry_point: Some(checked.entry()),
            compilation_options: wgpu::PipelineCompilationOptions { constants: &[], zero_initialize_workgroup_memory: true },
            cache: None,
        });
        Kernel { label: label.to_owned(), pipeline, layout }
    }

    /// The name that it was compiled under.
    pub fn label(&self) -> &str {
        &self.label
    }
}

fn guest_entry(binding: u32, bytes_min: u64) -> wgpu::BindGroupLayoutEntry {
    let ty = wgpu::BindingType::Buffer {
        ty: wgpu::BufferBindingType::Storage { read_only: false },
        has_dynamic_offset: false,
        min_binding_size: NonZeroU64::new(bytes_min),
    };
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}

impl Gpu {
    /// Binds a kernel to buffers, binding 0 first, for as many dispatches as one likes.
    pub fn dispatch(&self, kernel: &Arc<Kernel>, bindings: &[Binding<'_>], workgroups: [u32; 3]) -> Dispatch {
        let entries: Vec<_> = bindings.iter().enumerate().map(|(index, binding)| binding.entry(index as u32)).collect();
        let bindings = self.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&kernel.label),
            layout: &kernel.layout,
            entries: &entries,
        });
        Dispatch { kernel: kernel.clone(), bindings, workgroups }
    }

    /// Runs dispatches in order, in one pass, and waits. For tests and small jobs; a decoder records its own.
    ///
    /// # Errors
    /// If the driver refuses or the device is lost.
    pub fn run(&self, dispatches: &[Dispatch]) -> Result<(), GpuError> {
        let mut encoder = self.encoder();
        record(&mut encoder, dispatches);
        self.submit(encoder)?;
        self.wait()
    }

    /// As [`Gpu::run`], for dispatches that write into shared memory: their writes are there for the host to read afterwards.
    ///
    /// # Errors
    /// If the driver refuses or the device is lost.
    pub fn run_shared(&self, dispatches: &[Dispatch], shared: &Imported) -> Result<(), GpuError> {
        let mut encoder = self.encoder();
        record(&mut encoder, dispatches);
        let to_host = wgpu::wgt::BufferTransition { buffer: shared.buffer(), state: wgpu::wgt::BufferUses::MAP_READ };
        encoder.transition_resources([to_host].into_iter(), std::iter::empty());
        self.submit(encoder)?;
        self.wait()
    }

    /// As [`Gpu::run`], with the time that each dispatch took by the device's own clock, waiting for the one before it included.
    ///
    /// # Errors
    /// If the device has no clock that kernels can be timed with, if there are more dispatches than it has places for, or as [`Gpu::run`].
    pub fn run_timed(&self, dispatches: &[Dispatch]) -> Result<Vec<Timed>, GpuError> {
        if !self.device().features().contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
            return Err(GpuError::BadShape { why: format!("{} cannot time kernels", self.info().name) });
        }
        let marks = dispatches.len() as u32 + 1;
        if marks > wgpu::QUERY_SET_MAX_QUERIES {
            let (asked, limit) = (marks.into(), wgpu::QUERY_SET_MAX_QUERIES.into());
            return Err(GpuError::BeyondLimit { what: "marks in time", asked, limit });
        }
        let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: marks };
        let queries = self.device().create_query_set(&descriptor);
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let size = 8 * u64::from(marks);
        let resolved = self.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        let mut encoder = self.encoder();
        record_marked(&mut encoder, dispatches, Some(&queries));
        encoder.resolve_query_set(&queries, 0..marks, &resolved, 0);
        self.submit(encoder)?;
        let mut ticks = vec![0u64; marks as usize];
        self.read(&resolved, 0, bytemuck::cast_slice_mut(&mut ticks))?;
        let period_us = f64::from(self.queue().get_timestamp_period()) / 1e3;
        let us = ticks.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * period_us);
        Ok(dispatches.iter().zip(us).map(|(dispatch, us)| Timed { label: dispatch.kernel.label.clone(), us }).collect())
    }

    /// A recorder of commands.
    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }
}

/// Records dispatches in order, in one pass: each sees what those before it wrote.
pub fn record(encoder: &mut wgpu::CommandEncoder, dispatches: &[Dispatch]) {
    record_marked(encoder, dispatches, None);
}

/// The same, with a mark in time before each dispatch and after the last.
fn record_marked(encoder: &mut wgpu::CommandEncoder, dispatches: &[Dispatch], marks: Option<&wgpu::QuerySet>) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    let mut current: Option<&Arc<Kernel>> = None;
    for (index, dispatch) in dispatches.iter().enumerate() {
        if let Some(marks) = marks {
            pass.write_timestamp(marks, index as u32);
        }
        if !current.is_some_and(|kernel| Arc::ptr_eq(kernel, &dispatch.kernel)) {
            pass.set_pipeline(&dispatch.kernel.pipeline);
            current = Some(&dispatch.kernel);
        }
        pass.set_bind_group(0, &dispatch.bindings, &[]);
        let [x, y, z] = dispatch.workgroups;
        pass.dispatch_workgroups(x, y, z);
    }
    if let Some(marks) = marks {
        pass.write_timestamp(marks, dispatches.len() as u32);
    }
}

/// Records that the host will read what the device wrote into shared memory.
pub fn show_host<'a>(encoder: &mut wgpu::CommandEncoder, buffers: impl IntoIterator<Item = &'a wgpu::Buffer>) {
    let state = wgpu::wgt::BufferUses::MAP_READ;
    let transitions = buffers.into_iter().map(|buffer| wgpu::wgt::BufferTransition { buffer, state });
    encoder.transition_resources(transitions, std::iter::empty());
}
