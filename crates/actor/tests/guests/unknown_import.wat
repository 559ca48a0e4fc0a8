;; Must be refused: imports a function that the contract does not have.
(module
  (import "driftwood" "format_disk" (func))
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
