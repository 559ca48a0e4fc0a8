;; Calls every host function with ranges that leave its one page of memory (beyond the end, wrapping around, lengths whose bytes
;; overflow 32 bits), with matrices that overlap, and with sessions that are not open. Each call must be refused: it returns the number
;; of the first one that was not (the comment at its line), else 0, and replies how many calls it made.
(module
  (import "driftwood" "receive" (func $receive (param i32 i32) (result i32)))
  (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
  (import "driftwood" "log" (func $log (param i32 i32 i32) (result i32)))
  (import "driftwood" "setting" (func $setting (param i32 i32 i32 i32) (result i32)))
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
  (memory (export "memory") 1)
  (global $session (mut i32) (i32.const -1))
  (global $calls (mut i32) (i32.const 0))
  (global $accepted (mut i32) (i32.const 0))
  (data (i32.const 32) "model")
  (data (i32.const 64) "[]")
  ;; At 128 a sane dw_sampler; at 192 and 256 a dw_generate_options whose stops and whose out_text are wild; at 320 a sane one;
  ;; at 384 a wild dw_binding.
  (data (i32.const 128) "\00\00\00\00\00\00\00\00\00\00\80\3f\00\00\00\00\00\00\80\3f")
  (data (i32.const 192) "\04\00\00\00\00\00\00\00\f0\ff\ff\ff\20\00\00\00")
  (data (i32.const 256) "\04\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\01\00\04\00\00\00")
  (data (i32.const 320) "\04\00\00\00")
  (data (i32.const 384) "\00\ff\ff\ff\00\02\00\00")
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  ;; Appends a number in decimal digits, and a space, at $out; answers where they end.
  (func $number (param $out i32) (param $value i32) (result i32)
    (if (i32.ge_u (local.get $value) (i32.const 10))
      (then (local.set $out (i32.sub (call $number (local.get $out) (i32.div_u (local.get $value) (i32.const 10))) (i32.const 1)))))
    (i32.store8 (local.get $out) (i32.add (i32.const 48) (i32.rem_u (local.get $value) (i32.const 10))))
    (i32.store8 (i32.add (local.get $out) (i32.const 1)) (i32.const 32))
    (i32.add (local.get $out) (i32.const 2)))
  ;; Counts a call, and keeps the number of the first one that was not refused.
  (func $refused (param $answer i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (if (i32.and (i32.ge_s (local.get $answer) (i32.const 0)) (i32.eqz (global.get $accepted)))
      (then (global.set $accepted (global.get $calls)))))
  (func (export "handle") (result i32)
    (global.set $calls (i32.const 0))
    (global.set $accepted (i32.const 0))
    (if (i32.lt_s (global.get $session) (i32.const 0))
      (then (global.set $session (call $session_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))))
    (call $refused (call $receive (i32.const 0xffffffff) (i32.const 1))) ;; 1
    (call $refused (call $reply (i32.const 0xffffffff) (i32.const 1))) ;; 2
    (call $refused (call $log (i32.const 3) (i32.const 0xffffffff) (i32.const 1))) ;; 3
    (call $refused (call $setting (i32.const 0xffffffff) (i32.const 1) (i32.const 0) (i32.const 16))) ;; 4
    (call $refused (call $random (i32.const 0xffffffff) (i32.const 1))) ;; 5
    (call $refused (call $model_info (i32.const 0xffffffff) (i32.const 1) (i32.const 0))) ;; 6
    (call $refused (call $tokenize ;; 7
      (i32.const 0xffffffff) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $tokenize ;; 8
      (i32.const 0) (i32.const 0) (i32.const 0xffffffff) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $detokenize ;; 9
      (i32.const 0xffffffff) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $detokenize ;; 10
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0xffffffff) (i32.const 1)))
    (call $refused (call $is_end (i32.const 0xffffffff) (i32.const 1) (i32.const 1))) ;; 11
    (call $refused (call $chat_template ;; 12
      (i32.const 0xffffffff) (i32.const 1) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 13
      (i32.const 0) (i32.const 0) (i32.const 0xffffffff) (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 14
      (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0xffffffff) (i32.const 1)))
    (call $refused (call $setting (i32.const 32) (i32.const 5) (i32.const 0xffffffff) (i32.const 1))) ;; 15
    (call $refused (call $session_open (i32.const 0xffffffff) (i32.const 1) (i32.const 0) (i32.const 0))) ;; 16
    (call $refused (call $receive (i32.const 0xfffffffc) (i32.const 8))) ;; 17
    (call $refused (call $reply (i32.const 0xfffffffc) (i32.const 8))) ;; 18
    (call $refused (call $log (i32.const 3) (i32.const 0xfffffffc) (i32.const 8))) ;; 19
    (call $refused (call $setting (i32.const 0xfffffffc) (i32.const 8) (i32.const 0) (i32.const 16))) ;; 20
    (call $refused (call $random (i32.const 0xfffffffc) (i32.const 8))) ;; 21
    (call $refused (call $model_info (i32.const 0xfffffffc) (i32.const 8) (i32.const 0))) ;; 22
    (call $refused (call $tokenize ;; 23
      (i32.const 0xfffffffc) (i32.const 8) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $tokenize ;; 24
      (i32.const 0) (i32.const 0) (i32.const 0xfffffffc) (i32.const 8) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $detokenize ;; 25
      (i32.const 0xfffffffc) (i32.const 8) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $detokenize ;; 26
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0xfffffffc) (i32.const 8)))
    (call $refused (call $is_end (i32.const 0xfffffffc) (i32.const 8) (i32.const 1))) ;; 27
    (call $refused (call $chat_template ;; 28
      (i32.const 0xfffffffc) (i32.const 8) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 29
      (i32.const 0) (i32.const 0) (i32.const 0xfffffffc) (i32.const 8) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 30
      (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0xfffffffc) (i32.const 8)))
    (call $refused (call $setting (i32.const 32) (i32.const 5) (i32.const 0xfffffffc) (i32.const 8))) ;; 31
    (call $refused (call $session_open (i32.const 0xfffffffc) (i32.const 8) (i32.const 0) (i32.const 0))) ;; 32
    (call $refused (call $receive (i32.const 65536) (i32.const 1))) ;; 33
    (call $refused (call $reply (i32.const 65536) (i32.const 1))) ;; 34
    (call $refused (call $log (i32.const 3) (i32.const 65536) (i32.const 1))) ;; 35
    (call $refused (call $setting (i32.const 65536) (i32.const 1) (i32.const 0) (i32.const 16))) ;; 36
    (call $refused (call $random (i32.const 65536) (i32.const 1))) ;; 37
    (call $refused (call $model_info (i32.const 65536) (i32.const 1) (i32.const 0))) ;; 38
    (call $refused (call $tokenize ;; 39
      (i32.const 65536) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $tokenize ;; 40
      (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $detokenize ;; 41
      (i32.const 65536) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $detokenize ;; 42
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 65536) (i32.const 1)))
    (call $refused (call $is_end (i32.const 65536) (i32.const 1) (i32.const 1))) ;; 43
    (call $refused (call $chat_template ;; 44
      (i32.const 65536) (i32.const 1) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 45
      (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 46
      (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 65536) (i32.const 1)))
    (call $refused (call $setting (i32.const 32) (i32.const 5) (i32.const 65536) (i32.const 1))) ;; 47
    (call $refused (call $session_open (i32.const 65536) (i32.const 1) (i32.const 0) (i32.const 0))) ;; 48
    (call $refused (call $receive (i32.const 65533) (i32.const 4))) ;; 49
    (call $refused (call $reply (i32.const 65533) (i32.const 4))) ;; 50
    (call $refused (call $log (i32.const 3) (i32.const 65533) (i32.const 4))) ;; 51
    (call $refused (call $setting (i32.const 65533) (i32.const 4) (i32.const 0) (i32.const 16))) ;; 52
    (call $refused (call $random (i32.const 65533) (i32.const 4))) ;; 53
    (call $refused (call $model_info (i32.const 65533) (i32.const 4) (i32.const 0))) ;; 54
    (call $refused (call $tokenize ;; 55
      (i32.const 65533) (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $tokenize ;; 56
      (i32.const 0) (i32.const 0) (i32.const 65533) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $detokenize ;; 57
      (i32.const 65533) (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $detokenize ;; 58
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 65533) (i32.const 4)))
    (call $refused (call $is_end (i32.const 65533) (i32.const 4) (i32.const 1))) ;; 59
    (call $refused (call $chat_template ;; 60
      (i32.const 65533) (i32.const 4) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 61
      (i32.const 0) (i32.const 0) (i32.const 65533) (i32.const 4) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 62
      (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 65533) (i32.const 4)))
    (call $refused (call $setting (i32.const 32) (i32.const 5) (i32.const 65533) (i32.const 4))) ;; 63
    (call $refused (call $session_open (i32.const 65533) (i32.const 4) (i32.const 0) (i32.const 0))) ;; 64
    (call $refused (call $receive (i32.const 0) (i32.const 0xffffffff))) ;; 65
    (call $refused (call $reply (i32.const 0) (i32.const 0xffffffff))) ;; 66
    (call $refused (call $log (i32.const 3) (i32.const 0) (i32.const 0xffffffff))) ;; 67
    (call $refused (call $setting (i32.const 0) (i32.const 0xffffffff) (i32.const 0) (i32.const 16))) ;; 68
    (call $refused (call $random (i32.const 0) (i32.const 0xffffffff))) ;; 69
    (call $refused (call $model_info (i32.const 0) (i32.const 0xffffffff) (i32.const 0))) ;; 70
    (call $refused (call $tokenize ;; 71
      (i32.const 0) (i32.const 0xffffffff) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $tokenize ;; 72
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0xffffffff) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $detokenize ;; 73
      (i32.const 0) (i32.const 0xffffffff) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $detokenize ;; 74
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0xffffffff)))
    (call $refused (call $is_end (i32.const 0) (i32.const 0xffffffff) (i32.const 1))) ;; 75
    (call $refused (call $chat_template ;; 76
      (i32.const 0) (i32.const 0xffffffff) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 77
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0xffffffff) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 78
      (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 0xffffffff)))
    (call $refused (call $setting (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 0xffffffff))) ;; 79
    (call $refused (call $session_open (i32.const 0) (i32.const 0xffffffff) (i32.const 0) (i32.const 0))) ;; 80
    (call $refused (call $receive (i32.const 0x80000000) (i32.const 0x80000000))) ;; 81
    (call $refused (call $reply (i32.const 0x80000000) (i32.const 0x80000000))) ;; 82
    (call $refused (call $log (i32.const 3) (i32.const 0x80000000) (i32.const 0x80000000))) ;; 83
    (call $refused (call $setting (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 0) (i32.const 16))) ;; 84
    (call $refused (call $random (i32.const 0x80000000) (i32.const 0x80000000))) ;; 85
    (call $refused (call $model_info (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 0))) ;; 86
    (call $refused (call $tokenize ;; 87
      (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $tokenize ;; 88
      (i32.const 0) (i32.const 0) (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $detokenize ;; 89
      (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $detokenize ;; 90
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0x80000000) (i32.const 0x80000000)))
    (call $refused (call $is_end (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 1))) ;; 91
    (call $refused (call $chat_template ;; 92
      (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 93
      (i32.const 0) (i32.const 0) (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 94
      (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0x80000000) (i32.const 0x80000000)))
    (call $refused (call $setting (i32.const 32) (i32.const 5) (i32.const 0x80000000) (i32.const 0x80000000))) ;; 95
    (call $refused (call $session_open ;; 96
      (i32.const 0x80000000) (i32.const 0x80000000) (i32.const 0) (i32.const 0)))
    (call $refused (call $receive (i32.const 16) (i32.const 65536))) ;; 97
    (call $refused (call $reply (i32.const 16) (i32.const 65536))) ;; 98
    (call $refused (call $log (i32.const 3) (i32.const 16) (i32.const 65536))) ;; 99
    (call $refused (call $setting (i32.const 16) (i32.const 65536) (i32.const 0) (i32.const 16))) ;; 100
    (call $refused (call $random (i32.const 16) (i32.const 65536))) ;; 101
    (call $refused (call $model_info (i32.const 16) (i32.const 65536) (i32.const 0))) ;; 102
    (call $refused (call $tokenize ;; 103
      (i32.const 16) (i32.const 65536) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $tokenize ;; 104
      (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 65536) (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $refused (call $detokenize ;; 105
      (i32.const 16) (i32.const 65536) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $detokenize ;; 106
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 65536)))
    (call $refused (call $is_end (i32.const 16) (i32.const 65536) (i32.const 1))) ;; 107
    (call $refused (call $chat_template ;; 108
      (i32.const 16) (i32.const 65536) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 109
      (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 65536) (i32.const 1) (i32.const 0) (i32.const 64)))
    (call $refused (call $chat_template ;; 110
      (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 2) (i32.const 1) (i32.const 16) (i32.const 65536)))
    (call $refused (call $setting (i32.const 32) (i32.const 5) (i32.const 16) (i32.const 65536))) ;; 111
    (call $refused (call $session_open (i32.const 16) (i32.const 65536) (i32.const 0) (i32.const 0))) ;; 112
    (call $refused (call $tokenize ;; 113
      (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 0xfffffffc) (i32.const 1)))
    (call $refused (call $detokenize ;; 114
      (i32.const 0) (i32.const 0) (i32.const 0xfffffffc) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $session_tokens ;; 115
      (global.get $session) (i32.const 0) (i32.const 0xfffffffc) (i32.const 1)))
    (call $refused (call $prefill (global.get $session) (i32.const 0xfffffffc) (i32.const 1))) ;; 116
    (call $refused (call $append (global.get $session) (i32.const 0xfffffffc) (i32.const 1))) ;; 117
    (call $refused (call $decode (global.get $session) (i32.const 0xfffffffc) (i32.const 1))) ;; 118
    (call $refused (call $sample (global.get $session) (i32.const 0xfffffffc) (i32.const 1))) ;; 119
    (call $refused (call $tokenize ;; 120
      (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 65536) (i32.const 1)))
    (call $refused (call $detokenize ;; 121
      (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $session_tokens (global.get $session) (i32.const 0) (i32.const 65536) (i32.const 1))) ;; 122
    (call $refused (call $prefill (global.get $session) (i32.const 65536) (i32.const 1))) ;; 123
    (call $refused (call $append (global.get $session) (i32.const 65536) (i32.const 1))) ;; 124
    (call $refused (call $decode (global.get $session) (i32.const 65536) (i32.const 1))) ;; 125
    (call $refused (call $sample (global.get $session) (i32.const 65536) (i32.const 1))) ;; 126
    (call $refused (call $tokenize ;; 127
      (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 65532) (i32.const 2)))
    (call $refused (call $detokenize ;; 128
      (i32.const 0) (i32.const 0) (i32.const 65532) (i32.const 2) (i32.const 0) (i32.const 16)))
    (call $refused (call $session_tokens (global.get $session) (i32.const 0) (i32.const 65532) (i32.const 2))) ;; 129
    (call $refused (call $prefill (global.get $session) (i32.const 65532) (i32.const 2))) ;; 130
    (call $refused (call $append (global.get $session) (i32.const 65532) (i32.const 2))) ;; 131
    (call $refused (call $decode (global.get $session) (i32.const 65532) (i32.const 2))) ;; 132
    (call $refused (call $sample (global.get $session) (i32.const 65532) (i32.const 2))) ;; 133
    (call $refused (call $tokenize ;; 134
      (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 0x40000000)))
    (call $refused (call $detokenize ;; 135
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0x40000000) (i32.const 0) (i32.const 16)))
    (call $refused (call $session_tokens ;; 136
      (global.get $session) (i32.const 0) (i32.const 0) (i32.const 0x40000000)))
    (call $refused (call $prefill (global.get $session) (i32.const 0) (i32.const 0x40000000))) ;; 137
    (call $refused (call $append (global.get $session) (i32.const 0) (i32.const 0x40000000))) ;; 138
    (call $refused (call $decode (global.get $session) (i32.const 0) (i32.const 0x40000000))) ;; 139
    (call $refused (call $sample (global.get $session) (i32.const 0) (i32.const 0x40000000))) ;; 140
    (call $refused (call $tokenize ;; 141
      (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 0x40000001)))
    (call $refused (call $detokenize ;; 142
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0x40000001) (i32.const 0) (i32.const 16)))
    (call $refused (call $session_tokens ;; 143
      (global.get $session) (i32.const 0) (i32.const 0) (i32.const 0x40000001)))
    (call $refused (call $prefill (global.get $session) (i32.const 0) (i32.const 0x40000001))) ;; 144
    (call $refused (call $append (global.get $session) (i32.const 0) (i32.const 0x40000001))) ;; 145
    (call $refused (call $decode (global.get $session) (i32.const 0) (i32.const 0x40000001))) ;; 146
    (call $refused (call $sample (global.get $session) (i32.const 0) (i32.const 0x40000001))) ;; 147
    (call $refused (call $tokenize ;; 148
      (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 4) (i32.const 0xffffffff)))
    (call $refused (call $detokenize ;; 149
      (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0xffffffff) (i32.const 0) (i32.const 16)))
    (call $refused (call $session_tokens ;; 150
      (global.get $session) (i32.const 0) (i32.const 4) (i32.const 0xffffffff)))
    (call $refused (call $prefill (global.get $session) (i32.const 4) (i32.const 0xffffffff))) ;; 151
    (call $refused (call $append (global.get $session) (i32.const 4) (i32.const 0xffffffff))) ;; 152
    (call $refused (call $decode (global.get $session) (i32.const 4) (i32.const 0xffffffff))) ;; 153
    (call $refused (call $sample (global.get $session) (i32.const 4) (i32.const 0xffffffff))) ;; 154
    (call $refused (call $tokenize ;; 155
      (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 0x80000000) (i32.const 0x20000000)))
    (call $refused (call $detokenize ;; 156
      (i32.const 0) (i32.const 0) (i32.const 0x80000000) (i32.const 0x20000000) (i32.const 0) (i32.const 16)))
    (call $refused (call $session_tokens ;; 157
      (global.get $session) (i32.const 0) (i32.const 0x80000000) (i32.const 0x20000000)))
    (call $refused (call $prefill (global.get $session) (i32.const 0x80000000) (i32.const 0x20000000))) ;; 158
    (call $refused (call $append (global.get $session) (i32.const 0x80000000) (i32.const 0x20000000))) ;; 159
    (call $refused (call $decode (global.get $session) (i32.const 0x80000000) (i32.const 0x20000000))) ;; 160
    (call $refused (call $sample (global.get $session) (i32.const 0x80000000) (i32.const 0x20000000))) ;; 161
    (call $refused (call $tokenize ;; 162
      (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0) (i32.const 16) (i32.const 16384)))
    (call $refused (call $detokenize ;; 163
      (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 16384) (i32.const 0) (i32.const 16)))
    (call $refused (call $session_tokens (global.get $session) (i32.const 0) (i32.const 16) (i32.const 16384))) ;; 164
    (call $refused (call $prefill (global.get $session) (i32.const 16) (i32.const 16384))) ;; 165
    (call $refused (call $append (global.get $session) (i32.const 16) (i32.const 16384))) ;; 166
    (call $refused (call $decode (global.get $session) (i32.const 16) (i32.const 16384))) ;; 167
    (call $refused (call $sample (global.get $session) (i32.const 16) (i32.const 16384))) ;; 168
    (call $refused (call $model_info (i32.const 0) (i32.const 0) (i32.const 0xffffffff))) ;; 169
    (call $refused (call $set_sampler (global.get $session) (i32.const 0xffffffff) (i32.const 0) (i32.const 0))) ;; 170
    (call $refused (call $generate (global.get $session) (i32.const 0xffffffff))) ;; 171
    (call $refused (call $model_info (i32.const 0) (i32.const 0) (i32.const 0xfffffff8))) ;; 172
    (call $refused (call $set_sampler (global.get $session) (i32.const 0xfffffff8) (i32.const 0) (i32.const 0))) ;; 173
    (call $refused (call $generate (global.get $session) (i32.const 0xfffffff8))) ;; 174
    (call $refused (call $model_info (i32.const 0) (i32.const 0) (i32.const 65536))) ;; 175
    (call $refused (call $set_sampler (global.get $session) (i32.const 65536) (i32.const 0) (i32.const 0))) ;; 176
    (call $refused (call $generate (global.get $session) (i32.const 65536))) ;; 177
    (call $refused (call $model_info (i32.const 0) (i32.const 0) (i32.const 65532))) ;; 178
    (call $refused (call $set_sampler (global.get $session) (i32.const 65532) (i32.const 0) (i32.const 0))) ;; 179
    (call $refused (call $generate (global.get $session) (i32.const 65532))) ;; 180
    (call $refused (call $set_sampler ;; 181
      (global.get $session) (i32.const 128) (i32.const 0xfffffff8) (i32.const 1)))
    (call $refused (call $set_sampler (global.get $session) (i32.const 128) (i32.const 65536) (i32.const 1))) ;; 182
    (call $refused (call $set_sampler (global.get $session) (i32.const 128) (i32.const 65532) (i32.const 1))) ;; 183
    (call $refused (call $set_sampler ;; 184
      (global.get $session) (i32.const 128) (i32.const 0) (i32.const 0x20000000)))
    (call $refused (call $set_sampler ;; 185
      (global.get $session) (i32.const 128) (i32.const 0) (i32.const 0xffffffff)))
    (call $refused (call $generate (global.get $session) (i32.const 192))) ;; 186
    (call $refused (call $generate (global.get $session) (i32.const 256))) ;; 187
    (call $refused (call $matmul ;; 188
      (i32.const 0xfffffffc) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 1) (i32.const 1)))
    (call $refused (call $matmul ;; 189
      (i32.const 0) (i32.const 0xfffffffc) (i32.const 16) (i32.const 1) (i32.const 2) (i32.const 1)))
    (call $refused (call $matmul ;; 190
      (i32.const 0) (i32.const 4) (i32.const 65536) (i32.const 1) (i32.const 1) (i32.const 1)))
    (call $refused (call $matmul ;; 191
      (i32.const 0) (i32.const 4) (i32.const 65532) (i32.const 2) (i32.const 1) (i32.const 1)))
    (call $refused (call $matmul ;; 192
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 65536) (i32.const 65536)))
    (call $refused (call $matmul ;; 193
      (i32.const 0) (i32.const 4) (i32.const 8) (i32.const 0xffffffff) (i32.const 0xffffffff) (i32.const 0xffffffff)))
    (call $refused (call $matmul ;; 194
      (i32.const 0) (i32.const 4) (i32.const 8) (i32.const 32768) (i32.const 32768) (i32.const 1)))
    (call $refused (call $matmul ;; 195
      (i32.const 0) (i32.const 4) (i32.const 8) (i32.const 0x40000000) (i32.const 1) (i32.const 1)))
    (call $refused (call $matmul ;; 196
      (i32.const 0) (i32.const 1024) (i32.const 2048) (i32.const 128) (i32.const 128) (i32.const 128)))
    (call $refused (call $matmul ;; 197
      (i32.const 0) (i32.const 64) (i32.const 32) (i32.const 4) (i32.const 4) (i32.const 4)))
    (call $refused (call $matmul ;; 198
      (i32.const 0) (i32.const 64) (i32.const 64) (i32.const 4) (i32.const 4) (i32.const 4)))
    (call $refused (call $session_close (i32.const -1))) ;; 199
    (call $refused (call $session_fork (i32.const -1))) ;; 200
    (call $refused (call $session_length (i32.const -1))) ;; 201
    (call $refused (call $session_context (i32.const -1))) ;; 202
    (call $refused (call $next (i32.const -1))) ;; 203
    (call $refused (call $session_truncate (i32.const -1) (i32.const 0))) ;; 204
    (call $refused (call $session_tokens (i32.const -1) (i32.const 0) (i32.const 0) (i32.const 4))) ;; 205
    (call $refused (call $prefill (i32.const -1) (i32.const 0) (i32.const 1))) ;; 206
    (call $refused (call $append (i32.const -1) (i32.const 0) (i32.const 1))) ;; 207
    (call $refused (call $decode (i32.const -1) (i32.const 0) (i32.const 16))) ;; 208
    (call $refused (call $set_sampler (i32.const -1) (i32.const 128) (i32.const 0) (i32.const 0))) ;; 209
    (call $refused (call $sample (i32.const -1) (i32.const 0) (i32.const 16))) ;; 210
    (call $refused (call $generate (i32.const -1) (i32.const 320))) ;; 211
    (call $refused (call $session_close (i32.const 0x7fffffff))) ;; 212
    (call $refused (call $session_fork (i32.const 0x7fffffff))) ;; 213
    (call $refused (call $session_length (i32.const 0x7fffffff))) ;; 214
    (call $refused (call $session_context (i32.const 0x7fffffff))) ;; 215
    (call $refused (call $next (i32.const 0x7fffffff))) ;; 216
    (call $refused (call $session_truncate (i32.const 0x7fffffff) (i32.const 0))) ;; 217
    (call $refused (call $session_tokens (i32.const 0x7fffffff) (i32.const 0) (i32.const 0) (i32.const 4))) ;; 218
    (call $refused (call $prefill (i32.const 0x7fffffff) (i32.const 0) (i32.const 1))) ;; 219
    (call $refused (call $append (i32.const 0x7fffffff) (i32.const 0) (i32.const 1))) ;; 220
    (call $refused (call $decode (i32.const 0x7fffffff) (i32.const 0) (i32.const 16))) ;; 221
    (call $refused (call $set_sampler (i32.const 0x7fffffff) (i32.const 128) (i32.const 0) (i32.const 0))) ;; 222
    (call $refused (call $sample (i32.const 0x7fffffff) (i32.const 0) (i32.const 16))) ;; 223
    (call $refused (call $generate (i32.const 0x7fffffff) (i32.const 320))) ;; 224
    (call $refused (call $session_close (i32.const 0x80000000))) ;; 225
    (call $refused (call $session_fork (i32.const 0x80000000))) ;; 226
    (call $refused (call $session_length (i32.const 0x80000000))) ;; 227
    (call $refused (call $session_context (i32.const 0x80000000))) ;; 228
    (call $refused (call $next (i32.const 0x80000000))) ;; 229
    (call $refused (call $session_truncate (i32.const 0x80000000) (i32.const 0))) ;; 230
    (call $refused (call $session_tokens (i32.const 0x80000000) (i32.const 0) (i32.const 0) (i32.const 4))) ;; 231
    (call $refused (call $prefill (i32.const 0x80000000) (i32.const 0) (i32.const 1))) ;; 232
    (call $refused (call $append (i32.const 0x80000000) (i32.const 0) (i32.const 1))) ;; 233
    (call $refused (call $decode (i32.const 0x80000000) (i32.const 0) (i32.const 16))) ;; 234
    (call $refused (call $set_sampler (i32.const 0x80000000) (i32.const 128) (i32.const 0) (i32.const 0))) ;; 235
    (call $refused (call $sample (i32.const 0x80000000) (i32.const 0) (i32.const 16))) ;; 236
    (call $refused (call $generate (i32.const 0x80000000) (i32.const 320))) ;; 237
    (call $refused (call $session_close (i32.const 77))) ;; 238
    (call $refused (call $session_fork (i32.const 77))) ;; 239
    (call $refused (call $session_length (i32.const 77))) ;; 240
    (call $refused (call $session_context (i32.const 77))) ;; 241
    (call $refused (call $next (i32.const 77))) ;; 242
    (call $refused (call $session_truncate (i32.const 77) (i32.const 0))) ;; 243
    (call $refused (call $session_tokens (i32.const 77) (i32.const 0) (i32.const 0) (i32.const 4))) ;; 244
    (call $refused (call $prefill (i32.const 77) (i32.const 0) (i32.const 1))) ;; 245
    (call $refused (call $append (i32.const 77) (i32.const 0) (i32.const 1))) ;; 246
    (call $refused (call $decode (i32.const 77) (i32.const 0) (i32.const 16))) ;; 247
    (call $refused (call $set_sampler (i32.const 77) (i32.const 128) (i32.const 0) (i32.const 0))) ;; 248
    (call $refused (call $sample (i32.const 77) (i32.const 0) (i32.const 16))) ;; 249
    (call $refused (call $generate (i32.const 77) (i32.const 320))) ;; 250
    (call $refused (call $dispatch (i32.const 0xfffffffc) (i32.const 8) (i32.const 0) (i32.const 0) (i32.const 128))) ;; 251
    (call $refused (call $dispatch (i32.const 64) (i32.const 2) (i32.const 0xfffffffc) (i32.const 1) (i32.const 128))) ;; 252
    (call $refused (call $dispatch (i32.const 64) (i32.const 2) (i32.const 384) (i32.const 1) (i32.const 0xfffffffc))) ;; 253
    (call $refused (call $dispatch (i32.const 64) (i32.const 2) (i32.const 384) (i32.const 1) (i32.const 128))) ;; 254
    (drop (call $reply (i32.const 512) (i32.sub (call $number (i32.const 512) (global.get $calls)) (i32.const 512))))
    (global.get $accepted)))
