//! Rotary position embedding (Su et al., "RoFormer", 2021).
//!
//! Angles are computed in double precision by `libm`, whose sine and cosine are the same on every machine; the rotation itself is two
//! fused multiply-adds an element. K is stored in half-split order whatever the weight file's convention.

use driftwood_compute::{Row, rope_half, rope_interleaved};

/// How a weight file pairs the elements that RoPE rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopePairs {
    /// Element i with element i + half.
    Halves,
    /// Element 2i with element 2i + 1 (GGUF's Llama files permute Q and K so).
    Interleaved,
}

/// The frequencies of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    frequencies: Vec<f64>, // (head_dim / 2), radians a position
    pairs: RopePairs,
}

impl Rope {
    /// Frequencies base^(-2i / head_dim), divided by `scaling`.
    pub(crate) fn new(head_dim: usize, base: f32, scaling: f32, pairs: RopePairs) -> Rope {
        let frequency = |i: usize| libm::pow(f64::from(base), -2.0 * i as f64 / head_dim as f64) / f64::from(scaling);
        Rope { frequencies: (0..head_dim / 2).map(frequency).collect(), pairs }
    }

    /// The same with each frequency divided by its factor, (head_dim / 2).
    pub(crate) fn divided_by(mut self, factors: &[f32]) -> Rope {
        assert_eq!(self.frequencies.len(), factors.len(), "one factor a frequency");
        self.frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= f64::from(*factor));
        self
    }
}

/// How Llama 3.1 and later stretch their context: `rope_scaling` of `config.json`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Llama3Scaling {
    /// What divides the frequencies of wavelengths that the first training never saw whole.
    pub factor: f64,
    /// Wavelengths of at least `original_context / low_freq_factor` tokens are divided by all of `factor`.
    pub low_freq_factor: f64,
    /// Those of at most `original_context / high_freq_factor` tokens by nothing.
    pub high_freq_factor: f64,
    /// Tokens of the context of the first training.
    pub original_context: f64,
}

/// What divides RoPE's frequencies, in single precision as GGUF's `rope_freqs.weight` holds it: (head_dim / 2).
///
/// Source: Hugging Face's `_compute_llama3_parameters`; the inverse frequency is interpolated between both bounds.
pub(crate) fn llama3_factors(head_dim: usize, base: f32, scaling: &Llama3Scaling) -> Vec<f32> {
    let &Llama3Scaling { factor, low_freq_factor, high_freq_factor, original_context } = scaling;
    let of = |i: usize| {
        let wavelength = std::f64::consts::TAU * libm::pow(f64::from(base), 2.0 * i as f64 / head_dim as f64);
        let smooth = (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        let smooth = smooth.clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..head_dim / 2).map(of).collect()
}

impl Rope {
    /// Elements of one position's rotations: a cosine and a sine for each pair.
    pub(crate) fn row_len(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// How the weight file pairs elements.
    pub(crate) fn pairs(&self) -> RopePairs {
        self.pairs
    }

    /// The rotations of rows: (row, cos or sin, head_dim / 2).
    pub(crate) fn rotations(&self, rows: &[Row]) -> Vec<f32> {
        let mut rotations = vec![0.0; rows.len() * self.row_len()];
        self.rotate(rows, &mut rotations);
        rotations
    }

    fn rotate(&self, rows: &[Row], rotations: &mut [f32]) {
        for (row, cos_sin) in rows.iter().zip(rotations.chunks_mut(self.row_len())) {
            let (cos, sin) = cos_sin.split_at_mut(self.frequencies.len());
            for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
                let (s, c) = libm::sincos(f64::from(row.position) * frequency);
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
    }
}

/// The rotations of one pass's rows, computed once for each kind of layer.
#[derive(Debug, Default)]
pub(crate) struct Rotations {
    kinds: Vec<Kind>,
    kinds_used: usize,
}

#[derive(Debug)]
struct Kind {
    rope: usize, // the address of its `Rope`, only compared
    pairs: RopePairs,
    half: usize,
    cos_sin: Vec<f32>, // (row, cos or sin, head_dim / 2)
}

impl Rotations {
    /// Begins a new pass.
    pub(crate) fn clear(&mut self) {
        self.kinds_used = 0;
    }

    /// The rotations of `rope` for `rows`, which are the same until [`Rotations::clear`].
    pub(crate) fn of(&mut self, rope: &Rope, rows: &[Row]) -> RowRotations<'_> {
        let known = self.kinds[..self.kinds_used].iter().position(|k| k.rope == identity(rope));
        let index = known.unwrap_or_else(|| self.add(rope, rows));
        RowRotations(&self.kinds[index])
    }

    fn add(&mut self, rope: &Rope, rows: &[Row]) -> usize {
        let index = self.kinds_used;
        if index == self.kinds.len() {
            self.kinds.push(Kind { rope: identity(rope), pairs: rope.pairs, half: 0, cos_sin: Vec::new() });
        }
        self.kinds_used += 1;
        let kind = &mut self.kinds[index];
        (kind.rope, kind.pairs, kind.half) = (identity(rope), rope.pairs, rope.frequencies.len());
        kind.cos_sin.resize(rows.len() * 2 * kind.half, 0.0);
        rope.rotate(rows, &mut kind.cos_sin);
        index
    }
}

fn identity(rope: &Rope) -> usize {
    std::ptr::from_ref(rope) as usize
}

/// The rotations of one kind of layer, a row each.
#[derive(Clone, Copy)]
pub(crate) struct RowRotations<'a>(&'a Kind);

impl<'a> RowRotations<'a> {
    /// The rotation of the pass's row `index`.
    pub(crate) fn row(self, index: usize) -> Rotation<'a> {
        let (cos, sin) = self.0.cos_sin[index * 2 * self.0.half..][..2 * self.0.half].split_at(self.0.half);
        Rotation { cos, sin, pairs: self.0.pairs }
    }
}

/// The rotation of one position.
#[derive(Clone, Copy)]
pub(crate) struct Rotation<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    pairs: RopePairs,
}

impl Rotation<'_> {
    /// to = rotated from, in half-split order.
    pub(crate) fn apply(self, from: &[f32], to: &mut [f32]) {
        match self.pairs {
            RopePairs::Interleaved => rope_interleaved(from, to, self.cos, self.sin),
            RopePairs::Halves => {
                to.copy_from_slice(from);
                rope_half(to, self.cos, self.sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_stretches_long_wavelengths_only() {
        let scaling = Llama3Scaling { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let factors = llama3_factors(64, 500_000.0, &scaling);
        assert_eq!((factors.len(), factors[0], factors[14], factors[31]), (32, 1.0, 1.0, 32.0));
        assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]));
        // Pair 16: wavelength 2 pi sqrt(500,000) = 4442.88 tokens, smooth = (8192 / 4442.88 - 1) / 3 = 0.281282.
        assert!((factors[16] - 1.0 / (0.718_718 / 32.0 + 0.281_282)).abs() < 1e-4, "{}", factors[16]);
        let rope = Rope::new(64, 500_000.0, 1.0, RopePairs::Halves);
        let scaled = rope.clone().divided_by(&factors);
        assert_eq!((scaled.frequencies[0], scaled.frequencies[31] * 32.0), (1.0, rope.frequencies[31]));
    }
}
