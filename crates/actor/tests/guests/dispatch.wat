;; Dispatches the kernel of its message. The message begins with words: the five arguments of the call, how often to call (0: for
;; ever, nearly), by how many pages to grow before, and how many bytes to reply. It lies in the second page, so that the arguments can point
;; into it. Before the call each word from 131072 to 262144 holds its index; the reply is the last call's answer and the bytes from
;; 131072 on.
(module
  (import "driftwood" "receive" (func $receive (param i32 i32) (result i32)))
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (import "driftwood" "dispatch" (func $dispatch (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func $word (param $index i32) (result i32) (i32.load offset=65536 (i32.shl (local.get $index) (i32.const 2))))
  (func $fill
    (local $index i32)
    (loop $again
      (i32.store offset=131072 (i32.shl (local.get $index) (i32.const 2)) (local.get $index))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $index) (i32.const 32768)))))
  (func (export "handle") (result i32)
    (local $left i32)
    (drop (call $receive (i32.const 65536) (i32.const 65536)))
    (call $fill)
    (drop (memory.grow (call $word (i32.const 6))))
    (local.set $left (call $word (i32.const 5)))
    (loop $again
      (i32.store (i32.const 0) (call $dispatch
        (call $word (i32.const 0)) (call $word (i32.const 1)) (call $word (i32.const 2)) (call $word (i32.const 3)) (call $word (i32.const 4))))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (drop (call $reply (i32.const 0) (i32.const 4)))
    (drop (call $reply (i32.const 131072) (call $word (i32.const 7))))
    (i32.const 0)))
