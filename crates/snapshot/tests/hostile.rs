//! Bad files: cut short, altered, foreign, from the future, and made with malice. Each gets the error that says so.

mod common;

use common::replay::{BEGINNING, seal};
use common::{Actor, split};
use driftwood_snapshot::*;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn open_and_verify(path: &Path) -> Result<(), Error> {
    Snapshot::open(path)?.verify_all(1)
}

#[test]
fn every_prefix_is_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let bytes = file.metadata().unwrap().len();
    let lengths = (0..bytes).rev().filter(|len| *len < 400 || len % 4096 < 2 || len % 61 == 0);
    for len in [bytes - 1].into_iter().chain(lengths) {
        file.set_len(len).unwrap();
        for result in [open_and_verify(&path), inspect(&path).map(drop)] {
            assert!(matches!(result, Err(Error::Truncated { found_bytes, .. }) if found_bytes == len), "{len}: {result:?}");
        }
    }
}

#[test]
fn every_altered_byte_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    let json_bytes = bytes.iter().skip(8).position(|&b| b == b' ').unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    // All that has meaning, and a dense sample of the rest.
    for at in (0..bytes.len()).filter(|at| at % 11 == 0 || *at < json_bytes + 600) {
        let masks: &[u8] = if at < json_bytes + 8 { &[1, 4, 32, 128, 255] } else { &[1 << (at % 8)] };
        for mask in masks {
            file.write_all_at(&[bytes[at] ^ mask], at as u64).unwrap();
            assert!(open_and_verify(&path).is_err(), "byte {at} with mask {mask}");
        }
        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
    }
    open_and_verify(&path).unwrap();
    file.write_all_at(&[0], bytes.len() as u64).unwrap();
    assert!(matches!(open_and_verify(&path), Err(Error::Altered { .. })), "a byte too many");
}

#[test]
fn altered_data_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let offset = |name: &str| {
        let (header, _) = split(&std::fs::read(&path).unwrap());
        let header_bytes = inspect(&path).unwrap().header_bytes;
        header_bytes + header[name]["data_offsets"][0].as_u64().unwrap()
    };
    let padding = inspect(&path).unwrap().tensors.into_iter().find(|t| t.name.starts_with("padding.")).unwrap().name;
    for (at, expected) in [
        (offset("kv.0.blocks") + 16_384, "block 1 of kv pool 0"),
        (offset("session.1.tail"), "tensor session.1.tail"),
        (offset("guest.module"), "tensor guest.module"),
        (offset(&padding), "padding"),
        (4000, "the header"),
    ] {
        let bytes = std::fs::read(&path).unwrap();
        let mut altered = bytes.clone();
        altered[at as usize] ^= 2;
        std::fs::write(&path, altered).unwrap();
        let error = open_and_verify(&path).unwrap_err();
        assert!(matches!(&error, Error::Altered { what } if what == expected), "{error}");
        std::fs::write(&path, bytes).unwrap();
    }
    let snapshot = Snapshot::open(&path).unwrap();
    (1..4).for_each(|threads| snapshot.verify_blocks(0, 1..3, threads).unwrap());
}

#[test]
fn other_files_are_not_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other");
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![100_000], &[1; 100_000]).unwrap();
    let foreign = safetensors::serialize([("weight", view)], None).unwrap();
    let text = "Once upon a time there was a piece of wood. ".repeat(50).into_bytes();
    for (bytes, expected) in [(foreign, "another program"), (text, "no safetensors file"), (vec![0; 100_000], "no safetensors file")] {
        std::fs::write(&path, bytes).unwrap();
        for result in [open_and_verify(&path), inspect(&path).map(drop)] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::NotASnapshot { why } if why.contains(expected)), "{error}");
        }
    }
}

#[test]
fn later_formats_are_named_before_anything_else_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()[8..4000]).replace(r#"format":"1""#, r#"format":"27""#);
    std::fs::write(&path, [&[255; 8], text.as_bytes()].concat()).unwrap();
    let error = Snapshot::open(&path).unwrap_err();
    assert!(matches!(error, Error::FutureVersion { found: 27, supported: 2 }), "{error}");
    assert!(error.to_string().contains("update driftwood"));
    for version in ["0", "01", "", "99999999999"] {
        let text = text.replace(r#"format":"27""#, &format!(r#"format":"{version}""#));
        std::fs::write(&path, [&[255; 8], text.as_bytes()].concat()).unwrap();
        assert!(matches!(Snapshot::open(&path), Err(Error::Malformed { .. })), "{version:?}");
    }
}

/// Changes the header and the manifest of a good file, and seals it again: no hash gives it away.
type Edit = fn(&mut Value, &mut Value);

fn resealed(good: &[u8], edit: Edit) -> Vec<u8> {
    let (mut header, data) = split(good);
    let mut manifest: Value = serde_json::from_str(header["__metadata__"]["driftwood.manifest"].as_str().unwrap()).unwrap();
    edit(&mut header, &mut manifest);
    header["__metadata__"]["driftwood.manifest"] = manifest.to_string().into();
    seal(header.to_string().as_bytes(), &data)
}

#[test]
fn an_honest_change_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let good = std::fs::read(&path).unwrap();
    let bytes = resealed(&good, |header, manifest| {
        header["__metadata__"]["note"] = "hello".into();
        manifest["later"] = json!({"field": 1});
        manifest["guest"]["later"] = json!([1]);
    });
    std::fs::write(&path, bytes).unwrap();
    open_and_verify(&path).unwrap();
}

