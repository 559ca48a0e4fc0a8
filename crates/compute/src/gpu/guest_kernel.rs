//! A compute kernel that a guest brings, made harmless before anything is submitted: no watchdog can stop a dispatch that runs.
//!
//! [`GuestKernel::check`] takes WGSL and yields a naga module that
//! - reads and writes only storage buffers bound in group 0 (the host binds ranges of that guest's own memory, nothing else),
//! - ends: each invocation has one budget of loop iterations, over all its loops (`budget.rs`); WGSL has no recursion,
//! - does not hang at a barrier: all invocations of a workgroup meet the same barriers in the same order (`barriers.rs`),
//! - has a bound on what one invocation costs (`cost.rs`), so that [`GuestKernel::admit`] bounds a whole dispatch.
//!
//! The text is looked at before naga sees it (`scan.rs`), since naga was not made to survive every text.
//!
//! # What compiling and dispatching must do (`guest_dispatch.rs` does)
//!
//! - Create the shader module from the checked module with wgpu's checked `create_shader_module`, never the trusted variant: that
//!   keeps indices within their arrays and buffers.
//! - Create the pipeline with `zero_initialize_workgroup_memory: true`, or a workgroup reads what an earlier one left.
//! - Give the pipeline an explicit layout of [`GuestKernel::bindings`]: wgpu's automatic one leaves out what the kernel does not use.
//! - Call [`GuestKernel::admit`] and [`GuestKernel::fit`] (`ranges.rs`) before each dispatch.

mod barriers;
mod budget;
mod cost;
mod interface;
mod ranges;
mod scan;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_on_gpu;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// The stack that naga's recursion gets; `scan.rs` bounds how deep it goes. Only the pages that are touched cost memory.
const STACK_BYTES: usize = 32 << 20;
/// How many workgroups there may be along one dimension, as wgpu's default limit has it.
const WORKGROUPS_MAX: u32 = 65_535;

/// What a guest's kernel may have. They come from the host, never from the guest; a guest may ask for less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestKernelLimits {
    /// Bytes of WGSL.
    pub source_bytes_max: usize,
    /// Loop iterations of one invocation, over all loops that it runs. Behind it loops end at once, and the rest of the kernel runs on.
    pub loop_budget: u32,
    /// Static size with every call inlined, in units of about one scalar operation: what a driver's compiler has to digest.
    pub inlined_size_max: u64,
    /// Loops with every call inlined. Drivers need much time for them: Mesa's software device 0.8 s for 16, 6 s for 32, minutes for 128.
    pub inlined_loops_max: u64,
    /// Bytes of private and local variables of one invocation, with every call inlined.
    pub private_bytes_max: u64,
    /// Bytes of workgroup memory.
    pub workgroup_bytes_max: u64,
    /// Invocations of one workgroup.
    pub workgroup_invocations_max: u32,
    /// Storage buffers.
    pub bindings_max: usize,
    /// Cost of one dispatch: workgroups times invocations times [`GuestKernel::cost_per_invocation`].
    pub dispatch_cost_max: u64,
    /// Whether the device has 16-bit floats.
    pub float16: bool,
}

impl Default for GuestKernelLimits {
    fn default() -> Self {
        GuestKernelLimits {
            source_bytes_max: 64 << 10,
            loop_budget: 1 << 16,
            inlined_size_max: 1 << 13,
            inlined_loops_max: 16,
            private_bytes_max: 8 << 10,
            workgroup_bytes_max: 16 << 10,
            workgroup_invocations_max: 256,
            bindings_max: 8,
            dispatch_cost_max: 1 << 36,
            float16: false,
        }
    }
}

/// A storage buffer that a kernel wants in group 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestBinding {
    /// Whether the kernel may write it.
    pub writable: bool,
    /// How many bytes it needs at least: the size of its type, an array without a length counting one element.
    pub bytes_min: u64,
}

/// A kernel that was checked.
#[derive(Clone, Debug)]
pub struct GuestKernel {
    module: naga::Module,
    entry: String,
    workgroup_size: [u32; 3],
    bindings: Vec<GuestBinding>,
    cost_per_invocation: u64,
    dispatch_cost_max: u64,
}

