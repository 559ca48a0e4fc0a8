//! KV that is saved once: what is saved suffices to restore a session to the bit, and nothing is saved twice without a reason.

#[path = "common/models.rs"]
mod models;

use driftwood_compute::{Arithmetic, KvDType, Simd};
use driftwood_engine::{
    Batch, Error, Logits, Model, Piece, RestoredBlock, RestoredPiece, RestoredSession, SavedKv, Session, SessionOptions, Work,
};
use driftwood_region::{Region, View};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, LazyLock};

/// The real one first.
static MODELS: LazyLock<Vec<Arc<Model>>> = LazyLock::new(|| {
    let tiny = models::FAMILIES.map(|file| models::open(file, 2, Simd::detect(), Arithmetic::Fast));
    [MODEL.clone()].into_iter().chain(tiny).collect()
});
static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| models::open(models::SMOLLM2, 2, Simd::detect(), Arithmetic::Fast));

fn options(kv: KvDType) -> SessionOptions {
    SessionOptions { kv, context_max: 512 }
}

/// `count` tokens; others for another `seed`.
fn tokens(seed: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| 100 + ((seed * 7919 + i * 104_729) % 199) as u32).collect()
}

/// A session whose tokens are all evaluated.
fn session_of(model: &Arc<Model>, kv: KvDType, tokens: &[u32]) -> Session {
    let mut session = Session::open(model, options(kv)).unwrap();
    go_on(&mut session, tokens);
    session
}

fn go_on(session: &mut Session, tokens: &[u32]) {
    session.append(tokens).unwrap();
    Batch::new(&session.model().clone()).step(&mut [Work::new(session, Logits::None)]).unwrap();
}

/// The bits of the logits after one more token.
fn next_logits(mut session: Session) -> Vec<u32> {
    let mut logits = vec![0.0; session.model().config().vocabulary];
    session.append(&[28]).unwrap();
    Batch::new(&session.model().clone()).step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
    logits.iter().map(|l: &f32| l.to_bits()).collect()
}

/// Whether a session continues as a fresh one with the same tokens does.
fn assert_fresh(session: Session, kv: KvDType) {
    let fresh = session_of(&session.model().clone(), kv, session.tokens());
    assert!(next_logits(session) == next_logits(fresh), "not the KV of these tokens");
}

/// Where pieces are kept.
#[derive(Default)]
struct Store(HashMap<[u8; 32], Vec<u8>>);

impl Store {
    /// Saves a session; says of how many tokens the rows were that each piece took.
    fn save(&mut self, session: &Session) -> (SavedKv, Vec<usize>) {
        let (mut new, mut taken) = (Vec::new(), Vec::new());
        let saved = session.save_kv::<Error>(
            |hash| self.0.contains_key(hash),
            |group| {
                assert!(!group.is_empty());
                taken.extend(group.iter().map(|rows| rows.tokens()));
                new.extend(group.iter().map(|rows| rows.slices().collect::<Vec<_>>().concat()));
                assert!(group.iter().zip(&new[new.len() - group.len()..]).all(|(rows, bytes)| rows.len_bytes() == bytes.len()));
                Ok(new[new.len() - group.len()..].iter().map(|bytes| *blake3::hash(bytes).as_bytes()).collect())
            },
        );
        self.0.extend(new.into_iter().map(|bytes| (*blake3::hash(&bytes).as_bytes(), bytes)));
        let saved = saved.unwrap();
        assert_well_cut(session, saved.blocks(), &taken);
        (saved, taken)
    }

    /// The same, noted at once.
    fn save_and_note(&mut self, session: &Session) -> Vec<usize> {
        let (saved, taken) = self.save(session);
        saved.note();
        taken
    }

    fn piece(&self, piece: &Piece) -> RestoredPiece {
        RestoredPiece { view: mapped(&self.0[&piece.hash]), tokens: piece.tokens, hash: piece.hash }
    }

    fn block(&self, pieces: &[Piece], map: bool) -> RestoredBlock {
        match pieces {
            [whole] if map && whole.tokens == 64 => RestoredBlock::Mapped { view: mapped(&self.0[&whole.hash]), hash: whole.hash },
            pieces => RestoredBlock::Pieces(pieces.iter().map(|piece| self.piece(piece)).collect()),
        }
    }

    /// A session like another, from pieces alone.
    fn restore(&self, like: &Session, pieces: &[Vec<Piece>], map: bool, on: &Arc<Model>) -> Session {
        restore(on, like, like.evaluated(), pieces.iter().map(|pieces| self.block(pieces, map)).collect(), &[]).unwrap()
    }
}

