;; Must be refused: its memory is addressed by 64 bits.
(module
  (memory (export "memory") i64 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
