//! Every bound of this crate, in one place.
//!
//! [`Limits`] are one actor's, given by the host that runs it and never by a file. The constants bound the host itself.

use std::time::Duration;

/// What one actor may use. Limits belong to whoever runs the actor; a snapshot carries none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of linear memory. Beyond them `memory.grow` answers -1.
    pub memory_bytes: usize,
    /// Fuel of one message: about one unit for each Wasm instruction or byte moved, and what host calls charge for their work.
    /// Waiting for inference costs none.
    pub fuel: u64,
    /// Sessions open at once.
    pub sessions: usize,
    /// Bytes of KV of all its sessions, each block counted for every session that holds it.
    pub kv_bytes: usize,
    /// Tokens that the model evaluates for one message: prompt and answer together.
    pub tokens: usize,
    /// Time from the start of a message to its end, waiting for inference included.
    pub wall: Duration,
    /// Bytes of one reply.
    pub reply_bytes: usize,
    /// Bytes of one message's journal: some 60 for each token, and the logits themselves where an actor carries them.
    pub journal_bytes: usize,
    /// Lines logged for one message.
    pub log_lines: usize,
    /// Bytes of one message.
    pub message_bytes: usize,
    /// Bytes of all settings, names and values, of the actor or of one message.
    pub settings_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory_bytes: 256 << 20,
            fuel: 20_000_000_000,
            sessions: 16,
            kv_bytes: 8 << 30,
            tokens: 1 << 20,
            wall: Duration::from_secs(600),
            reply_bytes: 16 << 20,
            journal_bytes: 64 << 20,
            log_lines: 10_000,
            message_bytes: 16 << 20,
            settings_bytes: 1 << 20,
        }
    }
}

/// Bytes of a guest's module.
pub const MODULE_BYTES_MAX: usize = 16 << 20;
/// Tables that a module may define.
pub const TABLES_MAX: u32 = 4;
/// Elements of a table.
pub const TABLE_ELEMENTS_MAX: u32 = 1 << 20;
/// Mutable globals, all of which a snapshot holds.
pub const GLOBALS_MAX: usize = 4096;
/// Compiled modules that the host keeps though no actor uses them.
pub const IDLE_MODULES_MAX: usize = 16;
/// Actors in one host.
pub const ACTORS_MAX: usize = 1 << 20;
/// Messages handled at the same time; others wait for their turn.
pub const HANDLED_AT_ONCE_MAX: usize = 256;
/// Bytes of messages, replies and token ids that a host remembers of an actor until it is kept; then the oldest go.
pub const UNKEPT_TURNS_BYTES_MAX: usize = 32 << 20;
/// Sessions that are not open and whose KV is kept, for an actor that left their models.
pub const KV_GENERATIONS_MAX: usize = 8;
/// Bytes of an actor's name.
pub const NAME_BYTES_MAX: usize = 64;

/// Bytes of Wasm stack.
pub const WASM_STACK_BYTES: usize = 512 << 10;
/// Bytes of the stack on which a guest and its host calls run: the template engine and the tokenizer need more than a guest.
pub const FIBER_STACK_BYTES: usize = 8 << 20;
/// A guest that computes for longer than this lets others go on.
pub const TICK: Duration = Duration::from_millis(5);
/// How often the clock looks whether a guest computes at all; the first yield can take that much longer.
pub const IDLE_TICK: Duration = Duration::from_millis(40);
/// See [`TICK`].
pub const TICKS_BEFORE_YIELD: u64 = 1;
/// How long a step waits for guests that still compute and may join it.
pub const STEP_PATIENCE: Duration = Duration::from_millis(2);

/// Tokens that one step takes from a long prefill, so that others get their turn. The engine's own pass is as long.
pub const PREFILL_CHUNK_TOKENS: usize = 512;
/// Bytes of a text given to one host call (a prompt of 131,072 tokens has about 600 KB).
pub const TEXT_BYTES_MAX: usize = 4 << 20;
/// Bytes of one log line; the rest is cut.
pub const LOG_LINE_BYTES_MAX: usize = 8 << 10;
/// Messages in a chat that is rendered.
pub const CHAT_MESSAGES_MAX: usize = 1 << 16;
/// Stop strings of one generation.
pub const STOPS_MAX: usize = 32;
/// Bytes of one stop string.
pub const STOP_BYTES_MAX: usize = 1024;
/// Multiplications of one `dw_matmul`.
pub const MATMUL_PRODUCTS_MAX: u64 = 1 << 33;
/// Kernels of an actor that stay compiled.
pub const KERNELS_MAX: usize = 8;
/// Cost of one `dw_dispatch`, in units of about one scalar operation. The host waits for it, and so do other actors.
pub const DISPATCH_COST_MAX: u64 = 1 << 36;
/// The same, on a device that is a program on the processor: under half a second on two cores.
pub const SOFTWARE_DISPATCH_COST_MAX: u64 = 1 << 32;

/// Fuel of every host call.
pub const CALL_FUEL: u64 = 100;
/// Fuel for each byte of text that is tokenized, rendered or parsed.
pub const TEXT_BYTE_FUEL: u64 = 16;
/// Multiplications of a `dw_matmul` for one unit of fuel.
pub const PRODUCTS_PER_FUEL: u64 = 8;
/// Fuel of every `dw_dispatch`: its way to the device and back. It does not depend on whether the kernel was compiled already, which a
/// snapshot does not hold.
pub const DISPATCH_FUEL: u64 = 1_000_000;
/// Operations of a `dw_dispatch`, by the bound on its cost, for one unit of fuel.
pub const OPERATIONS_PER_FUEL: u64 = 8;
