//! A model's weights where the device reads them.

use crate::Error;
use driftwood_compute::Matrix;
use driftwood_compute::gpu::tiles::{Arrange, Staging, TileMatrix};
use driftwood_compute::gpu::{Buffer, Gpu, Groups, Imported, Weight};
use driftwood_region::{DType, Region, View};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Weights and norms on the device, found by where they lie in the host's memory.
///
/// On unified memory the mapped files themselves are bound, but for tensors that begin where no kernel can read them. A discrete device gets a
/// copy of each tensor in its own memory.
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

/// Where a tensor stands: a buffer, and how far into it.
#[derive(Clone, Debug)]
struct Placed {
    buffer: Buffer,
    offset_bytes: u64,
}

/// Where a weight's tensors stand.
#[derive(Clone, Debug)]
pub(super) struct PlacedMatrix {
    elements: Placed,
    dtype: DType,
    shape: (u32, u32),
    groups: Option<PlacedGroups>,
}

/// Where the scales and biases of MLX's groups stand.
#[derive(Clone, Debug)]
struct PlacedGroups {
    scales: Placed,
    biases: Placed,
    dtype: DType,
    group: u32,
}

impl PlacedMatrix {
    /// As kernels take it.
    pub(super) fn weight(&self, gpu: &Gpu) -> Result<Weight<'_>, Error> {
        let weight = Weight::new(gpu.info(), self.dtype, self.shape, &self.elements.buffer, self.elements.offset_bytes)?;
        let Some(PlacedGroups { scales, biases, dtype, group }) = &self.groups else { return Ok(weight) };
        let (scales, biases) = ((&scales.buffer, scales.offset_bytes), (&biases.buffer, biases.offset_bytes));
        Ok(weight.with_groups(gpu.info(), Groups { group: *group, dtype: *dtype, scales, biases }))
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
    pub(super) fn matrix(&self, matrix: &Matrix) -> Result<PlacedMatrix, Error> {
        let groups = match (matrix.scales(), matrix.biases(), matrix.group()) {
            (Some(scales), Some(biases), Some(group)) => {
                let (dtype, group) = (scales.dtype(), group as u32);
                Some(PlacedGroups { scales: self.view(scales, 1)?, biases: self.view(biases, 1)?, dtype, group })
            }
            _ => None,
        };
        let (elements, shape) = (matrix.weight(), (matrix.rows() as u32, matrix.row_len() as u32));
        let align_bytes = match elements.dtype() {
            _ if groups.is_some() => 1,
            DType::F32 => 4,
            _ => 2,
        };
        Ok(PlacedMatrix { elements: self.view(elements, align_bytes)?, dtype: elements.dtype(), shape, groups })
    }

    /// Rows of f32 as one, found by where the first lies.
    pub(super) fn joined(&self, rows: &[Vec<f32>; 3]) -> Result<Buffer, Error> {
        let key = rows[0].as_ptr() as usize;
        if let Some(placed) = self.places().tensors.get(&key) {
            return Ok(placed.buffer.clone());
        }
        let all = rows.concat();
        let buffer = self.gpu.upload("weight", bytemuck::cast_slice(&all))?;
        let mut places = self.places();
        places.copied_bytes += size_of_val(&all[..]);
        places.tensors.insert(key, Placed { buffer: buffer.clone(), offset_bytes: 0 });
        Ok(buffer)
    }

    /// A norm, or anything else of f32: (n).
    pub(super) fn vector(&self, values: &[f32]) -> Result<Buffer, Error> {
        Ok(self.copied(bytemuck::cast_slice(values))?.buffer)
    }

    /// Matrices that are multiplied at once, packed as tiles for cooperative devices.
    pub(super) fn tiles(&self, matrices: &[&Matrix], arrange: Arrange) -> Result<Arc<TileMatrix>, Error> {
        let key = matrices[0].weight().bytes().as_ptr() as usize;
        if let Some(tiles) = self.places().tiles.get(&key) {
            return Ok(tiles.clone());
        }
        let mut places = self.places();
        let tiles = Arc::new(TileMatrix::upload(&self.gpu, &mut places.staging, matrices, arrange)?);
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

    /// A tensor: shared where the device shares the host's memory, and kernels that read from multiples of so many bytes find it there.
    fn view(&self, view: &View, align_bytes: usize) -> Result<Placed, Error> {
        let shared = self.gpu.info().unified && view.offset_bytes().is_multiple_of(align_bytes);
        if shared { self.shared(view) } else { self.copied(view.bytes()) }
    }

    /// A tensor in the mapped file itself.
    fn shared(&self, view: &View) -> Result<Placed, Error> {
        let region: &Arc<Region> = view.region();
        let mut places = self.places();
        let file = match places.files.entry(region.base().as_ptr() as usize) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(self.gpu.import(region)?),
        };
        Ok(Placed { buffer: file.buffer().clone(), offset_bytes: view.offset_bytes() as u64 })
    }

    /// A tensor copied to the device, once.
    fn copied(&self, bytes: &[u8]) -> Result<Placed, Error> {
        let mut places = self.places();
        if let Some(placed) = places.tensors.get(&(bytes.as_ptr() as usize)) {
            return Ok(placed.clone());
        }
        let placed = Placed { buffer: self.gpu.upload("weight", bytes)?, offset_bytes: 0 };
        places.copied_bytes += bytes.len();
        places.tensors.insert(bytes.as_ptr() as usize, placed.clone());
        Ok(placed)
    }
}