fn restore(on: &Arc<Model>, like: &Session, evaluated: usize, blocks: Vec<RestoredBlock>, tail: &[u8]) -> Result<Session, Error> {
    let numerics = like.numerics_id();
    let options = options(like.kv_layout().dtype);
    let (sampler, tokens) = (like.sampler().clone(), like.tokens());
    Session::restore(on, RestoredSession { options, tokens, evaluated, blocks, tail, sampler, numerics: &numerics })
}

fn mapped(bytes: &[u8]) -> View {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    View::whole(&Arc::new(Region::map_file(&file).unwrap())).unwrap()
}

/// Pieces cover what is evaluated, full blocks have few, and what was just taken is a whole block or short.
fn assert_well_cut(session: &Session, blocks: &[Vec<Piece>], taken: &[usize]) {
    let rows = |block: &Vec<Piece>| block.iter().map(|piece| piece.tokens).sum::<usize>();
    assert_eq!(blocks.iter().map(rows).sum::<usize>(), session.evaluated());
    assert!(blocks.iter().rev().skip(1).all(|block| rows(block) == 64));
    assert!(blocks.iter().all(|block| rows(block) < 64 || block.len() <= 8));
    assert!(taken.iter().all(|tokens| *tokens <= 16 || *tokens == 64));
}

#[test]
fn rewritten_rows_are_in_no_piece() {
    for kv in [KvDType::F16, KvDType::Q8] {
        for (evaluated, kept, new) in [(40, 20, 30), (40, 33, 2), (64, 63, 1), (64, 10, 54), (130, 64, 70), (130, 100, 28), (20, 0, 20)] {
            let mut store = Store::default();
            for model in &*MODELS {
                let mut session = session_of(model, kv, &tokens(1, evaluated));
                store.save_and_note(&session);
                session.truncate(kept).unwrap();
                go_on(&mut session, &tokens(2, new));
                let (saved, taken) = store.save(&session);
                assert!(taken.iter().sum::<usize>() >= new, "{evaluated} {kept} {new}");
                assert_fresh(store.restore(&session, saved.blocks(), false, model), kv);
            }
        }
    }
}

#[test]
fn only_new_rows_are_saved() {
    let mut store = Store::default();
    let mut session = session_of(&MODEL, KvDType::F16, &tokens(1, 150));
    assert_eq!(store.save_and_note(&session), [64, 64, 16, 6]);
    assert!(store.save_and_note(&session).is_empty(), "all are saved");
    go_on(&mut session, &tokens(2, 45));
    assert_eq!(store.save_and_note(&session), [10, 16, 16, 3]);
    assert_eq!(session.at_rest().unwrap().blocks().filter(|block| block.known_hash().is_some()).count(), 2, "of three");
    session.truncate(120).unwrap();
    assert_eq!(store.save_and_note(&session), [16, 16, 16, 8], "the block's piece has more rows");
    assert!(store.save_and_note(&session).is_empty(), "though nobody wrote the others");
}

#[test]
fn many_small_pieces_become_one() {
    let (mut store, mut taken) = (Store::default(), Vec::new());
    let mut session = Session::open(&MODEL, options(KvDType::F16)).unwrap();
    for turn in 0..13 {
        go_on(&mut session, &tokens(turn, 5));
        taken.push(store.save_and_note(&session));
    }
    assert!(taken[..12].iter().all(|pieces| pieces.iter().sum::<usize>() == 5));
    assert_eq!(taken[12], [64, 1], "once more, as one, and what begins after it");
    assert!(store.save_and_note(&session).is_empty());
    assert_fresh(session, KvDType::F16);
}

#[test]
fn forks_save_for_each_other() {
    let mut store = Store::default();
    let mut one = session_of(&MODEL, KvDType::F16, &tokens(1, 100));
    let mut two = one.fork();
    assert_eq!(store.save_and_note(&two), [64, 16, 16, 4]);
    assert!(store.save_and_note(&one).is_empty());
    two.truncate(90).unwrap();
    assert_eq!(store.save_and_note(&two), [10]);
    go_on(&mut two, &tokens(2, 20));
    go_on(&mut one, &tokens(3, 20));
    assert_eq!(store.save_and_note(&two), [6, 14], "new rows alone, in a block of its own");
    assert_eq!(store.save_and_note(&one), [12, 8]);
    for session in [one, two] {
        let pieces = store.save(&session).0;
        assert_fresh(store.restore(&session, pieces.blocks(), false, &MODEL), KvDType::F16);
    }
}

