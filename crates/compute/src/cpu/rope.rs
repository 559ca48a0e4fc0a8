//! Rotary position embedding, applied in f32 without fusing; the angles are the caller's.

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
        let (cos, sin): (Vec<f32>, Vec<f32>) = (0..4).map(|i| (4.0 * 0.1f32.powi(i)).sin_cos()).map(|(s, c)| (c, s)).unzip();
        let pairs: Vec<f32> = (0..8).map(|i| i as f32 - 3.5).collect();
        let mut halves: Vec<f32> = (0..8).map(|i| pairs[if i < 4 { 2 * i } else { 2 * (i - 4) + 1 }]).collect();
        let mut out = [f32::NAN; 8];
        rope_interleaved(&pairs, &mut out, &cos, &sin);
        rope_half(&mut halves, &cos, &sin);
        assert_eq!(halves, out);
    }

    #[test]
    fn no_angle_turns_nothing() {
        let mut row = [1.0, 2.0, 3.0, 4.0];
        rope_half(&mut row, &[1.0, 1.0], &[0.0, 0.0]);
        assert_eq!(row, [1.0, 2.0, 3.0, 4.0]);
    }
}
