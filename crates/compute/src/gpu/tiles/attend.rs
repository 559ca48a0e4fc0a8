//! Attention over f16 keys and values in the device's memory, for one row and for thousands.
//!
//! **Data.** Keys and values of a layer stand in slots of 64 tokens, (k or v, kv_head, token, head_dim) in f16, one after the other in one
//! buffer. *places* is that of [`super::super::Plain`]: the number of rows, position and table of each, and the tables.
//!
//! **Bits.** A row's scores with a block of 64 tokens are chains of multiply-adds along head_dim, its sums over the block's values are
//! chains along the tokens, of probabilities rounded to f16. Blocks are joined in order by one formula: a row in a run and a row alone
//! have the same bits, and so has a row in any company.

use super::super::{Binding, Dispatch, Gpu, GpuError, Heads, KernelSource, Pairs, Scores};
use super::attend_text::{Attend, ROPE_WARPS, TILE_ROWS, Turn, rope_store_text};
use super::product::{bad, grid, room};
use super::{Norm, padded_len};
use crate::KV_BLOCK_TOKENS;

/// Rows of a run at most.
pub const RUN_ROWS_MAX: usize = TILE_ROWS as usize;

/// The attention of a layer.
#[derive(Clone, Copy, Debug)]
pub struct TileAttention {
    pub(super) shape: Attend,
}

/// RMS norms of each head of queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// The weights for queries, f32 (head_dim).
    pub q: Binding<'a>,
    /// The weights for keys, f32 (head_dim).
    pub k: Binding<'a>,
    /// The constants of both.
    pub norm: Norm,
}

/// What is rotated and stored.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// f32 (row, heads of q, then of k, then of v, head_dim).
    pub qkv: Binding<'a>,
    /// f32 (position, cosines or sines, head_dim / 2), for every position that a row has.
    pub rotations: Binding<'a>,
    /// What is turned together. What is written is in half-split order.
    pub pairs: Pairs,
    /// Norms before the rotation.
    pub norms: Option<HeadNorms<'a>>,
    /// What is added to each row before that, f32 (heads of q, then of k, then of v, head_dim).
    pub bias: Option<Binding<'a>>,
}

impl Rotation<'_> {
    /// What of it is constant in a kernel's text.
    fn turn(&self) -> Turn {
        Turn { pairs: self.pairs, norm: self.norms.map(|norms| norms.norm), biased: self.bias.is_some() }
    }
}

/// What an attention reads, besides which rows.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// What [`TileAttention::rope_store`] wrote, [`TileAttention::q_bytes`] long.
    pub q: Binding<'a>,
    /// The slots. All of a slot must be numbers, tokens that nobody has written yet included.
    pub kv: Binding<'a>,
    /// Positions and tables.
    pub places: Binding<'a>,
}

/// What an attention reads that rotates and stores on its way.
#[derive(Clone, Copy, Debug)]
pub struct Fused<'a> {
    /// What is rotated and stored.
    pub rotation: Rotation<'a>,
    /// The slots, as for [`Attended`]; the rows' keys and values are written.
    pub kv: Binding<'a>,
    /// Positions and tables.
    pub places: Binding<'a>,
}

impl TileAttention {
    /// An attention.
    ///
    /// # Errors
    /// If the heads do not go with tiles of 16, or if a number of the scores is not above zero.
    pub fn new(heads: Heads, scores: Scores) -> Result<TileAttention, GpuError> {
        let Scores { scale, softcap, window } = scores;
        let Heads { heads, kv_heads, head_dim } = heads;
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(bad(&format!("{heads} heads cannot be shared out to {kv_heads} KV heads")));
        }
        if heads / kv_heads > TILE_ROWS {
            return Err(bad(&format!("a KV head has {} query heads, tiles take {TILE_ROWS} at most", heads / kv_heads)));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(16) || head_dim > 256 {
            return Err(bad(&format!("heads of {head_dim} elements are not tiles: multiples of 16 up to 256 are")));
        }
        if !(scale > 0.0 && scale.is_finite()) || window == Some(0) {
            return Err(bad(&format!("a scale of {scale} or a window of {window:?}: both must be above zero")));
        }
        if softcap.is_some_and(|cap| !(cap > 0.0 && cap.is_finite())) {
            return Err(bad(&format!("a cap of {softcap:?}: it must be above zero")));
        }
        Ok(TileAttention { shape: Attend { heads, kv_heads, head_dim, scale, softcap, window: window.unwrap_or(0) } })
    }

    /// Bytes of the queries of `rows` rows: f16 (row, head, head_dim).
    pub fn q_bytes(&self, rows: usize) -> usize {
        2 * rows * self.row_len()
    }

