//! Reserve once, open from the front, never move.
//!
//! Three backings: anonymous memory (linear memory, KV), a memory file (the same bytes by file descriptor), and a
//! read-only mapping of a file (weights, snapshots). Anonymous memory can begin as a private copy of an [`Original`]. A region unmaps itself when its last owner drops it.

use crate::{Error, Original, page_bytes, round_up_to_page};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Mutex;

/// What stands behind a region's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Anonymous memory, private to the process, zero when opened.
    Anonymous,
    /// An unnamed memory file, zero when opened.
    MemoryFile,
    /// A file, mapped read-only.
    File,
}

/// Page-aligned memory whose base never moves.
///
/// Who may touch which bytes: `[0, open_bytes)` can be read (and, unless the backing is a file, written) through
/// [`Region::base`]; everything beyond faults. The region itself hands out no references to writable memory: that is for
/// whoever owns it (a [`crate::Pool`], or a linear memory) to argue.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    mapped_bytes: usize,
    reserved_bytes: usize,
    open_bytes: Mutex<usize>,
    backing: Backing,
    memory_file: Option<OwnedFd>,
}

// SAFETY: a region is an address range and its bookkeeping; the bookkeeping is behind a mutex, and every access to the
// bytes goes through a type that argues its own exclusivity.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves `bytes_max` bytes of anonymous address space (rounded up to pages), all of it still inaccessible.
    ///
    /// # Errors
    /// If the system has no such range.
    pub fn reserve(bytes_max: usize) -> Result<Region, Error> {
        Self::reserve_with_guard(bytes_max, 0)
    }

    /// As [`Region::reserve`], with `guard_bytes` after it that can never be opened.
    ///
    /// # Errors
    /// If the system has no such range.
    pub fn reserve_with_guard(bytes_max: usize, guard_bytes: usize) -> Result<Region, Error> {
        let reserved_bytes = checked_pages(bytes_max)?;
        let mapped_bytes = reserved_bytes
            .checked_add(checked_pages(guard_bytes)?)
            .ok_or(Error::BeyondReservation { asked_bytes: usize::MAX, reserved_bytes })?
            .max(page_bytes());
        // SAFETY: a fresh mapping at an address of the kernel's choosing overlaps nothing.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), mapped_bytes, ProtFlags::empty(), reserve_flags()) }
            .map_err(|e| Error::system("reserve", mapped_bytes, e))?;
        keep_out_of_forks(base, mapped_bytes);
        Ok(Self::new(base, mapped_bytes, reserved_bytes, Backing::Anonymous, None))
    }

    /// Reserves `bytes_max` bytes backed by an unnamed memory file, all of it still inaccessible.
    ///
    /// # Errors
    /// If the system has no such range or makes no such file.
    pub fn memory_file(bytes_max: usize) -> Result<Region, Error> {
        let reserved_bytes = checked_pages(bytes_max)?.max(page_bytes());
        let file = unnamed_file().map_err(|e| Error::system("make a memory file of", reserved_bytes, e))?;
        // SAFETY: a fresh mapping at an address of the kernel's choosing overlaps nothing.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), reserved_bytes, ProtFlags::empty(), MapFlags::SHARED, &file, 0) }
            .map_err(|e| Error::system("reserve", reserved_bytes, e))?;
        keep_out_of_forks(base, reserved_bytes);
        Ok(Self::new(base, reserved_bytes, reserved_bytes, Backing::MemoryFile, Some(file)))
    }

    /// Maps the whole of `file` read-only.
    ///
    /// The trust in mapped files stands here, in one function: whoever maps a file owns it, and nobody shortens or rewrites
    /// it in place while it is mapped (a shortened one raises SIGBUS). Driftwood maps model files in its cache and
    /// files that its state folder published by rename.
    ///
    /// # Errors
    /// If the file cannot be sized or mapped; an empty file cannot.
    pub fn map_file(file: &File) -> Result<Region, Error> {
        let len = file.metadata().map_err(|e| Error::system("size a file of", 0, e))?.len();
        let len =
            usize::try_from(len).map_err(|_| Error::Unsupported { operation: "map the file", why: "it exceeds the address space" })?;
        if len == 0 {
            return Err(Error::Unsupported { operation: "map the file", why: "it is empty" });
        }
        // SAFETY: a fresh, read-only mapping at an address of the kernel's choosing overlaps nothing.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) }
            .map_err(|e| Error::system("map a file of", len, e))?;
        let region = Self::new(base, len, len, Backing::File, None);
        *region.open_bytes.lock().expect("no holder panics") = len;
        Ok(region)
    }

    /// Opens `path` and maps it; see [`Region::map_file`].
    ///
    /// # Errors
    /// If it cannot be opened or mapped.
    pub fn map_path(path: &Path) -> Result<Region, Error> {
        let file = File::open(path).map_err(|e| Error::system("open a file of", 0, e))?;
        Self::map_file(&file)
    }

    fn new(
        base: *mut std::ffi::c_void,
        mapped_bytes: usize,
        reserved_bytes: usize,
        backing: Backing,
        memory_file: Option<OwnedFd>,
    ) -> Region {
        let base = NonNull::new(base.cast()).expect("mmap returns no null");
        Region { base, mapped_bytes, reserved_bytes, open_bytes: Mutex::new(0), backing, memory_file }
    }

    /// Opens the prefix of `bytes` (rounded up to pages) in place. A smaller size than the present one changes nothing.
    ///
    /// # Errors
    /// If `bytes` exceeds the reservation, if the system refuses, or if the region is a mapped file.
    pub fn commit(&self, bytes: usize) -> Result<(), Error> {
        if self.backing == Backing::File {
            return Err(Error::Unsupported { operation: "grow a region", why: "a mapped file has one size" });
        }
        if bytes > self.reserved_bytes {
            return Err(Error::BeyondReservation { asked_bytes: bytes, reserved_bytes: self.reserved_bytes });
        }
        let wanted_bytes = round_up_to_page(bytes).min(self.reserved_bytes);
        let mut open_bytes = self.open_bytes.lock().expect("no holder panics");
        if wanted_bytes <= *open_bytes {
            return Ok(());
        }
        if let Some(file) = &self.memory_file {
            rustix::fs::ftruncate(file, wanted_bytes as u64).map_err(|e| Error::system("size a memory file to", wanted_bytes, e))?;
        }
        // One call from the base, so that the open prefix stays one mapping (Metal wants that).
        // SAFETY: the range lies within our own mapping and only gains rights.
        unsafe { rustix::mm::mprotect(self.base.as_ptr().cast(), wanted_bytes, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(|e| Error::system("open", wanted_bytes, e))?;
        *open_bytes = wanted_bytes;
        Ok(())
    }

    /// Replaces the first bytes of the open prefix by a private copy of `original`, without copying: pages are the original's until they are
    /// written, and the region's own from then on. The base stays, and what lies beyond the open prefix stays inaccessible.
    ///
    /// # Errors
    /// If the original is longer than the open prefix, the region is a mapped file, or the system refuses. What the range holds is then not
    /// known, it may even be inaccessible: drop the region.
    ///
    /// # Safety
    /// - Nobody else touches those bytes during the call, and no reference to them outlives it: it is as if all of them were written.
    /// - No device has imported the range: it would keep the pages that were there before.
    pub unsafe fn map_copy(&self, original: &Original) -> Result<(), Error> {
        if self.backing != Backing::Anonymous {
            return Err(Error::Unsupported { operation: "map a copy", why: "only anonymous memory takes one" });
        }
        let open_bytes = self.open_bytes.lock().expect("no holder panics");
        let len_bytes = original.len_bytes();
        if len_bytes > *open_bytes {
            return Err(Error::BeyondReservation { asked_bytes: len_bytes, reserved_bytes: *open_bytes });
        }
        if len_bytes == 0 {
            return Ok(());
        }
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED | NO_RESERVE);
        let base = self.base.as_ptr().cast();
        // SAFETY: the range is the beginning of our own mapping, whole pages of its open prefix, and by contract nobody looks at it; the
        // file is as long, and sealed against changes.
        unsafe { rustix::mm::mmap(base, len_bytes, rights, flags, original.file(), 0) }
            .map_err(|e| Error::system("map a copy of", len_bytes, e))?;
        keep_out_of_forks(base, len_bytes);
        Ok(())
    }

    /// The first byte. It never moves while the region lives.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes that can be touched, from the base.
    pub fn open_bytes(&self) -> usize {
        *self.open_bytes.lock().expect("no holder panics")
    }

    /// Bytes that can ever be opened.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved_bytes
    }

    /// What stands behind the pages.
    pub fn backing(&self) -> Backing {
        self.backing
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is our own mapping, and whoever could reach it held the region.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
    }
}

