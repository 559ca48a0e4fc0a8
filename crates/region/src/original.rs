//! Bytes that many regions hold private copies of: a memory file that never changes again, mapped copy-on-write.

use crate::{Error, round_up_to_page};
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes that never change again, in a memory file, for [`crate::Region::map_copy`]. Ranges that were never written read as zeros and take no
/// memory until somebody touches them.
#[derive(Debug)]
pub struct Original {
    file: std::fs::File,
    len_bytes: usize,
}

impl Original {
    /// An original of `len_bytes` (rounded up to pages) that holds these bytes at these offsets, and zeros elsewhere.
    ///
    /// # Errors
    /// If the system makes no such file or has no memory for it: always elsewhere than on Linux. Copy the bytes then.
    #[cfg(target_os = "linux")]
    pub fn new<'a>(len_bytes: usize, parts: impl Iterator<Item = (usize, &'a [u8])>) -> Result<Original, Error> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        use std::os::unix::fs::FileExt;
        let len_bytes = round_up_to_page(len_bytes);
        let refused = |e: std::io::Error| Error::system("make a memory file of", len_bytes, e);
        let file = memfd_create("driftwood-original", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(|e| refused(e.into()))?;
        let file = std::fs::File::from(file);
        file.set_len(len_bytes as u64).map_err(refused)?;
        for (at_bytes, bytes) in parts {
            debug_assert!(at_bytes + bytes.len() <= len_bytes);
            file.write_all_at(bytes, at_bytes as u64).map_err(refused)?;
        }
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(|e| refused(e.into()))?;
        Ok(Original { file, len_bytes })
    }

    /// There is none: see above.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn new<'a>(len_bytes: usize, _parts: impl Iterator<Item = (usize, &'a [u8])>) -> Result<Original, Error> {
        let _ = round_up_to_page(len_bytes);
        Err(Error::Unsupported { operation: "make a memory file", why: "this system cannot seal one against changes" })
    }

    /// Its length.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
