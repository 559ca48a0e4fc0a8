;; Fine: a table that only instantiation fills, and globals of every number type. The message's first byte chooses a function; the reply is
;; the letter that function writes and "GLOBALS ", a sum over the globals, which each message moves on.
(module
  (import "driftwood" "receive" (func $receive (param i32 i32) (result i32)))
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (type $letter (func (result i32)))
  (table 2 2 funcref)
  (elem (i32.const 0) $x $y)
  (global $i32 (mut i32) (i32.const 1))
  (global $i64 (mut i64) (i64.const 10))
  (global $f32 (mut f32) (f32.const 100))
  (global $f64 (mut f64) (f64.const 1000))
  (global $v128 (mut v128) (v128.const i32x4 0 0 0 10000))
  (func $x (type $letter) (i32.const 0x78))
  (func $y (type $letter) (i32.const 0x79))
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  ;; Appends a number in decimal digits, and a space, at $out; answers where they end.
  (func $number (param $out i32) (param $value i32) (result i32)
    (if (i32.ge_u (local.get $value) (i32.const 10))
      (then (local.set $out (i32.sub (call $number (local.get $out) (i32.div_u (local.get $value) (i32.const 10))) (i32.const 1)))))
    (i32.store8 (local.get $out) (i32.add (i32.const 48) (i32.rem_u (local.get $value) (i32.const 10))))
    (i32.store8 (i32.add (local.get $out) (i32.const 1)) (i32.const 32))
    (i32.add (local.get $out) (i32.const 2)))
  ;; Adds one of its unit to each global.
  (func $move
    (global.set $i32 (i32.add (global.get $i32) (i32.const 1)))
    (global.set $i64 (i64.add (global.get $i64) (i64.const 10)))
    (global.set $f32 (f32.add (global.get $f32) (f32.const 100)))
    (global.set $f64 (f64.add (global.get $f64) (f64.const 1000)))
    (global.set $v128 (i32x4.add (global.get $v128) (v128.const i32x4 0 0 0 10000))))
  (func $sum (result i32)
    (i32.add
      (i32.add (global.get $i32) (i32.wrap_i64 (global.get $i64)))
      (i32.add
        (i32.add (i32.trunc_f32_u (global.get $f32)) (i32.trunc_f64_u (global.get $f64)))
        (i32x4.extract_lane 3 (global.get $v128)))))
  (func (export "handle") (result i32)
    (drop (call $receive (i32.const 0) (i32.const 1)))
    (i32.store8 (i32.const 64) (call_indirect (type $letter) (i32.and (i32.load8_u (i32.const 0)) (i32.const 1))))
    (drop (call $reply (i32.const 64) (i32.sub (call $number (i32.const 65) (call $sum)) (i32.const 64))))
    (call $move)
    (i32.const 0)))
