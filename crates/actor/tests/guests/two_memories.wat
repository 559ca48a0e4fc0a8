;; Must be refused: has two memories.
(module
  (memory (export "memory") 1)
  (memory (export "more") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