/// Who saves a prompt that others have saved cuts the block in which they part: the third shares its first pieces with the second.
#[test]
fn sessions_with_one_prompt_share_it_up_to_a_piece() {
    let (model, mut store) = (MODEL.clone(), Store::default());
    let prompt = tokens(1, 2 * 64 + 40);
    let mut actor = |seed: usize| {
        let session = session_of(&model, KvDType::F16, &[&prompt[..], &tokens(seed, 64 + 24)].concat());
        store.save_and_note(&session);
        let before = store.0.len();
        (session, before)
    };
    let all: Vec<(Session, usize)> = (2..6).map(&mut actor).collect();
    let new = |index: usize| all[index].1 - all[index - 1].1;
    assert_eq!(all[0].1, 4, "whole blocks");
    assert_eq!((new(1), new(2), new(3)), (4 + 1, 2 + 1, 2 + 1), "the parting block in pieces, of which two are shared");
}

#[test]
fn nothing_is_noted_before_its_time() {
    let mut store = Store::default();
    let mut session = session_of(&MODEL, KvDType::F16, &tokens(1, 30));
    drop(store.save(&session));
    let refused = session.save_kv(|_| true, |_| Err(Error::NothingToEvaluate));
    assert!(matches!(refused, Err(Error::NothingToEvaluate)));
    let (saved, taken) = store.save(&session);
    assert_eq!(taken, [16, 14], "once more");
    session.truncate(25).unwrap();
    go_on(&mut session, &tokens(2, 5));
    saved.note();
    let (saved, taken) = store.save(&session);
    assert_eq!(taken, [16, 14], "the rows that were noted are not these");
    assert_fresh(store.restore(&session, saved.blocks(), false, &MODEL), KvDType::F16);
}

#[test]
fn restored_pieces_count_as_saved() {
    let mut store = Store::default();
    let session = session_of(&MODEL, KvDType::F16, &tokens(1, 140));
    let (saved, _) = store.save(&session);
    for map in [false, true] {
        let mut restored = store.restore(&session, saved.blocks(), map, &MODEL);
        assert!(store.save(&restored).1.is_empty(), "mapped: {map}");
        assert_eq!(restored.at_rest().unwrap().blocks().next().unwrap().known_hash(), Some(saved.blocks()[0][0].hash));
        go_on(&mut restored, &tokens(2, 3));
        assert_eq!(store.save_and_note(&restored), [3]);
        restored.truncate(70).unwrap();
        go_on(&mut restored, &tokens(3, 1));
        assert_eq!(store.save(&restored).1, [7], "of a block that was mapped: {map}");
    }
    store.0.remove(&saved.blocks()[1][0].hash).unwrap();
    assert_eq!(store.save(&session).1, [64, 16, 16, 16, 16, 12], "nothing was noted; what differs from what is saved is cut");
}

#[test]
fn an_altered_block_is_not_saved_as_if_it_were_good() {
    let mut store = Store::default();
    let session = session_of(&MODEL, KvDType::F16, &tokens(1, 64));
    let hash = store.save(&session).0.blocks()[0][0].hash;
    let mut bytes = store.0.remove(&hash).unwrap();
    bytes[77] ^= 1;
    let altered = restore(&MODEL, &session, 64, vec![RestoredBlock::Mapped { view: mapped(&bytes), hash }], &[]).unwrap();
    let saved = altered.save_kv::<Error>(|_| false, |_| unreachable!("it is checked first"));
    assert!(matches!(saved, Err(Error::AlteredKv)));
}

#[test]
fn a_graphics_processor_saves_and_restores_pieces() {
    let gpu = models::open_gpu(models::SMOLLM2, Arithmetic::Exact);
    let mut store = Store::default();
    let mut session = session_of(&gpu, KvDType::F32, &tokens(1, 70));
    assert_eq!(store.save_and_note(&session), [64, 6]);
    session.truncate(66).unwrap();
    go_on(&mut session, &tokens(2, 3));
    let (saved, taken) = store.save(&session);
    assert_eq!(taken, [5]);
    let expected = next_logits(session.fork());
    for map in [false, true] {
        let mut restored = store.restore(&session, saved.blocks(), map, &gpu);
        assert!(next_logits(restored.fork()) == expected);
        go_on(&mut restored, &tokens(3, 2));
        assert_eq!(store.save(&restored).1, [2], "mapped blocks that were copied to the pool are saved: {map}");
    }
}

type Spoil = fn(&mut Vec<RestoredBlock>);

