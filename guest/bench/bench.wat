;; The guest of `driftwood bench boundary`: the same steps as the engine's own loop, driven from inside the sandbox.
;;
;; A message is little-endian words: (0, n, n tokens) opens a session and prefills it; (1, n, s) takes n tokens by dw_next; (2, n, s) takes
;; n tokens by dw_decode, which writes the logits into this memory, dw_sample and dw_append; (3) replies the tokens after the prompt; (4) goes
;; back to the end of the prompt. Whenever a multiple of s tokens is left it replies a byte, so that the host can stop its watch.
(module
  (import "driftwood" "receive" (func $receive (param i32 i32) (result i32)))
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (import "driftwood" "model_info" (func $model_info (param i32 i32 i32) (result i32)))
  (import "driftwood" "session_open" (func $session_open (param i32 i32 i32 i32) (result i32)))
  (import "driftwood" "session_truncate" (func $session_truncate (param i32 i32) (result i32)))
  (import "driftwood" "session_tokens" (func $session_tokens (param i32 i32 i32 i32) (result i32)))
  (import "driftwood" "prefill" (func $prefill (param i32 i32 i32) (result i32)))
  (import "driftwood" "append" (func $append (param i32 i32 i32) (result i32)))
  (import "driftwood" "decode" (func $decode (param i32 i32 i32) (result i32)))
  (import "driftwood" "sample" (func $sample (param i32 i32 i32) (result i32)))
  (import "driftwood" "next" (func $next (param i32) (result i32)))

  ;; 8: a token; 16: dw_model_info; 1024: the message, or tokens to reply; 65536: logits
  (memory (export "memory") 1)
  (global $session (mut i32) (i32.const 0))
  (global $prompt (mut i32) (i32.const 0))
  (global $vocabulary (mut i32) (i32.const 0))

  (func (export "driftwood_abi") (result i32) (i32.const 1))

  ;; Traps at an error of the host.
  (func $check (param $answer i32) (result i32)
    (if (i32.lt_s (local.get $answer) (i32.const 0)) (then unreachable))
    (local.get $answer))

  (func $open (param $count i32)
    (drop (call $check (call $model_info (i32.const 0) (i32.const 0) (i32.const 16))))
    (global.set $vocabulary (i32.load (i32.const 16)))
    (drop (call $check (memory.grow
      (i32.shr_u (i32.add (i32.mul (global.get $vocabulary) (i32.const 4)) (i32.const 65535)) (i32.const 16)))))
    (global.set $session (call $check (call $session_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))))
    (global.set $prompt (call $check (call $prefill (global.get $session) (i32.const 1032) (local.get $count)))))

  (func $step_by_next
    (drop (call $check (call $next (global.get $session)))))

  (func $step_by_logits
    (drop (call $check (call $decode (global.get $session) (i32.const 65536) (global.get $vocabulary))))
    (i32.store (i32.const 8) (call $check (call $sample (global.get $session) (i32.const 65536) (global.get $vocabulary))))
    (drop (call $check (call $append (global.get $session) (i32.const 8) (i32.const 1)))))

  (func $steps (param $by_logits i32) (param $count i32) (param $slice i32)
    (block $done
      (loop $more
        (br_if $done (i32.eqz (local.get $count)))
        (if (local.get $by_logits) (then (call $step_by_logits)) (else (call $step_by_next)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (if (i32.eqz (i32.rem_u (local.get $count) (local.get $slice)))
          (then (drop (call $check (call $reply (i32.const 8) (i32.const 1))))))
        (br $more))))

  (func $tell
    (drop (call $check (call $reply
      (i32.const 1024)
      (i32.mul (i32.const 4)
        (call $check (call $session_tokens (global.get $session) (global.get $prompt) (i32.const 1024) (i32.const 16000))))))))

  (func (export "handle") (result i32)
    (local $work i32)
    (local $count i32)
    (drop (call $check (call $receive (i32.const 1024) (i32.const 64000))))
    (local.set $work (i32.load (i32.const 1024)))
    (local.set $count (i32.load (i32.const 1028)))
    (if (i32.eqz (local.get $work)) (then (call $open (local.get $count)) (return (i32.const 0))))
    (if (i32.eq (local.get $work) (i32.const 3)) (then (call $tell) (return (i32.const 0))))
    (if (i32.eq (local.get $work) (i32.const 4))
      (then (drop (call $check (call $session_truncate (global.get $session) (global.get $prompt)))) (return (i32.const 0))))
    (call $steps (i32.eq (local.get $work) (i32.const 2)) (local.get $count) (i32.load (i32.const 1032)))
    (i32.const 0)))
