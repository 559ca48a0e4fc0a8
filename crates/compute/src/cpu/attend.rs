//! Causal attention over keys and values as they are stored.
//!
//! The context is cut at absolute positions: segments of 512 tokens, of blocks of 64. In a segment, blocks are taken in order with a
//! running maximum and sum; segments are then folded in order by one formula. Which thread computes a segment, and which other rows are
//! in the call, changes nothing: a masked token takes no part at all, so unwritten positions may hold anything.

#![allow(unsafe_code)]

use super::Cpu;
use super::kv::{KV_BLOCK_TOKENS, KvDType, KvLayout};
use super::lanes::{self, LANES, Lanes, Op};
use super::math::{exp_lanes, softcap_lanes};
use super::pool::Parts;
use std::ops::Range;

/// Tokens after which a fresh running maximum and sum begin.
const SEGMENT_TOKENS: usize = 512;
/// Queries (rows times heads of a group) that share one conversion of keys and values.
const QUERIES_MAX: usize = 32;
/// Heads that are computed together.
const HEADS_MAX: usize = 4;
/// Largest head.
const HEAD_DIM_MAX: usize = 512;

/// What stays the same for all rows of a call.
#[derive(Clone, Copy, Debug)]
pub struct AttendShape {
    /// Query heads.
    pub heads: usize,
    /// KV heads; query heads are spread over them in equal groups.
    pub kv_heads: usize,
    /// Elements of a head: a multiple of 16, at most 512.
    pub head_dim: usize,
    /// The layer whose keys and values are read.
    pub layer: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Scaled scores `s` become `softcap * tanh(s / softcap)`, if there is one.
    pub softcap: Option<f32>,
    /// How many positions a row sees, its own included, or all.
    pub window: Option<usize>,
    /// Where they stand in a block.
    pub layout: KvLayout,
}

/// One query row. It sees the positions up to its own, and within the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// Whose keys and values it sees.
    pub session: u32,
    /// Its position in them.
    pub position: u32,
}

/// Finds blocks of KV.
///
/// - `block` returns all bytes of block `block` (tokens `64 * block` and on) of a session, laid out by the call's [`KvLayout`].
/// - The rows of all positions that a query sees must have been stored before the call.
pub trait KvSource: Sync {
    /// The bytes of one block.
    fn block(&self, session: u32, block: u32) -> &[u8];
}

/// Buffers for [`Cpu::attend`] that only grow.
#[derive(Debug, Default)]
pub struct AttendScratch {
    tasks: Vec<Task>,
    states: Vec<f32>, // (task, query, STATE_HEAD + head_dim)
}

impl AttendScratch {
    /// Empty.
    pub fn new() -> AttendScratch {
        AttendScratch::default()
    }
}

/// Consecutive rows of one session, one KV head, and some segments.
#[derive(Clone, Debug)]
struct Task {
    rows: Range<usize>,
    kv_head: usize,
    segments: Range<usize>,
    /// Where its states begin, in queries, if other tasks have the rest of its segments.
    split_at: Option<usize>,
}

/// f32 of a query's state before its output: the maximum and the sum, and padding to keep vectors aligned.
const STATE_HEAD: usize = LANES;

impl Cpu {
    /// `out[row][head] = softmax(scale * q[row][head] . keys) . values` over the positions that the row sees; `q` and `out` have shape
    /// (row, head, head_dim).
    ///
    /// Rows of one session should be consecutive: they then share the reading of keys and values.
    ///
    /// # Panics
    /// If the shapes do not fit each other, or if a block is too short.
    pub fn attend(&self, shape: &AttendShape, rows: &[Row], q: &[f32], kv: &dyn KvSource, scratch: &mut AttendScratch, out: &mut [f32]) {
        shape.check(rows, q, out);
        let state_len = STATE_HEAD + shape.head_dim;
        let split_states = plan(shape, rows, self.threads(), &mut scratch.tasks);
        if scratch.states.len() < split_states * state_len {
            scratch.states.resize(split_states * state_len, 0.0);
        }
        let tasks = &scratch.tasks;
        let (out, states) = (Parts::new(out), Parts::new(&mut scratch.states));
        self.pool.run(tasks.len(), &|thread, index| self.attend_task(shape, rows, q, kv, &tasks[index], thread, (&states, &out)));
        self.fold_split(shape, tasks, (&states, &out));
    }

