//! Compiled kernels, kept in a file from one start to the next.
//!
//! A file holds one device's pipelines: a hash (32 bytes) and what the driver gave. The hash is over the format's version, ours, the names of
//! the device and its driver, and the data, so that what is torn, foreign or from before an update does not match.
//!
//! A cache is only a cache: a file that cannot be read, or not be trusted, counts as none and is replaced; one that cannot be written is not.

#![allow(unsafe_code)]

use blake3::Hash;
use rustix::fs::{Mode, OFlags};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The longest data that is read or written. A model's kernels take a few MiB.
const PIPELINES_BYTES_MAX: usize = 64 << 20;

/// What separates our hashes from others', with the format's version.
const CONTEXT: &str = "driftwood pipelines, version 1";

/// Permission bits by which others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;

/// The pipelines of one device, and the file that keeps them.
#[derive(Debug)]
pub(super) struct Pipelines {
    cache: wgpu::PipelineCache,
    folder: PathBuf,
    name: String,
    identity: String,
    /// Whether a kernel was compiled since the last save.
    touched: AtomicBool,
    /// The hash in the file, if that is a good one.
    on_disk: Mutex<Option<Hash>>,
}

impl Pipelines {
    /// Those of a device just opened, with what the folder keeps of it. `None` where the device has no such cache.
    pub(super) fn open(folder: &Path, about: &wgpu::AdapterInfo, device: &wgpu::Device) -> Option<Pipelines> {
        let name = wgpu::util::pipeline_cache_key(about).filter(|_| device.features().contains(wgpu::Features::PIPELINE_CACHE))?;
        let identity = [env!("CARGO_PKG_VERSION"), &name, &about.name, &about.driver, &about.driver_info].join("\n");
        let kept = read(&folder.join(&name), &identity);
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data: kept.as_ref().map(|(_, data)| &data[..]), fallback: true };
        // SAFETY: the data should be what `get_data` returned. Checked by `read`: the file is this user's and nobody else may write it, and
        // its hash says that it is whole and was written for this device and driver by this version; wgpu checks its own header besides.
        // Not checked: that we wrote it. A program that runs as this user could make such a file; it could as well change this program.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        let on_disk = Mutex::new(kept.map(|(hash, _)| hash));
        Some(Pipelines { cache, folder: folder.to_owned(), name, identity, touched: AtomicBool::new(false), on_disk })
    }

    /// The folder that [`Pipelines::open`] was given.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The cache, for a kernel that is about to be compiled.
    pub(super) fn for_compiling(&self) -> &wgpu::PipelineCache {
        self.touched.store(true, Ordering::Relaxed);
        &self.cache
    }

    /// Writes the file if something was compiled that is not in it.
    pub(super) fn save(&self) {
        if !self.touched.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = self.cache.get_data() else { return };
        let hash = hash(&self.identity, &data);
        let mut on_disk = self.on_disk.lock().unwrap_or_else(PoisonError::into_inner);
        if *on_disk != Some(hash) {
            *on_disk = write(&self.folder, &self.name, hash, &data).ok().map(|()| hash);
        }
    }
}

fn hash(identity: &str, data: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&(identity.len() as u64).to_le_bytes());
    hasher.update(identity.as_bytes()).update(data).finalize()
}

/// A file's hash and data, if it is ours, whole and of this device.
fn read(path: &Path, identity: &str) -> Option<(Hash, Vec<u8>)> {
    // A pipe in the file's place must not keep us waiting, nor a link lead elsewhere.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let about = file.metadata().ok()?;
    if !about.is_file() || about.uid() != rustix::process::geteuid().as_raw() || about.mode() & OTHERS_WRITE != 0 {
        return None;
    }
    let bytes_max = blake3::OUT_LEN + PIPELINES_BYTES_MAX;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).ok()?;
    let (written, data) = bytes.split_first_chunk::<{ blake3::OUT_LEN }>()?;
    let written = Hash::from_bytes(*written);
    (bytes.len() <= bytes_max && hash(identity, data) == written).then(|| (written, data.to_vec()))
}

