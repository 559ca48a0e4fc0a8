;; Must be refused at spawn: driftwood_abi traps.
(module
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (unreachable))
  (func (export "handle") (result i32) (i32.const 0)))
