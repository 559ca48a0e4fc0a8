// Words that begin at byte `at`, a multiple of two, of the words that have their first bytes and those that have their last.
fn joined(low: vec4<u32>, high: vec4<u32>, at: u32) -> vec4<u32> {
    return select(low, (low >> vec4<u32>(16u)) | (high << vec4<u32>(16u)), (at & 2u) != 0u);
}
