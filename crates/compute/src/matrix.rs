//! Weights as products read them: one view in a row format, or MLX's three tensors.

use crate::cpu::dequant::{Numbers, dequantise_groups, dequantise_inline};
use driftwood_region::{DType, View};
use std::ops::Range;

/// A weight of shape (rows, row_len) on mapped files.
///
/// Floats and GGML's blocks are one view. MLX's affine quantisation is three: unsigned integers ([`DType::unsigned`]), and for each group
/// of 32, 64 or 128 of a row a scale and a bias. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Matrix {
    weight: View,           // (rows, row_len)
    groups: Option<Groups>, // of unsigned integers
}

#[derive(Clone, Debug)]
struct Groups {
    scales: View, // (rows, row_len / group)
    biases: View, // (rows, row_len / group)
    group: usize,
}

impl From<View> for Matrix {
    fn from(weight: View) -> Matrix {
        Matrix { weight, groups: None }
    }
}

impl Matrix {
    /// MLX's format: element = integer * scale + bias, with a scale and a bias for each `group` elements of a row.
    ///
    /// # Panics
    /// If `weight` is not of [`DType::unsigned`] in whole groups of 32, 64 or 128, or if `scales` and `biases` are not floats of one
    /// dtype and shape (rows, row_len / group).
    pub fn grouped(weight: View, scales: View, biases: View, group: usize) -> Matrix {
        assert!(matches!(group, 32 | 64 | 128), "groups of 32, 64 or 128, not {group}");
        let expected = [weight.shape().rows(), weight.shape().row_len() / group];
        assert!(weight.dtype().unsigned_bits().is_some(), "unsigned integers, not {}", weight.dtype());
        assert!(weight.shape().row_len().is_multiple_of(group), "whole groups of {group}");
        assert!(matches!(scales.dtype(), DType::F32 | DType::F16 | DType::BF16), "scales are floats, not {}", scales.dtype());
        for view in [&scales, &biases] {
            assert!(view.shape().extents() == expected && view.dtype() == scales.dtype(), "a scale and a bias a group");
        }
        Matrix { weight, groups: Some(Groups { scales, biases, group }) }
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

    /// How many elements share a scale and a bias, if they do by groups.
    pub fn group(&self) -> Option<usize> {
        self.groups.as_ref().map(|g| g.group)
    }

    /// The rows of a range, as a matrix on the same bytes.
    ///
    /// # Panics
    /// If the range leaves the matrix.
    pub fn select_rows(&self, rows: Range<usize>) -> Matrix {
        let select = |g: &Groups| Groups { scales: g.scales.rows(rows.clone()), biases: g.biases.rows(rows.clone()), group: g.group };
        Matrix { groups: self.groups.as_ref().map(select), weight: self.weight.rows(rows) }
    }

    /// The scales of MLX's groups, (rows, row_len / group).
    pub fn scales(&self) -> Option<&View> {
        self.groups.as_ref().map(|g| &g.scales)
    }

    /// The biases of MLX's groups, (rows, row_len / group).
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
            Some(g) => {
                let numbers = Numbers { dtype: g.scales.dtype(), scales: g.scales.row(row), biases: g.biases.row(row) };
                dequantise_groups(self.weight.dtype(), g.group, stored, numbers, out)
            }
        }
    }
}
