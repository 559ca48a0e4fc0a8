//! Ctrl-C: while a reply runs it ends the reply, otherwise (and the second time) the program.

use anyhow::{Context, Result};
use driftwood_actor::Interrupt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of programs that Ctrl-C ends.
const EXIT_CODE: i32 = 130;

/// Whether a reply is running, known to the handler of Ctrl-C.
#[derive(Clone, Debug)]
pub struct Replying(Arc<AtomicBool>);

impl Replying {
    /// Takes Ctrl-C over for the rest of the program.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn watch(interrupt: Interrupt) -> Result<Replying> {
        let replying = Arc::new(AtomicBool::new(false));
        let seen = replying.clone();
        let handle = move || {
            if !seen.load(Ordering::SeqCst) || interrupt.is_set() {
                std::process::exit(EXIT_CODE);
            }
            interrupt.set();
        };
        ctrlc::set_handler(handle).context("cannot take over Ctrl-C")?;
        Ok(Replying(replying))
    }

    /// Runs a reply.
    pub fn run<T>(&self, reply: impl FnOnce() -> T) -> T {
        self.0.store(true, Ordering::SeqCst);
        let done = reply();
        self.0.store(false, Ordering::SeqCst);
        done
    }
}
