;; Recurses until the stack ends.
(module
  (memory (export "memory") 1)
  (func $down (param $depth i32) (result i32)
    (i32.add (i32.const 1) (call $down (i32.add (local.get $depth) (i32.const 1)))))
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (call $down (i32.const 0))))
