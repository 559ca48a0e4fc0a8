;; Must be refused: whether its passive data segment has been dropped is state that a snapshot does not hold.
(module
  (memory (export "memory") 1)
  (data $segment "once")
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (memory.init $segment (i32.const 0) (i32.const 0) (i32.const 4))
    (data.drop $segment)
    (i32.const 0)))
