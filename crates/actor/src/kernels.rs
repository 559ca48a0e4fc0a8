//! The kernels that a guest brought, compiled once for their text.

use crate::limits::{DISPATCH_COST_MAX, KERNELS_MAX, SOFTWARE_DISPATCH_COST_MAX};
use driftwood_compute::gpu::{Gpu, GuestDispatch, GuestDispatchError, GuestKernel, GuestKernelLimits};
use driftwood_snapshot::Hash;
use std::sync::Arc;

/// The name of a kernel's entry point.
const ENTRY: &str = "main";

/// One actor's kernels, those used last at the end; no more than [`KERNELS_MAX`].
#[derive(Default)]
pub(crate) struct Kernels {
    gpu: Option<Arc<Gpu>>,
    compiled: Vec<((Hash, u32), Arc<GuestDispatch>)>,
}

impl Kernels {
    /// The kernel of that text, whose invocations may run so many iterations of loops; 0 asks for as many as there may be.
    pub(crate) fn get(&mut self, gpu: &Arc<Gpu>, text: &str, loop_budget: u32) -> Result<Arc<GuestDispatch>, GuestDispatchError> {
        if !self.gpu.as_ref().is_some_and(|known| Arc::ptr_eq(known, gpu)) {
            *self = Kernels { gpu: Some(gpu.clone()), compiled: Vec::new() };
        }
        let key = (Hash::of(text.as_bytes()), loop_budget);
        let kernel = match self.compiled.iter().position(|(known, _)| *known == key) {
            Some(at) => self.compiled.remove(at).1,
            None => Arc::new(GuestDispatch::compile(gpu, GuestKernel::check(text, ENTRY, &limits(gpu, loop_budget))?)?),
        };
        if self.compiled.len() == KERNELS_MAX {
            self.compiled.remove(0);
        }
        self.compiled.push((key, kernel.clone()));
        Ok(kernel)
    }
}

fn limits(gpu: &Gpu, loop_budget: u32) -> GuestKernelLimits {
    let most = GuestKernelLimits::default();
    GuestKernelLimits {
        loop_budget: if loop_budget == 0 { most.loop_budget } else { loop_budget.min(most.loop_budget) },
        dispatch_cost_max: if gpu.info().software { SOFTWARE_DISPATCH_COST_MAX } else { DISPATCH_COST_MAX },
        float16: gpu.info().f16,
        ..most
    }
}
