//! Rotations of all positions on the device, computed once.

use crate::Error;
use crate::rope::Rope;
use driftwood_compute::Row;
use driftwood_compute::gpu::{Buffer, Gpu};

/// Rotations of every position so far, for each kind of layer: f32 (position, cosines or sines, head_dim / 2).
#[derive(Debug)]
pub(super) struct RopeTables {
    long: bool,
    tables: Vec<(Rope, Buffer)>,
    positions: usize,
}

/// Positions that tables begin with.
const POSITIONS_MIN: usize = 4096;

impl RopeTables {
    /// Those of long contexts, or of others.
    pub(super) fn new(long: bool) -> RopeTables {
        RopeTables { long, tables: Vec::new(), positions: 0 }
    }

    /// Makes the tables long enough; says whether they are others now.
    pub(super) fn reach(&mut self, gpu: &Gpu, positions: usize, threads: usize) -> Result<bool, Error> {
        if positions <= self.positions {
            return Ok(false);
        }
        self.positions = positions.next_power_of_two().max(POSITIONS_MIN);
        for (rope, buffer) in &mut self.tables {
            *buffer = rotations(gpu, rope, (self.positions, self.long), threads)?;
        }
        Ok(true)
    }

    /// The table of a kind of layer.
    pub(super) fn table(&mut self, gpu: &Gpu, rope: &Rope, threads: usize) -> Result<Buffer, Error> {
        if let Some((_, buffer)) = self.tables.iter().find(|(known, _)| known == rope) {
            return Ok(buffer.clone());
        }
        let buffer = rotations(gpu, rope, (self.positions, self.long), threads)?;
        self.tables.push((rope.clone(), buffer.clone()));
        Ok(buffer)
    }
}

fn rotations(gpu: &Gpu, rope: &Rope, (positions, long): (usize, bool), threads: usize) -> Result<Buffer, Error> {
    let rows: Vec<Row> = (0..positions as u32).map(|position| Row { session: 0, position }).collect();
    let table = std::thread::scope(|scope| {
        let shares: Vec<_> =
            rows.chunks(positions.div_ceil(threads.max(1))).map(|rows| scope.spawn(move || rope.rotations(rows, long))).collect();
        shares.into_iter().flat_map(|share| share.join().expect("rotating does not panic")).collect::<Vec<f32>>()
    });
    Ok(gpu.upload("rotations", bytemuck::cast_slice(&table))?)
}
