//! Rotary position embedding: tables in f64 by `libm` (the same on every machine), applied in f32 without fusing.

/// Cosines and sines of every position so far asked for.
#[derive(Clone, Debug)]
pub struct RopeTable {
    frequencies: Vec<f64>,
    cos: Vec<f32>, // (position, head_dim / 2)
    sin: Vec<f32>, // (position, head_dim / 2)
}

impl RopeTable {
    /// A table for heads of `head_dim` elements: pair `i` turns by `position / factor * base^(-2 i / head_dim)`.
    ///
    /// # Panics
    /// If `head_dim` is odd.
    pub fn new(head_dim: usize, base: f32, factor: f32) -> RopeTable {
        assert!(head_dim.is_multiple_of(2), "head_dim {head_dim} is odd");
        let frequency = |i: usize| libm::pow(f64::from(base), -2.0 * i as f64 / head_dim as f64) / f64::from(factor);
        RopeTable { frequencies: (0..head_dim / 2).map(frequency).collect(), cos: Vec::new(), sin: Vec::new() }
    }

    /// Divides the frequency of each pair by its own factor, as files with a `rope_freqs` tensor ask.
    ///
    /// # Panics
    /// If there is not one factor a pair, or if positions were computed already.
    pub fn with_factors(mut self, factors: &[f32]) -> RopeTable {
        assert_eq!(factors.len(), self.frequencies.len(), "one factor a pair");
        assert!(self.cos.is_empty(), "factors come first");
        self.frequencies.iter_mut().zip(factors).for_each(|(f, by)| *f /= f64::from(*by));
        self
    }

    /// Computes the table up to (not including) `positions`; allocates only when it grows.
    pub fn ensure(&mut self, positions: usize) {
        let pairs = self.frequencies.len();
        for position in self.cos.len() / pairs.max(1)..positions {
            for frequency in &self.frequencies {
                let angle = position as f64 * frequency;
                self.cos.push(libm::cos(angle) as f32);
                self.sin.push(libm::sin(angle) as f32);
            }
        }
    }

    /// The cosines of one position, one a pair.
    ///
    /// # Panics
    /// If [`RopeTable::ensure`] has not reached it.
    pub fn cos(&self, position: usize) -> &[f32] {
        &self.cos[position * self.frequencies.len()..][..self.frequencies.len()]
    }

    /// The sines of one position, one a pair.
    ///
    /// # Panics
    /// If [`RopeTable::ensure`] has not reached it.
    pub fn sin(&self, position: usize) -> &[f32] {
        &self.sin[position * self.frequencies.len()..][..self.frequencies.len()]
    }
}

/// Turns one head in half-split order: element `i` pairs with `i + head_dim / 2`.
///
/// # Panics
/// If `row` is not twice as long as the tables.
pub fn rope_half(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(row.len() == 2 * cos.len() && cos.len() == sin.len(), "one angle a pair");
    let (low, high) = row.split_at_mut(cos.len());
    for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
    }
}

/// Turns one head whose pairs stand side by side (2i, 2i + 1), and writes it in half-split order.
///
/// # Panics
/// If `src` and `dst` are not twice as long as the tables.
pub fn rope_interleaved(src: &[f32], dst: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(src.len() == 2 * cos.len() && dst.len() == src.len() && cos.len() == sin.len(), "one angle a pair");
    let (low, high) = dst.split_at_mut(cos.len());
    for ((((pair, a), b), c), s) in src.chunks_exact(2).zip(low).zip(high).zip(cos).zip(sin) {
        (*a, *b) = (pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_turn_by_the_same_angles() {
        let mut table = RopeTable::new(8, 10_000.0, 1.0);
        table.ensure(5);
        let pairs: Vec<f32> = (0..8).map(|i| i as f32 - 3.5).collect();
        let mut halves: Vec<f32> = (0..8).map(|i| pairs[if i < 4 { 2 * i } else { 2 * (i - 4) + 1 }]).collect();
        let mut out = [f32::NAN; 8];
        rope_interleaved(&pairs, &mut out, table.cos(4), table.sin(4));
        rope_half(&mut halves, table.cos(4), table.sin(4));
        assert_eq!(halves, out);
        let angle = 4.0f64 * 10_000f64.powf(-0.5);
        assert!((f64::from(table.cos(4)[2]) - angle.cos()).abs() < 1e-7);
    }

    #[test]
    fn position_zero_turns_nothing_and_factors_divide() {
        let mut table = RopeTable::new(4, 100.0, 2.0).with_factors(&[1.0, 4.0]);
        table.ensure(9);
        let mut row = [1.0, 2.0, 3.0, 4.0];
        rope_half(&mut row, table.cos(0), table.sin(0));
        assert_eq!(row, [1.0, 2.0, 3.0, 4.0]);
        assert!((f64::from(table.sin(8)[1]) - (8.0f64 / 2.0 / 10.0 / 4.0).sin()).abs() < 1e-7);
    }
}
