;; Opens sessions until the host refuses and leaves them open. The reply is "OPENED REFUSAL ", the refusal as a positive number.
(module
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (import "driftwood" "session_open" (func $session_open (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; Appends a number in decimal digits, and a space, at $out; answers where they end.
  (func $number (param $out i32) (param $value i32) (result i32)
    (if (i32.ge_u (local.get $value) (i32.const 10))
      (then (local.set $out (i32.sub (call $number (local.get $out) (i32.div_u (local.get $value) (i32.const 10))) (i32.const 1)))))
    (i32.store8 (local.get $out) (i32.add (i32.const 48) (i32.rem_u (local.get $value) (i32.const 10))))
    (i32.store8 (i32.add (local.get $out) (i32.const 1)) (i32.const 32))
    (i32.add (local.get $out) (i32.const 2)))
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (local $opened i32)
    (local $answer i32)
    (local $end i32)
    (block $refused
      (loop $again
        (local.set $answer (call $session_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
        (br_if $refused (i32.lt_s (local.get $answer) (i32.const 0)))
        (local.set $opened (i32.add (local.get $opened) (i32.const 1)))
        (br $again)))
    (local.set $end (call $number (i32.const 0) (local.get $opened)))
    (local.set $end (call $number (local.get $end) (i32.sub (i32.const 0) (local.get $answer))))
    (drop (call $reply (i32.const 0) (local.get $end)))
    (i32.const 0)))
