;; Must be refused: changes its table with table.grow, which a snapshot does not hold.
(module
  (memory (export "memory") 1)
  (table $table 2 funcref)
  (func $nothing)
  (elem declare func $nothing)
  (func (export "driftwood_abi") (result i32) (i32.const 1))
  (func (export "handle") (result i32)
    (drop (table.grow $table (ref.null func) (i32.const 1)))
    (i32.const 0)))