impl GuestKernel {
    /// Checks a guest's WGSL and gives its loops a budget.
    ///
    /// # Errors
    /// One of [`GuestKernelError`], by what is wrong with the text. Nothing that a guest writes makes it panic.
    pub fn check(source: &str, entry: &str, limits: &GuestKernelLimits) -> Result<GuestKernel, GuestKernelError> {
        if source.len() > limits.source_bytes_max {
            return Err(GuestKernelError::SourceTooLong { bytes: source.len(), max: limits.source_bytes_max });
        }
        let text = scan::scan(source)?;
        on_deep_stack(|| check_text(&text, entry, limits))
    }

    /// A bound on the cost of a dispatch of that many workgroups in x, y and z, if it stays within the limits.
    ///
    /// # Errors
    /// [`GuestKernelError::Grid`] or [`GuestKernelError::DispatchCost`].
    pub fn admit(&self, workgroups: [u32; 3]) -> Result<u64, GuestKernelError> {
        if workgroups.iter().any(|&count| count > WORKGROUPS_MAX) {
            return Err(GuestKernelError::Grid { workgroups, max: WORKGROUPS_MAX });
        }
        let counts = workgroups.iter().chain(&self.workgroup_size).map(|&count| u64::from(count));
        let cost = counts.fold(self.cost_per_invocation, u64::saturating_mul);
        if cost > self.dispatch_cost_max {
            return Err(GuestKernelError::DispatchCost { cost, max: self.dispatch_cost_max });
        }
        Ok(cost)
    }

    /// The module to compile, with wgpu's `ShaderSource::Naga`: exactly what was checked, not a text of it.
    pub fn module(&self) -> &naga::Module {
        &self.module
    }

    /// [`GuestKernel::module`] with every buffer declared for writing: all bindings are ranges of one buffer, which has one use in a
    /// dispatch. Which of them it writes was checked before and stays so.
    pub(super) fn module_for_one_buffer(&self) -> naga::Module {
        let mut module = self.module.clone();
        for (_, variable) in module.global_variables.iter_mut() {
            if let naga::AddressSpace::Storage { access } = &mut variable.space {
                *access |= naga::StorageAccess::LOAD | naga::StorageAccess::STORE;
            }
        }
        module
    }

    /// The name of its one entry point.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Invocations of a workgroup in x, y and z.
    pub fn workgroup_size(&self) -> [u32; 3] {
        self.workgroup_size
    }

    /// What to bind: buffer `i` of group 0 is entry `i`.
    pub fn bindings(&self) -> &[GuestBinding] {
        &self.bindings
    }

    /// A bound on what one invocation costs, in units of about one scalar operation.
    pub fn cost_per_invocation(&self) -> u64 {
        self.cost_per_invocation
    }
}

fn check_text(text: &str, entry: &str, limits: &GuestKernelLimits) -> Result<GuestKernel, GuestKernelError> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| GuestKernelError::Parse { why: e.emit_to_string(text) })?;
    interface::bound_counts(&module)?;
    let info = validate(&module, limits)?;
    let (bindings, workgroup_size) = interface::check(&module, entry, limits)?;
    let counted = barriers::check(&module)?;
    let cost_per_invocation = cost::bound(&module, &info, &counted, limits)?;
    let module = budget::insert(module, &counted, limits.loop_budget);
    validate(&module, limits)?;
    let (entry, dispatch_cost_max) = (entry.to_owned(), limits.dispatch_cost_max);
    Ok(GuestKernel { module, entry, workgroup_size, bindings, cost_per_invocation, dispatch_cost_max })
}

fn validate(module: &naga::Module, limits: &GuestKernelLimits) -> Result<ModuleInfo, GuestKernelError> {
    let float16 = if limits.float16 { Capabilities::SHADER_FLOAT16 } else { Capabilities::empty() };
    let capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32 | float16;
    let checked = Validator::new(ValidationFlags::all(), capabilities).validate(module);
    checked.map_err(|error| GuestKernelError::Invalid { why: chain(error.as_inner()) })
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs `work` on a stack that is deep enough for what `scan.rs` lets through, and turns a panic of naga's into an error.
pub(super) fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, GuestKernelError> + Send) -> Result<T, GuestKernelError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("guest-kernel".to_owned()).stack_size(STACK_BYTES);
        let running =
            thread.spawn_scoped(scope, work).map_err(|_| GuestKernelError::Compiler { why: "there is no thread to run it on" })?;
        running.join().unwrap_or(Err(GuestKernelError::Compiler { why: "it panicked" }))
    })
}

