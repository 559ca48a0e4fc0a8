;; Must be refused: imports a global.
(module
  (import "driftwood" "global" (global i32))
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