fn pieces(blocks: &mut [RestoredBlock], block: usize) -> &mut Vec<RestoredPiece> {
    match &mut blocks[block] {
        RestoredBlock::Pieces(pieces) => pieces,
        _ => unreachable!("all are in pieces"),
    }
}

fn resized(piece: &mut RestoredPiece, by: isize) {
    let mut bytes = piece.view.bytes().to_vec();
    bytes.resize(bytes.len().strict_add_signed(by), 0);
    *piece = RestoredPiece { view: mapped(&bytes), tokens: piece.tokens, hash: *blake3::hash(&bytes).as_bytes() };
}

#[test]
fn bad_pieces_are_refused() {
    let mut store = Store::default();
    let mut session = session_of(&MODEL, KvDType::F16, &tokens(1, 20));
    store.save_and_note(&session);
    go_on(&mut session, &tokens(2, 80));
    let (saved, _) = store.save(&session);
    let blocks = || saved.blocks().iter().map(|pieces| store.block(pieces, false)).collect::<Vec<_>>();
    assert_eq!(saved.blocks().iter().map(Vec::len).collect::<Vec<_>>(), [5, 3]);
    assert_fresh(restore(&MODEL, &session, 100, blocks(), &[]).unwrap(), KvDType::F16);
    let inconsistent: [(&str, Spoil); 14] = [
        ("a block is missing", |b| drop(b.pop())),
        ("a block too many", |b| b.push(b[1].clone())),
        ("a full block lacks rows", |b| drop(pieces(b, 0).pop())),
        ("the last block lacks rows", |b| drop(pieces(b, 1).pop())),
        ("the last block has too many rows", |b| b[1] = b[0].clone()),
        ("a full block has too few rows", |b| b[0] = b[1].clone()),
        ("no pieces", |b| pieces(b, 1).clear()),
        ("a piece of no tokens", |b| pieces(b, 1)[0].tokens = 0),
        ("a piece of 65 tokens", |b| pieces(b, 0)[0].tokens = 65),
        ("a piece of all tokens there are", |b| pieces(b, 0).iter_mut().for_each(|p| p.tokens = usize::MAX / 4)),
        ("a view that is too long", |b| resized(&mut pieces(b, 1)[0], 1)),
        ("a view that is too short", |b| resized(&mut pieces(b, 1)[0], -1)),
        ("tokens that are not the view's", |b| (pieces(b, 1)[0].tokens, pieces(b, 1)[2].tokens) = (4, 16)),
        ("many pieces", |b| {
            let piece = pieces(b, 1)[0].clone();
            pieces(b, 1).resize(10_000, piece);
        }),
    ];
    for (what, spoil) in inconsistent {
        let mut spoiled = blocks();
        spoil(&mut spoiled);
        let result = restore(&MODEL, &session, 100, spoiled, &[]);
        assert!(matches!(result, Err(Error::InconsistentKv)), "{what}");
    }
    let altered: [(&str, Spoil); 2] = [
        ("another hash", |b| pieces(b, 1)[2].hash[0] ^= 1),
        ("another byte", |b| {
            let piece = &mut pieces(b, 0)[4];
            let mut bytes = piece.view.bytes().to_vec();
            bytes[500] ^= 1;
            piece.view = mapped(&bytes);
        }),
    ];
    for (what, spoil) in altered {
        let mut spoiled = blocks();
        spoil(&mut spoiled);
        assert!(matches!(restore(&MODEL, &session, 100, spoiled, &[]), Err(Error::AlteredKv)), "{what}");
    }
    for (what, evaluated, tail_bytes) in [("a tail, too", 100, 36 * session.kv_layout().token_bytes()), ("more than tokens", 101, 0)] {
        let result = restore(&MODEL, &session, evaluated, blocks(), &vec![0; tail_bytes]);
        assert!(matches!(result, Err(Error::InconsistentKv)), "{what}");
    }
}

/// What a session can live through.
#[derive(Clone, Debug)]
enum Event {
    GoOn(usize),
    Reread,
    Fork,
    Switch(usize),
    Truncate(usize),
    Save { note: bool, map: bool },
    Forget(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1usize..12).prop_map(Event::GoOn),
        1 => (12usize..80).prop_map(Event::GoOn),
        1 => Just(Event::Reread),
        2 => Just(Event::Fork),
        2 => (0usize..4).prop_map(Event::Switch),
        3 => (0usize..24).prop_map(Event::Truncate),
        1 => (0usize..150).prop_map(Event::Truncate),
        5 => (prop::bool::weighted(0.8), any::<bool>()).prop_map(|(note, map)| Event::Save { note, map }),
        1 => (0usize..1000).prop_map(Event::Forget),
    ];
    prop::collection::vec(event, 20..60)
}