#[test]
fn malice_gets_the_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let good = std::fs::read(&path).unwrap();
    let table: &[(&str, &str, Edit)] = &[
        ("memory.pages", "hole", |h, _| h["kv.0.blocks"]["data_offsets"] = json!([0, 49152])),
        ("kv.0.blocks", "ends before", |h, _| h["kv.0.blocks"]["data_offsets"] = json!([9, 3])),
        ("kv.0.blocks", "do not make its bytes", |h, _| h["kv.0.blocks"]["shape"] = json!([4, 1, 2, 1, 64, 64])),
        ("kv.0.blocks", "extents", |h, _| h["kv.0.blocks"]["shape"] = json!([1u64 << 63, 1u64 << 63])),
        ("kv.0.blocks", "extents", |h, _| h["kv.0.blocks"]["shape"] = json!([3, 1, 2, 1, 64, 64, 1])),
        ("kv.0.blocks", "manifest says", |h, _| h["kv.0.blocks"]["shape"] = json!([3, 1, 1, 2, 64, 64])),
        ("kv.0.blocks", "manifest says", |h, _| h["kv.0.blocks"]["dtype"] = json!("BF16")),
        ("kv.0.blocks", "its dtype", |h, _| h["kv.0.blocks"]["dtype"] = json!("Q4_K")),
        ("kv.0.blocks", "overflows", |h, _| h["kv.0.blocks"]["data_offsets"] = json!([u64::MAX - 1, u64::MAX])),
        ("header", "", |h, _| h["kv.0.blocks"]["data_offsets"] = json!([-1, 5])),
        ("header", "", |h, _| h["kv.0.blocks"]["extra"] = json!(1)),
        ("padding", "hole", |h, _| drop(h.as_object_mut().unwrap().shift_remove("guest.module"))),
        ("guest.module", "no such tensor", |h, _| rename(h, "guest.module", "guest.modules")),
        ("strange", "exactly one hash", |h, _| rename(h, "padding.4", "strange")),
        ("padding.99", "exactly one hash", |h, m| {
            rename(h, "session.5.tokens", "padding.99");
            rename(&mut m["hashes"], "session.5.tokens", "padding.99");
            m["sessions"][2]["tokens"] = 0.into();
            m["sessions"][2]["evaluated"] = 0.into();
            m["sessions"][2]["blocks"] = json!([]);
        }),
        ("hashes", "no tensor", |_, m| m["hashes"]["ghost"] = json!("0".repeat(64))),
        ("driftwood.manifest", "hex digits", |_, m| m["hashes"]["guest.module"] = json!("zz")),
        ("guest.module_hash", "differs", |_, m| m["guest"]["module_hash"] = json!("0".repeat(64))),
        ("guest.memory", "4096", |_, m| m["guest"]["memory"]["stored_page_bytes"] = 65_536.into()),
        ("guest.memory", "multiple", |_, m| m["guest"]["memory"]["bytes"] = 262_143.into()),
        ("guest.memory.bytes", "limit", |_, m| m["guest"]["memory"]["bytes"] = (1u64 << 40).into()),
        ("guest.memory", "more pages", |_, m| m["guest"]["memory"]["stored_pages"] = 65.into()),
        ("memory.pages", "manifest says", |_, m| m["guest"]["memory"]["stored_pages"] = 2.into()),
        ("memory.index", "outside", |_, m| m["guest"]["memory"]["bytes"] = 65_536.into()),
        ("sessions[0].pool", "9 of 2", |_, m| m["sessions"][0]["pool"] = 9.into()),
        ("sessions[0].blocks", "block 3 of 3", |_, m| m["sessions"][0]["blocks"] = json!([0, 3])),
        ("sessions[0].blocks", "3 where 2", |_, m| m["sessions"][0]["blocks"] = json!([0, 1, 2])),
        ("sessions[0].evaluated", "136 of 135", |_, m| m["sessions"][0]["evaluated"] = 136.into()),
        ("sessions[0].tokens", "at most", |_, m| m["sessions"][0]["context_max"] = 134.into()),
        ("sessions[0].context_max", "limit", |_, m| m["sessions"][0]["context_max"] = u32::MAX.into()),
        ("sessions[0].tail_tokens", "3 where 2", |_, m| m["sessions"][0]["tail_tokens"] = 3.into()),
        ("sessions[0].tail", "does not fit", |_, m| m["sessions"][0]["tail"] = Value::Null),
        ("session.1.tail", "no tail", |_, m| m["sessions"][0]["tail"] = "guest.module".into()),
        ("session.7.tail", "manifest says", |_, m| m["sessions"][0]["tail"] = "session.7.tail".into()),
        ("session.1.tokens", "manifest says", |_, m| m["sessions"][0]["tokens"] = 134.into()),
        ("sessions[1].handle", "two sessions", |_, m| m["sessions"][1]["handle"] = 1.into()),
        ("pools[0].layers", "zero", |_, m| m["pools"][0]["layers"] = 0.into()),
        ("pools[0].layers", "limit", |_, m| m["pools"][0]["layers"] = u32::MAX.into()),
        ("pools[0].block_bytes", "limit", |_, m| m["pools"][0]["block_bytes"] = u64::MAX.into()),
        ("pools[0].block_bytes", "rows make", |_, m| m["pools"][0]["block_bytes"] = 32_768.into()),
        ("pools[0].tensor", "must be", |_, m| m["pools"][0]["tensor"] = "kv.1.blocks".into()),
        ("kv.0.blocks", "manifest says", |_, m| m["pools"][0]["block_hashes"].as_array_mut().unwrap().push(json!("0".repeat(64)))),
        ("pools[1].head_dim", "multiple of 32", |_, m| m["pools"][1]["head_dim"] = 31.into()),
        ("driftwood.manifest", "unknown variant", |_, m| m["pools"][0]["dtype"] = "Q4".into()),
        ("driftwood.manifest", "invalid value", |_, m| m["sessions"][0]["tokens"] = (-1).into()),
        ("driftwood.manifest", "missing field", |_, m| drop(m.as_object_mut().unwrap().shift_remove("identity"))),
        ("identity.name", "control", |_, m| m["identity"]["name"] = "\u{1b}]0;owned\u{7}".into()),
        ("identity.name", "limit", |_, m| m["identity"]["name"] = "n".repeat(300).into()),
        ("driftwood.manifest", "recursion", |_, m| m["notes"]["deep"] = (0..126).fold(Value::Null, |v, _| json!([v]))),
        ("extra", "no tensor", |h, _| h["extra"] = json!({"a": "b"})),
    ];
    let mut surprises = Vec::new();
    for (field, why, edit) in table {
        std::fs::write(&path, resealed(&good, *edit)).unwrap();
        match Snapshot::open(&path) {
            Err(Error::Malformed { field: f, why: w }) if f.contains(field) && w.contains(why) => {}
            other => surprises.push(format!("{field}, {why}: {:?}", other.map(|_| "opens"))),
        }
    }
    assert!(surprises.is_empty(), "{surprises:#?}");
}

