//! Rotary position embedding (Su et al., "RoFormer", 2021).
//!
//! Angles are computed in double precision by `libm`, whose sine and cosine are the same on every machine; the rotation itself is two
//! fused multiply-adds an element. K is stored in half-split order whatever the weight file's convention.

use crate::Error;
use crate::source::Source;
use driftwood_compute::{Row, rope_half, rope_interleaved};

/// How a weight file pairs the elements that RoPE rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopePairs {
    /// Element i with element i + half.
    Halves,
    /// Element 2i with element 2i + 1 (GGUF's Llama files permute Q and K so).
    Interleaved,
}

/// Which layers a RoPE is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopeLayers {
    /// Those that attend to everything; all, where there is one kind.
    Global,
    /// Those with a sliding window.
    Windows,
}

/// RoPE's numbers as a container gives them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeNumbers {
    /// What the frequencies are powers of.
    pub(crate) base: f32,
    /// Elements at the beginning of a head that are turned.
    pub(crate) rotated: usize,
    /// How the context was stretched, in a word.
    pub(crate) scaling: &'static str,
    /// What divides the frequencies, (rotated / 2).
    pub(crate) divisors: Vec<f32>,
    /// What the turned elements are multiplied by.
    pub(crate) magnitude: f32,
    /// What holds in longer contexts, if something else does.
    pub(crate) long: Option<LongRope>,
}

/// RoPE in contexts that are longer than those of the first training.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LongRope {
    /// Tokens of the longest context that is not long.
    pub(crate) beyond: usize,
    /// What divides the frequencies then, (rotated / 2).
    pub(crate) divisors: Vec<f32>,
}

/// A number that turns nothing: its key under GGUF's name, and what is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadRope {
    key: &'static str,
    value: f64,
    max: f64,
}

/// The frequencies of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    frequencies: Vec<f64>,              // (rotated / 2), radians a position
    long_frequencies: Option<Vec<f64>>, // the same in long contexts, where they differ
    half: usize,                        // head_dim / 2
    magnitude: f32,
    pairs: RopePairs,
    base: f32,
    scaling: &'static str,
}

impl RopeNumbers {
    /// Powers of `base` as they are, of `rotated` elements.
    pub(crate) fn plain(base: f32, rotated: usize) -> RopeNumbers {
        RopeNumbers { base, rotated, scaling: "none", divisors: vec![1.0; rotated / 2], magnitude: 1.0, long: None }
    }

    /// The same with each frequency divided by its own number, (rotated / 2).
    pub(crate) fn divided(self, scaling: &'static str, divisors: Vec<f32>) -> RopeNumbers {
        RopeNumbers { scaling, divisors, ..self }
    }

    fn check(&self, head_dim: usize) -> Result<(), BadRope> {
        let refuse = |key, value: f64, max: f64| Err(BadRope { key, value, max });
        if !(1.0..=1e12).contains(&self.base) {
            return refuse("rope.freq_base", self.base.into(), 1e12);
        }
        if self.rotated < 2 || self.rotated > head_dim || !self.rotated.is_multiple_of(2) {
            return refuse("rope.dimension_count", self.rotated as f64, head_dim as f64);
        }
        let long = self.long.iter().flat_map(|long| &long.divisors);
        if let Some(bad) = self.divisors.iter().chain(long).find(|d| !d.is_normal() || !(1e-4..=1e6).contains(*d)) {
            return refuse("rope.scaling.factor", f64::from(*bad), 1e6);
        }
        if !self.magnitude.is_normal() || !(1e-3..=1e3).contains(&self.magnitude) {
            return refuse("rope.scaling.attn_factor", self.magnitude.into(), 1e3);
        }
        Ok(())
    }
}

impl BadRope {
    /// The error as the container puts it.
    pub(crate) fn of(self, file: &dyn Source) -> Error {
        Error::ConfigOutOfRange { key: file.key_name(self.key), value: self.value, max: self.max }
    }
}

impl Rope {
    /// Frequencies base^(-2i / rotated), each divided by its number.
    ///
    /// # Errors
    /// If a number is out of bounds.
    pub(crate) fn new(head_dim: usize, numbers: &RopeNumbers, pairs: RopePairs) -> Result<Rope, BadRope> {
        numbers.check(head_dim)?;
        let (base, rotated) = (f64::from(numbers.base), numbers.rotated as f64);
        let frequency = |(i, divisor): (usize, &f32)| libm::pow(base, -2.0 * i as f64 / rotated) / f64::from(*divisor);
        let frequencies = |divisors: &[f32]| -> Vec<f64> {
            assert_eq!(divisors.len(), numbers.rotated / 2, "one divisor a frequency");
            divisors.iter().enumerate().map(frequency).collect()
        };
        let long_frequencies = numbers.long.as_ref().map(|long| frequencies(&long.divisors));
        let &RopeNumbers { magnitude, base, scaling, .. } = numbers;
        Ok(Rope { frequencies: frequencies(&numbers.divisors), long_frequencies, half: head_dim / 2, magnitude, pairs, base, scaling })
    }

    /// What its frequencies are powers of.
    pub(crate) fn base(&self) -> f32 {
        self.base
    }

