;; Must be refused: a mutable global that holds a function reference can't be written to a snapshot.
(module
  (memory (export "memory") 1)
  (global $callee (mut funcref) (ref.null func))
  (func $nothing)
  (elem declare func $nothing)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (global.set $callee (ref.func $nothing))
    (i32.const 0)))
