;; Must be refused: its memory is imported.
(module
  (import "driftwood" "memory" (memory 1))
  (export "memory" (memory 0))
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
