//! The next token, chosen on the device: greedily, or at a temperature.

use super::{Binding, Dispatch, Gpu, GpuError, KernelSource};
use bytemuck::{Pod, Zeroable};

/// Slices of a row at most, each a workgroup: the second kernel takes them at once.
const SLICES_MAX: u32 = 256;
/// Logits of a slice at least.
const SLICE_LEN_MIN: u32 = 1024;

/// How one row's token is chosen, as the kernels read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Draw {
    /// 0 for the largest logit itself.
    pub inverse_temperature: f32,
    /// The sequence of draws.
    pub seed: [u32; 2],
    /// Which of the sequence it is.
    pub draw: u32,
}

impl Draw {
    /// The noise on a token's logit: `sample.wgsl` has the same text. The logarithms are the host's own, the rest has equal bits.
    pub fn gumbel(&self, token: u32) -> f32 {
        let mixed = |x: u32| {
            let h = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
            let h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
            h ^ (h >> 16)
        };
        let h = mixed(mixed(mixed(mixed(self.seed[1]) ^ self.seed[0]) ^ self.draw) ^ token);
        let unit = ((h >> 9) as f32 + 0.5) * 1.192_092_9e-7;
        -libm::logf(-libm::logf(unit))
    }
}

/// What is left in place of a token where no logit is a number above negative infinity.
pub const NO_TOKEN: u32 = u32::MAX;

/// Chooses tokens of rows of `n` logits.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    n: u32,
    slice_len: u32,
}

impl Sample {
    /// For a vocabulary of `n`.
    pub fn new(n: usize) -> Sample {
        let n = n as u32;
        Sample { n, slice_len: n.div_ceil(SLICES_MAX).max(SLICE_LEN_MIN) }
    }

    fn slices(&self) -> u32 {
        self.n.div_ceil(self.slice_len)
    }

    /// Bytes of scratch memory for `most` rows.
    pub fn scratch_bytes(&self, most: usize) -> u64 {
        8 * u64::from(self.slices()) * most as u64
    }

    /// `draws` are [`Draw`]s; `chosen` (u32) and `tokens` (u32: anything, then one for each row) both get each row's token. The number of
    /// rows is the dispatches' second extent.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If a binding is too short for `most` rows.
    pub fn dispatches(
        &self,
        gpu: &Gpu,
        most: usize,
        [draws, logits, scratch]: [Binding<'_>; 3],
        [chosen, tokens]: [Binding<'_>; 2],
    ) -> Result<[Dispatch; 2], GpuError> {
        let rows = most as u64;
        let needed = [(draws, 16 * rows), (logits, 4 * u64::from(self.n) * rows), (scratch, self.scratch_bytes(most))];
        assert!(needed.iter().all(|(binding, bytes)| binding.bytes >= *bytes), "a binding is too short for {most} rows");
        assert!(chosen.bytes >= 4 * rows && tokens.bytes >= 4 * rows + 4, "a binding is too short for {most} rows");
        let text = |pass: &str| {
            let constants = format!("const N = {}u;\nconst SLICE = {}u;\nconst SLICES = {}u;\n", self.n, self.slice_len, self.slices());
            [&constants, include_str!("wgsl/sample.wgsl"), pass].concat()
        };
        let slices = gpu.kernel("sample slices", KernelSource::Trusted(&text(include_str!("wgsl/sample_slices.wgsl"))))?;
        let joined = gpu.kernel("sample rows", KernelSource::Trusted(&text(include_str!("wgsl/sample_rows.wgsl"))))?;
        Ok([
            gpu.dispatch(&slices, &[draws, logits, scratch], [self.slices(), most as u32, 1]),
            gpu.dispatch(&joined, &[scratch, chosen, tokens], [1, most as u32, 1]),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::gpu;

    /// Rows of logits with a planted largest, ties, and rows that have none.
    #[test]
    fn the_largest_is_found_and_a_draw_is_fair() {
        let gpu = gpu();
        let n = 3001;
        let mut rows = vec![vec![-1.0f32; n]; 5];
        rows[0][2999] = 2.0;
        (rows[1][7], rows[1][2500]) = (3.0, 3.0);
        rows[2].fill(f32::NAN);
        (rows[3][0], rows[3][1]) = (f32::NAN, 0.5);
        rows[4].fill(f32::NEG_INFINITY);
        let chosen = choose(&gpu, n, &rows, &[Draw::default(); 5]);
        assert_eq!(chosen, [2999, 7, NO_TOKEN, 1, NO_TOKEN]);

        // Two tokens, odds e to 1: of 400 draws about 292 are the first.
        let mut row = vec![f32::NEG_INFINITY; n];
        (row[5], row[2000]) = (2.0, 0.0);
        let draw = |draw| Draw { inverse_temperature: 0.5, seed: [7, 0], draw };
        let draws: Vec<Draw> = (0..400).map(draw).collect();
        let tokens = choose(&gpu, n, &vec![row; 400], &draws);
        let first = tokens.iter().filter(|&&t| t == 5).count();
        assert!(tokens.iter().all(|t| [5, 2000].contains(t)) && (250..335).contains(&first), "{first} of 400");
    }

    fn choose(gpu: &Gpu, n: usize, rows: &[Vec<f32>], draws: &[Draw]) -> Vec<u32> {
        let sample = Sample::new(n);
        let up = |bytes: &[u8]| gpu.upload("input", bytes).unwrap();
        let (draws, logits) = (up(bytemuck::cast_slice(draws)), up(bytemuck::cast_slice(&rows.concat())));
        let scratch = gpu.buffer("scratch", sample.scratch_bytes(rows.len())).unwrap();
        let guard = 0xa5a5_a5a5u32;
        let [chosen, tokens] = [rows.len() + 1, rows.len() + 2].map(|len| up(bytemuck::cast_slice(&vec![guard; len])));
        let inputs = [&draws, &logits, &scratch].map(Binding::whole);
        let dispatches = sample.dispatches(gpu, rows.len(), inputs, [&chosen, &tokens].map(Binding::whole)).unwrap();
        gpu.run(&dispatches).unwrap();
        let mut words = vec![0u32; 2 * rows.len() + 3];
        let (first, second) = words.split_at_mut(rows.len() + 1);
        gpu.read(&chosen, 0, bytemuck::cast_slice_mut(first)).unwrap();
        gpu.read(&tokens, 0, bytemuck::cast_slice_mut(second)).unwrap();
        assert_eq!((first[rows.len()], second[0], second[rows.len() + 1]), (guard, guard, guard), "something else was written");
        assert_eq!(first[..rows.len()], second[1..][..rows.len()]);
        first[..rows.len()].to_vec()
    }
}
