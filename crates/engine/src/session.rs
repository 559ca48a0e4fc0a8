//! One inference timeline: tokens, their KV, and a sampler.
//!
//! Tokens are appended first and evaluated by the next [`crate::Batch::step`]; `evaluated()` of them have their keys and
//! values in the cache. Forking is cheap, and truncating never changes a bit of what stays.

use crate::kv::{Block, Fetched, Kv};
use crate::limits::CONTEXT_TOKENS_MAX;
use crate::packed::{Packed, UnsavedRows};
use crate::saved::SavedKv;
use crate::{Error, Model, Sampler, SamplerParams};
use driftwood_compute::{KV_BLOCK_TOKENS, KvDType, KvLayout};
use driftwood_region::View;
use std::sync::Arc;

/// What a session is opened with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionOptions {
    /// How keys and values are stored.
    pub kv: KvDType,
    /// The most tokens it may hold; 0 for the model's own context. A longer one is possible with some models, and turns keys otherwise from
    /// the first token on.
    pub context_max: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { kv: KvDType::F16, context_max: 0 }
    }
}

/// One inference timeline.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    pub(crate) kv: Kv,
    tokens: Vec<u32>,
    evaluated: usize,
    /// How many tokens were appended first, while all of them are there: what others may begin with, too. Rows are saved in pieces that end
    /// there.
    opening: usize,
    context_max: usize,
    sampler: Sampler,
    /// The numerics that earlier KV was computed with, if it was restored from a place with others.
    past_numerics: Option<Arc<str>>,
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// If the model cannot serve such a context or there is no memory for KV.
    pub fn open(model: &Arc<Model>, options: SessionOptions) -> Result<Session, Error> {
        let config = model.config();
        let limit = config.context_long_max.unwrap_or(config.context_max).min(CONTEXT_TOKENS_MAX);
        let context_max = if options.context_max == 0 { config.context_max.min(limit) } else { options.context_max };
        if context_max > limit {
            return Err(Error::ContextTooLong { asked: context_max, limit });
        }
        let layout = model.kv_layout(options.kv);
        let kv = Kv::new(layout, model.kv_home(layout)?, context_max);
        let sampler = Sampler::new(SamplerParams::default())?;
        let tokens = Vec::with_capacity(context_max);
        Ok(Session { model: model.clone(), kv, tokens, evaluated: 0, opening: 0, context_max, sampler, past_numerics: None })
    }

    /// A second session with the same tokens, KV and sampler. Blocks are shared until one side writes.
    pub fn fork(&self) -> Session {
        let mut tokens = Vec::with_capacity(self.tokens.capacity());
        tokens.extend_from_slice(&self.tokens);
        Session {
            model: self.model.clone(),
            kv: self.kv.share(),
            tokens,
            evaluated: self.evaluated,
            opening: self.opening,
            context_max: self.context_max,
            sampler: self.sampler.clone(),
            past_numerics: self.past_numerics.clone(),
        }
    }

    /// Appends tokens, to be evaluated by the next step. What is appended first by itself is stored once, to the token, for all sessions that
    /// begin with it.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if they do not fit, [`Error::NoSuchToken`] if one is outside the vocabulary; nothing is appended then.
    pub fn append(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let vocabulary = self.model.config().vocabulary;
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocabulary) {
            return Err(Error::NoSuchToken { token, vocabulary });
        }
        if tokens.len() > self.room() {
            return Err(Error::ContextFull { tokens: self.tokens.len() + tokens.len(), context_max: self.context_max });
        }
        if self.tokens.is_empty() {
            self.opening = tokens.len();
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Forgets the tokens from `len` on. The sampler keeps its state.
    ///
    /// # Errors
    /// [`Error::TruncateBeyond`] if there are fewer.
    pub fn truncate(&mut self, len: usize) -> Result<(), Error> {
        if len > self.tokens.len() {
            return Err(Error::TruncateBeyond { asked: len, tokens: self.tokens.len() });
        }
        self.tokens.truncate(len);
        self.evaluated = self.evaluated.min(len);
        self.opening = if len < self.opening { 0 } else { self.opening };
        self.kv.truncate(self.evaluated);
        if self.evaluated == 0 {
            self.past_numerics = None;
        }
        Ok(())
    }

    /// Samples a token from logits by this session's sampler and history; it is not appended.
    ///
    /// # Errors
    /// If no token can be chosen.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, Error> {
        Ok(self.sampler.sample(logits, &self.tokens)?)
    }

    /// Takes note of a token that somebody else chose as this session's sampler would have: a device, or the one whose past is replayed. The
    /// sampler goes on behind it; the token is not appended.
    ///
    /// # Errors
    /// If it stands for none.
    pub fn take_drawn(&mut self, token: u32) -> Result<u32, Error> {
        Ok(self.sampler.take_drawn(token)?)
    }

    /// All tokens, evaluated or not.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many tokens have their keys and values in the cache.
    pub fn evaluated(&self) -> usize {
        self.evaluated
    }

    /// The most tokens it may hold.
    pub fn context_max(&self) -> usize {
        self.context_max
    }

    /// Tokens that still fit.
    pub fn room(&self) -> usize {
        self.context_max - self.tokens.len()
    }

    /// The model that it runs on.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How its KV is laid out.
    pub fn kv_layout(&self) -> KvLayout {
        self.kv.layout()
    }

    /// Its sampler.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Replaces its sampler.
    pub fn set_sampler(&mut self, sampler: Sampler) {
        self.sampler = sampler;
    }

    /// What its bits depend on: sessions with equal ids and tokens have equal KV and logits, wherever they ran.
    ///
    /// KV that was restored from a place with other numerics keeps their id in front, joined with `+`: `.../exact/kv-f32+.../fast/kv-f32`.
    pub fn numerics_id(&self) -> String {
        let long = if self.is_long() { "/long" } else { "" };
        let here = format!("{}{long}", self.model.numerics_id(self.kv.layout().dtype));
        match &self.past_numerics {
            None => here,
            Some(past) => format!("{past}+{here}"),
        }
    }

    /// Whether its context is longer than its model has without being told: see [`crate::Config::context_long_max`].
    pub(crate) fn is_long(&self) -> bool {
        self.context_max > self.model.config().context_max
    }

    /// Tokens still to be evaluated before there are logits: at least one, since logits are not kept.
    pub(crate) fn begin_step(&mut self, logits_wanted: bool) -> Result<usize, Error> {
        if self.evaluated == self.tokens.len() && logits_wanted {
            self.evaluated = self.evaluated.checked_sub(1).ok_or(Error::NothingToEvaluate)?;
        }
        self.kv.make_writable(self.evaluated, self.tokens.len())?;
        Ok(self.tokens.len() - self.evaluated)
    }

    pub(crate) fn end_pass(&mut self, rows: usize) {
        self.evaluated += rows;
        debug_assert!(self.evaluated <= self.tokens.len());
    }

    /// Takes the session apart for a snapshot. See [`SessionAtRest`].
    ///
    /// # Errors
    /// If the KV is in a device's own memory and cannot be read from there.
    pub fn at_rest(&self) -> Result<SessionAtRest<'_>, Error> {
        let blocks = &self.kv.blocks()[..self.evaluated.div_ceil(KV_BLOCK_TOKENS)];
        let fetched = self.kv.fetch(blocks.len())?;
        Ok(SessionAtRest { blocks, full: self.evaluated / KV_BLOCK_TOKENS, fetched })
    }

    /// Hands all evaluated rows that no piece holds to `save`, in order and in groups (from a device's memory a group is what fits a staging
    /// window); `save` answers the hash of each. `is_kept` says whether a piece that was noted before is still there: one that is not is forgotten, and its rows
    /// are saved again. A full block of many pieces is saved once more, as one.
    ///
    /// Nothing is noted until [`SavedKv::note`]: call it when what was saved is durable.
    ///
    /// # Errors
    /// What `save` answers; if the KV cannot be read from a device; [`Error::AlteredKv`] if a mapped block whose rows are to be saved was altered.
    ///
    /// # Panics
    /// If `save` answers another number of hashes than it was given rows.
    pub fn save_kv<E: From<Error>>(
        &self,
        is_kept: impl Fn(&[u8; 32]) -> bool,
        save: impl FnMut(&[UnsavedRows<'_>]) -> Result<Vec<[u8; 32]>, E>,
    ) -> Result<SavedKv, E> {
        self.kv.save((self.evaluated, self.opening), is_kept, save, self.model.cpu().threads())
    }

    /// Puts a session together from a snapshot. Mapped blocks are verified before the first step that reads them, pieces now; they count
    /// as saved.
    ///
    /// # Errors
    /// [`Error::InconsistentKv`] if the parts contradict each other or the model, [`Error::AlteredKv`] if a piece does not match its hash.
    pub fn restore(model: &Arc<Model>, parts: RestoredSession<'_>) -> Result<Session, Error> {
        let mut session = Session::open(model, parts.options)?;
        session.append(parts.tokens)?;
        if !parts.are_consistent(&session.kv) {
            return Err(Error::InconsistentKv);
        }
        session.sampler = parts.sampler;
        session.kv.push_restored(parts.blocks, model.cpu().threads())?;
        if !parts.tail.is_empty() {
            session.kv.push_tail(parts.tail, parts.evaluated % KV_BLOCK_TOKENS)?;
        }
        (session.evaluated, session.opening) = (parts.evaluated, 0); // what is saved already has its pieces
        session.past_numerics = past_numerics(parts.numerics, &session.numerics_id()).filter(|_| parts.evaluated > 0);
        Ok(session)
    }

    /// The full block at `index`, to be shared with another session that has the same tokens up to its end.
    pub fn shared_block(&self, index: usize) -> Option<SharedBlock> {
        (index < self.evaluated / KV_BLOCK_TOKENS).then(|| SharedBlock(self.kv.blocks()[index].clone()))
    }

    /// Bytes of KV that this session alone holds, and those that it shares with others.
    pub fn kv_bytes(&self) -> (usize, usize) {
        self.kv.blocks().iter().fold((0, 0), |(own, shared), block| {
            let bytes = block.bytes().len();
            if Arc::strong_count(block) == 1 { (own + bytes, shared) } else { (own, shared + bytes) }
        })
    }
}

/// A session's KV for a snapshot.
#[derive(Debug)]
pub struct SessionAtRest<'a> {
    blocks: &'a [Arc<Block>],
    full: usize,
    fetched: Option<Fetched>,
}