/// A session, and what the next save of it may cost.
#[derive(Debug)]
struct Line {
    session: Session,
    /// Rows that may have to be saved.
    rows: usize,
    /// How many pieces each block was noted in.
    noted: Vec<usize>,
}

impl Line {
    fn fork(&self) -> Line {
        Line { session: self.session.fork(), rows: self.rows, noted: self.noted.clone() }
    }

    fn go_on(&mut self, new: &[u32]) {
        go_on(&mut self.session, new);
        self.rows += new.len();
    }

    /// Evaluates the last token again.
    fn reread(&mut self) {
        let model = self.session.model().clone();
        let mut logits = vec![0.0; model.config().vocabulary];
        let evaluated = self.session.evaluated();
        Batch::new(&model).step(&mut [Work::new(&mut self.session, Logits::Last(&mut logits))]).unwrap();
        self.rows += 1 + (evaluated - 1) % 64;
    }

    fn truncate(&mut self, by: usize) {
        let len = self.session.tokens().len().saturating_sub(by);
        self.session.truncate(len).unwrap();
        self.rows += len % 64;
    }

    /// Whether a block was saved in pieces, so that it may be saved once more as one.
    fn may_be_compacted(&self, block: usize) -> bool {
        self.noted.get(block).is_some_and(|pieces| *pieces > 1)
    }

    /// Takes note of what somebody noted.
    fn see(&mut self, noted: &[usize]) {
        self.noted.resize(self.noted.len().max(noted.len()), 0);
        self.noted.iter_mut().zip(noted).for_each(|(mine, new)| *mine = (*mine).max(*new));
    }
}

/// Saves a line, restores it, and compares what both say next.
fn save(store: &mut Store, lines: &mut [Line], current: usize, note: bool, map: bool) {
    let line = &lines[current];
    let (saved, taken) = store.save(&line.session);
    let noted: Vec<usize> = saved.blocks().iter().map(Vec::len).collect();
    let compacted = (0..noted.len()).filter(|block| noted[*block] == 1 && line.may_be_compacted(*block)).count();
    let (cost, allowed) = (taken.iter().sum::<usize>(), line.rows + 64 * compacted);
    assert!(cost <= allowed, "{cost} rows were saved, {allowed} may be");
    let restored = store.restore(&line.session, saved.blocks(), map, line.session.model());
    assert!(next_logits(restored) == next_logits(line.session.fork()), "what was saved is not what there is");
    if note {
        saved.note();
        lines.iter_mut().for_each(|line| line.see(&noted));
        (lines[current].rows, lines[current].noted) = (0, noted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, failure_persistence: None, rng_seed: RngSeed::Fixed(21), ..ProptestConfig::default() })]

    #[test]
    fn any_life_is_saved_once_and_well(events in events(), which in 0..MODELS.len()) {
        let mut store = Store::default();
        let session = Session::open(&MODELS[which], options(KvDType::F16)).unwrap();
        let (mut lines, mut current) = (vec![Line { session, rows: 0, noted: Vec::new() }], 0);
        for (at, event) in events.into_iter().enumerate() {
            let count = lines.len();
            let line = &mut lines[current];
            match event {
                Event::GoOn(n) => line.go_on(&tokens(at, n.min(line.session.room() - 1))),
                Event::Reread if line.session.evaluated() > 0 => line.reread(),
                Event::Fork => {
                    let fork = line.fork();
                    lines.insert(current + 1, fork);
                    lines.truncate(4);
                }
                Event::Switch(to) => current = to % count,
                Event::Truncate(by) => line.truncate(by),
                Event::Save { note, map } => save(&mut store, &mut lines, current, note, map),
                Event::Forget(which) if !store.0.is_empty() => {
                    let mut hashes: Vec<[u8; 32]> = store.0.keys().copied().collect();
                    hashes.sort_unstable();
                    let bytes = store.0.remove(&hashes[which % hashes.len()]).unwrap();
                    let rows = bytes.len() / lines[0].session.kv_layout().token_bytes();
                    lines.iter_mut().for_each(|line| line.rows += rows);
                }
                _ => {}
            }
        }
        for line in lines {
            let (saved, _) = store.save(&line.session);
            assert_fresh(store.restore(&line.session, saved.blocks(), true, &MODELS[which]), KvDType::F16);
        }
    }
}
