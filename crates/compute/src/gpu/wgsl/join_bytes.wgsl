// Words that begin at byte `at`, of the words that have their first bytes and those that have their last.
fn joined(low: vec4<u32>, high: vec4<u32>, at: u32) -> vec4<u32> {
    let shift = (at & 3u) * 8u;
    return select((low >> vec4<u32>(shift)) | (high << vec4<u32>((32u - shift) & 31u)), low, shift == 0u);
}
