//! Dispatch: a kernel that the guest brings, on ranges of the guest's own memory.
//!
//! Whatever stands in the text, the kernel touches the ranges that it is bound to and nothing else, and it ends: see `compute`'s
//! `guest_kernel.rs`. The guest stands in this call until the GPU is done, and nobody holds a reference to its memory meanwhile.
//!
//! Before the work the call yields once, so that the wall limit ends a guest that does nothing but dispatch, and others get their turn.

use super::{Answer, MODULE, charge, check_doom, granted, note_computed, number, on_desk, text_fuel, with_desk};
use crate::abi::{Binding, Grid, Refused};
use crate::desk::{Desk, lock};
use crate::instance::Guest;
use crate::limits::{DISPATCH_FUEL, OPERATIONS_PER_FUEL};
use crate::memory::GuestMemory;
use crate::tape::fuel_used;
use crate::{Error, LogLevel};
use driftwood_compute::gpu::{Gpu, GpuError, GuestDispatch, GuestDispatchError, GuestKernelError, GuestKernelLimits};
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use wasmtime::{Caller, Linker};

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        MODULE,
        "dispatch",
        |c, (text, text_bytes, bindings, count, grid): (u32, u32, u32, u32, u32)| -> Answer<'_> {
            Box::new(dispatch(c, Arguments { text, text_bytes, bindings, count, grid }))
        },
    )?;
    Ok(())
}

async fn dispatch(mut caller: Caller<'_, Guest>, arguments: Arguments) -> wasmtime::Result<i32> {
    charge(&mut caller, DISPATCH_FUEL)?;
    let order = with_desk(&mut caller, text_fuel(arguments.text_bytes), |memory, desk| arguments.read(memory, desk));
    let order = granted!(order?);
    yield_once().await;
    let (gpu, kernel) = granted!(on_desk(&mut caller, |_, desk| order.kernel(desk)));
    let cost = kernel.checked().admit(order.workgroups);
    let cost = granted!(on_desk(&mut caller, |_, desk| cost.map_err(|error| refuse(desk, error.into()))));
    charge(&mut caller, cost / OPERATIONS_PER_FUEL)?;
    let fuel = fuel_used(&caller)?;
    let ran = order.run(&mut caller, &gpu, &kernel);
    let ranges: Vec<_> = order.ranges.iter().map(|range| range.start as usize..range.end as usize).collect();
    let noted = ran.and_then(|done| note_computed(&mut caller, fuel, &ranges).map(|()| done));
    check_doom(&caller)?;
    Ok(number(noted))
}

/// The call's arguments as they come.
struct Arguments {
    text: u32,
    text_bytes: u32,
    bindings: u32,
    count: u32,
    grid: u32,
}

/// A dispatch whose ranges lie in linear memory.
struct Order {
    text: String,
    ranges: Vec<Range<u64>>, // bytes, one a binding
    workgroups: [u32; 3],
    loop_budget: u32,
}

impl Arguments {
    /// Takes everything out of the guest's memory but the bytes that the kernel works on.
    fn read(&self, memory: &GuestMemory<'_>, desk: &mut Desk) -> Result<Order, Refused> {
        let Grid { workgroups, loop_budget } = memory.read(self.grid)?;
        let limits = GuestKernelLimits::default();
        let text = memory.bytes(self.text, self.text_bytes)?;
        let (bytes, max) = (text.len(), limits.source_bytes_max);
        if bytes > max {
            return Err(refuse(desk, GuestKernelError::SourceTooLong { bytes, max }.into()));
        }
        let (count, max) = (u64::from(self.count), limits.bindings_max as u64);
        if count > max {
            return Err(refuse(desk, GuestKernelError::TooMany { what: "bindings", count, max }.into()));
        }
        let text = std::str::from_utf8(text).map_err(|_| Refused::BadText)?.to_owned();
        let bindings: &[Binding] = memory.slice(self.bindings, self.count)?;
        let range = |binding: &Binding| memory.range(binding.offset, binding.length as usize);
        let range = |binding| range(binding).map(|range| range.start as u64..range.end as u64);
        Ok(Order { text, ranges: bindings.iter().map(range).collect::<Result<_, _>>()?, workgroups, loop_budget })
    }
}

impl Order {
    fn kernel(&self, desk: &mut Desk) -> Result<(Arc<Gpu>, Arc<GuestDispatch>), Refused> {
        let Some(gpu) = desk.models.gpu() else {
            return Err(no_gpu(desk, "it computes on the processor".to_owned()));
        };
        let kernel = desk.kernels.get(&gpu, &self.text, self.loop_budget).map_err(|error| refuse(desk, error))?;
        Ok((gpu, kernel))
    }

    fn run(&self, caller: &mut Caller<'_, Guest>, gpu: &Arc<Gpu>, kernel: &GuestDispatch) -> Result<i32, Refused> {
        let done = caller.data_mut().imported(gpu)?.map_err(|error| error.clone().into());
        let done = done.and_then(|memory| kernel.run(gpu, memory, &self.ranges, self.workgroups));
        let mut desk = lock(&caller.data().desk);
        done.map_err(|error| refuse(&mut desk, error))?;
        desk.products.dispatched += 1;
        Ok(0)
    }
}

/// Tells the log and the message's error why; the guest gets a number.
fn refuse(desk: &mut Desk, error: GuestDispatchError) -> Refused {
    use GuestKernelError as Kernel;
    let refused = match &error {
        GuestDispatchError::Gpu(GpuError::NotImportable { why }) => return no_gpu(desk, why.clone()),
        GuestDispatchError::Gpu(GpuError::BeyondLimit { .. }) => Refused::Limit,
        GuestDispatchError::Gpu(_) => Refused::ModelError,
        GuestDispatchError::Kernel(error) => match error {
            Kernel::SourceTooLong { .. } | Kernel::TooMany { .. } | Kernel::Grid { .. } | Kernel::DispatchCost { .. } => Refused::Limit,
            Kernel::RangeCount { .. } | Kernel::TooShort { .. } | Kernel::Overlap { .. } => Refused::BadArgument,
            Kernel::Unaligned { .. } => Refused::Unaligned,
            _ => Refused::BadKernel,
        },
    };
    desk.log(LogLevel::Error, &error.to_string());
    desk.note(match error {
        GuestDispatchError::Kernel(error) => Error::Kernel(error),
        GuestDispatchError::Gpu(error) => Error::Compute { why: error.to_string() },
    });
    refused
}

fn no_gpu(desk: &mut Desk, why: String) -> Refused {
    let error = Error::NoGpu { why };
    desk.log(LogLevel::Error, &error.to_string());
    desk.note(error);
    Refused::NoGpu
}

/// Lets the step loop look at the clock and at other actors.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|_| if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}
