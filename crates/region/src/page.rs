//! The system's page size: 4 KiB on x86-64, 16 KiB on Apple Silicon. Asked, never assumed.

/// Bytes of one page of this system.
pub fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// The smallest multiple of the page size that holds `bytes`.
///
/// # Panics
/// If that multiple exceeds the address space.
pub fn round_up_to_page(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(page_bytes()).expect("a size near the end of the address space")
}