    #[allow(clippy::too_many_arguments)] // one call's operands, and who runs it
    fn attend_task(
        &self,
        shape: &AttendShape,
        rows: &[Row],
        q: &[f32],
        kv: &dyn KvSource,
        task: &Task,
        thread: usize,
        (states, out): (&Parts<'_, f32>, &Parts<'_, f32>),
    ) {
        let scratch = &mut *self.scratch(thread);
        let state_len = STATE_HEAD + shape.head_dim;
        let queries = task.rows.len() * shape.group();
        let own = scratch.third.f32(2 * queries * state_len);
        let (total, segment) = own.split_at_mut(queries * state_len);
        clear(total, state_len);
        for number in task.segments.clone() {
            // SAFETY: the states of a split task are its own.
            let segment = task.split_at.map_or(&mut *segment, |at| unsafe { states.slice(at * state_len, queries * state_len) });
            clear(segment, state_len);
            let op = Segment {
                shape,
                rows: &rows[task.rows.clone()],
                q: &q[task.rows.start * shape.heads * shape.head_dim..],
                kv,
                kv_head: task.kv_head,
                number,
                keys: scratch.first.f32(KV_BLOCK_TOKENS * shape.head_dim),
                values: scratch.second.f32(KV_BLOCK_TOKENS * shape.head_dim),
                states: &mut *segment,
            };
            // SAFETY: `Cpu::new` checked the path.
            unsafe { lanes::run(self.simd, op) };
            if task.split_at.is_none() {
                // SAFETY: as above.
                unsafe { lanes::run(self.simd, Fold { total: &mut *total, segment, state_len }) };
            }
        }
        if task.split_at.is_none() {
            self.finish(shape, task, total, out);
        }
    }

    /// Folds the segments that several tasks computed, in order.
    fn fold_split(&self, shape: &AttendShape, tasks: &[Task], (states, out): (&Parts<'_, f32>, &Parts<'_, f32>)) {
        let state_len = STATE_HEAD + shape.head_dim;
        let scratch = &mut *self.scratch(0);
        let mut left = tasks;
        while let Some(first) = left.first() {
            let same = left.iter().take_while(|t| t.rows == first.rows && t.kv_head == first.kv_head).count();
            let (segments, rest) = left.split_at(same);
            left = rest;
            if first.split_at.is_none() {
                continue;
            }
            let len = first.rows.len() * shape.group() * state_len;
            let total = scratch.third.f32(len);
            clear(total, state_len);
            for task in segments {
                // SAFETY: all tasks have ended. `Cpu::new` checked the path.
                unsafe {
                    let segment = states.slice(task.split_at.unwrap_or(0) * state_len, len);
                    lanes::run(self.simd, Fold { total: &mut *total, segment, state_len });
                }
            }
            self.finish(shape, first, total, out);
        }
    }

    /// Divides by the sums and writes the outputs of one KV head's group.
    fn finish(&self, shape: &AttendShape, task: &Task, total: &[f32], out: &Parts<'_, f32>) {
        let (state_len, group) = (STATE_HEAD + shape.head_dim, shape.group());
        for (query, state) in total.chunks_exact(state_len).enumerate() {
            let (row, head) = (task.rows.start + query / group, task.kv_head * group + query % group);
            let inverse = 1.0 / state[1];
            // SAFETY: each (row, head) belongs to one task, or to one group of split tasks that have ended.
            let out = unsafe { out.slice((row * shape.heads + head) * shape.head_dim, shape.head_dim) };
            out.iter_mut().zip(&state[STATE_HEAD..]).for_each(|(o, s)| *o = s * inverse);
        }
    }
}

