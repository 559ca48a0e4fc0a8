//! Actors that change their model, on tiny models: what the shelf keeps, what comes back, what is refused and leaves the actor as it was.

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use common::settings;
use driftwood_actor::{
    Error, Event, Existing, Host, HostOptions, Limits, Message, Refusal, SpawnSpec, StateFolder, SwapReport, ThawOptions,
};
use driftwood_compute::{Arithmetic, Cpu, Simd};
use driftwood_store::Head;
use std::sync::Arc;
use tiny::{Script, VOCABULARY};

const TOKENS_AT: u32 = 131_072;
const LOGITS_AT: u32 = TOKENS_AT + 8192;
/// Tokens of the earlier context: a full block and a part of one.
const EARLIER: u32 = 100;
const SHELF: u32 = 1 << 31;

/// A host with tiny models of these names, each with weights of its own.
fn host(names: &[&'static str]) -> Host {
    const ALL: [&str; 10] = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9"];
    let seed = |name: &str| ALL.iter().position(|n| *n == name).expect("a tiny model") as u32 + 1;
    let files: Vec<_> = names.iter().map(|name| (*name, tiny::model_file(seed(name)))).collect();
    let models = move |name: &str| {
        let found = files.iter().find(|(n, _)| *n == name).map(|(_, file)| file.path().to_owned());
        found.ok_or_else(|| "it is not here".to_owned())
    };
    let device = Arc::new(Cpu::new(1, Simd::Portable, Arithmetic::Fast)).into();
    Host::new(HostOptions { device, models: Box::new(models) }).unwrap()
}

fn spawn(host: &mut Host, module: &str, models: &[&str], limits: Limits) {
    let module = wat::parse_str(module).unwrap().into();
    let models = models.iter().map(|m| m.to_string()).collect();
    host.spawn(SpawnSpec { name: "a".into(), module, settings: settings(&[("model", "m0")]), limits, models }).unwrap();
}

/// `call_any`, which has no export for changed models.
fn spawn_caller(host: &mut Host, models: &[&str]) {
    spawn(host, include_str!("guests/call_any.wat"), models, tiny::limits());
}

fn swap(host: &mut Host, model: &str) -> Result<SwapReport, Error> {
    host.swap_model("a", model, false, &mut |_| {})
}

/// Closes the first session, opens another on the model of now and prefills `count` tokens; its logits. Also answers tokens restored and
/// prefilled, without those that were in the closed session.
fn read_anew(host: &mut Host, count: u32) -> (Vec<u8>, usize, usize) {
    let mut script = Script::default();
    let tokens: Vec<u8> = (0..count).flat_map(|i| (i * 7 % VOCABULARY).to_le_bytes()).collect();
    script.call("session_close", &[1]);
    script.call("session_open", &[0, 0, 0, 0]);
    for (at, part) in (0u32..).zip(tokens.chunks(36)) {
        let data = script.data(part);
        script.call("append", &[1, data, part.len() as u32 / 4]);
        assert!(at < 100);
    }
    script.call("decode", &[1, LOGITS_AT, VOCABULARY]);
    script.call("reply", &[LOGITS_AT, 4 * VOCABULARY]);
    let evaluated: usize = host.info("a").unwrap().sessions.iter().map(|s| s.evaluated).sum();
    let outcome = host.send(Message::new("a", script.bytes()), &mut |_| {}).unwrap();
    assert_eq!(outcome.reply.len(), 4 * VOCABULARY as usize);
    (outcome.reply, outcome.restored_tokens - evaluated, outcome.prefilled_tokens)
}

fn bytes_of_kv(host: &mut Host) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    host.freeze("a", &file, Existing::Refuse).unwrap();
    let snapshot = driftwood_snapshot::Snapshot::open(&file).unwrap();
    let session = snapshot.manifest().sessions.iter().position(|s| s.state.handle == 1).unwrap();
    let pool = snapshot.manifest().sessions[session].state.pool as usize;
    let block_bytes = snapshot.manifest().pools[pool].info.block_bytes as usize;
    let full = snapshot.manifest().sessions[session].blocks.iter().map(|b| *b as usize);
    full.flat_map(|b| snapshot.blocks(pool).unwrap().bytes()[b * block_bytes..][..block_bytes].to_vec()).collect()
}

