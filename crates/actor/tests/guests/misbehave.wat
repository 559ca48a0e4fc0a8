;; Counts its messages in a mutable global and in memory, then does what the message's first letter says:
;; t: grows memory, replies "half", traps      l: loops for ever          g: grows memory for ever
;; s: opens a session, then traps              e: returns the error 5     d: divides by zero
;; r: reads beyond its memory                  u: recurses for ever       anything else: returns 0
;; Unless it fails, the reply is "GLOBAL MEMORY PAGES ": both counters and the size of its memory.
(module
  (import "driftwood" "receive" (func $receive (param i32 i32) (result i32)))
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (import "driftwood" "session_open" (func $session_open (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $told (mut i32) (i32.const 0))
  (data (i32.const 64) "half")
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  ;; Appends a number in decimal digits, and a space, at $out; answers where they end.
  (func $number (param $out i32) (param $value i32) (result i32)
    (if (i32.ge_u (local.get $value) (i32.const 10))
      (then (local.set $out (i32.sub (call $number (local.get $out) (i32.div_u (local.get $value) (i32.const 10))) (i32.const 1)))))
    (i32.store8 (local.get $out) (i32.add (i32.const 48) (i32.rem_u (local.get $value) (i32.const 10))))
    (i32.store8 (i32.add (local.get $out) (i32.const 1)) (i32.const 32))
    (i32.add (local.get $out) (i32.const 2)))
  (func $recurse (param $depth i32) (result i32)
    (i32.add (i32.const 1) (call $recurse (i32.add (local.get $depth) (i32.const 1)))))
  (func $is (param $letter i32) (result i32)
    (i32.eq (i32.load8_u (i32.const 16)) (local.get $letter)))
  ;; Does what the letter at 16 says; answers the error code.
  (func $misbehave (result i32)
    (if (call $is (i32.const 0x74)) (then
      (drop (memory.grow (i32.const 3)))
      (i32.store (i32.const 196608) (i32.const 1))
      (drop (call $reply (i32.const 64) (i32.const 4)))
      (unreachable)))
    (if (call $is (i32.const 0x6c)) (then (loop $again (br $again))))
    (if (call $is (i32.const 0x67)) (then (loop $again (drop (memory.grow (i32.const 1))) (br $again))))
    (if (call $is (i32.const 0x73)) (then
      (drop (call $session_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
      (unreachable)))
    (if (call $is (i32.const 0x65)) (then (return (i32.const 5))))
    (if (call $is (i32.const 0x64)) (then (drop (i32.div_u (i32.const 1) (i32.load (i32.const 128))))))
    (if (call $is (i32.const 0x72)) (then (drop (i32.load offset=0xfffffff0 (i32.const -1)))))
    (if (call $is (i32.const 0x75)) (then (drop (call $recurse (i32.const 0)))))
    (i32.const 0))
  (func (export "handle") (result i32)
    (local $code i32)
    (local $end i32)
    (global.set $told (i32.add (global.get $told) (i32.const 1)))
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
    (i32.store8 (i32.const 16) (i32.const 0))
    (drop (call $receive (i32.const 16) (i32.const 1)))
    (local.set $code (call $misbehave))
    (local.set $end (call $number (i32.const 256) (global.get $told)))
    (local.set $end (call $number (local.get $end) (i32.load (i32.const 0))))
    (local.set $end (call $number (local.get $end) (memory.size)))
    (drop (call $reply (i32.const 256) (i32.sub (local.get $end) (i32.const 256))))
    (local.get $code)))
