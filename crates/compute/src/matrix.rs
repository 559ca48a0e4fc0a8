//! Weights as products read them: one view in a row format, or MLX's three tensors.

use crate::cpu::dequant::{GROUP, dequantise_groups, dequantise_inline};
use driftwood_region::{DType, View};

/// A weight of shape (rows, row_len) on mapped files.
///
/// Floats and GGML's blocks are one view. MLX's affine quantisation is three: nibbles ([`DType::U4`]), and for each 64 of a row a scale and
/// a bias. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Matrix {
    weight: View,           // (rows, row_len)
    groups: Option<Groups>, // of U4 weights
}

#[derive(Clone, Debug)]
struct Groups {
    scales: View, // (rows, row_len / 64)
    biases: View, // (rows, row_len / 64)
}

impl From<View> for Matrix {
    fn from(weight: View) -> Matrix {
        Matrix { weight, groups: None }
    }
}

impl Matrix {
    /// Elements that share a scale and a bias.
    pub const GROUP: usize = GROUP;

    /// MLX's format: element = nibble * scale + bias.
    ///
    /// # Panics
    /// If `weight` is not [`DType::U4`] in whole groups, or if `scales` and `biases` are not floats of one dtype and shape
    /// (rows, row_len / 64).
    pub fn grouped(weight: View, scales: View, biases: View) -> Matrix {
        let expected = [weight.shape().rows(), weight.shape().row_len() / GROUP];
        assert!(weight.dtype() == DType::U4 && weight.shape().row_len().is_multiple_of(GROUP), "nibbles in whole groups");
        assert!(matches!(scales.dtype(), DType::F32 | DType::F16 | DType::BF16), "scales are floats, not {}", scales.dtype());
        for view in [&scales, &biases] {
            assert!(view.shape().extents() == expected && view.dtype() == scales.dtype(), "a scale and a bias a group");
        }
        Matrix { weight, groups: Some(Groups { scales, biases }) }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.weight.shape().rows()
    }

    /// Elements of a row.
    pub fn row_len(&self) -> usize {
        self.weight.shape().row_len()
    }

    /// The elements as stored, (rows, row_len).
    pub fn weight(&self) -> &View {
        &self.weight
    }

    /// The scales of MLX's groups, (rows, row_len / 64).
    pub fn scales(&self) -> Option<&View> {
        self.groups.as_ref().map(|g| &g.scales)
    }

    /// The biases of MLX's groups, (rows, row_len / 64).
    pub fn biases(&self) -> Option<&View> {
        self.groups.as_ref().map(|g| &g.biases)
    }

    /// Writes a row's elements to `out`.
    ///
    /// # Panics
    /// If there is no such row, if `out` has another length, or if the elements are plain integers.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        self.dequantise_inline(row, out);
    }

    /// [`Matrix::dequantise_row`], to be compiled into callers that have more instructions.
    #[inline(always)]
    pub(crate) fn dequantise_inline(&self, row: usize, out: &mut [f32]) {
        let stored = self.weight.row(row);
        match &self.groups {
            None => dequantise_inline(self.weight.dtype(), stored, out),
            Some(g) => dequantise_groups(stored, g.scales.dtype(), g.scales.row(row), g.biases.row(row), out),
        }
    }
}
