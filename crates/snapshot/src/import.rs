//! Files of other people: brought into the state folder and verified, or looked at without being mapped.

use crate::header::{self, START_BYTES};
use crate::limits::{FILE_BYTES_MAX, THREADS_MAX};
use crate::publish::{Existing, Temp};
use crate::{Error, Manifest, Snapshot, layout};
use driftwood_region::DType;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// What a header says, without a look at the data.
///
/// So the hashes in it are what the file claims, and sizes are what was checked against the file's length.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// What the tensors mean.
    pub manifest: Manifest,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of its header, length field included.
    pub header_bytes: u64,
    /// Every tensor, padding included, in the order of the file.
    pub tensors: Vec<TensorInfo>,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: u64,
}

/// Reads the header of any file, wherever it lies: nothing is mapped, so nobody can pull the file away underneath. The header's own
/// hash is checked, the data is not looked at.
///
/// # Errors
/// As [`Snapshot::open`].
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    let (file, file_bytes) = open_foreign(path)?;
    let read = |file: &File, bytes: u64| {
        let mut buffer = Vec::new();
        file.take(bytes).read_to_end(&mut buffer).map_err(|e| Error::system("read", path, e)).map(|_| buffer)
    };
    let mut bytes = read(&file, START_BYTES as u64)?;
    let header_bytes = header::size(&bytes, file_bytes)?;
    bytes.extend(read(&file, header_bytes - bytes.len() as u64)?);
    if (bytes.len() as u64) < header_bytes {
        return Err(Error::Truncated { expected_bytes: header_bytes, found_bytes: bytes.len() as u64 });
    }
    let header = header::parse(&bytes, file_bytes)?;
    layout::assign(&header)?;
    let info =
        |t: &header::Tensor| TensorInfo { name: t.name.clone(), dtype: t.dtype, shape: t.shape.extents().to_vec(), bytes: t.len_bytes };
    Ok(Inspection { file_bytes, header_bytes, tensors: header.tensors.iter().map(info).collect(), manifest: header.manifest })
}

/// Brings a file into the state folder as `target`: clones it where the file system can, else copies it, verifies every byte of what
/// arrived, and publishes it with mode 0600. Returns it open.
///
/// What is verified is the copy, which only we can write: whoever changes `source` meanwhile changes nothing.
///
/// ```no_run
/// # use driftwood_snapshot::*;
/// # use std::path::Path;
/// let thawed = import(Path::new("/media/stick/ada.safetensors"), Path::new("state/ada.safetensors"), Existing::Refuse)?;
/// let identity = Identity::mint("ada", Some(thawed.manifest().identity.id))?; // each thaw is somebody new
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// As [`Snapshot::open`] and [`Snapshot::verify_all`]; [`Error::Exists`]; [`Error::System`]. Nothing is left behind.
pub fn import(source: &Path, target: &Path, existing: Existing) -> Result<Snapshot, Error> {
    let (source_file, file_bytes) = open_foreign(source)?;
    if file_bytes > FILE_BYTES_MAX {
        return Err(Error::malformed("file", format!("{file_bytes} exceeds the limit of {FILE_BYTES_MAX}")));
    }
    // Look before copying gigabytes of something else.
    inspect(source)?;
    let temp = Temp::beside(target)?;
    if !clone_file(&source_file, &temp.file) {
        std::io::copy(&mut (&source_file).take(file_bytes), &mut &temp.file).map_err(|e| Error::system("copy", source, e))?;
    }
    let snapshot = Snapshot::of_file(&temp.file, source)?;
    snapshot.verify_all(std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX)))?;
    temp.publish(existing)?;
    Ok(snapshot)
}

/// A regular file, opened without waiting for whatever else it may be.
fn open_foreign(path: &Path) -> Result<(File, u64), Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::system("open", path, e))?);
    let metadata = file.metadata().map_err(|e| Error::system("size", path, e))?;
    if !metadata.is_file() {
        return Err(Error::NotASnapshot { why: "it is no regular file" });
    }
    Ok((file, metadata.len()))
}

/// Shares the blocks on disk, where the file system can (btrfs, XFS).
fn clone_file(source: &File, target: &File) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::ioctl_ficlone(target, source).is_ok();
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (source, target);
        false
    }
}
