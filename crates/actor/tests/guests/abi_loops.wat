;; Must be refused at spawn: driftwood_abi never returns.
(module
  (memory (export "memory") 1)
  (func (export "driftwood_abi") (result i32) (loop $again (br $again)) (i32.const 1))
  (func (export "handle") (result i32) (i32.const 0)))
