//! Weights in the device's own memory, as tiles.

use super::super::{Gpu, GpuError, SubmissionIndex, Window};
use super::pack::{Arrange, Packing, TileFormat};
use super::text::Weights;
use crate::Matrix;
use std::num::NonZero;

/// Bytes that are packed and sent at a time.
const HALF_BYTES: usize = 32 << 20;

/// One matrix, or several that are multiplied at once, as tiles on the device.
#[derive(Debug)]
pub struct TileMatrix {
    pub(super) weights: wgpu::Buffer,
    /// None for floats.
    pub(super) scales: Option<wgpu::Buffer>,
    pub(super) arrange: Arrange,
    pub(super) shape: Weights,
}

impl TileMatrix {
    /// Packs matrices and sends them to the device through `staging`.
    ///
    /// # Errors
    /// If they do not fit together ([`Packing::new`]), if the device does not take buffers of this length, or if it is lost.
    pub fn upload(gpu: &Gpu, staging: &mut Staging, matrices: &[&Matrix], arrange: Arrange) -> Result<TileMatrix, GpuError> {
        let packing = Packing::new(matrices, arrange)?;
        let tiles = packing.tiles();
        let new = |label: &str, tile_words: usize| {
            let bytes = 4 * tile_words as u64 * tiles as u64;
            let limit = gpu.info().binding_bytes_max;
            if bytes > limit {
                return Err(GpuError::BeyondLimit { what: "the bytes of one matrix", asked: bytes, limit });
            }
            gpu.buffer(label, bytes)
        };
        let weights = new("tiles", packing.tile_words())?;
        let scales = (packing.format() != TileFormat::F16).then(|| new("scales of tiles", packing.tile_scale_words())).transpose()?;
        send(gpu, staging, &packing, &weights, scales.as_ref())?;
        let shape = Weights { format: packing.format(), tiles: tiles as u32, n: packing.n() as u32, k: packing.k() as u32 };
        Ok(TileMatrix { weights, scales, arrange, shape })
    }

    /// Outputs of a product; an interleaved one has as many as its gate.
    pub fn n(&self) -> usize {
        self.shape.n as usize
    }

    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.shape.k as usize
    }

    /// How the weights are stored.
    pub fn format(&self) -> TileFormat {
        self.shape.format
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.weights.size() + self.scales.as_ref().map_or(0, wgpu::Buffer::size)
    }
}

/// Shared memory that weights pass through on their way in, in two halves: one is packed into while the device reads the other. It is made
/// once for many matrices: sharing memory costs more than copying through it.
#[derive(Debug, Default)]
pub struct Staging {
    halves: [Option<Half>; 2],
    turn: usize,
}

#[derive(Debug)]
struct Half {
    window: Window,
    sent: Option<SubmissionIndex>,
}

impl Staging {
    /// The half whose turn it is, at least so long, once the device has read what was in it.
    fn next(&mut self, gpu: &Gpu, bytes: usize) -> Result<&mut Half, GpuError> {
        self.turn = 1 - self.turn;
        let half = &mut self.halves[self.turn];
        if let Some(sent) = half.as_mut().and_then(|half| half.sent.take()) {
            gpu.wait_for(sent)?;
        }
        match half.take().filter(|half| half.window.bytes().len() >= bytes) {
            Some(long) => Ok(half.insert(long)),
            None => Ok(half.insert(Half { window: gpu.window(bytes.max(HALF_BYTES))?, sent: None })),
        }
    }
}

/// Packs and sends runs of whole row tiles, on as many threads as the machine has.
fn send(
    gpu: &Gpu,
    staging: &mut Staging,
    packing: &Packing<'_>,
    weights: &wgpu::Buffer,
    scales: Option<&wgpu::Buffer>,
) -> Result<(), GpuError> {
    let (words, scale_words) = (packing.tile_words(), packing.tile_scale_words());
    let tile_bytes = 4 * (words + scale_words);
    let at_once = (HALF_BYTES / tile_bytes).clamp(1, packing.tiles().max(1));
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    for first in (0..packing.tiles()).step_by(at_once) {
        let tiles = first..packing.tiles().min(first + at_once);
        let half = staging.next(gpu, tiles.len() * tile_bytes)?;
        let words_here = bytemuck::cast_slice_mut(&mut half.window.bytes_mut()[..tiles.len() * tile_bytes]);
        let (packed, packed_scales) = words_here.split_at_mut(tiles.len() * words);
        packing.pack(tiles.clone(), threads.min(tiles.len()), packed, packed_scales);
        let (bytes, scale_bytes) = (4 * (tiles.len() * words) as u64, 4 * (tiles.len() * scale_words) as u64);
        let mut encoder = gpu.encoder();
        encoder.copy_buffer_to_buffer(half.window.buffer(), 0, weights, 4 * (first * words) as u64, bytes);
        if let Some(scales) = scales {
            encoder.copy_buffer_to_buffer(half.window.buffer(), bytes, scales, 4 * (first * scale_words) as u64, scale_bytes);
        }
        half.sent = Some(gpu.submit_numbered(encoder)?);
    }
    Ok(())
}
