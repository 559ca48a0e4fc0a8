;; Logs 64 KiB of zero bytes again and again until the host refuses, then returns 7.
(module
  (import "driftwood" "log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (loop $again (br_if $again (i32.ge_s (call $log (i32.const 2) (i32.const 0) (i32.const 65536)) (i32.const 0))))
    (i32.const 7)))
