//! Every bound of this crate in one place. A file beyond one of them is malformed, contents beyond one are refused.

/// Bytes of a header with its length field: room for the hashes of some hundred thousand blocks.
pub const HEADER_BYTES_MAX: u64 = 32 << 20;
/// Bytes of a file.
pub const FILE_BYTES_MAX: u64 = 1 << 40;
/// Tensors of a file, padding included.
pub const TENSORS_MAX: usize = 1 << 14;
/// Keys of the metadata.
pub const METADATA_KEYS_MAX: usize = 64;
/// KV pools of an actor: one for each model and way of storing keys and values.
pub const POOLS_MAX: usize = 64;
/// Blocks of one pool.
pub const BLOCKS_MAX: usize = 1 << 18;
/// Bytes of one block.
pub const BLOCK_BYTES_MAX: u64 = 1 << 30;
/// Layers, KV heads and tokens of one block, each.
pub const BLOCK_EXTENT_MAX: u32 = 1 << 12;
/// Elements of one row.
pub const HEAD_DIM_MAX: u32 = 1 << 16;
/// Sessions of an actor.
pub const SESSIONS_MAX: usize = 1 << 12;
/// Tokens of one session.
pub const TOKENS_MAX: u32 = 1 << 24;
/// Bytes of an actor's linear memory.
pub const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// Bytes of a guest's module.
pub const MODULE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of what an actor was told in the message that it is in the middle of.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 30;
/// Mutable globals of a guest.
pub const GLOBALS_MAX: usize = 1 << 16;
/// Bytes of a name: an actor's, a model's, an architecture's, a numerics id's.
pub const NAME_BYTES_MAX: usize = 255;
/// Threads that hash a file.
pub const THREADS_MAX: usize = 64;
