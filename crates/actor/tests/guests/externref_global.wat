;; Must be refused: a mutable global that holds a host reference can't be written to a snapshot.
(module
  (memory (export "memory") 1)
  (global (mut externref) (ref.null extern))
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
