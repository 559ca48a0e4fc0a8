;; Must be refused: does not export handle.
(module
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1)))