impl SessionAtRest<'_> {
    /// Blocks whose 64 tokens are all evaluated.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = BlockAtRest<'_>> {
        let mut fetched = 0;
        self.blocks[..self.full].iter().map(move |block| {
            let at_rest = self.block(block, fetched);
            fetched += usize::from(block.slot().is_some());
            at_rest
        })
    }

    /// The block after them, if some of its tokens are evaluated; its other rows hold anything.
    pub fn tail(&self) -> Option<BlockAtRest<'_>> {
        let fetched = self.blocks[..self.full].iter().filter(|block| block.slot().is_some()).count();
        self.blocks.get(self.full).map(|block| self.block(block, fetched))
    }

    /// A block, of which `fetched` others that stand on the device come before.
    fn block<'b>(&'b self, block: &'b Arc<Block>, fetched: usize) -> BlockAtRest<'b> {
        let bytes = match (block.slot(), &self.fetched) {
            (Some(_), Some(from)) => from.block(fetched),
            _ => block.bytes(),
        };
        BlockAtRest { block, bytes }
    }
}

/// A block as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct BlockAtRest<'a> {
    block: &'a Arc<Block>,
    bytes: &'a [u8],
}

impl<'a> BlockAtRest<'a> {
    /// The block's bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Equal for blocks that are one and the same in memory.
    pub fn identity(&self) -> usize {
        Arc::as_ptr(self.block) as usize
    }

