//! Read-only windows on mapped files, with a dtype and a shape.

use crate::region::{Backing, Region};
use crate::{DType, Error};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The extents of a tensor, outermost first; at most six, without heap allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    extents: [usize; Shape::RANK_MAX],
    rank: usize,
}

impl Shape {
    /// The largest number of extents: a KV pool is (block, layer, k_or_v, kv_head, token, head_dim).
    pub const RANK_MAX: usize = 6;

    /// A shape of these extents, or `None` if there are more than [`Shape::RANK_MAX`] or their product overflows.
    pub fn new(extents: &[usize]) -> Option<Shape> {
        let mut shape = Shape { extents: [1; Self::RANK_MAX], rank: extents.len() };
        shape.extents.get_mut(..extents.len())?.copy_from_slice(extents);
        extents.iter().try_fold(1usize, |product, &e| product.checked_mul(e))?;
        Some(shape)
    }

    /// The extents, outermost first.
    pub fn extents(&self) -> &[usize] {
        &self.extents[..self.rank]
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.extents().iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The innermost extent: the length of a row (1 for a scalar).
    pub fn row_len(&self) -> usize {
        self.extents().last().copied().unwrap_or(1)
    }

    /// How many rows there are: the product of all extents but the innermost.
    pub fn rows(&self) -> usize {
        self.extents().split_last().map_or(1, |(_, outer)| outer.iter().product())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.extents().fmt(f)
    }
}

/// A read-only window on a mapped file.
///
/// Cloning is cheap: the bytes are shared, and the mapping lives as long as its last view.
#[derive(Clone, Debug)]
pub struct View {
    region: Arc<Region>,
    offset_bytes: usize,
    len_bytes: usize,
    dtype: DType,
    shape: Shape,
}

impl View {
    /// A window of `shape` elements at `offset_bytes` of a mapped file.
    ///
    /// # Errors
    /// If the shape does not fit the dtype's blocks or the window leaves the region, or if the region is writable memory (which
    /// has owners of its own).
    pub fn new(region: &Arc<Region>, offset_bytes: usize, dtype: DType, shape: Shape) -> Result<View, Error> {
        if region.backing() != Backing::File {
            return Err(Error::Unsupported { operation: "view a region", why: "writable memory is not shared" });
        }
        let bad_shape = || Error::BadShape { shape: format!("{shape:?}"), dtype, block_len: dtype.block_len() };
        let row_bytes = dtype.bytes_of(shape.row_len()).ok_or_else(bad_shape)?;
        let len_bytes = row_bytes.checked_mul(shape.rows()).ok_or_else(bad_shape)?;
        let region_bytes = region.open_bytes();
        if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > region_bytes) {
            return Err(Error::ViewOutside { offset_bytes, view_bytes: len_bytes, region_bytes });
        }
        Ok(View { region: region.clone(), offset_bytes, len_bytes, dtype, shape })
    }

    /// The whole of a mapped file as bytes.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn whole(region: &Arc<Region>) -> Result<View, Error> {
        let shape = Shape::new(&[region.open_bytes()]).expect("one extent");
        Self::new(region, 0, DType::U8, shape)
    }

    /// The bytes as stored.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `new` checked the window against the open bytes of a read-only file mapping, which the `Arc` keeps mapped and
        // which nobody in this process can write.
        unsafe { std::slice::from_raw_parts(self.region.base().as_ptr().add(self.offset_bytes), self.len_bytes) }
    }

    /// The rows of the given range, as a view of shape (rows, row_len).
    ///
    /// # Panics
    /// If the range leaves the view.
    pub fn rows(&self, rows: Range<usize>) -> View {
        assert!(rows.start <= rows.end && rows.end <= self.shape.rows(), "rows {rows:?} of {:?}", self.shape);
        let row_bytes = self.row_bytes();
        View {
            region: self.region.clone(),
            offset_bytes: self.offset_bytes + rows.start * row_bytes,
            len_bytes: rows.len() * row_bytes,
            dtype: self.dtype,
            shape: Shape::new(&[rows.len(), self.shape.row_len()]).expect("smaller than a valid shape"),
        }
    }

    /// The bytes of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[u8] {
        let row_bytes = self.row_bytes();
        &self.bytes()[row * row_bytes..][..row_bytes]
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.bytes_of(self.shape.row_len()).expect("checked when the view was made")
    }

    /// How elements are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Where the window begins in its region.
    pub fn offset_bytes(&self) -> usize {
        self.offset_bytes
    }

    /// The region that holds the bytes.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn mapped(bytes: &[u8]) -> Arc<Region> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(Region::map_file(&file).unwrap())
    }

    #[test]
    fn rows_are_windows_on_the_same_bytes() {
        let region = mapped(&(0..=255).collect::<Vec<u8>>());
        let view = View::new(&region, 16, DType::Q4_0, Shape::new(&[3, 64]).unwrap()).unwrap();
        assert_eq!(view.row(2), &(88..124).collect::<Vec<u8>>());
        assert_eq!(view.rows(1..3).row(1).as_ptr(), view.row(2).as_ptr());
    }

    #[test]
    fn bad_windows_are_refused() {
        let region = mapped(&[0; 64]);
        let shape = |e: &[usize]| Shape::new(e).unwrap();
        for (offset, dtype, extents) in [
            (0, DType::F32, &[17][..]),
            (61, DType::F32, &[1]),
            (usize::MAX, DType::U8, &[1]),
            (0, DType::Q4_0, &[33]),
            (0, DType::Q8_0, &[2, 32]),
            (0, DType::F32, &[usize::MAX / 2]),
        ] {
            assert!(View::new(&region, offset, dtype, shape(extents)).is_err(), "{offset} {dtype} {extents:?}");
        }
        assert!(Shape::new(&[usize::MAX, 2]).is_none());
        assert!(Shape::new(&[1; 7]).is_none());
        let anonymous = Arc::new(Region::reserve(4096).unwrap());
        assert!(View::whole(&anonymous).is_err());
    }
}
