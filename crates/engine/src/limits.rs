//! Every bound of this crate, in one place.

/// Rows (tokens of all sessions together) that one pass through the decoder takes. A longer step is several passes.
pub const ROWS_PER_PASS_MAX: usize = 512;

/// The same on a GPU that multiplies tiles, which more rows keep busy.
pub const TILE_ROWS_PER_PASS_MAX: usize = 2048;

/// Rows of one pass on a GPU whose logits may be wanted: they stand in memory that is shared with the device.
pub const GPU_OUTPUTS_PER_PASS_MAX: usize = 64;

/// Address space reserved for the KV blocks of one model and KV dtype. Pages are opened as they are needed.
pub const KV_POOL_BYTES_MAX: usize = 64 << 30;

/// Tokens that a session can be opened for, whatever a model's file says.
pub const CONTEXT_TOKENS_MAX: usize = 1 << 20;

/// Extents that a model's file may ask for: layers, heads, widths. Far above any real model, far below an overflow.
pub const LAYERS_MAX: usize = 1024;
/// See [`LAYERS_MAX`].
pub const HEADS_MAX: usize = 1024;
/// See [`LAYERS_MAX`]: elements of a head.
pub const HEAD_DIM_MAX: usize = 512;
/// See [`LAYERS_MAX`]: the longest row of a weight that the kernels take.
pub const WIDTH_MAX: usize = 32_768;

/// Logit biases that a sampler carries.
pub const BIASES_MAX: usize = 1024;

/// Tokens that repetition penalties look back at.
pub const PENALTY_WINDOW_MAX: usize = 1 << 16;

/// Keys of a GGUF file's metadata (real files have 20 to 60).
pub const GGUF_KEYS_MAX: u64 = 4096;
/// Tensors of a GGUF file.
pub const GGUF_TENSORS_MAX: u64 = 65_536;
/// Bytes of a key.
pub const GGUF_KEY_BYTES_MAX: u64 = 1024;
/// Bytes of a tensor's name.
pub const GGUF_TENSOR_NAME_BYTES_MAX: u64 = 256;
/// Extents of a tensor in a file.
pub const GGUF_RANK_MAX: u64 = 4;
/// Arrays within arrays: 2 allows arrays of arrays.
pub const GGUF_ARRAY_DEPTH_MAX: usize = 2;
/// Elements of all arrays of a GGUF file together.
pub const GGUF_ELEMENTS_MAX: u64 = 1 << 24;
/// The largest `general.alignment`.
pub const GGUF_ALIGNMENT_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a safetensors file's header (real ones stay under 200 KB).
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 32 << 20;
/// Tensors of a safetensors file.
pub const SAFETENSORS_TENSORS_MAX: usize = 65_536;
/// Files that the weights of one folder are spread over.
pub const SHARDS_MAX: usize = 1024;
/// Bytes of a folder's JSON file (the largest real tokenizers have 34 MB).
pub const FOLDER_JSON_BYTES_MAX: usize = 64 << 20;

/// Pieces of a vocabulary.
pub const VOCABULARY_TOKENS_MAX: usize = 1 << 21;
/// Merges of a byte-level BPE vocabulary.
pub const MERGES_MAX: usize = 1 << 22;
/// Bytes of a vocabulary's longest piece (real ones stay under 300).
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Bytes of a special piece, which is searched for in every text.
pub const SPECIAL_BYTES_MAX: usize = 256;
/// Bytes of one text to encode.
pub const ENCODE_BYTES_MAX: usize = 1 << 30;

/// Bytes of a chat template's source.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 18;
/// Instructions that a chat template may execute in one rendering.
pub const TEMPLATE_FUEL_MAX: u64 = 500_000;
/// Address space for the stack that it renders on: a step adds at most one level to a value, and a level takes under 512 bytes to visit.
pub const TEMPLATE_STACK_BYTES: usize = 512 * TEMPLATE_FUEL_MAX as usize;
/// Nesting that a chat template may reach: macros calling macros, loops in loops.
pub const TEMPLATE_DEPTH_MAX: usize = 128;
/// Bytes that a chat template may render on top of the messages' own.
pub const TEMPLATE_OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Characters of what a chat template raises that an error shows.
pub const TEMPLATE_ERROR_CHARS_MAX: usize = 400;
/// Nesting of a value that a chat template prints as JSON.
pub const TEMPLATE_JSON_DEPTH_MAX: usize = 64;

/// Pieces that a full block may be saved in; one with more is saved once more, as one piece.
pub const KV_FULL_BLOCK_PIECES_MAX: usize = 8;
/// Pieces that a block remembers, for all sessions that share it: those of a session are at most its 64 rows.
pub const KV_PIECES_NOTED_MAX: usize = 128;