    /// The block's blake3 hash, if it is known without reading the block.
    pub fn known_hash(&self) -> Option<[u8; 32]> {
        self.block.known_hash()
    }
}

/// A block held together with another session.
#[derive(Clone, Debug)]
pub struct SharedBlock(pub(crate) Arc<Block>);

/// A block of a session that is being restored: full, or in pieces that cover the evaluated rows of the last one.
#[derive(Clone, Debug)]
pub enum RestoredBlock {
    /// In a mapped file that the state folder owns.
    Mapped {
        /// Its bytes.
        view: View,
        /// What they must hash to.
        hash: [u8; 32],
    },
    /// Held by a session that was restored before.
    Shared(SharedBlock),
    /// Pieces in order, copied and verified now.
    Pieces(Vec<RestoredPiece>),
}

/// A piece of a block that is being restored.
#[derive(Clone, Debug)]
pub struct RestoredPiece {
    /// Exactly its bytes.
    pub view: View,
    /// How many tokens' rows they are: 1 to 64.
    pub tokens: usize,
    /// What they must hash to.
    pub hash: [u8; 32],
}

impl RestoredPiece {
    /// Its rows on their way into a block.
    pub(crate) fn packed(&self) -> Packed<'_> {
        Packed { tokens: self.tokens, bytes: self.view.bytes(), hash: Some(self.hash) }
    }
}

