;; Must be refused: imports a function of the contract with another type.
(module
  (import "driftwood" "reply" (func (param i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
