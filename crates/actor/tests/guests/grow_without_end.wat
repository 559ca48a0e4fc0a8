;; Grows memory page by page and writes to each, until the host refuses; then says how many pages it has and returns 7.
(module
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
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
    (local $page i32)
    (block $refused
      (loop $again
        (local.set $page (memory.grow (i32.const 1)))
        (br_if $refused (i32.eq (local.get $page) (i32.const -1)))
        (i32.store (i32.shl (local.get $page) (i32.const 16)) (i32.const 0xdead))
        (br $again)))
    (drop (call $reply (i32.const 0) (call $number (i32.const 0) (memory.size))))
    (i32.const 7)))