/// Puts a file in its place, whole or not at all. Instead of one that is too long there is none, so that the next start collects anew.
fn write(folder: &Path, name: &str, hash: Hash, data: &[u8]) -> io::Result<()> {
    let path = folder.join(name);
    if data.len() > PIPELINES_BYTES_MAX {
        return std::fs::remove_file(path);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut beside = tempfile::NamedTempFile::new_in(folder)?; // mode 0600, removed if it is not persisted
    beside.write_all(hash.as_bytes())?;
    beside.write_all(data)?;
    // Not synced: what a power cut tears has another hash.
    beside.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Gpu, KernelSource};
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;
    use std::sync::Arc;

    const DATA: &[u8] = b"what a driver gave";

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    /// The only entry of a folder.
    fn only(folder: &Path) -> PathBuf {
        let mut entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let first = entries.next().unwrap();
        assert_eq!(entries.next(), None, "nothing else is left");
        first
    }

    #[test]
    fn what_is_written_is_read_and_seen_by_nobody_else() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("cache/pipelines");
        for data in [DATA, b"more of it", b""] {
            write(&folder, "a", hash("id", data), data).unwrap();
            assert_eq!(read(&folder.join("a"), "id").unwrap(), (hash("id", data), data.to_vec()));
        }
        assert_eq!((mode(&folder), mode(&only(&folder))), (0o700, 0o600));
    }

    #[test]
    fn hostile_files_are_as_if_they_were_not_there() {
        let good = [hash("id", DATA).as_bytes(), DATA].concat();
        let changed = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        let of = |hash: Hash| [hash.as_bytes(), DATA].concat();
        let too_long = vec![0; PIPELINES_BYTES_MAX + 1];
        let cases: [(&str, Vec<u8>, u32); 10] = [
            ("empty", Vec::new(), 0o600),
            ("a part of the hash", good[..20].to_vec(), 0o600),
            ("torn", good[..good.len() - 1].to_vec(), 0o600),
            ("longer", [&good[..], &[0]].concat(), 0o600),
            ("another hash", changed(0), 0o600),
            ("other data", changed(40), 0o600),
            ("of another device", of(hash("it", DATA)), 0o600),
            ("of another format", of(blake3::hash(DATA)), 0o600),
            ("beyond the bound", [hash("id", &too_long).as_bytes(), &too_long[..]].concat(), 0o600),
            ("writable by others", good.clone(), 0o620),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for (what, bytes, mode) in cases {
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, "id"), None, "{what}");
            write(folder.path(), "a", hash("id", DATA), DATA).unwrap();
            assert!(read(&path, "id").is_some(), "replaced: {what}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write(folder.path(), "good", hash("id", DATA), DATA).unwrap();
        symlink(at("good"), at("link")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        for name in ["link", "folder", "pipe", "none"] {
            assert_eq!(read(&at(name), "id"), None, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_and_what_is_too_long_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        write(folder.path(), "a", hash("id", DATA), DATA).unwrap_err();
        assert_eq!(only(folder.path()), folder.path().join("a"), "a folder in the place of the file stays");

        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a", hash("id", DATA), DATA).unwrap();
        let too_long = vec![0; PIPELINES_BYTES_MAX + 1];
        write(folder.path(), "a", hash("id", &too_long), &too_long).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    const ADD_ONE: &str = "
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) { out[id.x] += 1u; }";

    /// Opens the device of the tests; `None` if it has no cache of pipelines.
    fn open(folder: &Path) -> Option<Arc<Gpu>> {
        let gpu = Gpu::open_with_pipelines(None, Some(folder)).expect("tests of the GPU need a Vulkan driver");
        gpu.device().features().contains(wgpu::Features::PIPELINE_CACHE).then_some(gpu)
    }

    fn found(gpu: &Gpu) -> Option<Hash> {
        *gpu.pipelines().unwrap().on_disk.lock().unwrap()
    }

    #[test]
    fn a_second_start_finds_the_pipelines_of_the_first() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("pipelines");
        let Some(first) = open(&folder) else { return };
        first.save_pipelines();
        assert!(!folder.exists(), "nothing was compiled");
        first.kernel("add one", KernelSource::Checked(ADD_ONE)).unwrap();
        drop(first);
        let file = only(&folder);
        let written = std::fs::read(&file).unwrap();

        let second = open(&folder).unwrap();
        assert_eq!(found(&second).unwrap().as_bytes()[..], written[..blake3::OUT_LEN]);
        let again = second.reopen().unwrap();
        assert_eq!(found(&again), found(&second), "a device that is opened again has them, too");
        second.kernel("add one", KernelSource::Checked(ADD_ONE)).unwrap();
        std::fs::remove_file(&file).unwrap();
        second.save_pipelines();
        assert!(!file.exists(), "nothing new was compiled");
    }

    #[test]
    fn a_damaged_file_costs_time_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let Some(first) = open(folder.path()) else { return };
        first.kernel("add one", KernelSource::Checked(ADD_ONE)).unwrap();
        drop(first);
        let file = only(folder.path());
        let good = std::fs::read(&file).unwrap();
        std::fs::write(&file, &good[..good.len() / 2]).unwrap();
        let second = open(folder.path()).unwrap();
        assert_eq!(found(&second), None);
        second.kernel("add one", KernelSource::Checked(ADD_ONE)).unwrap();
        second.save_pipelines();
        assert_eq!(found(&open(folder.path()).unwrap()), found(&second), "the third start finds it");
        assert!(found(&second).is_some());
    }
}
