;; Must be refused: imports a table.
(module
  (import "driftwood" "table" (table 1 funcref))
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
