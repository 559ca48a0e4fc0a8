//! What changes from step to step on tiles, but for the tokens, and where it stands on the device: one write a step.

use crate::Error;
use crate::batch::{Plan, Work};
use driftwood_compute::KV_BLOCK_TOKENS;
use driftwood_compute::gpu::tiles::RUN_ROWS_MAX;
use driftwood_compute::gpu::{Binding, Buffer, Draw, GpuError};

/// The extents of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extents {
    pub(super) rows: u32,
    pub(super) outputs: u32,
    /// Rows that are alone, and the most blocks that one of them sees.
    pub(super) ones: u32,
    pub(super) blocks: u32,
    pub(super) runs: u32,
}

/// Most rows and outputs of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) rows: usize,
    pub(super) outputs: usize,
}

/// What changes from step to step, but for the tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Inputs {
    /// Rows, position and table of each, then the tables: the slots of each session in order, found by their index among all words.
    pub(super) places: Vec<u32>,
    /// Outputs, then the row of each.
    pub(super) outputs: Vec<u32>,
    /// Rows that are alone, then each.
    pub(super) ones: Vec<u32>,
    /// Runs, then first row and length of each.
    pub(super) runs: Vec<u32>,
    /// How the device chooses each output's token, those included that nobody asked for.
    pub(super) draws: Vec<Draw>,
    /// Whether the host needs the logits of an output.
    pub(super) logits: bool,
    /// Whether some output's token cannot be chosen by the device.
    pub(super) unguessed: bool,
}

/// Room for the inputs of one step.
pub(super) const INPUTS_BYTES: usize = 8 << 20;
/// Sections begin at multiples of this: the most that a device asks of bindings.
const SECTION_ALIGN_BYTES: usize = 256;

/// Where the inputs of a class of rows stand in their buffer, in bytes: one write a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sections {
    pub(super) outputs: usize,
    pub(super) ones: usize,
    pub(super) runs: usize,
    pub(super) places: usize,
}

impl Sections {
    /// Draws come first, at 0.
    pub(super) fn new(most: Most) -> Sections {
        let after = |at: usize, bytes: usize| (at + bytes).next_multiple_of(SECTION_ALIGN_BYTES);
        let outputs = after(0, most.outputs * size_of::<Draw>());
        let ones = after(outputs, 4 * (1 + most.outputs));
        let runs = after(ones, 4 * (1 + most.rows));
        Sections { outputs, ones, runs, places: after(runs, 4 * (1 + 2 * most.rows)) }
    }

    /// From `at` to the end of the buffer.
    pub(super) fn from(buffer: &Buffer, at: usize) -> Binding<'_> {
        Binding { buffer, offset_bytes: at as u64, bytes: buffer.size() - at as u64 }
    }

    /// Lays inputs out.
    ///
    /// # Errors
    /// If they are more than the buffer holds.
    pub(super) fn write(&self, inputs: &Inputs, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let parts = [(self.outputs, &inputs.outputs), (self.ones, &inputs.ones), (self.runs, &inputs.runs), (self.places, &inputs.places)];
        bytes.clear();
        bytes.extend_from_slice(bytemuck::cast_slice(&inputs.draws));
        for (at, words) in parts {
            bytes.resize(at, 0);
            bytes.extend_from_slice(bytemuck::cast_slice(words));
        }
        if bytes.len() > INPUTS_BYTES {
            let (asked, limit) = (bytes.len() as u64, INPUTS_BYTES as u64);
            return Err(GpuError::BeyondLimit { what: "the bytes of a step's inputs", asked, limit }.into());
        }
        Ok(())
    }
}

