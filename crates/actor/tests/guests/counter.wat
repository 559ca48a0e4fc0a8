;; An echo that counts its messages twice: in a mutable global, which it does not export, and in memory.
;; The reply is "GLOBAL MEMORY " and the message. It asks no model.
(module
  (import "driftwood" "receive" (func $receive (param i32 i32) (result i32)))
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (global $told (mut i32) (i32.const 0))
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  ;; Appends a number in decimal digits, and a space, at $out; answers where they end.
  (func $number (param $out i32) (param $value i32) (result i32)
    (if (i32.ge_u (local.get $value) (i32.const 10))
      (then (local.set $out (i32.sub (call $number (local.get $out) (i32.div_u (local.get $value) (i32.const 10))) (i32.const 1)))))
    (i32.store8 (local.get $out) (i32.add (i32.const 48) (i32.rem_u (local.get $value) (i32.const 10))))
    (i32.store8 (i32.add (local.get $out) (i32.const 1)) (i32.const 32))
    (i32.add (local.get $out) (i32.const 2)))
  (func (export "handle") (result i32)
    (local $end i32)
    (global.set $told (i32.add (global.get $told) (i32.const 1)))
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
    (local.set $end (call $number (i32.const 256) (global.get $told)))
    (local.set $end (call $number (local.get $end) (i32.load (i32.const 0))))
    (drop (call $reply (i32.const 256) (i32.sub (local.get $end) (i32.const 256))))
    (drop (call $reply (i32.const 1024) (call $receive (i32.const 1024) (i32.const 65536))))
    (i32.const 0)))
