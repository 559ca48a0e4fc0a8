;; Counts in memory how often its start function ran, and has a letter in a data segment that each message moves on by one. Whoever thaws
;; it must run neither again. The reply is "STARTS " and the letter before it moves: "1 A", then "1 B", also after freeze and thaw.
(module
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "A")
  (func $start (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
  (start $start)
  ;; Appends a number in decimal digits, and a space, at $out; answers where they end.
  (func $number (param $out i32) (param $value i32) (result i32)
    (if (i32.ge_u (local.get $value) (i32.const 10))
      (then (local.set $out (i32.sub (call $number (local.get $out) (i32.div_u (local.get $value) (i32.const 10))) (i32.const 1)))))
    (i32.store8 (local.get $out) (i32.add (i32.const 48) (i32.rem_u (local.get $value) (i32.const 10))))
    (i32.store8 (i32.add (local.get $out) (i32.const 1)) (i32.const 32))
    (i32.add (local.get $out) (i32.const 2)))
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (local $end i32)
    (local.set $end (call $number (i32.const 128) (i32.load (i32.const 0))))
    (i32.store8 (local.get $end) (i32.load8_u (i32.const 64)))
    (i32.store8 (i32.const 64) (i32.add (i32.load8_u (i32.const 64)) (i32.const 1)))
    (drop (call $reply (i32.const 128) (i32.sub (local.get $end) (i32.const 127))))
    (i32.const 0)))
