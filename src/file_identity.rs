//! Tells whether a file is the same as before without reading it, and where the user's programs keep such knowledge.

use std::env;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A file that was written this short ago may be written again within the clock's resolution.
const SETTLED: Duration = Duration::from_secs(2);

/// A file's place, size and times.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Of the filesystem.
    pub device: u64,
    /// Of the file on it.
    pub inode: u64,
    /// In bytes.
    pub size: u64,
    /// When its bytes changed: nanoseconds since 1970.
    pub modified: i128,
    /// When its bytes, name or rights changed.
    pub changed: i128,
}

impl FileIdentity {
    /// The file at a path now; `None` if it cannot be looked at, or the system does not tell.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        Self::from_metadata(&fs::metadata(path).ok()?)
    }

    #[cfg(unix)]
    fn from_metadata(data: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.len(),
            modified: nanoseconds(data.mtime(), data.mtime_nsec()),
            changed: nanoseconds(data.ctime(), data.ctime_nsec()),
        })
    }

    #[cfg(not(unix))]
    fn from_metadata(_: &Metadata) -> Option<Self> {
        None
    }

    /// Whether the file was last written so long ago that another write would show.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let last = self.modified.max(self.changed);
        i128::try_from(now.saturating_sub(SETTLED).as_nanos()).is_ok_and(|limit| last <= limit)
    }
}

/// The user's directory for what can be made again: XDG_CACHE_HOME, else `.cache` in the home directory.
#[must_use]
pub fn user_cache() -> Option<PathBuf> {
    let set = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    set.or_else(|| env::home_dir().map(|home| home.join(".cache")))
}
