;; Must be refused where the limit is lower: asks for 4 GiB of memory from the start.
(module
  (memory (export "memory") 65536)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (i32.const 0)))
