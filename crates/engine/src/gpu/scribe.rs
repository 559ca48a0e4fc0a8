//! A step's commands, and a thread that encodes them: some hundred dispatches take the driver longer than a guest's turn between two tokens.

use driftwood_compute::gpu::{Buffer, CommandBuffer, Dispatch, Gpu, record, show_host};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What a step does on the device, not yet encoded.
#[derive(Debug)]
pub(super) struct Commands {
    pub(super) dispatches: Vec<Dispatch>,
    /// Where copies are taken from.
    pub(super) logits: Buffer,
    pub(super) copies: Vec<Copy>,
    /// What the host reads besides the copies.
    pub(super) chosen: Buffer,
}

/// One output's logits on their way to where the host reads them.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) from: u64,
    pub(super) to: Buffer,
    pub(super) at: u64,
    pub(super) bytes: u64,
}

impl Commands {
    pub(super) fn encode(self, gpu: &Gpu) -> CommandBuffer {
        let mut encoder = gpu.encoder();
        record(&mut encoder, &self.dispatches);
        for copy in &self.copies {
            encoder.copy_buffer_to_buffer(&self.logits, copy.from, &copy.to, copy.at, copy.bytes);
        }
        show_host(&mut encoder, self.copies.iter().map(|copy| &copy.to).chain([&self.chosen]));
        encoder.finish()
    }
}

/// A thread that encodes one set of commands at a time. Without it (the system may refuse a thread) commands are encoded where they are
/// needed.
#[derive(Debug)]
pub(super) struct Scribe {
    orders: Option<Sender<Commands>>,
    done: Receiver<CommandBuffer>,
    thread: Option<JoinHandle<()>>,
}

impl Scribe {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Scribe {
        let (orders, taken) = channel::<Commands>();
        let (finished, done) = channel();
        let gpu = gpu.clone();
        let write = move || {
            for commands in taken {
                if finished.send(commands.encode(&gpu)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("driftwood-scribe".into()).spawn(write).ok();
        Scribe { orders: Some(orders), done, thread }
    }

    /// Has commands encoded. Each is to be followed by a [`Scribe::finish`].
    pub(super) fn begin(&self, commands: Commands) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(commands); // if the thread is gone, `finish` says so
        }
    }

    /// What was begun, or nothing if there is no thread.
    pub(super) fn finish(&self) -> Option<CommandBuffer> {
        self.done.recv().ok()
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.orders = None; // ends the thread
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // one that panicked has nothing left to end
        }
    }
}
