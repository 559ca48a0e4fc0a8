//! Which modules are refused, and what is said about it.

mod common;

use common::{bare_host, guest, reply, spawn, tight};
use driftwood_actor::{Error, Limits, admit};
use std::time::Duration;

#[test]
fn bad_modules_are_refused_by_name() {
    let cases = [
        ("externref_global", "global 0 cannot be kept: it refers to something of the host"),
        ("foreign_import", "only functions of `driftwood` can be imported"),
        ("funcref_global", "it is a mutable reference"),
        ("handle_is_memory", "export `handle`: an actor exports a function () -> i32 under this name"),
        ("handle_wrong_type", "export `handle`: an actor exports a function () -> i32 under this name"),
        ("huge_table", "its tables cannot be kept: one has more than 1,048,576 elements"),
        ("import_global", "a global cannot be imported"),
        ("import_memory", "a memory cannot be imported; the actor defines its own"),
        ("import_table", "a table cannot be imported"),
        ("import_wrong_type", "its type should be"),
        ("memory64", "its memory cannot be kept: it has 64-bit addresses"),
        ("memory_not_exported", "export `memory`: an actor exports its linear memory under this name"),
        ("no_abi", "export `driftwood_abi`"),
        ("no_handle", "export `handle`"),
        ("no_memory", "export `memory`"),
        ("passive_data", "passive data segment"),
        ("shared_memory", "its memory cannot be kept: it is shared between threads"),
        ("table_copy", "uses `table.copy`"),
        ("table_fill", "uses `table.fill`"),
        ("table_grow", "uses `table.grow`"),
        ("table_init", "uses `table.init`|passive element segment"),
        ("table_set", "uses `table.set`"),
        ("two_memories", "its memory cannot be kept: there are several"),
        ("unknown_import", "contract version 1 has no such function"),
    ];
    for (name, expected) in cases {
        let refusal = admit(&guest(name)).expect_err(name).to_string();
        assert!(expected.split('|').any(|e| refusal.contains(e)), "{name}: {refusal}");
        assert_eq!(spawn(&mut bare_host(), "a", guest(name), tight(), &[]).unwrap_err().kind(), "refused", "{name}");
    }
}

#[test]
fn bytes_that_are_no_module_are_refused() {
    let good = guest("counter");
    for bad in [&b""[..], b"\0asm", b"\0asm\x0d\0\x01\0", &good[..good.len() - 1], b"(module)"] {
        assert!(matches!(spawn(&mut bare_host(), "a", bad.into(), tight(), &[]), Err(Error::Refused(_))), "{bad:?}");
    }
    let mut long = good.to_vec();
    long.resize((16 << 20) + 1, 0);
    assert!(admit(&long).unwrap_err().to_string().contains("at most 16777216"));
}

#[test]
fn a_birth_that_fails_says_why() {
    let quick = || Limits { wall: Duration::from_millis(300), fuel: u64::MAX / 2, ..tight() };
    let cases: [(&str, Limits, &str); 7] = [
        ("abi_traps", tight(), "trap"),
        ("start_traps", tight(), "trap"),
        ("abi_loops", tight(), "limit_fuel"),
        ("start_loops", tight(), "limit_fuel"),
        ("start_loops", quick(), "limit_wall"),
        ("wrong_abi", tight(), "contract_version"),
        ("huge_memory", tight(), "limit_memory"),
    ];
    for (name, limits, kind) in cases {
        let mut host = bare_host();
        let error = spawn(&mut host, "a", guest(name), limits, &[]).expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert_eq!(host.names().count(), 0, "{name}: no actor is left");
    }
}

#[test]
fn host_calls_from_a_start_section_are_refused_and_harmless() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("start_calls_host"), tight(), &[]).unwrap();
    assert_eq!(reply(&mut host, "a", "x"), "ok");
    assert!(host.info("a").unwrap().sessions.is_empty());
}

#[test]
fn names_of_actors_are_checked() {
    let mut host = bare_host();
    for bad in ["", "../x", "A", "a b"] {
        assert!(matches!(spawn(&mut host, bad, guest("counter"), tight(), &[]), Err(Error::BadName { .. })), "{bad}");
    }
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    assert!(matches!(spawn(&mut host, "a", guest("counter"), tight(), &[]), Err(Error::NameTaken { .. })));
    assert!(matches!(host.fork("a", "a"), Err(Error::NameTaken { .. })));
    assert!(matches!(host.fork("b", "c"), Err(Error::NoSuchActor { .. })));
    host.remove("a").unwrap();
    assert!(matches!(common::send(&mut host, "a", "x"), Err(Error::NoSuchActor { .. })));
}