impl AttendShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that a row sees.
    fn sees(&self, row: Row) -> Range<usize> {
        let end = row.position as usize + 1;
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }

    fn check(&self, rows: &[Row], q: &[f32], out: &[f32]) {
        let layout = &self.layout;
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "{} heads over {}", self.heads, self.kv_heads);
        assert!(self.head_dim.is_multiple_of(LANES) && self.head_dim <= HEAD_DIM_MAX, "head_dim {}", self.head_dim);
        assert!(layout.kv_heads == self.kv_heads && layout.head_dim == self.head_dim && self.layer < layout.layers, "{layout:?}");
        assert!(self.softcap.is_none_or(|cap| cap > 0.0), "a cap above zero, not {:?}", self.softcap);
        assert!(self.window != Some(0), "a row sees at least itself");
        assert!(q.len() == rows.len() * self.heads * self.head_dim && q.len() == out.len(), "(row, head, head_dim)");
    }
}

/// Lists the tasks of a call; returns how many states the split ones need.
fn plan(shape: &AttendShape, rows: &[Row], threads: usize, tasks: &mut Vec<Task>) -> usize {
    tasks.clear();
    let rows_max = (QUERIES_MAX / shape.group()).max(1);
    let mut first = 0;
    while first < rows.len() {
        let tile = rows[first..].iter().take(rows_max).take_while(|r| r.session == rows[first].session).count();
        let sees = rows[first..first + tile].iter().map(|r| shape.sees(*r));
        let (start, end) = sees.fold((usize::MAX, 0), |(start, end), s| (start.min(s.start), end.max(s.end)));
        let segments = start / SEGMENT_TOKENS..end.div_ceil(SEGMENT_TOKENS);
        for kv_head in 0..shape.kv_heads {
            tasks.push(Task { rows: first..first + tile, kv_head, segments: segments.clone(), split_at: None });
        }
        first += tile;
    }
    if threads == 1 || tasks.len() >= 4 * threads { 0 } else { split(shape.group(), tasks) }
}

/// Gives each segment a task of its own. Few tasks are there, so the quadratic insertion is short.
fn split(group: usize, tasks: &mut Vec<Task>) -> usize {
    let mut states = 0;
    let mut at = 0;
    while at < tasks.len() {
        let whole = tasks[at].clone();
        if whole.segments.len() < 2 {
            at += 1;
            continue;
        }
        let queries = whole.rows.len() * group;
        let parts = whole.segments.clone().map(|s| (s - whole.segments.start, s));
        let count = whole.segments.len();
        tasks.splice(at..=at, parts.map(|(i, s)| Task { segments: s..s + 1, split_at: Some(states + i * queries), ..whole.clone() }));
        states += count * queries;
        at += count;
    }
    states
}

/// Sets states to nothing seen.
fn clear(states: &mut [f32], state_len: usize) {
    states.fill(0.0);
    states.chunks_exact_mut(state_len).for_each(|s| s[0] = f32::NEG_INFINITY);
}

/// Adds a segment's states to the totals: `(m, l, o) + (m', l', o')` relative to the larger maximum.
struct Fold<'a> {
    total: &'a mut [f32],
    segment: &'a [f32],
    state_len: usize,
}

impl Op for Fold<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (total, segment) in self.total.chunks_exact_mut(self.state_len).zip(self.segment.chunks_exact(self.state_len)) {
            if segment[0] == f32::NEG_INFINITY {
                continue;
            }
            let largest = total[0].max(segment[0]);
            // SAFETY: as the caller's; outputs are whole vectors.
            unsafe {
                let keep = L::splat(exp_one::<L>(total[0] - largest));
                let gain = L::splat(exp_one::<L>(segment[0] - largest));
                for (total, segment) in total.as_chunks_mut::<LANES>().0.iter_mut().zip(segment.as_chunks::<LANES>().0) {
                    let kept = L::mul(L::load(total.as_ptr()), keep);
                    L::store(total.as_mut_ptr(), L::fma(L::load(segment.as_ptr()), gain, kept));
                }
            }
            // The first vector was the head: its sum (element 1) is right as computed, its maximum is not a sum.
            total[0] = largest;
        }
    }
}

