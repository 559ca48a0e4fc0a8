//! What one invocation costs at most, and what a driver's compiler has to digest.
//!
//! The unit is about one scalar operation. A block costs the sum of what stands in it, with calls inlined, both arms of a branch, and the
//! body of a counted loop as often as it runs. The body of any other loop counts once there, and each of its iterations is paid from the
//! invocation's loop budget: an iteration runs its body once, in which the loops inside it pay for themselves. So
//!
//! `cost of an invocation <= cost of the entry point + loop budget x the most expensive body of a loop with a budget`.

use super::barriers::Counted;
use super::interface::{at_most, bytes};
use super::{GuestKernelError as Error, GuestKernelLimits};
use naga::valid::{FunctionInfo, ModuleInfo};
use naga::{AddressSpace, Block, Expression, Function, Handle, Module, Statement, TypeInner};

/// The largest value that may be loaded, passed or computed at once. Larger arrays are reached element by element.
const VALUE_BYTES_MAX: u64 = 1024;
/// What the check of the budget costs in each iteration.
const CHECK_COST: u64 = 4;

/// A function's figures, with what it calls inlined.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    /// Statements and operations, each once.
    size: u64,
    /// Loops.
    loops: u64,
    /// Operations of one run, each loop with a budget counting one iteration.
    cost: u64,
    /// Operations of one iteration of the most expensive loop with a budget.
    iteration: u64,
    /// Bytes of local variables.
    local_bytes: u64,
}

impl Figures {
    fn plain(cost: u64) -> Figures {
        Figures { size: cost, cost, ..Figures::default() }
    }

    fn add(&mut self, other: Figures) {
        self.size = self.size.saturating_add(other.size);
        self.loops = self.loops.saturating_add(other.loops);
        self.cost = self.cost.saturating_add(other.cost);
        self.iteration = self.iteration.max(other.iteration);
        self.local_bytes = self.local_bytes.saturating_add(other.local_bytes);
    }
}

/// The bound on an invocation's cost, for a valid module whose barriers were checked.
///
/// # Errors
/// If the kernel is too large or has too many loops with its calls inlined, has too many private variables, too large values or a statement that is not offered.
pub(super) fn bound(module: &Module, info: &ModuleInfo, counted: &Counted, limits: &GuestKernelLimits) -> Result<u64, Error> {
    let mut callees = Vec::with_capacity(module.functions.len());
    for (handle, function) in module.functions.iter() {
        let figures = Walk { module, function, handle: Some(handle), info: &info[handle], counted, callees: &callees }.function()?;
        callees.push(figures);
    }
    let function = &module.entry_points[0].function;
    let entry = Walk { module, function, handle: None, info: info.get_entry_point(0), counted, callees: &callees }.function()?;
    at_most("operations with all calls inlined", entry.size, limits.inlined_size_max)?;
    at_most("loops with all calls inlined", entry.loops, limits.inlined_loops_max)?;
    let private = module.global_variables.iter().filter(|(_, variable)| variable.space == AddressSpace::Private);
    let private_bytes: u64 = private.map(|(_, variable)| bytes(module, &module.types[variable.ty].inner)).sum();
    at_most("bytes of private variables", private_bytes.saturating_add(entry.local_bytes), limits.private_bytes_max)?;
    Ok(entry.cost.saturating_add(entry.iteration.saturating_mul(limits.loop_budget.into())))
}

struct Walk<'a> {
    module: &'a Module,
    function: &'a Function,
    handle: Option<Handle<Function>>,
    info: &'a FunctionInfo,
    counted: &'a Counted,
    /// Figures of the functions before this one: naga orders callees first.
    callees: &'a [Figures],
}

impl Walk<'_> {
    fn function(&self) -> Result<Figures, Error> {
        for (handle, _) in self.function.expressions.iter() {
            at_most("bytes in one value", self.bytes(handle), VALUE_BYTES_MAX)?;
        }
        let mut figures = self.block(&self.function.body)?;
        for (_, variable) in self.function.local_variables.iter() {
            figures.add(Figures { local_bytes: bytes(self.module, &self.module.types[variable.ty].inner), ..Figures::plain(1) });
        }
        Ok(figures)
    }

    fn block(&self, block: &Block) -> Result<Figures, Error> {
        let mut sum = Figures::default();
        for statement in block {
            sum.add(Figures::plain(1));
            sum.add(self.statement(statement)?);
        }
        Ok(sum)
    }

    fn statement(&self, statement: &Statement) -> Result<Figures, Error> {
        Ok(match statement {
            Statement::Emit(range) => Figures::plain(range.clone().map(|handle| self.expression(handle)).sum()),
            Statement::Block(block) => self.block(block)?,
            Statement::If { accept, reject, .. } => self.all([accept, reject])?,
            Statement::Switch { cases, .. } => self.all(cases.iter().map(|case| &case.body))?,
            Statement::Loop { body, continuing, .. } => self.looped(body, continuing)?,
            Statement::Break | Statement::Continue | Statement::Return { .. } => Figures::default(),
            Statement::ControlBarrier(_) | Statement::MemoryBarrier(_) | Statement::WorkGroupUniformLoad { .. } => Figures::plain(32),
            Statement::Store { value, .. } => Figures::plain(4 * self.words(*value)),
            Statement::Atomic { .. } => Figures::plain(32),
            Statement::Call { function, arguments, .. } => {
                let mut figures = self.callees[function.index()];
                figures.add(Figures::plain(arguments.len() as u64));
                figures
            }
            Statement::Kill
            | Statement::ImageStore { .. }
            | Statement::ImageAtomic { .. }
            | Statement::RayQuery { .. }
            | Statement::RayPipelineFunction(_)
            | Statement::SubgroupBallot { .. }
            | Statement::SubgroupGather { .. }
            | Statement::SubgroupCollectiveOperation { .. }
            | Statement::CooperativeStore { .. } => {
                return Err(Error::Unsupported { what: "images, rays, subgroups, cooperative matrices or `discard`" });
            }
        })
    }

    fn all<'b>(&self, blocks: impl IntoIterator<Item = &'b Block>) -> Result<Figures, Error> {
        let mut sum = Figures::default();
        for block in blocks {
            sum.add(self.block(block)?);
        }
        Ok(sum)
    }

    fn looped(&self, body: &Block, continuing: &Block) -> Result<Figures, Error> {
        let mut figures = self.all([body, continuing])?;
        figures.add(Figures { loops: 1, ..Figures::plain(CHECK_COST) });
        match self.counted.trips(self.handle, body) {
            Some(trips) => figures.cost = figures.cost.saturating_mul(trips + 1),
            None => figures.iteration = figures.iteration.max(figures.cost),
        }
        Ok(figures)
    }

    fn expression(&self, handle: Handle<Expression>) -> u64 {
        let each = match self.function.expressions[handle] {
            Expression::Math { .. } => 16,
            Expression::Binary { .. } | Expression::Load { .. } | Expression::Access { .. } => 4,
            _ => 1,
        };
        each * self.words(handle)
    }

    fn words(&self, handle: Handle<Expression>) -> u64 {
        self.bytes(handle).div_ceil(4).max(1)
    }

    fn bytes(&self, handle: Handle<Expression>) -> u64 {
        let inner = self.info[handle].ty.inner_with(&self.module.types);
        if matches!(inner, TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. }) { 4 } else { bytes(self.module, inner) }
    }
}
