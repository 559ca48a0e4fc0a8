;; Must be refused: asks for a table of 4 billion entries.
(module
  (memory (export "memory") 1)
  (table 0xffffffff funcref)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
