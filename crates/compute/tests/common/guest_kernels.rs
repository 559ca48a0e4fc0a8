//! What the fuzz target of guests' kernels does with its input, shared with the test that replays the seeds.

use driftwood_compute::gpu::{GuestKernel, GuestKernelLimits};

/// Checks `data` as a kernel. Errors are fine; panics, and inconsistent figures of what was let through, are not.
pub fn guest_kernel(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let limits = GuestKernelLimits { float16: source.len() % 2 == 0, ..GuestKernelLimits::default() };
    match GuestKernel::check(source, "main", &limits) {
        Ok(kernel) => {
            let invocations: u32 = kernel.workgroup_size().iter().product();
            assert!((1..=limits.workgroup_invocations_max).contains(&invocations) && kernel.bindings().len() <= limits.bindings_max);
            assert!(kernel.cost_per_invocation() > 0 && kernel.admit([0, 1, 1]).is_ok());
        }
        Err(error) => assert!(!error.to_string().contains("panicked"), "{error}"),
    }
}