    /// How the context was stretched, in a word.
    pub(crate) fn scaling(&self) -> &'static str {
        self.scaling
    }

    /// How many pairs of a head are turned: where it is below half of the head, element i pairs with i + this many.
    pub(crate) fn rotated_half(&self) -> usize {
        self.frequencies.len()
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

/// What divides RoPE's frequencies so, in single precision as GGUF's `rope_freqs.weight` holds it: (head_dim / 2).
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
        2 * self.half
    }

    /// How the weight file pairs elements.
    pub(crate) fn pairs(&self) -> RopePairs {
        self.pairs
    }

    /// The rotations of rows in long contexts or in others: (row, cos or sin, head_dim / 2).
    pub(crate) fn rotations(&self, rows: &[Row], long: bool) -> Vec<f32> {
        let mut rotations = vec![0.0; rows.len() * self.row_len()];
        self.rotate(rows, long, &mut rotations);
        rotations
    }

    fn rotate(&self, rows: &[Row], long: bool, rotations: &mut [f32]) {
        let frequencies = self.long_frequencies.as_ref().filter(|_| long).unwrap_or(&self.frequencies);
        for (row, cos_sin) in rows.iter().zip(rotations.chunks_mut(self.row_len())) {
            let (cos, sin) = cos_sin.split_at_mut(self.half);
            cos.fill(1.0);
            sin.fill(0.0);
            for ((frequency, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
                let (s, c) = libm::sincos(f64::from(row.position) * frequency);
                let magnitude = f64::from(self.magnitude);
                (*cos, *sin) = ((c * magnitude) as f32, (s * magnitude) as f32);
            }
        }
    }
}

/// The rotations of one pass's rows, computed once for each kind of layer.
#[derive(Debug, Default)]
pub(crate) struct Rotations {
    kinds: Vec<Kind>,
    kinds_used: usize,
    long: bool,
}

#[derive(Debug)]
struct Kind {
    rope: usize, // the address of its `Rope`, only compared
    pairs: RopePairs,
    half: usize,         // head_dim / 2
    rotated_half: usize, // those of them that are turned
    cos_sin: Vec<f32>,   // (row, cos or sin, head_dim / 2)
}

impl Rotations {
    /// Begins a new pass, over rows of long contexts or of others.
    pub(crate) fn clear(&mut self, long: bool) {
        (self.kinds_used, self.long) = (0, long);
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
            self.kinds.push(Kind { rope: 0, pairs: rope.pairs, half: 0, rotated_half: 0, cos_sin: Vec::new() });
        }
        self.kinds_used += 1;
        let kind = &mut self.kinds[index];
        (kind.rope, kind.pairs, kind.half, kind.rotated_half) = (identity(rope), rope.pairs, rope.half, rope.rotated_half());
        kind.cos_sin.resize(rows.len() * 2 * kind.half, 0.0);
        rope.rotate(rows, self.long, &mut kind.cos_sin);
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
        Rotation { cos, sin, pairs: self.0.pairs, rotated_half: self.0.rotated_half }
    }
}

/// The rotation of one position.
#[derive(Clone, Copy)]
pub(crate) struct Rotation<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    pairs: RopePairs,
    rotated_half: usize,
}

impl Rotation<'_> {
    /// to = rotated from, in half-split order.
    pub(crate) fn apply(self, from: &[f32], to: &mut [f32]) {
        match self.pairs {
            RopePairs::Interleaved => rope_interleaved(from, to, self.cos, self.sin, self.rotated_half),
            RopePairs::Halves => {
                to.copy_from_slice(from);
                rope_half(to, self.cos, self.sin, self.rotated_half);
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
        let plain = RopeNumbers::plain(500_000.0, 64);
        let rope = Rope::new(64, &plain, RopePairs::Halves).unwrap();
        let scaled = Rope::new(64, &plain.divided("llama3", factors), RopePairs::Halves).unwrap();
        assert_eq!((scaled.frequencies[0], scaled.frequencies[31] * 32.0), (1.0, rope.frequencies[31]));
    }

    #[test]
    fn part_of_a_head_is_turned_and_made_longer() {
        let numbers = RopeNumbers { magnitude: 2.0, ..RopeNumbers::plain(10_000.0, 4) };
        let rope = Rope::new(8, &numbers, RopePairs::Halves).unwrap();
        let mut rotations = Rotations::default();
        let mut turned = [f32::NAN; 8];
        rotations.of(&rope, &[Row { session: 0, position: 3 }]).row(0).apply(&[1.0, 0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 8.0], &mut turned);
        let angle = 3.0f64;
        assert_eq!(turned, [2.0 * angle.cos() as f32, 0.0, 2.0 * angle.sin() as f32, 0.0, 5.0, 6.0, 7.0, 8.0]);
    }

    #[test]
    fn numbers_that_turn_nothing_are_refused() {
        let plain = || RopeNumbers::plain(10_000.0, 64);
        let cases = [
            (RopeNumbers { base: 0.0, ..plain() }, "rope.freq_base"),
            (RopeNumbers { base: f32::NAN, ..plain() }, "rope.freq_base"),
            (RopeNumbers::plain(10_000.0, 63), "rope.dimension_count"),
            (RopeNumbers::plain(10_000.0, 66), "rope.dimension_count"),
            (RopeNumbers::plain(10_000.0, 0), "rope.dimension_count"),
            (plain().divided("linear", vec![0.0; 32]), "rope.scaling.factor"),
            (RopeNumbers { magnitude: f32::INFINITY, ..plain() }, "rope.scaling.attn_factor"),
        ];
        for (numbers, key) in cases {
            assert_eq!(Rope::new(64, &numbers, RopePairs::Halves).unwrap_err().key, key, "{numbers:?}");
        }
    }
}
