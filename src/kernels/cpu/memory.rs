//! Memory: weights in mapped files, the allocator's settings, and what the process uses.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::{Mmap, MmapOptions};

use crate::embedded;

/// Numbers that are ours, or a range of a mapped file.
#[derive(Clone, Debug)]
pub enum Buffer<T> {
    /// Memory of our own.
    Owned(Vec<T>),
    /// A byte range of a file.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl<T: Pod> Buffer<T> {
    /// The given bytes of the file, in place where they are aligned for `T`, else copied.
    #[must_use]
    pub fn mapped(file: &Arc<Mmap>, bytes: Range<usize>) -> Self {
        match bytemuck::try_cast_slice::<u8, T>(&file[bytes.clone()]) {
            Ok(_) => Self::Mapped(Arc::clone(file), bytes),
            Err(_) => Self::Owned(bytemuck::pod_collect_to_vec(&file[bytes])),
        }
    }

    /// Gives the pages of a mapped file back until the numbers are looked at again.
    pub fn release(&self) {
        if let Self::Mapped(file, bytes) = self {
            release_pages(file, bytes.clone());
        }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(data) => data,
            Self::Mapped(file, bytes) => bytemuck::cast_slice(&file[bytes.clone()]),
        }
    }
}

/// Maps a file for reading. Nobody may change the file while it is mapped; llmcls itself only
/// ever replaces files, never rewrites them.
pub fn map_file(path: &Path) -> std::io::Result<Arc<Mmap>> {
    let embedded = embedded::location(path);
    let mut options = MmapOptions::new();
    let file = match &embedded {
        Some(location) => {
            options.offset(location.offset).len(location.bytes as usize);
            File::open(&location.path)?
        }
        None => File::open(path)?,
    };
    // SAFETY: sound as long as nobody truncates or rewrites the file under us; every reader of
    // safetensors rests on that.
    #[expect(unsafe_code, reason = "memory maps cannot be proven safe")]
    let map = unsafe { options.map(&file)? };
    if let Some(location) = &embedded {
        location.check(&map)?;
    }
    Ok(Arc::new(map))
}

/// Gives the pages of a byte range back: they count in the process's memory until then, and are
/// read again from the file if needed.
pub fn release_pages(file: &Mmap, bytes: Range<usize>) {
    #[cfg(target_os = "linux")]
    // SAFETY: dropping clean pages of a read-only, file-backed map loses nothing.
    #[expect(unsafe_code, reason = "memmap2 cannot know that the map is file-backed")]
    unsafe {
        // A hint: if it fails, the pages merely stay.
        let _ = file.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len());
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, bytes);
}

/// Tells glibc to keep large blocks for reuse. By default each large tensor is a map of its own,
/// whose pages are faulted in and zeroed again at every allocation: a factor of two in a training
/// step.
pub fn keep_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called from `main` before any other thread exists.
    #[expect(unsafe_code, reason = "mallopt is a C function")]
    unsafe {
        // Both return 1 on success; on failure the allocator is merely slower.
        let _ = libc::mallopt(libc::M_MMAP_MAX, 0);
        let _ = libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Gives memory that is free back to the system: what is kept for reuse, and holes between blocks that are in use.
/// For a server, which must not keep the most that it ever needed at once.
pub fn release_free_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: glibc locks its arenas itself.
    #[expect(unsafe_code, reason = "malloc_trim is a C function")]
    unsafe {
        // It returns whether there was any.
        let _ = libc::malloc_trim(0);
    }
}

/// Lets all threads share a few pools of memory. By default there are up to eight a core, each of which grows to the
/// most that any thread ever needed from it. To be called before other threads exist.
pub fn share_pools() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called before any other thread allocates.
    #[expect(unsafe_code, reason = "mallopt is a C function")]
    unsafe {
        const POOLS: i32 = 2;
        let _ = libc::mallopt(libc::M_ARENA_MAX, POOLS);
    }
}

/// The most memory this process has used so far, in bytes, where the system tells.
#[must_use]
pub fn peak_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The memory of this process that is resident now, in bytes, where the system tells.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory for this process: all that it may ever have, and what is free now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory and swap of the machine, or the limit of the process's control group.
    pub total: u64,
    /// The unused part of `total`.
    pub available: u64,
}

/// The memory that this process may use, if the system tells.
#[must_use]
pub fn limits() -> Option<Limits> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let entry = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let swap = entry("SwapFree").unwrap_or(0);
    let mut limits = Limits { total: entry("MemTotal")? + swap, available: entry("MemAvailable")? + swap };
    for (maximum, used) in control_group_limits() {
        limits.total = limits.total.min(maximum);
        limits.available = limits.available.min(maximum.saturating_sub(used));
    }
    Some(limits)
}

/// Limits and use of the control groups (version 2) that this process is in, from the root down.
fn control_group_limits() -> Vec<(u64, u64)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(path);
    own.ancestors()
        .take_while(|directory| directory.starts_with(root))
        .filter_map(|directory| {
            let number = |file: &str| std::fs::read_to_string(directory.join(file)).ok()?.trim().parse::<u64>().ok();
            Some((number("memory.max")?, number("memory.current")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misaligned_ranges_are_copied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bytes");
        std::fs::write(&path, (0..=40).collect::<Vec<u8>>()).unwrap();
        let map = map_file(&path).unwrap();
        let aligned = Buffer::<u32>::mapped(&map, 4..12);
        let copied = Buffer::<u32>::mapped(&map, 5..13);
        assert!(matches!(aligned, Buffer::Mapped(..)) && matches!(copied, Buffer::Owned(_)));
        release_pages(&map, 0..41);
        assert_eq!(aligned[1], u32::from_le_bytes([8, 9, 10, 11]));
        assert_eq!(copied[0], u32::from_le_bytes([5, 6, 7, 8]));
    }
}
