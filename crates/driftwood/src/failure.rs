//! What goes wrong, as the user sees it: one paragraph on stderr, and an exit code.
//!
//! 2 stands for what the user can put right (a bad file, a name that is taken, a flag), 1 for what failed inside or in the system.

use driftwood_compute::gpu::GpuError;
use std::fmt;
use std::io;

/// What every Unix answers for a disk that failed (EIO).
const IO_ERROR: i32 = 5;

/// A mistake that the user can put right; its text says how.
#[derive(Debug)]
pub struct Mistake(String);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

/// A mistake as an error.
pub fn mistake(text: impl Into<String>) -> anyhow::Error {
    Mistake(text.into()).into()
}

/// The exit code for an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(is_users) { 2 } else { 1 }
}

/// The error with all its causes, each said once, and what to do about a disk that refuses.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let refusal = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    refusal.and_then(remedy).map_or(text.clone(), |remedy| format!("{text}; {remedy}"))
}

/// What to do where the system refuses to write. What was kept before is as it was.
fn remedy(refusal: &io::Error) -> Option<&'static str> {
    use io::ErrorKind::*;
    match refusal.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => Some("make room first: what was kept is as it was"),
        PermissionDenied | ReadOnlyFilesystem => Some("make it writable for this user first: what was kept is as it was"),
        _ if refusal.raw_os_error() == Some(IO_ERROR) => Some("check the disk first: what was kept is as it was"),
        _ => None,
    }
}

/// Whether whoever read our output went away: not an error.
pub fn is_closed_output(error: &anyhow::Error) -> bool {
    let closed = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(closed))
}

fn is_users(cause: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(e) = cause.downcast_ref::<driftwood_snapshot::Error>() {
        return is_users_file(e);
    }
    if let Some(e) = cause.downcast_ref::<driftwood_store::Error>() {
        return is_users_store(e);
    }
    if let Some(e) = cause.downcast_ref::<driftwood_actor::Error>() {
        return match e {
            driftwood_actor::Error::Snapshot(e) => is_users_file(e),
            driftwood_actor::Error::Store(e) => is_users_store(e),
            e => users_kind(e.kind()),
        };
    }
    if let Some(e) = cause.downcast_ref::<GpuError>() {
        return matches!(e, GpuError::NoDevice { .. });
    }
    cause.is::<Mistake>() || cause.is::<driftwood_engine::Error>() || cause.is::<driftwood_engine::SampleError>()
}

/// A damaged or foreign file is the user's to replace; a disk that refuses is not.
fn is_users_file(error: &driftwood_snapshot::Error) -> bool {
    match error {
        driftwood_snapshot::Error::System { source, .. } => source.kind() == io::ErrorKind::NotFound,
        driftwood_snapshot::Error::Contents { .. } => false,
        _ => true,
    }
}

fn is_users_store(error: &driftwood_store::Error) -> bool {
    match error {
        driftwood_store::Error::Publish(e) => is_users_file(e),
        driftwood_store::Error::System { .. } | driftwood_store::Error::JournalFull { .. } => false,
        _ => true,
    }
}

/// Kinds of the actor crate's errors that are mistakes: not what failed in the system or in us, and not a guest that traps, brings a
/// bad kernel or outruns its limits in the middle of its work.
fn users_kind(kind: &str) -> bool {
    let ran_away = matches!(
        kind,
        "trap" | "kernel" | "limit_fuel" | "limit_memory" | "limit_wall" | "limit_tokens" | "limit_sessions" | "limit_kv" | "limit_reply"
    );
    !ran_away && !matches!(kind, "system" | "host" | "bug" | "compute")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes_tell_whose_fault_it_is() {
        assert_eq!(exit_code(&mistake("no such model")), 2);
        assert_eq!(exit_code(&Err::<(), _>(mistake("inner")).context("outer").unwrap_err()), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("bug")), 1);
        assert_eq!(exit_code(&io::Error::other("disk").into()), 1);
    }

    #[test]
    fn a_disk_that_refuses_is_not_the_users_and_a_damaged_file_is() {
        let refused = |kind: io::ErrorKind| driftwood_store::Error::System { operation: "write", path: "a".into(), source: kind.into() };
        for (kind, advice) in [
            (io::ErrorKind::StorageFull, "make room"),
            (io::ErrorKind::PermissionDenied, "make it writable"),
            (io::ErrorKind::ReadOnlyFilesystem, "make it writable"),
        ] {
            let error = anyhow::Error::from(driftwood_actor::Error::Store(refused(kind)));
            assert!(exit_code(&error) == 1 && message(&error).contains(advice), "{}", message(&error));
        }
        let damaged = driftwood_store::Error::BadHead { path: "a".into(), why: "it is no text".into() };
        assert_eq!(exit_code(&driftwood_actor::Error::Store(damaged).into()), 2);
    }

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("c").context("b: c").context("a");
        assert_eq!(message(&error), "a: b: c");
    }
}
