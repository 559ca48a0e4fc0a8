//! Weights in the device's own memory, as tiles.

use super::super::{Gpu, GpuError};
use super::pack::{Arrange, Packing, TileFormat, TileSource};
use super::text::Weights;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that a thread packs and sends at a time.
const PIECE_BYTES: usize = 4 << 20;
/// Pieces after which they are handed to the device.
const PIECES_WAITING: usize = 16;

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
    /// Packs matrices and sends them to the device.
    ///
    /// # Errors
    /// If they do not fit together ([`Packing::new`]), if the device does not take buffers of this length, or if it is lost.
    pub fn upload(gpu: &Gpu, sources: &[TileSource<'_>], arrange: Arrange) -> Result<TileMatrix, GpuError> {
        let packing = Packing::new(sources, arrange)?;
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
        send(gpu, &packing, &weights, scales.as_ref())?;
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

/// Packs and sends pieces of whole row tiles, on as many threads as the machine has.
fn send(gpu: &Gpu, packing: &Packing<'_>, weights: &wgpu::Buffer, scales: Option<&wgpu::Buffer>) -> Result<(), GpuError> {
    let (words, scale_words) = (packing.tile_words(), packing.tile_scale_words());
    let piece = (PIECE_BYTES / (4 * (words + scale_words))).max(1);
    let pieces = packing.tiles().div_ceil(piece);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(pieces);
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut packed, mut packed_scales) = (Vec::new(), Vec::new());
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let tiles = index * piece..packing.tiles().min((index + 1) * piece);
            if index >= pieces {
                return Ok(());
            }
            packed.resize(tiles.len() * words, 0);
            packed_scales.resize(tiles.len() * scale_words, 0);
            packing.pack(tiles.clone(), 1, &mut packed, &mut packed_scales);
            gpu.queue().write_buffer(weights, 4 * (tiles.start * words) as u64, bytemuck::cast_slice(&packed));
            if let Some(scales) = scales {
                gpu.queue().write_buffer(scales, 4 * (tiles.start * scale_words) as u64, bytemuck::cast_slice(&packed_scales));
            }
            // So that not all of a long matrix waits in staging memory.
            if index % PIECES_WAITING == PIECES_WAITING - 1 {
                gpu.submit(gpu.encoder())?;
            }
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().fold(work(), |sent, thread| sent.and(thread.join().expect("packing does not panic")))
    })?;
    gpu.submit(gpu.encoder())
}