#[test]
fn on_the_way_back_only_what_is_new_is_prefilled_and_the_bits_are_the_same() {
    let names = ["m0", "m1"];
    let (mut stayed, mut swapped) = (host(&names), host(&names));
    for host in [&mut stayed, &mut swapped] {
        spawn_caller(host, &names);
        read_anew(host, EARLIER);
    }
    let report = swap(&mut swapped, "m1").unwrap();
    assert_eq!((report.from.as_str(), report.to.as_str(), report.told), ("m0", "m1", false));
    let (elsewhere, restored, prefilled) = read_anew(&mut swapped, EARLIER + 10);
    assert_eq!((restored, prefilled), (0, 110), "another model's KV is of no use");
    assert_eq!(swapped.info("a").unwrap().kept.len(), 1);
    swap(&mut swapped, "m0").unwrap();
    let (back, restored, prefilled) = read_anew(&mut swapped, EARLIER + 20);
    assert_eq!((restored, prefilled), (100, 20));
    let (never_left, _, prefilled) = read_anew(&mut stayed, EARLIER + 20);
    assert_eq!(prefilled, 120, "a session that is closed on the model of now is not kept");
    assert!(back == never_left && back != elsewhere);
    assert!(stayed.info("a").unwrap().kept.is_empty());
    assert!(bytes_of_kv(&mut swapped) == bytes_of_kv(&mut stayed));
    let kept: Vec<_> = swapped.info("a").unwrap().kept.into_iter().map(|kept| (kept.model, kept.tokens)).collect();
    assert_eq!(kept, [("m1".to_owned(), 110)], "what was taken back left the shelf");
}

#[test]
fn a_swap_that_fails_leaves_the_actor_as_it_was() {
    let mut host = host(&["m0", "m1"]);
    spawn_caller(&mut host, &[]);
    let mut open = Script::default();
    open.call("session_open", &[0, 0, 0, 0]);
    open.run(&mut host, "a").unwrap();
    let before = host.state_hash("a").unwrap();
    let cases = [("m1", "stays_on_model"), ("m9", "no_such_model"), ("", "no_such_model")];
    for (model, kind) in cases {
        let error = swap(&mut host, model).unwrap_err();
        assert_eq!(error.kind(), kind, "{model}: {error}");
        assert_eq!(host.state_hash("a").unwrap(), before, "{model}");
    }
    assert_eq!(host.info("a").unwrap().settings["model"], "m0");
    let same = swap(&mut host, "m0").unwrap();
    assert_eq!((same.restored_tokens, same.recomputed_tokens, same.told), (0, 0, false));
    assert!(matches!(swap(&mut common::bare_host(), "m0"), Err(Error::NoSuchActor { .. })));
}

/// A guest whose `driftwood_model_changed` first writes its memory and then does `what`.
fn told(what: &str) -> String {
    format!(
        r#"(module (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
             (memory (export "memory") 1) (data (i32.const 0) "heard")
             (func (export "driftwood_abi") (result i32) (i32.const 1))
             (func (export "handle") (result i32) (i32.const 0))
             (func (export "driftwood_model_changed") (result i32) (i32.store8 (i32.const 9) (i32.const 1)) {what}))"#
    )
}

#[test]
fn a_guest_is_told_in_a_transaction() {
    let cases = [
        ("(drop (call $reply (i32.const 0) (i32.const 5))) (i32.const 0)", None),
        ("(i32.const 7)", Some("guest_failed")),
        ("unreachable", Some("trap")),
        ("(loop $on (br $on)) (i32.const 0)", Some("limit_fuel")),
    ];
    for (what, failure) in cases {
        let mut host = host(&["m0", "m1"]);
        spawn(&mut host, &told(what), &[], common::tight());
        let before = host.state_hash("a").unwrap();
        let mut heard = Vec::new();
        let swapped = host.swap_model("a", "m1", false, &mut |event| {
            if let Event::Reply(bytes) = event {
                heard.extend_from_slice(bytes);
            }
        });
        let now = (host.state_hash("a").unwrap() == before, host.info("a").unwrap().settings["model"].clone());
        match failure {
            Some(kind) => {
                assert_eq!(swapped.unwrap_err().kind(), kind, "{what}");
                assert_eq!(now, (true, "m0".to_owned()), "{what}");
            }
            None => {
                assert!(swapped.unwrap().told && heard == b"heard");
                assert_eq!(now, (false, "m1".to_owned()));
                assert_eq!(host.info("a").unwrap().messages_handled, 0, "nobody said anything");
            }
        }
    }
    let wrong =
        told("(i32.const 0)").replace("driftwood_model_changed\") (result i32)", "driftwood_model_changed\") (param i32) (result i32)");
    let refused = driftwood_actor::admit(&wat::parse_str(wrong).unwrap()).unwrap_err();
    assert!(matches!(&refused, Refusal::Export { name, .. } if name == "driftwood_model_changed"), "{refused}");
}

