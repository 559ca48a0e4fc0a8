;; Must be refused: its memory is shared between threads.
(module
  (memory (export "memory") 1 2 shared)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