/// Why a guest's kernel, or a dispatch of it, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestKernelError {
    /// The text is too long.
    #[error("the kernel has {bytes} bytes; {max} is the most")]
    SourceTooLong {
        /// Its length.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// Something else than ASCII stands outside a comment.
    #[error("byte {offset} of the kernel is not ASCII; only comments may hold other characters")]
    NotAscii {
        /// Where it stands.
        offset: usize,
    },
    /// The text would drive the compiler into deep recursion.
    #[error("the kernel has more than {max} {what}; split it up")]
    TooDeep {
        /// What there is too much of.
        what: &'static str,
        /// The most.
        max: usize,
    },
    /// A constant that is an array or a structure.
    #[error("the constant `{name}` holds or names an array, an alias or a structure; make it a `var<private>`")]
    ConstTable {
        /// Its name.
        name: String,
    },
    /// An array or a structure without its elements.
    #[error("`{name}()` is the zero of an array or a structure; declare a variable without initialiser, which begins as zero")]
    ZeroValue {
        /// The type's name.
        name: String,
    },
    /// It is not WGSL.
    #[error("the kernel is not WGSL: {why}")]
    Parse {
        /// The parser's message.
        why: String,
    },
    /// It is WGSL but breaks its rules, or uses what is not offered here.
    #[error("the kernel is not valid here: {why}")]
    Invalid {
        /// The validator's message.
        why: String,
    },
    /// The compiler failed on it.
    #[error("the compiler could not work on the kernel: {why}")]
    Compiler {
        /// How.
        why: &'static str,
    },
    /// Something that guests cannot have.
    #[error("a kernel cannot have {what}")]
    Unsupported {
        /// What it is.
        what: &'static str,
    },
    /// Too many of something.
    #[error("the kernel has {count} {what}; {max} is the most")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// The most.
        max: u64,
    },
    /// Not exactly one compute entry point of the name asked for.
    #[error("the kernel must have one entry point, `@compute fn {expected}`; it has {found}")]
    EntryPoint {
        /// The name asked for.
        expected: String,
        /// What there is.
        found: String,
    },
    /// The workgroup is too large.
    #[error("a workgroup of {size:?} is too large: {invocations_max} invocations are the most, and 64 along z")]
    WorkgroupSize {
        /// What the kernel asks for.
        size: [u32; 3],
        /// The most in all.
        invocations_max: u32,
    },
    /// A binding is not as it must be.
    #[error("`{name}` must be a `var<storage>` in group 0, and bindings must be numbered from 0 without a gap")]
    Binding {
        /// The variable.
        name: String,
    },
    /// A barrier where not all invocations of a workgroup are sure to arrive.
    #[error("`{function}` has a barrier {place}: not all invocations are sure to reach it")]
    Barrier {
        /// The function.
        function: String,
        /// Where it stands.
        place: &'static str,
    },
    /// Another number of ranges than the kernel has bindings.
    #[error("the kernel has {expected} bindings; {count} ranges are given")]
    RangeCount {
        /// How many ranges there are.
        count: usize,
        /// How many bindings.
        expected: usize,
    },
    /// A range that does not begin or end where a binding can.
    #[error("range {binding} begins at {offset} and has {bytes} bytes; it must begin at a multiple of {align} and have a multiple of 4")]
    Unaligned {
        /// Which range.
        binding: usize,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
        /// Ranges begin at multiples of this.
        align: u64,
    },
    /// A range that is shorter than what the kernel declares.
    #[error("range {binding} has {bytes} bytes; the kernel needs {bytes_min}")]
    TooShort {
        /// Which range.
        binding: usize,
        /// How long it is.
        bytes: u64,
        /// What the kernel declares, at least.
        bytes_min: u64,
    },
    /// A range that the kernel may write overlaps another.
    #[error("range {written}, which the kernel may write, overlaps range {other}")]
    Overlap {
        /// The range that may be written.
        written: usize,
        /// The range that it overlaps.
        other: usize,
    },
    /// More workgroups along one dimension than can be dispatched.
    #[error("{workgroups:?} workgroups are too many: {max} along each dimension are the most")]
    Grid {
        /// What was asked for.
        workgroups: [u32; 3],
        /// The most.
        max: u32,
    },
    /// The whole dispatch could take too long.
    #[error("the dispatch could cost {cost} operations and {max} is the most: ask for fewer workgroups or a smaller loop budget")]
    DispatchCost {
        /// The bound on its cost.
        cost: u64,
        /// The most.
        max: u64,
    },
}
