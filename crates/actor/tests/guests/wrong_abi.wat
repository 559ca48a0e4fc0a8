;; Must be refused: speaks version 999 of the contract.
(module
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (i32.const 999))
  (func (export "handle") (result i32) (i32.const 0)))
