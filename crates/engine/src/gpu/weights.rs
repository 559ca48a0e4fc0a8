//! A model's weights where the device reads them.

use crate::Error;
use driftwood_compute::Matrix;
use driftwood_compute::gpu::Weight;
use driftwood_compute::gpu::tiles::{Arrange, Mlx4, Staging, TileMatrix, TileSource};
use driftwood_compute::gpu::{Buffer, Gpu, Imported};
use driftwood_region::{DType, Region, View};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Weights and norms on the device, found by where they lie in the host's memory.
///
/// On unified memory the mapped files themselves are bound. A discrete device gets a copy of each tensor in its own memory.
#[derive(Debug)]
pub(crate) struct GpuWeights {
    gpu: Arc<Gpu>,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    files: HashMap<usize, Imported>,        // by the address of the mapping
    tensors: HashMap<usize, Placed>,        // by the address of the first byte
    tiles: HashMap<usize, Arc<TileMatrix>>, // by the address of the first matrix's first byte
    staging: Staging,
    copied_bytes: usize,
}

/// Where a tensor stands.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    buffer: Buffer,
    offset_bytes: u64,
    dtype: DType,
    shape: (u32, u32),
}

impl Placed {
    /// As kernels take it.
    pub(super) fn weight(&self, gpu: &Gpu) -> Result<Weight<'_>, Error> {
        Ok(Weight::new(gpu.info(), self.dtype, self.shape, &self.buffer, self.offset_bytes)?)
    }
}

impl GpuWeights {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> GpuWeights {
        GpuWeights { gpu: gpu.clone(), places: Mutex::default() }
    }

    /// Bytes of weights that were copied to the device, for reports.
    pub(crate) fn copied_bytes(&self) -> usize {
        self.places().copied_bytes
    }

    /// A weight.
    pub(super) fn matrix(&self, matrix: &Matrix) -> Result<Placed, Error> {
        let view = matrix.weight();
        if matrix.scales().is_some() {
            return self.dequantised(matrix);
        }
        if self.gpu.info().unified { self.shared(view) } else { self.placed(view.bytes(), view.dtype(), extents(matrix)) }
    }

    /// A norm, or anything else of f32: (n).
    pub(super) fn vector(&self, values: &[f32]) -> Result<Buffer, Error> {
        Ok(self.placed(bytemuck::cast_slice(values), DType::F32, (1, values.len() as u32))?.buffer)
    }

    /// Matrices that are multiplied at once, packed as tiles for cooperative devices.
    pub(super) fn tiles(&self, matrices: &[&Matrix], arrange: Arrange) -> Result<Arc<TileMatrix>, Error> {
        let key = matrices[0].weight().bytes().as_ptr() as usize;
        if let Some(tiles) = self.places().tiles.get(&key) {
            return Ok(tiles.clone());
        }
        let sources: Vec<_> = matrices.iter().map(|matrix| tile_source(matrix)).collect();
        let mut places = self.places();
        let tiles = Arc::new(TileMatrix::upload(&self.gpu, &mut places.staging, &sources, arrange)?);
        places.copied_bytes += tiles.bytes() as usize;
        places.tiles.insert(key, tiles.clone());
        Ok(tiles)
    }

    /// Gives back what weights passed through: they are all there.
    pub(crate) fn end_upload(&self) {
        self.places().staging = Staging::default();
    }

    /// Bytes of scratch memory for products of up to `rows` rows of any of the tiles.
    pub(super) fn products_bytes(&self, rows: usize) -> u64 {
        self.places().tiles.values().map(|tiles| tiles.scratch_bytes(rows)).max().unwrap_or(0)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tensor in the mapped file itself.
    fn shared(&self, view: &View) -> Result<Placed, Error> {
        let region: &Arc<Region> = view.region();
        let mut places = self.places();
        let file = match places.files.entry(region.base().as_ptr() as usize) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(self.gpu.import(region)?),
        };
        let shape = (view.shape().rows() as u32, view.shape().row_len() as u32);
        Ok(Placed { buffer: file.buffer().clone(), offset_bytes: view.offset_bytes() as u64, dtype: view.dtype(), shape })
    }

    /// A tensor copied to the device, once.
    fn placed(&self, bytes: &[u8], dtype: DType, shape: (u32, u32)) -> Result<Placed, Error> {
        let mut places = self.places();
        if let Some(placed) = places.tensors.get(&(bytes.as_ptr() as usize)) {
            return Ok(placed.clone());
        }
        let buffer = self.gpu.upload("weight", bytes)?;
        let placed = Placed { buffer, offset_bytes: 0, dtype, shape };
        places.copied_bytes += bytes.len();
        places.tensors.insert(bytes.as_ptr() as usize, placed.clone());
        Ok(placed)
    }

    /// MLX's three tensors as one of f32: no kernel of the plain path reads them apart.
    fn dequantised(&self, matrix: &Matrix) -> Result<Placed, Error> {
        let key = matrix.weight().bytes().as_ptr() as usize;
        if let Some(placed) = self.places().tensors.get(&key) {
            return Ok(placed.clone());
        }
        let mut values = vec![0.0f32; matrix.rows() * matrix.row_len()];
        for (row, out) in values.chunks_mut(matrix.row_len()).enumerate() {
            matrix.dequantise_row(row, out);
        }
        let buffer = self.gpu.upload("weight", bytemuck::cast_slice(&values))?;
        let placed = Placed { buffer, offset_bytes: 0, dtype: DType::F32, shape: extents(matrix) };
        let mut places = self.places();
        places.copied_bytes += values.len() * size_of::<f32>();
        places.tensors.insert(key, placed.clone());
        Ok(placed)
    }
}

fn tile_source(matrix: &Matrix) -> TileSource<'_> {
    let (Some(scales), Some(biases)) = (matrix.scales(), matrix.biases()) else { return TileSource::Rows(matrix.weight()) };
    TileSource::Mlx4(Mlx4 {
        n: matrix.rows(),
        k: matrix.row_len(),
        words: matrix.weight().bytes(),
        scales: scales.bytes(),
        biases: biases.bytes(),
        float: scales.dtype(),
    })
}

fn extents(matrix: &Matrix) -> (u32, u32) {
    (matrix.rows() as u32, matrix.row_len() as u32)
}
