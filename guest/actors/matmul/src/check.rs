//! Matrices from a seed, and the check of their product.

use alloc::{vec, vec::Vec};

/// A 64-bit linear congruential generator: the same matrices everywhere.
pub struct Random {
    state: u64,
}

/// What the check found.
pub struct Report {
    /// Elements that are wrong.
    pub errors: i64,
    /// The largest distance from the exact product.
    pub max_error: f64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// Values i / 32768 - 1 for i in 0..65536: exact in f32, and so that their products and sums are exact in f64.
    pub fn matrix(&mut self, elements: u32) -> Vec<f32> {
        (0..elements).map(|_| self.next_u16() as f32 / 32768.0 - 1.0).collect()
    }

    fn next_u16(&mut self) -> u16 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 48) as u16
    }
}

/// Compares each element of `c` (m, n) with the exact product of `a` (m, k) and `b` (k, n).
///
/// Whatever the order of an f32 sum of k products, it stays within k roundings of the sum of their magnitudes.
pub fn check(a: &[f32], b: &[f32], c: &[f32], k: usize, n: usize) -> Report {
    let roundings = k as f64 * f64::from(f32::EPSILON);
    let mut report = Report { errors: 0, max_error: 0.0 };
    let mut exact = vec![0.0f64; n]; // (n)
    let mut magnitude = vec![0.0f64; n]; // (n)
    for (a_row, c_row) in a.chunks_exact(k).zip(c.chunks_exact(n)) {
        exact.fill(0.0);
        magnitude.fill(0.0);
        for (a_value, b_row) in a_row.iter().zip(b.chunks_exact(n)) {
            for column in 0..n {
                let product = f64::from(*a_value) * f64::from(b_row[column]);
                exact[column] += product;
                magnitude[column] += product.abs();
            }
        }
        for column in 0..n {
            report.count((f64::from(c_row[column]) - exact[column]).abs(), roundings * magnitude[column]);
        }
    }
    report
}

impl Report {
    /// Takes one element's distance; what is no number is wrong.
    fn count(&mut self, error: f64, allowed: f64) {
        if error.is_nan() || error > allowed {
            self.errors += 1;
        }
        self.max_error = self.max_error.max(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
        let element = |row: usize, column: usize| (0..k).map(|inner| a[row * k + inner] * b[inner * n + column]).sum();
        (0..m * n).map(|index| element(index / n, index % n)).collect()
    }

    #[test]
    fn a_right_product_has_no_errors_and_a_wrong_element_is_found() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (16, 300, 2)] {
            let mut random = Random::new(7);
            let (a, b) = (random.matrix((m * k) as u32), random.matrix((k * n) as u32));
            let mut c = product(&a, &b, m, k, n);
            assert_eq!(check(&a, &b, &c, k, n).errors, 0);
            c[m * n - 1] += 0.01;
            assert_eq!(check(&a, &b, &c, k, n).errors, 1);
            c[0] = f32::NAN;
            assert_eq!(check(&a, &b, &c, k, n).errors, if m * n == 1 { 1 } else { 2 });
        }
    }

    #[test]
    fn values_are_exact() {
        for value in Random::new(3).matrix(1000) {
            assert!((-1.0..1.0).contains(&value) && (value * 32768.0).fract() == 0.0);
        }
    }
}