    /// Bytes of the outputs of `rows` rows: f16 (row, heads * head_dim padded to 256). The padding is left as it is.
    pub fn out_bytes(&self, rows: usize) -> usize {
        2 * rows * padded_len(self.row_len())
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        4 * KV_BLOCK_TOKENS * (self.shape.kv_heads * self.shape.head_dim) as usize
    }

    /// Blocks that a row at this position sees: so many workgroups [`TileAttention::ones`] needs along x for it.
    pub fn blocks(&self, position: usize) -> usize {
        let start = if self.shape.window == 0 { 0 } else { position.saturating_sub(self.shape.window as usize - 1) };
        position / KV_BLOCK_TOKENS - start / KV_BLOCK_TOKENS + 1
    }

    /// Bytes of scratch memory for `ones` rows that see up to `blocks` blocks each.
    pub fn scratch_bytes(&self, ones: usize, blocks: usize) -> u64 {
        16 * ones as u64 * blocks as u64 * u64::from(self.shape.heads * self.shape.slot_quads())
    }

    /// Rotates queries to f16, and stores keys and values at the rows' places; all at most +-65504.
    ///
    /// Workgroups are `[_, rows, 1]`; it is made for `most` rows, and `workgroups[1]` may be lowered for each step.
    ///
    /// # Errors
    /// If a binding is too short, if there are more rows than workgroups, or if the driver refuses.
    pub fn rope_store(
        &self,
        gpu: &Gpu,
        most: usize,
        from: Rotation<'_>,
        places: Binding<'_>,
        (q, kv): (Binding<'_>, Binding<'_>),
    ) -> Result<Dispatch, GpuError> {
        let all = self.shape.heads + 2 * self.shape.kv_heads;
        room("the queries", q, self.q_bytes(most))?;
        room("the slots", kv, self.slot_bytes())?;
        grid(gpu, most)?;
        let mut bindings = self.rotated(most, from, places)?;
        bindings.extend([q, kv]);
        let text = rope_store_text(&self.shape, from.turn());
        let kernel = gpu.kernel("rotate and store", KernelSource::Trusted(&text))?;
        Ok(gpu.dispatch(&kernel, &bindings, [all.div_ceil(ROPE_WARPS), most as u32, 1]))
    }

    /// Attention of rows in runs: `runs` is a u32 count, then first row and number of rows of each, 1 to [`RUN_ROWS_MAX`] rows of one
    /// session at consecutive positions. `out` is (row, heads * head_dim padded to 256) in f16.
    ///
    /// Workgroups are `[runs, _, 1]`; it is made for one run, and `workgroups[0]` is to be set for each step.
    ///
    /// # Errors
    /// If a binding is too short, or if the driver refuses.
    pub fn runs(&self, gpu: &Gpu, from: Attended<'_>, runs: Binding<'_>, out: Binding<'_>) -> Result<Dispatch, GpuError> {
        self.check(from, runs, out)?;
        let kernel = gpu.kernel("attention of runs", KernelSource::Trusted(&self.shape.runs_text()))?;
        let grid = [1, self.shape.kv_heads * self.shape.parts(), 1];
        Ok(gpu.dispatch(&kernel, &[from.q, from.kv, from.places, runs, out], grid))
    }

    /// Attention of rows that are alone: `ones` is a u32 count, then the number of each row. Two dispatches, to be run in order.
    ///
    /// Workgroups of the first are `[blocks, _, ones]`, where `blocks` is the most that [`TileAttention::blocks`] says of any of the rows,
    /// of the second `[_, ones, 1]`; they are made for one block of one row, and are to be set for each step. `scratch` must have
    /// [`TileAttention::scratch_bytes`] for them.
    ///
    /// # Errors
    /// If a binding is too short, or if the driver refuses.
    pub fn ones(
        &self,
        gpu: &Gpu,
        from: Attended<'_>,
        ones: Binding<'_>,
        scratch: Binding<'_>,
        out: Binding<'_>,
    ) -> Result<[Dispatch; 2], GpuError> {
        self.check(from, ones, out)?;
        room("the scratch memory", scratch, self.scratch_bytes(1, 1) as usize)?;
        let blocks = gpu.kernel("attention of a block", KernelSource::Trusted(&self.shape.ones_text()))?;
        let join = gpu.kernel("join of blocks", KernelSource::Trusted(&self.shape.join_text(true)))?;
        let blocks = gpu.dispatch(&blocks, &[from.q, from.kv, from.places, ones, scratch], [1, self.shape.kv_heads, 1]);
        Ok([blocks, gpu.dispatch(&join, &[scratch, from.places, ones, out], [self.shape.heads, 1, 1])])
    }

    /// Whether workgroup memory takes what [`TileAttention::fused_ones`] and [`TileAttention::short_ones`] need.
    pub fn fuses(&self) -> bool {
        self.shape.fuses()
    }