impl Inputs {
    /// Takes them from a plan.
    pub(super) fn fill(&mut self, plan: &Plan, work: &[Work<'_>]) {
        let Inputs { places, outputs, ones, runs, draws, logits, unguessed } = self;
        [&mut *places, &mut *outputs, &mut *ones, &mut *runs].into_iter().for_each(Vec::clear);
        places.push(plan.rows.len() as u32);
        let mut tables = 1 + 2 * plan.rows.len();
        let mut row = 0;
        [&mut *ones, &mut *runs].into_iter().for_each(|counted| counted.push(0));
        for run in plan.rows.chunk_by(|a, b| a.session == b.session) {
            places.extend(run.iter().flat_map(|row| [row.position, tables as u32]));
            tables += work[run[0].session as usize].session.kv.blocks().len();
            if run.len() == 1 {
                ones[0] += 1;
                ones.push(row);
            } else {
                for rows in run.chunks(RUN_ROWS_MAX) {
                    runs[0] += 1;
                    runs.extend([row + (rows[0].position - run[0].position), rows.len() as u32]);
                }
            }
            row += run.len() as u32;
        }
        for run in plan.rows.chunk_by(|a, b| a.session == b.session) {
            places.extend(work[run[0].session as usize].session.kv.slots());
        }
        outputs.push(plan.outputs.len() as u32);
        outputs.extend(plan.outputs.iter().map(|&row| row as u32));
        let of = |&row: &usize| &work[plan.rows[row].session as usize];
        *logits = plan.outputs.iter().any(|row| of(row).draw().is_none());
        *unguessed = plan.outputs.iter().any(|row| of(row).guess().is_none());
        draws.clear();
        draws.extend(plan.outputs.iter().map(|row| of(row).guess().unwrap_or_default()));
    }

    /// Whether the device computes the same for both, whatever is read of it.
    pub(super) fn same(&self, other: &Inputs) -> bool {
        fn words(i: &Inputs) -> [&[u32]; 4] {
            [&i.places, &i.outputs, &i.ones, &i.runs]
        }
        words(self) == words(other) && self.draws == other.draws
    }

    pub(super) fn extents(&self) -> Extents {
        let rows = self.places[0];
        let positions = self.ones[1..].iter().map(|row| self.places[1 + 2 * *row as usize]);
        Extents {
            rows,
            outputs: self.outputs[0],
            ones: self.ones[0],
            blocks: positions.max().map_or(0, |position| position / KV_BLOCK_TOKENS as u32 + 1),
            runs: self.runs[0],
        }
    }

    /// Slots of all sessions.
    pub(super) fn slots(&self) -> &[u32] {
        &self.places[1 + 2 * self.places[0] as usize..]
    }

    /// Positions that the rows reach.
    pub(super) fn positions(&self) -> usize {
        let rows = self.places[0] as usize;
        self.places[1..][..2 * rows].iter().step_by(2).max().map_or(0, |position| *position as usize + 1)
    }

    /// Whether the step after this one may be computed before anyone asks: the device knows how every session's next token is chosen, and
    /// each has room for it in the block that it writes now.
    pub(super) fn goes_ahead(&self, work: &[Work<'_>]) -> bool {
        let rows = self.outputs[1..].iter().map(|row| self.places[1 + 2 * *row as usize] as usize + 1);
        !self.unguessed
            && self.draws.len() == work.len()
            && work.iter().all(|w| w.session.room() > 0)
            && rows.into_iter().all(|next| !next.is_multiple_of(KV_BLOCK_TOKENS))
    }

    /// From a step whose tokens the device chooses to the step that begins with them.
    pub(super) fn advance(&mut self) {
        let rows = self.outputs[0];
        let (places, tables) = self.places.split_at(1 + 2 * self.places[0] as usize);
        let shorter = (self.places[0] - rows) * 2;
        let mut next = vec![rows];
        for row in &self.outputs[1..] {
            let at = 1 + 2 * *row as usize;
            next.extend([places[at] + 1, places[at + 1] - shorter]);
        }
        next.extend(tables);
        self.places = next;
        self.outputs = std::iter::once(rows).chain(0..rows).collect();
        self.ones = self.outputs.clone();
        self.runs = vec![0];
        self.draws.iter_mut().filter(|draw| draw.inverse_temperature != 0.0).for_each(|draw| draw.draw += 1);
    }
}
