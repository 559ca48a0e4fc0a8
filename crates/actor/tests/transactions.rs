//! A message is a transaction: whatever goes wrong, the actor is as it was, and others do not notice.

mod common;

use common::{bare_host, guest, reply, send, settings, spawn, tight};
use driftwood_actor::{Error, Event, Limits, Message};
use std::time::{Duration, Instant};

#[test]
fn every_failure_rolls_back() {
    let wall = Limits { wall: Duration::from_millis(200), fuel: u64::MAX / 2, ..tight() };
    let cases = [
        ("t", tight(), "trap"),
        ("d", tight(), "trap"),
        ("r", tight(), "trap"),
        ("u", tight(), "trap"),
        ("s", tight(), "trap"),
        ("e", tight(), "guest_failed"),
        ("l", tight(), "limit_fuel"),
        ("l", wall.clone(), "limit_wall"),
        ("g", wall, "limit_wall"),
        ("xx", Limits { message_bytes: 1, ..tight() }, "limit_message"),
        ("x", Limits { reply_bytes: 3, ..tight() }, "ok"),
    ];
    // An actor that never ran, and one that did.
    for handled in [0, 1] {
        let mut host = bare_host();
        spawn(&mut host, "a", guest("misbehave"), tight(), &[]).unwrap();
        for n in 1..=handled {
            assert_eq!(reply(&mut host, "a", "x"), format!("{n} {n} 1 "));
        }
        for (text, limits, kind) in &cases {
            let before = host.state_hash("a").unwrap();
            let message = Message { limits: Some(limits.clone()), ..Message::new("a", *text) };
            match host.send(message, &mut |_| {}) {
                Err(e) => assert_eq!(e.kind(), *kind, "{text}: {e}"),
                Ok(_) => {
                    assert_eq!(*kind, "ok", "{text}");
                    continue;
                }
            }
            assert_eq!(host.state_hash("a").unwrap(), before, "{text} after {handled}");
            assert_eq!(host.info("a").unwrap().messages_handled, handled);
            let mut probe = bare_probe(&mut host);
            assert_eq!(probe("x"), format!("{0} {0} 1 ", handled + 1), "{text}");
        }
    }
}

/// Talks to a fork, so that the actor itself stays where it is.
fn bare_probe(host: &mut driftwood_actor::Host) -> impl FnMut(&str) -> String {
    host.fork("a", "probe").unwrap();
    |text| {
        let answer = reply(host, "probe", text);
        host.remove("probe").unwrap();
        answer
    }
}

#[test]
fn growth_ends_at_the_limit_and_names_it() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("grow_without_end"), tight(), &[]).unwrap();
    let before = host.state_hash("a").unwrap();
    let error = send(&mut host, "a", "x").unwrap_err();
    assert!(matches!(error, Error::LimitMemory { limit_bytes: 4_194_304, .. }), "{error}");
    assert_eq!(host.state_hash("a").unwrap(), before);
    assert_eq!(host.info("a").unwrap().memory_bytes, 1 << 16);
}

#[test]
fn floods_are_bounded() {
    let mut host = bare_host();
    let limits = Limits { log_lines: 5, reply_bytes: 1000, ..tight() };
    for name in ["log_flood", "reply_flood"] {
        spawn(&mut host, name, guest(name), limits.clone(), &[]).unwrap();
        let (mut lines, mut bytes) = (0, 0);
        let _ = host.send(Message::new(name, "x"), &mut |event| match event {
            Event::Log { .. } => lines += 1,
            Event::Reply(part) => bytes += part.len(),
        });
        assert!(lines <= 5 && bytes <= 1000, "{name}: {lines} {bytes}");
    }
}

#[test]
fn deep_recursion_traps() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("deep_recursion"), tight(), &[]).unwrap();
    let error = send(&mut host, "a", "x").unwrap_err();
    assert!(matches!(&error, Error::Trap { why } if why.contains("stack")), "{error}");
}

#[test]
fn a_looping_guest_holds_up_nobody() {
    let mut host = bare_host();
    let limits = Limits { wall: Duration::from_millis(500), fuel: u64::MAX / 2, ..tight() };
    spawn(&mut host, "loop", guest("loop_forever"), limits, &[]).unwrap();
    spawn(&mut host, "good", guest("counter"), tight(), &[]).unwrap();
    let started = Instant::now();
    let mut good_at = None;
    let messages = vec![Message::new("loop", "x"), Message::new("good", "hello"), Message::new("good", "again"), Message::new("none", "")];
    let results = host.deliver(messages, &mut |name, _| {
        assert_eq!(name, "good");
        good_at.get_or_insert(started.elapsed());
    });
    let kinds: Vec<_> =
        results.iter().map(|r| r.as_ref().map(|o| String::from_utf8_lossy(&o.reply).into_owned()).map_err(Error::kind)).collect();
    assert_eq!(kinds, [Err("limit_wall"), Ok("1 1 hello".into()), Ok("2 2 again".into()), Err("no_such_actor")]);
    assert!(good_at.unwrap() < Duration::from_millis(400), "{good_at:?}");
}

#[test]
fn settings_are_the_messages_then_the_actors_and_bounded() {
    let mut host = bare_host();
    let big = "x".repeat(100);
    let limits = Limits { settings_bytes: 64, ..tight() };
    assert!(matches!(spawn(&mut host, "a", guest("counter"), limits.clone(), &[("k", &big)]), Err(Error::LimitSettings { .. })));
    spawn(&mut host, "a", guest("counter"), limits, &[]).unwrap();
    let message = Message { settings: settings(&[("k", &big)]), ..Message::new("a", "x") };
    assert!(matches!(host.send(message, &mut |_| {}), Err(Error::LimitSettings { .. })));
    assert!(matches!(host.set_setting("a", "k", &big), Err(Error::LimitSettings { .. })));
    host.set_setting("a", "k", "v").unwrap();
    assert_eq!(host.info("a").unwrap().settings["k"], "v");
}

#[test]
fn wild_pointers_are_refused_without_a_model_too() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("wild_pointers"), tight(), &[("model", "none")]).unwrap();
    let outcome = send(&mut host, "a", "x");
    assert!(outcome.is_ok(), "{:?}", outcome.err().map(|e| e.to_string()));
}
