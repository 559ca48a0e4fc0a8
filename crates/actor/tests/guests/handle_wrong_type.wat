;; Must be refused: handle takes a parameter.
(module
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (param i32) (result i32) (local.get 0)))
