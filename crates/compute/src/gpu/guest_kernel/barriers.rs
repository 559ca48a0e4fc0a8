//! Barriers that all invocations of a workgroup are sure to meet, in the same order: without that a workgroup hangs.
//!
//! The rule is about shape, so that it needs no analysis of values: a barrier stands in straight-line code, or in a *counted loop*, one
//! that runs a constant number of times whatever the data. Nothing before it may leave the straight line. The loop budget does not
//! apply to counted loops with barriers (`budget.rs`); their iterations count in the static cost instead (`cost.rs`).

use super::GuestKernelError as Error;
use naga::{Arena, BinaryOperator, Block, Expression, Function, Handle, Literal, LocalVariable, Module, ScalarKind, Statement, TypeInner};
use std::collections::HashMap;

/// Iterations that a counted loop with a barrier may have.
const TRIPS_MAX: u64 = 4096;

/// What is known of a module's barriers.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// Whether each function, in the module's order, meets a barrier, itself or in what it calls.
    functions: Vec<bool>,
    /// For each counted loop with a barrier its number of iterations. Its key is the condition of the `if` that leaves it, in its
    /// function: each loop has an expression of its own for it.
    loops: HashMap<(Option<Handle<Function>>, Handle<Expression>), u64>,
}

impl Counted {
    /// The number of iterations of a loop that needs no budget. `function` is none for the entry point.
    pub(super) fn trips(&self, function: Option<Handle<Function>>, body: &Block) -> Option<u64> {
        self.loops.get(&(function, Header::of(body)?.condition)).copied()
    }

    fn has_barrier(&self, block: &Block) -> bool {
        block.iter().any(|statement| match statement {
            Statement::ControlBarrier(_) | Statement::MemoryBarrier(_) | Statement::WorkGroupUniformLoad { .. } => true,
            Statement::Call { function, .. } => self.functions[function.index()],
            _ => blocks(statement).into_iter().any(|block| self.has_barrier(block)),
        })
    }
}

/// Checks every function, callees first, and finds the counted loops.
pub(super) fn check(module: &Module) -> Result<Counted, Error> {
    let mut counted = Counted::default();
    for (handle, function) in module.functions.iter() {
        counted = Walk { module, function, handle: Some(handle), counted, diverted: false }.run()?;
        let has_barrier = counted.has_barrier(&function.body);
        counted.functions.push(has_barrier);
    }
    for entry in &module.entry_points {
        counted = Walk { module, function: &entry.function, handle: None, counted, diverted: false }.run()?;
    }
    Ok(counted)
}

/// The blocks inside a statement.
pub(super) fn blocks(statement: &Statement) -> Vec<&Block> {
    match statement {
        Statement::Block(block) => vec![block],
        Statement::If { accept, reject, .. } => vec![accept, reject],
        Statement::Switch { cases, .. } => cases.iter().map(|case| &case.body).collect(),
        Statement::Loop { body, continuing, .. } => vec![body, continuing],
        _ => Vec::new(),
    }
}

/// One function on its way from the first statement to the last.
struct Walk<'a> {
    module: &'a Module,
    function: &'a Function,
    handle: Option<Handle<Function>>,
    counted: Counted,
    /// Whether some invocation may already have left the straight line.
    diverted: bool,
}

impl<'a> Walk<'a> {
    fn run(mut self) -> Result<Counted, Error> {
        self.block(&self.function.body)?;
        Ok(self.counted)
    }

    fn block(&mut self, block: &'a Block) -> Result<(), Error> {
        for (at, statement) in block.iter().enumerate() {
            self.statement(statement, &block[..at])?;
            self.diverted |= leaves(statement, Inside::default());
        }
        Ok(())
    }