fn checked_pages(bytes: usize) -> Result<usize, Error> {
    bytes
        .checked_next_multiple_of(page_bytes())
        .filter(|&b| isize::try_from(b).is_ok())
        .ok_or(Error::BeyondReservation { asked_bytes: bytes, reserved_bytes: isize::MAX as usize })
}

/// Memory is accounted for when it is touched, where the system knows such a thing.
#[cfg(target_os = "linux")]
const NO_RESERVE: MapFlags = MapFlags::NORESERVE;
#[cfg(not(target_os = "linux"))]
const NO_RESERVE: MapFlags = MapFlags::empty();

fn reserve_flags() -> MapFlags {
    MapFlags::PRIVATE | NO_RESERVE
}

/// A `fork()` would turn pages that a GPU has pinned into copy-on-write ones.
fn keep_out_of_forks(base: *mut std::ffi::c_void, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: advice on our own mapping. Failure only loses the protection against forks, which we never do ourselves.
    let _ = unsafe { rustix::mm::madvise(base, bytes, rustix::mm::Advice::LinuxDontFork) };
    #[cfg(not(target_os = "linux"))]
    let _ = (base, bytes);
}

#[cfg(target_os = "linux")]
fn unnamed_file() -> rustix::io::Result<OwnedFd> {
    rustix::fs::memfd_create("driftwood-region", rustix::fs::MemfdFlags::CLOEXEC)
}

