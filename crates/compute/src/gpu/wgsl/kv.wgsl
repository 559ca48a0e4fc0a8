// Where keys and values stand: slot, then k or v, KV head, token 0 to 63, row; and which slots a row's session has.

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    // Words of a stored row, of a slot, and before the first slot.
    row_words: u32,
    slot_words: u32,
    first_word: u32,
    // Positions that a row sees, its own included; 0 for all.
    window: u32,
    // Whether the pairs of RoPE stand side by side.
    interleaved: u32,
    scale: f32,
}

@group(0) @binding(0) var<storage, read> params: Params;
// The number of rows; position and table of each row; the tables: slots of a session, in order. A table is an index into this array.
@group(0) @binding(1) var<storage, read> places: array<u32>;

fn kv_head_word(slot: u32, kv: u32, head: u32) -> u32 {
    return params.first_word + slot * params.slot_words + (kv * params.kv_heads + head) * 64u * params.row_words;
}
