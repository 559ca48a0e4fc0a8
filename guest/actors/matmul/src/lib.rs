//! Fills two matrices in its own memory, has the host multiply them there, and checks every element of the product.
//!
//! The message is `M K N`, or empty for 128 128 128. The reply is `{"m":..,"k":..,"n":..,"errors":0,"max_error":..}`, where an error
//! is an element that is further from the exact product than any order of f32 summation explains.
//!
//! The message `double N` doubles N numbers by a kernel of its own, on a GPU. The reply is `{"doubled":N,"errors":0}`.
#![cfg_attr(target_family = "wasm", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod check;

use alloc::{format, vec, vec::Vec};

use driftwood_guest::{Error, Grid, MatmulShape, Result, actor, dispatch, json::Object, matmul as host_matmul, reply};

/// Each size is at most this, so that three matrices fit a 32-bit memory.
const SIZE_MAX: u32 = 4096;
const SIZE_DEFAULT: u32 = 128;

/// Invocations of a workgroup in [`DOUBLE`]; so many numbers are the least, since a binding begins at a multiple of 256 bytes.
const WORKGROUP: u32 = 64;
const DOUBLE: &str = "
@group(0) @binding(0) var<storage, read_write> numbers: array<f32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&numbers) { numbers[id.x] *= 2.0; }
}";

actor!(matmul);

fn matmul(message: &str) -> Result<()> {
    if let Some(count) = message.trim().strip_prefix("double ") {
        return double(count);
    }
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

/// Doubles so many numbers and checks each.
fn double(count: &str) -> Result<()> {
    let count = count.parse().ok().filter(|count| (WORKGROUP..=WORKGROUP << 16).contains(count));
    let Some(count) = count else {
        return Err(Error::Failed(format!("say how many numbers to double, from {WORKGROUP} on: \"double 1000\"")));
    };
    let mut numbers: Vec<f32> = (0..count).map(|index| index as f32).collect();
    let workgroups = [count.div_ceil(WORKGROUP), 1, 1];
    dispatch(DOUBLE, &mut [numbers.as_mut_slice().into()], Grid { workgroups, loop_budget: 0 })?;
    let errors = numbers.iter().enumerate().filter(|(index, number)| **number != 2.0 * *index as f32).count();
    reply(&Object::new().integer("doubled", count.into()).integer("errors", errors as i64).finish())
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
