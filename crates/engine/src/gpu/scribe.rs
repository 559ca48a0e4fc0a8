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

/// A thread that encodes the commands of one `S` at a time. Without it (the system may refuse a thread) commands are encoded where they
/// are needed.
#[derive(Debug)]
pub(super) struct Scribe<S> {
    orders: Option<Sender<Commands>>,
    done: Receiver<CommandBuffer>,
    thread: Option<JoinHandle<()>>,
    /// What is being encoded, or is done and was not taken.
    begun: Option<S>,
}

impl<S: PartialEq> Scribe<S> {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Scribe<S> {
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
        Scribe { orders: Some(orders), done, thread, begun: None }
    }

    /// Whether this is what was begun last.
    pub(super) fn has(&self, what: &S) -> bool {
        self.begun.as_ref() == Some(what)
    }

    /// Has the commands of `what` encoded; what was begun before is dropped.
    pub(super) fn begin(&mut self, what: S, commands: Commands) {
        self.forget();
        if let Some(orders) = &self.orders {
            // A thread that is gone has begun nothing.
            self.begun = orders.send(commands).is_ok().then_some(what);
        }
    }

    /// The commands of `what` if they were begun; anything else that was is dropped.
    pub(super) fn finish(&mut self, what: &S) -> Option<CommandBuffer> {
        let begun = self.begun.take()?;
        // Every order is answered once, so this is the answer to the one that was begun last.
        self.done.recv().ok().filter(|_| begun == *what)
    }

    /// Drops what was begun.
    pub(super) fn forget(&mut self) {
        if self.begun.take().is_some() {
            let _ = self.done.recv(); // a thread that is gone answers nothing
        }
    }
}

impl<S> Drop for Scribe<S> {
    fn drop(&mut self) {
        self.orders = None; // ends the thread
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // one that panicked has nothing left to end
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that is begun again, or in place of another, is answered by its own commands: each order has one answer, in order.
    #[test]
    fn what_is_taken_is_what_was_begun_last() {
        let gpu = Gpu::open(None).expect("these tests need a Vulkan device, such as lavapipe");
        let gpu = Arc::new(gpu);
        let mut scribe = Scribe::new(&gpu);
        let from = gpu.upload("from", bytemuck::cast_slice(&[0u32, 1, 2, 3])).unwrap();
        let to = gpu.buffer("to", 4).unwrap();
        let copy = |word: u64| Commands {
            dispatches: Vec::new(),
            logits: from.clone(),
            copies: vec![Copy { from: 4 * word, to: to.clone(), at: 0, bytes: 4 }],
            chosen: to.clone(),
        };
        let answered = |commands: CommandBuffer| {
            gpu.wait_for(gpu.submit_commands(commands).unwrap()).unwrap();
            let mut word = [0u32];
            gpu.read(&to, 0, bytemuck::cast_slice_mut(&mut word)).unwrap();
            u64::from(word[0])
        };
        scribe.begin(1, copy(1));
        assert!(scribe.has(&1) && !scribe.has(&2));
        scribe.begin(1, copy(1));
        scribe.begin(2, copy(2));
        assert_eq!(scribe.finish(&2).map(answered), Some(2));
        assert!(scribe.finish(&2).is_none(), "an answer is taken once");
        scribe.begin(3, copy(3));
        assert!(scribe.finish(&1).is_none(), "who asks for another gets none");
        scribe.begin(1, copy(1));
        scribe.forget();
        scribe.begin(3, copy(3));
        assert_eq!(scribe.finish(&3).map(answered), Some(3));
    }
}