#[test]
fn the_shelf_is_bounded_in_number_and_in_bytes() {
    let names = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9"];
    let block_bytes = 16 << 10;
    for (kv_bytes, left) in [(1 << 20, 8), (6 * block_bytes, 2), (2 * block_bytes, 0)] {
        let mut host = host(&names);
        spawn(&mut host, include_str!("guests/call_any.wat"), &names, Limits { kv_bytes, ..tiny::limits() });
        read_anew(&mut host, EARLIER);
        for name in &names[1..] {
            swap(&mut host, name).unwrap();
            read_anew(&mut host, EARLIER);
            let info = host.info("a").unwrap();
            let bytes: usize = info.kept.iter().map(|kept| kept.kv_bytes).sum();
            assert!(bytes + 2 * block_bytes <= kv_bytes, "{info:?}");
        }
        let kept: Vec<_> = host.info("a").unwrap().kept.into_iter().map(|kept| kept.model).collect();
        assert_eq!(kept, names[9 - left..9], "the oldest go first");
    }
}

/// Thaws `a` from a state folder into a host with these models, granted all.
fn wake(state: &StateFolder, models: &[&'static str]) -> Result<Host, Error> {
    let mut host = host(models);
    let options = ThawOptions { models: vec!["m0".into(), "m1".into()], limits: tiny::limits(), ..ThawOptions::default() };
    let report = state.hold("a")?.thaw_into(&mut host, options)?;
    assert_eq!(report.recomputed_tokens, 0);
    Ok(host)
}

/// An actor in a state folder that went from m0, where it read `EARLIER` tokens and is expected back for these logits, to m1.
fn saved(root: &std::path::Path) -> (StateFolder, Vec<u8>) {
    let state = StateFolder::open(root).unwrap();
    let mut host = host(&["m0", "m1"]);
    spawn_caller(&mut host, &["m0", "m1"]);
    let (expected, ..) = read_anew(&mut host, EARLIER + 5);
    read_anew(&mut host, EARLIER);
    swap(&mut host, "m1").unwrap();
    read_anew(&mut host, EARLIER);
    let folder = state.create("a").unwrap();
    folder.save(&mut host).unwrap();
    assert_eq!(wake(&state, &["m0", "m1"]).map_err(|e| e.kind()).err(), Some("held"));
    (state, expected)
}

#[test]
fn the_shelf_is_kept_and_needs_its_model_only_when_it_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let (state, expected) = saved(root.path());
    // Where the former model is not here the actor lives on, and its generation rests through saves.
    for _ in 0..2 {
        let mut without = wake(&state, &["m1"]).unwrap();
        read_anew(&mut without, 30);
        assert!(matches!(swap(&mut without, "m0"), Err(Error::NoSuchModel { .. })));
        assert_eq!(without.info("a").unwrap().kept.len(), 1);
        state.hold("a").unwrap().save(&mut without).unwrap();
    }
    state.sweep().unwrap();
    let mut with = wake(&state, &["m0", "m1"]).unwrap();
    swap(&mut with, "m0").unwrap();
    let (back, restored, prefilled) = read_anew(&mut with, EARLIER + 5);
    assert_eq!((restored, prefilled), (100, 5));
    assert!(back == expected);
}

