//! Filling a file: its head, then tensors, by all cores at once.

use super::weights::Plane;
use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are written at once.
const PIECE_BYTES: usize = 8 << 20;

/// One tensor of a file.
#[derive(Debug)]
pub struct Part<'a> {
    pub name: String,
    /// Its element type, as the container calls it.
    pub dtype: &'static str,
    pub extents: Vec<usize>, // outermost first
    pub content: Content<'a>,
}

/// What stands in a tensor.
#[derive(Debug)]
pub enum Content<'a> {
    Bytes(Vec<u8>),
    Rows(Rows<'a>),
}

/// The rows of a random weight.
#[derive(Debug)]
pub struct Rows<'a> {
    pub plane: &'a Plane,
    pub seed: u64,
    pub rows: usize,
    pub row_len: usize,
    /// The head's size, where rows stand in GGUF's order: pairs that RoPE turns side by side.
    pub interleaved: Option<usize>,
}

impl Part<'_> {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Bytes(bytes) => bytes.len(),
            Content::Rows(rows) => rows.rows * rows.row_bytes(),
        }
    }
}

impl Rows<'_> {
    fn row_bytes(&self) -> usize {
        self.plane.bytes_of(self.row_len)
    }

    /// The bytes of the row that stands at `place`.
    fn row(&self, place: usize) -> &[u8] {
        let row = match self.interleaved {
            None => place,
            Some(head_dim) => {
                let in_head = place % head_dim;
                place - in_head + in_head % 2 * (head_dim / 2) + in_head / 2
            }
        };
        self.plane.row(self.seed, row, self.row_len)
    }
}

/// Offsets of `parts` that follow one another from 0 on at multiples of `alignment_bytes`, and where the last ends.
pub fn offsets(parts: &[Part<'_>], alignment_bytes: usize) -> (Vec<usize>, usize) {
    let mut end = 0;
    let starts = parts.iter().map(|part| {
        let start = end;
        end = (start + part.bytes()).next_multiple_of(alignment_bytes);
        start
    });
    (starts.collect(), end)
}

/// A stretch of a part that one core writes.
struct Piece<'a> {
    at: u64,
    content: &'a Content<'a>,
    first_row: usize,
    rows: usize,
}

/// Writes `head` and, `offsets` after it, the parts. The file's length is the head's and `data_bytes`.
pub fn write(path: &Path, head: &[u8], parts: &[Part<'_>], offsets: &[usize], data_bytes: usize) -> Result<()> {
    let writing = || format!("cannot write {}", path.display());
    let file = File::create_new(path).with_context(writing)?;
    file.set_len((head.len() + data_bytes) as u64).with_context(writing)?;
    file.write_all_at(head, 0).with_context(writing)?;
    let pieces: Vec<_> = parts.iter().zip(offsets).flat_map(|(part, offset)| pieces(part, (head.len() + offset) as u64)).collect();
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<()> {
        let mut buffer = Vec::with_capacity(PIECE_BYTES);
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            piece.write(&file, &mut buffer)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("a writer does not panic"))
    })
    .with_context(writing)
}

fn pieces<'a>(part: &'a Part<'a>, at: u64) -> Vec<Piece<'a>> {
    let Content::Rows(rows) = &part.content else { return vec![Piece { at, content: &part.content, first_row: 0, rows: 0 }] };
    let step = (PIECE_BYTES / rows.row_bytes()).max(1);
    let piece = |first_row: usize| {
        let at = at + (first_row * rows.row_bytes()) as u64;
        Piece { at, content: &part.content, first_row, rows: step.min(rows.rows - first_row) }
    };
    (0..rows.rows).step_by(step).map(piece).collect()
}

impl Piece<'_> {
    fn write(&self, file: &File, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        match self.content {
            Content::Bytes(bytes) => file.write_all_at(bytes, self.at),
            Content::Rows(rows) => {
                buffer.clear();
                (self.first_row..self.first_row + self.rows).for_each(|row| buffer.extend_from_slice(rows.row(row)));
                file.write_all_at(buffer, self.at)
            }
        }
    }
}