/// # Safety
/// As for every method of `L`.
#[inline(always)]
unsafe fn exp_one<L: Lanes>(x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: as the caller's.
    unsafe { L::store(lanes.as_mut_ptr(), exp_lanes::<L>(L::splat(x))) };
    lanes[0]
}

/// One segment of one session for some rows and the heads of one group.
struct Segment<'a> {
    shape: &'a AttendShape,
    rows: &'a [Row],
    q: &'a [f32], // (row, head, head_dim)
    kv: &'a dyn KvSource,
    kv_head: usize,
    number: usize,
    keys: &'a mut [f32],   // (token, head_dim) of one block
    values: &'a mut [f32], // (token, head_dim) of one block
    states: &'a mut [f32], // (row, head of the group, STATE_HEAD + head_dim)
}

impl Op for Segment<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        let start = self.number * SEGMENT_TOKENS;
        for block_start in (start..start + SEGMENT_TOKENS).step_by(KV_BLOCK_TOKENS) {
            let in_block = |sees: Range<usize>| {
                let end = sees.end.clamp(block_start, block_start + KV_BLOCK_TOKENS);
                sees.start.clamp(block_start, end) - block_start..end - block_start
            };
            let all = self.rows.iter().map(|r| in_block(self.shape.sees(*r))).filter(|r| !r.is_empty());
            let Some(used) = all.reduce(|u, r| u.start.min(r.start)..u.end.max(r.end)) else {
                continue;
            };
            let block = self.kv.block(self.rows[0].session, (block_start / KV_BLOCK_TOKENS) as u32);
            // SAFETY: as the caller's; `convert` checks the block's length, and the buffers hold a block.
            unsafe {
                convert::<L>(self.shape, block, (0, self.kv_head), used.clone(), self.keys);
                convert::<L>(self.shape, block, (1, self.kv_head), used, self.values);
                for row in 0..self.rows.len() {
                    let tokens = in_block(self.shape.sees(self.rows[row]));
                    if !tokens.is_empty() {
                        self.row::<L>(row, tokens);
                    }
                }
            }
        }
    }
}

impl Segment<'_> {
    /// One row's group of heads, a few at a time, with the converted block.
    ///
    /// # Safety
    /// As for every method of `L`.
    #[inline(always)]
    unsafe fn row<L: Lanes>(&mut self, row: usize, tokens: Range<usize>) {
        let (shape, group) = (self.shape, self.shape.group());
        let (head_dim, state_len) = (shape.head_dim, STATE_HEAD + shape.head_dim);
        let q = &self.q[(row * shape.heads + self.kv_head * group) * head_dim..][..group * head_dim];
        let states = &mut self.states[row * group * state_len..][..group * state_len];
        let block = Converted { keys: self.keys, values: self.values, tokens, head_dim, scale: shape.scale, softcap: shape.softcap };
        let mut head = 0;
        while head < group {
            let now = (group - head).min(if L::ROWS == 8 { HEADS_MAX } else { 1 });
            let (q, states) = (&q[head * head_dim..][..now * head_dim], &mut states[head * state_len..][..now * state_len]);
            // SAFETY: as the caller's; the slices have `now` heads.
            unsafe {
                match now {
                    4 => block.heads::<L, 4>(q, states),
                    3 => block.heads::<L, 3>(q, states),
                    2 => block.heads::<L, 2>(q, states),
                    _ => block.heads::<L, 1>(q, states),
                }
            }
            head += now;
        }
    }
}

