//! Rotary position embedding, applied in f32 without fusing; the angles are the caller's.

/// Turns the first `2 * rotated_half` elements of one head in half-split order: element `i` pairs with `i + rotated_half`. The rest stay
/// as they are, and so do what the tables hold for them unread: (head_dim / 2) entries each.
///
/// # Panics
/// If `row` is not twice as long as the tables, or shorter than what is turned.
pub fn rope_half(row: &mut [f32], cos: &[f32], sin: &[f32], rotated_half: usize) {
    assert!(row.len() == 2 * cos.len() && cos.len() == sin.len() && rotated_half <= cos.len(), "one angle a pair");
    let (low, high) = row[..2 * rotated_half].split_at_mut(rotated_half);
    for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
    }
}

/// Turns one head whose pairs stand side by side (2i, 2i + 1), and writes it in half-split order: pair `i < rotated_half` to `i` and
/// `i + rotated_half`, and the elements that are not turned to where they were.
///
/// # Panics
/// If `src` and `dst` are not twice as long as the tables, or shorter than what is turned.
pub fn rope_interleaved(src: &[f32], dst: &mut [f32], cos: &[f32], sin: &[f32], rotated_half: usize) {
    assert!(src.len() == 2 * cos.len() && dst.len() == src.len() && cos.len() == sin.len(), "one angle a pair");
    let (turned, rest) = src.split_at(2 * rotated_half);
    dst[2 * rotated_half..].copy_from_slice(rest);
    let (low, high) = dst[..2 * rotated_half].split_at_mut(rotated_half);
    for ((((pair, a), b), c), s) in turned.chunks_exact(2).zip(low).zip(high).zip(cos).zip(sin) {
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
        for turned in 0..=4 {
            let half_split = |i: usize| match i {
                _ if i < turned => 2 * i,
                _ if i < 2 * turned => 2 * (i - turned) + 1,
                _ => i,
            };
            let mut halves: Vec<f32> = (0..8).map(|i| pairs[half_split(i)]).collect();
            let mut out = [f32::NAN; 8];
            rope_interleaved(&pairs, &mut out, &cos, &sin, turned);
            rope_half(&mut halves, &cos, &sin, turned);
            assert_eq!(halves, out);
            assert_eq!(out[2 * turned..], pairs[2 * turned..]);
            if turned > 0 {
                assert_eq!((out[0], out[turned]), (pairs[0] * cos[0] - pairs[1] * sin[0], pairs[0] * sin[0] + pairs[1] * cos[0]));
            }
        }
    }

    #[test]
    fn no_angle_turns_nothing() {
        let mut row = [1.0, 2.0, 3.0, 4.0];
        rope_half(&mut row, &[1.0, 1.0], &[0.0, 0.0], 2);
        assert_eq!(row, [1.0, 2.0, 3.0, 4.0]);
    }
}