/// The parts of a session as a snapshot holds them.
#[derive(Debug)]
pub struct RestoredSession<'a> {
    /// How it was opened.
    pub options: SessionOptions,
    /// All its tokens.
    pub tokens: &'a [u32],
    /// How many of them are in the KV.
    pub evaluated: usize,
    /// Its full blocks, and the last, partly filled one if that is in pieces.
    pub blocks: Vec<RestoredBlock>,
    /// The evaluated rows of its last, partly filled block, packed as (layer, key or value, head, token, row) and verified by the
    /// caller; empty if there is none or if it is in pieces.
    pub tail: &'a [u8],
    /// Its sampler.
    pub sampler: Sampler,
    /// The id of the numerics that its KV was computed with.
    pub numerics: &'a str,
}

impl RestoredSession<'_> {
    /// Whether the counts and lengths fit each other and the layout.
    fn are_consistent(&self, kv: &Kv) -> bool {
        let (full, rest) = (self.evaluated / KV_BLOCK_TOKENS, self.evaluated % KV_BLOCK_TOKENS);
        let in_pieces = rest > 0 && self.blocks.len() == full + 1;
        let tail_rows = if in_pieces { 0 } else { rest };
        self.evaluated <= self.tokens.len()
            && self.blocks.len() == full + usize::from(in_pieces)
            && self.blocks.iter().enumerate().all(|(index, block)| kv.takes(block, if index < full { KV_BLOCK_TOKENS } else { rest }))
            && self.tail.len() == tail_rows * kv.layout().token_bytes()
    }
}

/// Changes of numerics that an id spells out; of a longer history only the last are kept.
const NUMERICS_SPELT_MAX: usize = 4;

/// What stands in front of `here` in the id of a session whose stored id is `stored`.
fn past_numerics(stored: &str, here: &str) -> Option<Arc<str>> {
    let mut spelt: Vec<&str> = stored.split('+').collect();
    if spelt.last() == Some(&here) {
        spelt.pop();
    }
    let first = spelt.len().saturating_sub(NUMERICS_SPELT_MAX);
    (!spelt.is_empty()).then(|| spelt[first..].join("+").into())
}

#[cfg(test)]
mod tests {
    use super::past_numerics;

    #[test]
    fn foreign_numerics_stay_in_the_id() {
        for (stored, here, past) in [("a", "a", None), ("a", "b", Some("a")), ("a+b", "b", Some("a")), ("a+b", "a", Some("a+b"))] {
            assert_eq!(past_numerics(stored, here).as_deref(), past, "{stored} {here}");
        }
        assert_eq!(past_numerics("a+b+c+d+e", "f").as_deref(), Some("b+c+d+e"));
    }
}