#[cfg(not(target_os = "linux"))]
fn unnamed_file() -> rustix::io::Result<OwnedFd> {
    use rustix::shm::{Mode, OFlags};
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    let name = format!("/dw-{}-{nanos}", std::process::id());
    let file = rustix::shm::open(&name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, Mode::RUSR | Mode::WUSR)?;
    rustix::shm::unlink(&name)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Whether a system call can read the byte at `offset`: it fails with EFAULT where a plain access would kill the test.
    fn readable(region: &Region, offset: usize) -> bool {
        let mut sink = tempfile::tempfile().unwrap();
        // SAFETY: the kernel checks the pointer; a null length is not used.
        let byte = unsafe { std::slice::from_raw_parts(region.base().as_ptr().add(offset), 1) };
        sink.write_all(byte).is_ok()
    }

    #[test]
    fn growth_keeps_the_base_and_the_tail_stays_shut() {
        let page = page_bytes();
        for region in [Region::reserve(64 * page).unwrap(), Region::memory_file(64 * page).unwrap()] {
            let base = region.base();
            assert!(!readable(&region, 0), "nothing is open at first");
            region.commit(page + 1).unwrap();
            assert_eq!(region.open_bytes(), 2 * page);
            // SAFETY: the page was just opened, and nobody else knows it.
            unsafe { base.as_ptr().add(page).write(7) };
            assert!(readable(&region, 2 * page - 1));
            assert!(!readable(&region, 2 * page), "the tail stays inaccessible");
            region.commit(64 * page).unwrap();
            assert_eq!(region.base(), base);
            // SAFETY: as above.
            assert_eq!(unsafe { base.as_ptr().add(page).read() }, 7);
            assert!(matches!(region.commit(64 * page + 1), Err(Error::BeyondReservation { .. })));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn copies_share_what_they_do_not_write() {
        let page = page_bytes();
        let bytes = vec![7; page];
        let original = Original::new(4 * page, [(page, &bytes[..])].into_iter()).unwrap();
        let regions = [(); 2].map(|()| Region::reserve_with_guard(16 * page, page).unwrap());
        // SAFETY: nobody else knows these regions, and no device has them.
        let copy = |region: &Region| unsafe { region.map_copy(&original) };
        // SAFETY: as above; the offset lies in the open prefix.
        let at = |region: &Region, offset: usize| unsafe { region.base().as_ptr().add(offset) };
        for region in &regions {
            region.commit(3 * page).unwrap();
            assert!(matches!(copy(region), Err(Error::BeyondReservation { .. })), "it is longer than what is open");
            region.commit(6 * page).unwrap();
            let base = region.base();
            copy(region).unwrap();
            assert_eq!(region.base(), base);
            assert!(readable(region, 6 * page - 1) && !readable(region, 6 * page), "the tail stays inaccessible");
            region.commit(8 * page).unwrap();
            assert!(readable(region, 8 * page - 1) && !readable(region, 8 * page));
        }
        // SAFETY: these bytes are open, and nobody else knows them.
        unsafe {
            at(&regions[0], page).write(1);
            at(&regions[0], 2 * page).write(2);
            at(&regions[0], 5 * page).write(3);
            let read = |region: &Region| [0, page, page + 1, 2 * page, 5 * page].map(|offset| at(region, offset).read());
            assert_eq!((read(&regions[0]), read(&regions[1])), ([0, 1, 7, 2, 3], [0, 7, 7, 0, 0]));
        }
        let file = Region::memory_file(8 * page).unwrap();
        file.commit(8 * page).unwrap();
        assert!(copy(&file).is_err(), "a memory file is not replaced");
    }

    #[test]
    fn guard_is_never_opened() {
        let page = page_bytes();
        let region = Region::reserve_with_guard(page, page).unwrap();
        region.commit(page).unwrap();
        assert!(readable(&region, page - 1) && !readable(&region, page));
        assert!(region.commit(page + 1).is_err());
    }

    #[test]
    fn files_map_read_only_and_empty_ones_are_refused() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(matches!(Region::map_file(&file), Err(Error::Unsupported { .. })));
        file.write_all(b"driftwood").unwrap();
        let region = Region::map_file(&file).unwrap();
        assert_eq!(region.open_bytes(), 9);
        assert!(region.commit(1).is_err());
    }

    #[test]
    fn absurd_sizes_are_errors() {
        assert!(Region::reserve(usize::MAX).is_err());
        assert!(Region::reserve_with_guard(1 << 62, 1 << 62).is_err());
    }
}