fn rename(object: &mut Value, from: &str, to: &str) {
    let object = object.as_object_mut().unwrap();
    let value = object.shift_remove(from).unwrap();
    object.insert(to.to_owned(), value);
}

#[test]
fn malformed_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let (header, data) = split(&std::fs::read(&path).unwrap());
    let text = header.to_string();
    let twice = text.replacen(r#""guest.module":"#, r#""session.1.tokens":"#, 1);
    let tensor_twice = text.replace(r#""guest.module":{"#, r#""memory.index":{"#);
    let no_manifest = text.replacen("driftwood.manifest", "driftwood.manifesto", 1);
    let deep = format!("{BEGINNING}{}\",\"x\":{}", "0".repeat(64), "[".repeat(100_000));
    for (name, text) in
        [("twice", twice), ("tensor twice", tensor_twice), ("no manifest", no_manifest), ("deep", deep), ("cut", text[..900].into())]
    {
        std::fs::write(&path, seal(text.as_bytes(), &data)).unwrap();
        assert!(matches!(Snapshot::open(&path), Err(Error::Malformed { .. })), "{name}");
    }
    let mut huge = seal(text.as_bytes(), &data);
    huge[..8].copy_from_slice(&(u64::MAX - 7).to_le_bytes());
    std::fs::write(&path, huge).unwrap();
    assert!(matches!(Snapshot::open(&path), Err(Error::Malformed { field, .. }) if field == "header length"));
}

#[test]
fn page_index_must_rise() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let inspection = inspect(&path).unwrap();
    let before = inspection.tensors.iter().take_while(|t| t.name != "memory.index").map(|t| t.bytes).sum::<u64>();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&1u32.to_le_bytes(), inspection.header_bytes + before).unwrap();
    assert!(matches!(Snapshot::open(&path), Err(Error::Malformed { why, .. }) if why.contains("strictly increasing")));
}