/// Converts the rows of some tokens of one block to f32.
///
/// # Safety
/// As for every method of `L`.
#[inline(always)]
unsafe fn convert<L: Lanes>(shape: &AttendShape, block: &[u8], (kv, head): (usize, usize), tokens: Range<usize>, to: &mut [f32]) {
    let (layout, head_dim) = (&shape.layout, shape.head_dim);
    let row_bytes = layout.row_bytes();
    let rows = &block[layout.row_offset(shape.layer, kv, head, tokens.start)..][..tokens.len() * row_bytes];
    let to = &mut to[tokens.start * head_dim..tokens.end * head_dim];
    for (from, to) in rows.chunks_exact(row_bytes).zip(to.chunks_exact_mut(head_dim)) {
        for (i, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let at = i * LANES;
            // SAFETY: as the caller's; a row has `head_dim` elements, sixteen of them from `at` on.
            unsafe {
                let x = match layout.dtype {
                    KvDType::F32 => L::load(from.as_ptr().add(4 * at).cast()),
                    KvDType::F16 => L::load_half(from.as_ptr().add(2 * at)),
                    KvDType::Q8 => {
                        let scale = &from[head_dim + at / 32 * 2..][..2];
                        let scale = L::low_half(L::splat_i(i32::from(u16::from_le_bytes([scale[0], scale[1]]))));
                        L::mul(L::to_f(L::load_i8(from.as_ptr().add(at).cast())), scale)
                    }
                };
                L::store(to.as_mut_ptr(), x);
            }
        }
    }
}

/// A block of keys and values in f32, and the tokens of it that a row sees.
struct Converted<'a> {
    keys: &'a [f32],   // (token, head_dim)
    values: &'a [f32], // (token, head_dim)
    tokens: Range<usize>,
    head_dim: usize,
    scale: f32,
    softcap: Option<f32>,
}

/// A number for each token of a block.
type Scores = [f32; KV_BLOCK_TOKENS];

