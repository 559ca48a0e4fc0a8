//! Gives every invocation one budget of loop iterations.
//!
//! A private variable, of which each invocation has its own, begins at the budget. Each iteration of each loop, also in called functions,
//! begins with `if (budget == 0) { break; } budget -= 1;`. Once nothing is left every loop ends at once, so that the rest of the kernel
//! runs through quickly. It is `break` and not `return`, because an invocation must still meet the barriers behind the loop.

use super::barriers::Counted;
use naga::{
    AddressSpace, BinaryOperator, Block, Expression, Function, GlobalVariable, Handle, Literal, Module, Range, Scalar, Span, Statement,
    Type, TypeInner,
};

/// Inserts the checks into every loop but the counted ones that hold barriers.
pub(super) fn insert(mut module: Module, counted: &Counted, loop_budget: u32) -> Module {
    let uint = Type { name: None, inner: TypeInner::Scalar(Scalar::U32) };
    let ty = module.types.insert(uint, Span::UNDEFINED);
    let init = module.global_expressions.append(Expression::Literal(Literal::U32(loop_budget)), Span::UNDEFINED);
    let variable = GlobalVariable {
        name: Some("loop_budget".to_owned()),
        space: AddressSpace::Private,
        binding: None,
        ty,
        init: Some(init),
        memory_decorations: naga::MemoryDecorations::empty(),
    };
    let budget = module.global_variables.append(variable, Span::UNDEFINED);
    for (handle, function) in module.functions.iter_mut() {
        Insertion::new(function, budget, counted, Some(handle)).function();
    }
    for entry in &mut module.entry_points {
        Insertion::new(&mut entry.function, budget, counted, None).function();
    }
    module
}

struct Insertion<'a> {
    function: &'a mut Function,
    handle: Option<Handle<Function>>,
    counted: &'a Counted,
    pointer: Handle<Expression>,
    zero: Handle<Expression>,
    one: Handle<Expression>,
}

impl<'a> Insertion<'a> {
    fn new(
        function: &'a mut Function,
        budget: Handle<GlobalVariable>,
        counted: &'a Counted,
        handle: Option<Handle<Function>>,
    ) -> Insertion<'a> {
        let mut append = |expression| function.expressions.append(expression, Span::UNDEFINED);
        let pointer = append(Expression::GlobalVariable(budget));
        let zero = append(Expression::Literal(Literal::U32(0)));
        let one = append(Expression::Literal(Literal::U32(1)));
        Insertion { function, handle, counted, pointer, zero, one }
    }

    fn function(mut self) {
        let mut body = std::mem::take(&mut self.function.body);
        self.block(&mut body);
        self.function.body = body;
    }

    fn block(&mut self, block: &mut Block) {
        for statement in block.iter_mut() {
            match statement {
                Statement::Block(block) => self.block(block),
                Statement::If { accept, reject, .. } => {
                    self.block(accept);
                    self.block(reject);
                }
                Statement::Switch { cases, .. } => cases.iter_mut().for_each(|case| self.block(&mut case.body)),
                Statement::Loop { body, continuing, .. } => {
                    let needs_budget = self.counted.trips(self.handle, body).is_none();
                    self.block(body);
                    self.block(continuing);
                    if needs_budget {
                        body.splice(0..0, self.check());
                    }
                }
                _ => {}
            }
        }
    }

    /// `if (budget == 0) { break; } budget -= 1;`
    fn check(&mut self) -> Block {
        let computed = self.function.expressions.len();
        let mut append = |expression| self.function.expressions.append(expression, Span::UNDEFINED);
        let left = append(Expression::Load { pointer: self.pointer });
        let condition = append(Expression::Binary { op: BinaryOperator::Equal, left, right: self.zero });
        let value = append(Expression::Binary { op: BinaryOperator::Subtract, left, right: self.one });
        let computed: Range<Expression> = self.function.expressions.range_from(computed);
        let accept = Block::from_vec(vec![Statement::Break]);
        Block::from_vec(vec![
            Statement::Emit(computed),
            Statement::If { condition, accept, reject: Block::new() },
            Statement::Store { pointer: self.pointer, value },
        ])
    }
}