#[test]
fn a_portable_file_holds_the_shelf() {
    let root = tempfile::tempdir().unwrap();
    let (state, expected) = saved(root.path());
    let (exported, frozen) = (root.path().join("exported"), root.path().join("frozen"));
    state.hold("a").unwrap().export(&exported, Existing::Refuse).unwrap();
    wake(&state, &["m0", "m1"]).unwrap().freeze("a", &frozen, Existing::Refuse).unwrap();
    for file in [&exported, &frozen] {
        let handles: Vec<u32> = driftwood_snapshot::inspect(file).unwrap().manifest.sessions.iter().map(|s| s.state.handle).collect();
        assert_eq!(handles, [1, SHELF]);
        let elsewhere = tempfile::tempdir().unwrap();
        let other = StateFolder::open(elsewhere.path()).unwrap();
        drop(other.import(file, "a").unwrap());
        // Saved as a head before the KV is asked for, and thawed from that.
        let mut host = wake(&other, &["m0", "m1"]).unwrap();
        other.hold("a").unwrap().save(&mut host).unwrap();
        let mut host = wake(&other, &["m0", "m1"]).unwrap();
        swap(&mut host, "m0").unwrap();
        let (back, restored, prefilled) = read_anew(&mut host, EARLIER + 5);
        assert_eq!((restored, prefilled), (100, 5));
        assert!(back == expected);
    }
}

#[test]
fn hostile_shelves_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (state, _) = saved(root.path());
    let path = state.hold("a").unwrap().head();
    let good = Head::read(&path).unwrap();
    let on_shelf = |head: &mut Head, handles: &[u32]| {
        let kept = head.sessions.iter().find(|s| s.state.handle == SHELF).unwrap().clone();
        for handle in handles {
            let mut more = kept.clone();
            more.state.handle = *handle;
            head.sessions.push(more);
        }
    };
    let too_many: Vec<u32> = (1..=8).map(|more| SHELF + more).collect();
    type Change<'a> = Box<dyn Fn(&mut Head) + 'a>;
    let cases: [(&str, &str, Change<'_>); 4] = [
        ("a shelf longer than it may be", "more than 8", Box::new(|head| on_shelf(head, &too_many))),
        ("a handle for nobody", "no place", Box::new(|head| on_shelf(head, &[0]))),
        ("one handle twice", "two sessions", Box::new(|head| on_shelf(head, &[SHELF]))),
        (
            "tokens without KV",
            "tokens without KV",
            Box::new(|head| {
                let kept = head.sessions.last_mut().unwrap();
                (kept.evaluated, kept.blocks) = (0, Vec::new());
            }),
        ),
    ];
    for (case, why, change) in cases {
        let mut bad = good.clone();
        change(&mut bad);
        bad.publish(&path).unwrap();
        let error = wake(&state, &["m0", "m1"]).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(why), "{case}: {error}");
    }
    // One that claims to be of another model than it is does no harm: nobody asks for it, or its layout is not the model's.
    let mut other = good.clone();
    let pool = other.sessions.last().unwrap().state.pool as usize;
    other.pools[pool].fingerprint = driftwood_snapshot::Hash::of(b"another");
    other.publish(&path).unwrap();
    let mut host = wake(&state, &["m0", "m1"]).unwrap();
    swap(&mut host, "m0").unwrap();
    assert_eq!(read_anew(&mut host, EARLIER).1, 0);
}

#[test]
fn kv_is_kept_for_another_quantisation_by_name_only() {
    let root = tempfile::tempdir().unwrap();
    let mut host = host(&["m0", "m1"]);
    spawn_caller(&mut host, &["m0", "m1"]);
    read_anew(&mut host, EARLIER);
    host.swap_model("a", "m1", true, &mut |_| {}).unwrap();
    let (_, restored, prefilled) = read_anew(&mut host, EARLIER);
    assert_eq!((restored, prefilled), (64, 36), "whole blocks are kept");
    let state = StateFolder::open(root.path()).unwrap();
    let folder = state.create("a").unwrap();
    let labels = |host: &mut Host| {
        folder.save(host).unwrap();
        let manifest = state.inspect("a").unwrap().manifest;
        let pool = manifest.sessions.iter().find(|s| s.state.handle == 1).unwrap().state.pool as usize;
        (manifest.notes.get("approximate") == Some(&true.into()), manifest.pools[pool].info.numerics.contains("/of-"))
    };
    assert_eq!(labels(&mut host), (true, true));
    drop(folder);
    let mut host = wake(&state, &["m0", "m1"]).unwrap();
    let folder = state.hold("a").unwrap();
    swap(&mut host, "m0").unwrap();
    read_anew(&mut host, EARLIER);
    folder.save(&mut host).unwrap();
    let notes = state.inspect("a").unwrap().manifest.notes;
    assert_eq!(notes.get("approximate"), Some(&true.into()), "what it said in between stays what it is");
}