    /// [`TileAttention::rope_store`] and [`TileAttention::ones`] in two dispatches, to be run in order, for a step in which every row is
    /// alone, in a session of its own. The bits are the same.
    ///
    /// Workgroups of the first are `[blocks, _, rows]`, of the second `[_, rows, 1]`, with the very number of rows.
    ///
    /// # Errors
    /// If the attention does not fuse, if a binding is too short, or if the driver refuses.
    pub fn fused_ones(&self, gpu: &Gpu, from: Fused<'_>, scratch: Binding<'_>, out: Binding<'_>) -> Result<[Dispatch; 2], GpuError> {
        room("the scratch memory", scratch, self.scratch_bytes(1, 1) as usize)?;
        let (turn, mut bindings) = self.fused(from, out)?;
        bindings.push(scratch);
        let blocks = gpu.kernel("rotation and attention of a block", KernelSource::Trusted(&self.shape.fused_text(turn)))?;
        let join = gpu.kernel("join of all rows' blocks", KernelSource::Trusted(&self.shape.join_text(false)))?;
        let blocks = gpu.dispatch(&blocks, &bindings, [1, self.shape.kv_heads, 1]);
        Ok([blocks, gpu.dispatch(&join, &[scratch, from.places, out], [self.shape.heads, 1, 1])])
    }

    /// Blocks that a row sees at most for [`TileAttention::short_ones`].
    pub fn short_blocks(&self) -> usize {
        self.shape.teams() as usize
    }

    /// [`TileAttention::fused_ones`] in one dispatch, for rows that see up to [`TileAttention::short_blocks`]: a workgroup has all of
    /// them. The bits are the same; rows that see more are left out.
    ///
    /// Workgroups are `[1, _, rows]`, with the very number of rows.
    ///
    /// # Errors
    /// If the attention does not fuse, if a binding is too short, or if the driver refuses.
    pub fn short_ones(&self, gpu: &Gpu, from: Fused<'_>, out: Binding<'_>) -> Result<Dispatch, GpuError> {
        let (turn, mut bindings) = self.fused(from, out)?;
        bindings.push(out);
        let kernel = gpu.kernel("rotation and attention of a row", KernelSource::Trusted(&self.shape.short_text(turn)))?;
        Ok(gpu.dispatch(&kernel, &bindings, [1, self.shape.kv_heads, 1]))
    }

    /// How a fused kernel rotates, and its bindings but for the last.
    fn fused<'a>(&self, from: Fused<'a>, out: Binding<'_>) -> Result<(Turn, Vec<Binding<'a>>), GpuError> {
        if !self.fuses() {
            return Err(bad("the heads leave no workgroup memory to rotate them in: rotate and store them on their own"));
        }
        room("the slots", from.kv, self.slot_bytes())?;
        room("the places", from.places, 16)?;
        room("the output", out, self.out_bytes(1))?;
        let mut bindings = self.rotated(1, from.rotation, from.places)?;
        bindings.push(from.kv);
        Ok((from.rotation.turn(), bindings))
    }

    /// The bindings of a rotation of `most` rows.
    fn rotated<'a>(&self, most: usize, from: Rotation<'a>, places: Binding<'a>) -> Result<Vec<Binding<'a>>, GpuError> {
        let Attend { heads, kv_heads, head_dim, .. } = self.shape;
        room("the heads", from.qkv, 4 * most * ((heads + 2 * kv_heads) * head_dim) as usize)?;
        room("the rotations", from.rotations, 4 * head_dim as usize)?;
        if from.pairs.turned == 0 || from.pairs.turned > head_dim / 2 {
            return Err(bad(&format!("a head of {head_dim} elements has not {} pairs to turn", from.pairs.turned)));
        }
        let mut bindings = vec![from.qkv, from.rotations, places];
        if let Some(norms) = from.norms {
            room("the weights of a head's norm", norms.q, 4 * head_dim as usize)?;
            room("the weights of a head's norm", norms.k, 4 * head_dim as usize)?;
            bindings.extend([norms.q, norms.k]);
        }
        if let Some(bias) = from.bias {
            room("what is added to the heads", bias, 4 * ((heads + 2 * kv_heads) * head_dim) as usize)?;
            bindings.push(bias);
        }
        Ok(bindings)
    }

    fn check(&self, from: Attended<'_>, which: Binding<'_>, out: Binding<'_>) -> Result<(), GpuError> {
        room("the queries", from.q, self.q_bytes(1))?;
        room("the slots", from.kv, self.slot_bytes())?;
        room("the places", from.places, 16)?;
        room("the rows' numbers", which, 8)?;
        room("the output", out, self.out_bytes(1))
    }

    /// Elements of a row of queries.
    pub(super) fn row_len(&self) -> usize {
        (self.shape.heads * self.shape.head_dim) as usize
    }
}