    fn statement(&mut self, statement: &'a Statement, before: &[Statement]) -> Result<(), Error> {
        if let Statement::Block(block) = statement {
            return self.block(block);
        }
        let alone = Block::from_vec(vec![statement.clone()]);
        if !self.counted.has_barrier(&alone) {
            return Ok(());
        }
        match statement {
            _ if self.diverted => Err(self.refused("behind a `return`, `break` or `continue`")),
            Statement::If { .. } | Statement::Switch { .. } => Err(self.refused("in a branch")),
            Statement::Loop { body, continuing, break_if } => {
                let counting = Counting { module: self.module, function: self.function };
                let header = Header::of(body).filter(|_| break_if.is_none());
                let trips = header.and_then(|header| counting.trips(header, continuing, before));
                let none = || self.refused("in a loop without a constant number of iterations");
                let (header, trips) = header.zip(trips).ok_or_else(none)?;
                self.counted.loops.insert((self.handle, header.condition), trips);
                let rest = header.rest;
                for (at, statement) in rest.iter().enumerate() {
                    self.statement(statement, &rest[..at])?;
                    if leaves(statement, Inside::default()) {
                        return Err(self.refused("in a loop that may also end, or go on, in another way"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn refused(&self, place: &'static str) -> Error {
        let name = self.function.name.clone().unwrap_or_else(|| self.module.entry_points[0].name.clone());
        Error::Barrier { function: name, place }
    }
}

/// Which jumps stay inside of what is looked at.
#[derive(Clone, Copy, Default)]
struct Inside {
    a_loop: bool,
    a_switch: bool,
}

/// Whether a statement may jump out of the block that it stands in.
fn leaves(statement: &Statement, inside: Inside) -> bool {
    let inside = match statement {
        Statement::Return { .. } | Statement::Kill => return true,
        Statement::Break => return !(inside.a_loop || inside.a_switch),
        Statement::Continue => return !inside.a_loop,
        Statement::Loop { .. } => Inside { a_loop: true, ..inside },
        Statement::Switch { .. } => Inside { a_switch: true, ..inside },
        _ => inside,
    };
    blocks(statement).into_iter().any(|block| block.iter().any(|statement| leaves(statement, inside)))
}

/// Finds out whether a loop is `for (var i = C0; i < C1; i += C2)` with nothing else that writes `i`, and plays its count through.
struct Counting<'a> {
    module: &'a Module,
    function: &'a Function,
}

impl Counting<'_> {
    /// The number of iterations, if it is constant and not too large.
    fn trips(&self, header: Header<'_>, continuing: &Block, before: &[Statement]) -> Option<u64> {
        let (compare, counter, bound) = self.counter_and_constant(header.condition, header.computed)?;
        let (computed, &Statement::Store { pointer, value: update }) = computed_before(continuing)? else { return None };
        let (step, stepped, by) = self.counter_and_constant(update, computed)?;
        let is_update = self.is(pointer, counter) && stepped == counter && continuing.len() == computed.len() + 1;
        if !is_update || self.stores(counter, &self.function.body)? != 1 + self.start_stores(counter, before) {
            return None;
        }
        let mut value = self.start(counter, before)?;
        let kind = self.kind(counter)?;
        for trips in 0..=TRIPS_MAX {
            if !compared(compare, value, bound)? {
                return Some(trips);
            }
            value = stepped_by(step, kind, value, by)?;
        }
        None
    }

    /// For `counter OP constant`, read and computed anew by `computed`: the operator, the counter and the constant.
    fn counter_and_constant(
        &self,
        expression: Handle<Expression>,
        computed: &[Statement],
    ) -> Option<(BinaryOperator, Handle<LocalVariable>, i64)> {
        let expressions = &self.function.expressions;
        let emits = |statement: &Statement, handle| matches!(statement, Statement::Emit(range) if range.clone().any(|each| each == handle));
        let fresh = |handle| computed.iter().any(|statement| emits(statement, handle));
        let Expression::Binary { op, left, right } = expressions[expression] else { return None };
        let Expression::Load { pointer } = expressions[left] else { return None };
        let Expression::LocalVariable(counter) = expressions[pointer] else { return None };
        let constant = self.constant(expressions, right)?;
        (fresh(expression) && fresh(left)).then_some((op, counter, constant))
    }

    fn constant(&self, arena: &Arena<Expression>, handle: Handle<Expression>) -> Option<i64> {
        match arena[handle] {
            Expression::Literal(Literal::U32(value)) => Some(value.into()),
            Expression::Literal(Literal::I32(value)) => Some(value.into()),
            Expression::ZeroValue(ty) => matches!(self.module.types[ty].inner, TypeInner::Scalar(_)).then_some(0),
            Expression::Constant(constant) => match self.module.global_expressions[self.module.constants[constant].init] {
                Expression::Literal(Literal::U32(value)) => Some(value.into()),
                Expression::Literal(Literal::I32(value)) => Some(value.into()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the counter is signed; none if it is no 32-bit integer.
    fn kind(&self, counter: Handle<LocalVariable>) -> Option<ScalarKind> {
        match self.module.types[self.function.local_variables[counter].ty].inner {
            TypeInner::Scalar(scalar) if scalar.width == 4 => Some(scalar.kind),
            _ => None,
        }
    }

    /// Where the count begins: the store right before the loop, or the variable's initialiser.
    fn start(&self, counter: Handle<LocalVariable>, before: &[Statement]) -> Option<i64> {
        let variable = &self.function.local_variables[counter];
        match self.start_store(counter, before) {
            Some(value) => self.constant(&self.function.expressions, value),
            None => variable.init.map_or(Some(0), |init| self.constant(&self.function.expressions, init)),
        }
    }

    fn start_store(&self, counter: Handle<LocalVariable>, before: &[Statement]) -> Option<Handle<Expression>> {
        match before.iter().rev().find(|statement| !matches!(statement, Statement::Emit(_)))? {
            &Statement::Store { pointer, value } if self.is(pointer, counter) => Some(value),
            _ => None,
        }
    }

    fn start_stores(&self, counter: Handle<LocalVariable>, before: &[Statement]) -> usize {
        usize::from(self.start_store(counter, before).is_some())
    }

    fn is(&self, pointer: Handle<Expression>, counter: Handle<LocalVariable>) -> bool {
        matches!(self.function.expressions[pointer], Expression::LocalVariable(variable) if variable == counter)
    }

    /// How many stores to the counter there are; none if a function is given a pointer to it.
    fn stores(&self, counter: Handle<LocalVariable>, block: &Block) -> Option<usize> {
        let mut count = 0;
        for statement in block {
            match statement {
                Statement::Store { pointer, .. } => count += usize::from(self.is(*pointer, counter)),
                Statement::Call { arguments, .. } if arguments.iter().any(|&argument| self.is(argument, counter)) => return None,
                _ => {}
            }
            for block in blocks(statement) {
                count += self.stores(counter, block)?;
            }
        }
        Some(count)
    }
}

/// The beginning of a loop whose body starts with `if condition {} else { break; }`, as that of `for` and `while` does.
#[derive(Clone, Copy)]
struct Header<'a> {
    condition: Handle<Expression>,
    /// What is computed for the condition.
    computed: &'a [Statement],
    /// What follows: straight-line code again, since the `break` is the count's own.
    rest: &'a [Statement],
}

impl Header<'_> {
    fn of(body: &Block) -> Option<Header<'_>> {
        let (computed, Statement::If { condition, accept, reject }) = computed_before(body)? else { return None };
        let leaves_only = accept.is_empty() && matches!(reject[..], [Statement::Break]);
        leaves_only.then_some(Header { condition: *condition, computed, rest: &body[computed.len() + 1..] })
    }
}

/// What a block computes before it does anything, and the first thing that it does.
fn computed_before(block: &Block) -> Option<(&[Statement], &Statement)> {
    let count = block.iter().take_while(|statement| matches!(statement, Statement::Emit(_))).count();
    Some((&block[..count], block.get(count)?))
}

fn compared(op: BinaryOperator, value: i64, bound: i64) -> Option<bool> {
    Some(match op {
        BinaryOperator::Less => value < bound,
        BinaryOperator::LessEqual => value <= bound,
        BinaryOperator::Greater => value > bound,
        BinaryOperator::GreaterEqual => value >= bound,
        BinaryOperator::NotEqual => value != bound,
        _ => return None,
    })
}

/// One step of the count, wrapping as WGSL's 32-bit integers do.
fn stepped_by(op: BinaryOperator, kind: ScalarKind, value: i64, by: i64) -> Option<i64> {
    let wide = match op {
        BinaryOperator::Add => value + by,
        BinaryOperator::Subtract => value - by,
        BinaryOperator::Multiply => value.wrapping_mul(by),
        BinaryOperator::Divide if by > 0 => value / by,
        BinaryOperator::ShiftLeft if (0..32).contains(&by) => value << by,
        BinaryOperator::ShiftRight if (0..32).contains(&by) => value >> by,
        _ => return None,
    };
    match kind {
        ScalarKind::Sint => Some(i64::from(wide as i32)),
        ScalarKind::Uint => Some(i64::from(wide as u32)),
        _ => None,
    }
}
