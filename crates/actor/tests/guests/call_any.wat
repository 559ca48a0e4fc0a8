;; Makes whatever host calls the message says; a fuzzer drives it. The message is a sequence of records of ten little-endian u32: the
;; function's number (modulo 27) and nine arguments, of which it takes as many as the function has. Bytes after the last whole record
;; are passed over, and a message of more than 65536 bytes is the error 1.
;;
;; The memory has four pages: the first holds the answers (one i32 a record), the second the message itself, so that pointers from 65536
;; on name the fuzzer's own bytes; the other two are free. The numbers, with how many arguments each function has:
;; 0 receive (2)
;; 1 reply (2)
;; 2 log (3)
;; 3 setting (4)
;; 4 time_ms (0)
;; 5 random (2)
;; 6 model_info (3)
;; 7 tokenize (7)
;; 8 detokenize (6)
;; 9 is_end (3)
;; 10 chat_template (7)
;; 11 session_open (4)
;; 12 session_close (1)
;; 13 session_fork (1)
;; 14 session_truncate (2)
;; 15 session_length (1)
;; 16 session_context (1)
;; 17 session_tokens (4)
;; 18 prefill (3)
;; 19 append (3)
;; 20 decode (3)
;; 21 set_sampler (4)
;; 22 sample (3)
;; 23 next (1)
;; 24 generate (2)
;; 25 matmul (6)
;; 26 dispatch (5)
(module
  (import "driftwood" "receive" (func $receive (param i32 i32) (result i32)))
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (import "driftwood" "log" (func $log (param i32 i32 i32) (result i32)))
  (import "driftwood" "setting" (func $setting (param i32 i32 i32 i32) (result i32)))
  (import "driftwood" "time_ms" (func $time_ms (result i64)))
  (import "driftwood" "random" (func $random (param i32 i32) (result i32)))
  (import "driftwood" "model_info" (func $model_info (param i32 i32 i32) (result i32)))
  (import "driftwood" "tokenize" (func $tokenize (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "driftwood" "detokenize" (func $detokenize (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "driftwood" "is_end" (func $is_end (param i32 i32 i32) (result i32)))
  (import "driftwood" "chat_template" (func $chat_template (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "driftwood" "session_open" (func $session_open (param i32 i32 i32 i32) (result i32)))
  (import "driftwood" "session_close" (func $session_close (param i32) (result i32)))
  (import "driftwood" "session_fork" (func $session_fork (param i32) (result i32)))
  (import "driftwood" "session_truncate" (func $session_truncate (param i32 i32) (result i32)))
  (import "driftwood" "session_length" (func $session_length (param i32) (result i32)))
  (import "driftwood" "session_context" (func $session_context (param i32) (result i32)))
  (import "driftwood" "session_tokens" (func $session_tokens (param i32 i32 i32 i32) (result i32)))
  (import "driftwood" "prefill" (func $prefill (param i32 i32 i32) (result i32)))
  (import "driftwood" "append" (func $append (param i32 i32 i32) (result i32)))
  (import "driftwood" "decode" (func $decode (param i32 i32 i32) (result i32)))
  (import "driftwood" "set_sampler" (func $set_sampler (param i32 i32 i32 i32) (result i32)))
  (import "driftwood" "sample" (func $sample (param i32 i32 i32) (result i32)))
  (import "driftwood" "next" (func $next (param i32) (result i32)))
  (import "driftwood" "generate" (func $generate (param i32 i32) (result i32)))
  (import "driftwood" "matmul" (func $matmul (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "driftwood" "dispatch" (func $dispatch (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (global $record (mut i32) (i32.const 0))
  ;; The arguments of the record.
  (func $a0 (result i32) (i32.load offset=4 (global.get $record)))
  (func $a1 (result i32) (i32.load offset=8 (global.get $record)))
  (func $a2 (result i32) (i32.load offset=12 (global.get $record)))
  (func $a3 (result i32) (i32.load offset=16 (global.get $record)))
  (func $a4 (result i32) (i32.load offset=20 (global.get $record)))
  (func $a5 (result i32) (i32.load offset=24 (global.get $record)))
  (func $a6 (result i32) (i32.load offset=28 (global.get $record)))
  ;; Makes the call of the record; answers what the host answers.
  (func $call (result i32)
    (block $dispatch_
    (block $matmul_
    (block $generate_
    (block $next_
    (block $sample_
    (block $set_sampler_
    (block $decode_
    (block $append_
    (block $prefill_
    (block $session_tokens_
    (block $session_context_
    (block $session_length_
    (block $session_truncate_
    (block $session_fork_
    (block $session_close_
    (block $session_open_
    (block $chat_template_
    (block $is_end_
    (block $detokenize_
    (block $tokenize_
    (block $model_info_
    (block $random_
    (block $time_ms_
    (block $setting_
    (block $log_
    (block $reply_
    (block $receive_
      (br_table
        $receive_ $reply_ $log_ $setting_ $time_ms_ $random_ $model_info_ $tokenize_
        $detokenize_ $is_end_ $chat_template_ $session_open_ $session_close_ $session_fork_ $session_truncate_ $session_length_
        $session_context_ $session_tokens_ $prefill_ $append_ $decode_ $set_sampler_ $sample_ $next_
        $generate_ $matmul_ $dispatch_
        (i32.rem_u (i32.load (global.get $record)) (i32.const 27))))
    (return (call $receive (call $a0) (call $a1))))
    (return (call $reply (call $a0) (call $a1))))
    (return (call $log (call $a0) (call $a1) (call $a2))))
    (return (call $setting (call $a0) (call $a1) (call $a2) (call $a3))))
    (return (i32.wrap_i64 (call $time_ms))))
    (return (call $random (call $a0) (call $a1))))
    (return (call $model_info (call $a0) (call $a1) (call $a2))))
    (return (call $tokenize (call $a0) (call $a1) (call $a2) (call $a3) (call $a4) (call $a5) (call $a6))))
    (return (call $detokenize (call $a0) (call $a1) (call $a2) (call $a3) (call $a4) (call $a5))))
    (return (call $is_end (call $a0) (call $a1) (call $a2))))
    (return (call $chat_template (call $a0) (call $a1) (call $a2) (call $a3) (call $a4) (call $a5) (call $a6))))
    (return (call $session_open (call $a0) (call $a1) (call $a2) (call $a3))))
    (return (call $session_close (call $a0))))
    (return (call $session_fork (call $a0))))
    (return (call $session_truncate (call $a0) (call $a1))))
    (return (call $session_length (call $a0))))
    (return (call $session_context (call $a0))))
    (return (call $session_tokens (call $a0) (call $a1) (call $a2) (call $a3))))
    (return (call $prefill (call $a0) (call $a1) (call $a2))))
    (return (call $append (call $a0) (call $a1) (call $a2))))
    (return (call $decode (call $a0) (call $a1) (call $a2))))
    (return (call $set_sampler (call $a0) (call $a1) (call $a2) (call $a3))))
    (return (call $sample (call $a0) (call $a1) (call $a2))))
    (return (call $next (call $a0))))
    (return (call $generate (call $a0) (call $a1))))
    (return (call $matmul (call $a0) (call $a1) (call $a2) (call $a3) (call $a4) (call $a5))))
    (call $dispatch (call $a0) (call $a1) (call $a2) (call $a3) (call $a4)))
  (func (export "handle") (result i32)
    (local $end i32)
    (local $answer i32)
    (local.set $end (call $receive (i32.const 65536) (i32.const 65536)))
    (if (i32.gt_u (local.get $end) (i32.const 65536)) (then (return (i32.const 1))))
    (global.set $record (i32.const 65536))
    (local.set $end (i32.add (local.get $end) (i32.const 65536)))
    (block $done
      (loop $again
        (br_if $done (i32.gt_u (i32.add (global.get $record) (i32.const 40)) (local.get $end)))
        (i32.store (local.get $answer) (call $call))
        (local.set $answer (i32.add (local.get $answer) (i32.const 4)))
        (global.set $record (i32.add (global.get $record) (i32.const 40)))
        (br $again)))
    (i32.const 0)))
