//! Fills two matrices in its own memory, has the host multiply them there, and checks every element of the product.
//!
//! The message is `M K N`, or empty for 128 128 128. The reply is `{"m":..,"k":..,"n":..,"errors":0,"max_error":..}`, where an error
//! is an element that is further from the exact product than any order of f32 summation explains.
#![cfg_attr(target_family = "wasm", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod check;

use alloc::{format, vec, vec::Vec};

use driftwood_guest::{Error, MatmulShape, Result, actor, json::Object, matmul as host_matmul, reply};

/// Each size is at most this, so that three matrices fit a 32-bit memory.
const SIZE_MAX: u32 = 4096;
const SIZE_DEFAULT: u32 = 128;

actor!(matmul);

fn matmul(message: &str) -> Result<()> {
    let shape = shape(message)?;
    let MatmulShape { m, k, n } = shape;
    let mut random = check::Random::new(1);
    let a: Vec<f32> = random.matrix(m * k); // (m, k)
    let b: Vec<f32> = random.matrix(k * n); // (k, n)
    let mut c = vec![f32::NAN; (m * n) as usize]; // (m, n)
    host_matmul(&a, &b, &mut c, shape)?;
    let report = check::check(&a, &b, &c, k as usize, n as usize);
    let object = Object::new().integer("m", m.into()).integer("k", k.into()).integer("n", n.into());
    reply(&object.integer("errors", report.errors).decimal("max_error", report.max_error, 9).finish())
}

/// Reads the message.
fn shape(message: &str) -> Result<MatmulShape> {
    let sizes: Option<Vec<u32>> = message.split_whitespace().map(|word| word.parse().ok()).collect();
    match sizes.as_deref() {
        Some([]) => Ok(MatmulShape { m: SIZE_DEFAULT, k: SIZE_DEFAULT, n: SIZE_DEFAULT }),
        Some([m, k, n]) if [m, k, n].into_iter().all(|size| (1..=SIZE_MAX).contains(size)) => Ok(MatmulShape { m: *m, k: *k, n: *n }),
        _ => Err(Error::Failed(format!("the message is not three sizes from 1 to {SIZE_MAX}; say \"128 128 128\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sizes() {
        assert_eq!(shape(""), Ok(MatmulShape { m: 128, k: 128, n: 128 }));
        assert_eq!(shape(" 1 2\t4096\n"), Ok(MatmulShape { m: 1, k: 2, n: 4096 }));
        for wrong in ["1", "1 2", "1 2 3 4", "0 1 1", "1 4097 1", "-1 2 3", "a b c", "1.0 2 3"] {
            assert!(shape(wrong).is_err(), "{wrong}");
        }
    }
}