impl Converted<'_> {
    /// Takes `H` heads of one row through the block.
    ///
    /// # Safety
    /// As for every method of `L`; `q` and `states` have `H` heads.
    #[inline(always)]
    unsafe fn heads<L: Lanes, const H: usize>(&self, q: &[f32], states: &mut [f32]) {
        let state_len = STATE_HEAD + self.head_dim;
        let mut p = [[f32::NEG_INFINITY; KV_BLOCK_TOKENS]; H];
        let mut keep = [0.0; H];
        // SAFETY: the caller's promise.
        unsafe {
            self.scores::<L, H>(q, &mut p);
            for h in 0..H {
                keep[h] = soften::<L>(&mut p[h], &mut states[h * state_len..][..2]);
            }
            self.accumulate::<L, H>(&p, keep, states);
        }
    }

    /// Scaled and capped scores of the tokens; the others stay as they are.
    #[inline(always)]
    unsafe fn scores<L: Lanes, const H: usize>(&self, q: &[f32], p: &mut [Scores; H]) {
        let dim = self.head_dim;
        assert!(q.len() == H * dim && self.keys.len() == KV_BLOCK_TOKENS * dim && self.tokens.end <= KV_BLOCK_TOKENS);
        for sixteen in (self.tokens.start / LANES * LANES..self.tokens.end).step_by(LANES) {
            // SAFETY: as the caller's; the buffer holds all tokens of the block, though only those seen count.
            unsafe {
                let mut dots = [[L::splat(0.0); LANES]; H];
                for four in (0..LANES).step_by(4) {
                    let mut acc = [[L::splat(0.0); 4]; H];
                    for at in (0..dim).step_by(LANES) {
                        let mut k = [L::splat(0.0); 4];
                        for (t, k) in k.iter_mut().enumerate() {
                            *k = L::load(self.keys.as_ptr().add((sixteen + four + t) * dim + at));
                        }
                        for (h, acc) in acc.iter_mut().enumerate() {
                            let q = L::load(q.as_ptr().add(h * dim + at));
                            for (acc, k) in acc.iter_mut().zip(k) {
                                *acc = L::fma(q, k, *acc);
                            }
                        }
                    }
                    for h in 0..H {
                        dots[h][four..four + 4].copy_from_slice(&acc[h]);
                    }
                }
                for h in 0..H {
                    let mut scores = [0.0; LANES];
                    let mut scaled = L::mul(L::sums(&dots[h]), L::splat(self.scale));
                    if let Some(cap) = self.softcap {
                        scaled = softcap_lanes::<L>(scaled, L::splat(cap));
                    }
                    L::store(scores.as_mut_ptr(), scaled);
                    let (from, to) = (self.tokens.start.max(sixteen), self.tokens.end.min(sixteen + LANES));
                    p[h][from..to].copy_from_slice(&scores[from - sixteen..to - sixteen]);
                }
            }
        }
    }

    /// `out = out * keep`, then `out = p[t] * v[t] + out` for each token in order.
    #[inline(always)]
    unsafe fn accumulate<L: Lanes, const H: usize>(&self, p: &[Scores; H], keep: [f32; H], states: &mut [f32]) {
        let (dim, state_len) = (self.head_dim, STATE_HEAD + self.head_dim);
        assert!(states.len() == H * state_len && self.values.len() == KV_BLOCK_TOKENS * dim && self.tokens.end <= KV_BLOCK_TOKENS);
        let mut at = 0;
        while at < dim {
            // SAFETY: as the caller's; `at` plus the width stays within the head.
            unsafe {
                if dim - at >= 4 * LANES {
                    self.columns::<L, H, 4>(p, keep, states, at);
                    at += 4 * LANES;
                } else {
                    self.columns::<L, H, 1>(p, keep, states, at);
                    at += LANES;
                }
            }
        }
    }

    /// `W` vectors of the output from element `at` on.
    #[inline(always)]
    unsafe fn columns<L: Lanes, const H: usize, const W: usize>(&self, p: &[Scores; H], keep: [f32; H], states: &mut [f32], at: usize) {
        let state_len = STATE_HEAD + self.head_dim;
        let output = |h: usize, i: usize| h * state_len + STATE_HEAD + at + i * LANES;
        // SAFETY: the caller's promise, and `accumulate` checked the lengths.
        unsafe {
            let mut out = [[L::splat(0.0); W]; H];
            for (h, out) in out.iter_mut().enumerate() {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = L::mul(L::load(states.as_ptr().add(output(h, i))), L::splat(keep[h]));
                }
            }
            for t in self.tokens.start..self.tokens.end {
                let mut v = [L::splat(0.0); W];
                for (i, v) in v.iter_mut().enumerate() {
                    *v = L::load(self.values.as_ptr().add(t * self.head_dim + at + i * LANES));
                }
                for (out, p) in out.iter_mut().zip(p) {
                    let p = L::splat(p[t]);
                    for (out, v) in out.iter_mut().zip(v) {
                        *out = L::fma(p, v, *out);
                    }
                }
            }
            for (h, out) in out.iter().enumerate() {
                for (i, out) in out.iter().enumerate() {
                    L::store(states.as_mut_ptr().add(output(h, i)), *out);
                }
            }
        }
    }
}

/// Turns scores to exponentials relative to the running maximum, and brings `state` (maximum, sum) up to date. Returns the factor for
/// what was summed before.
///
/// # Safety
/// As for every method of `L`.
#[inline(always)]
unsafe fn soften<L: Lanes>(p: &mut Scores, state: &mut [f32]) -> f32 {
    // SAFETY: as the caller's; the scores are four vectors.
    unsafe {
        let mut largest = L::load(p.as_ptr());
        for i in 1..KV_BLOCK_TOKENS / LANES {
            largest = L::max(largest, L::load(p.as_ptr().add(i * LANES)));
        }
        let largest = L::largest(largest).max(state[0]);
        let mut sums = L::splat(0.0);
        for i in 0..KV_BLOCK_TOKENS / LANES {
            let x = exp_lanes::<L>(L::sub(L::load(p.as_ptr().add(i * LANES)), L::splat(largest)));
            L::store(p.as_mut_ptr().add(i * LANES), x);
            sums = L::add(sums, x);
        }
        let keep = exp_one::<L>(state[0] - largest);
        state[1] = f32::mul_add(state[1], keep, L::sum(sums));
        state[0] = largest;
        keep
    }
}
