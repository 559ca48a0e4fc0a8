;; Must be refused: exports its memory by the name handle.
(module
  (memory (export "memory") (export "handle") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 1)))
