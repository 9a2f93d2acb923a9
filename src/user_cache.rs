//! The user's cache directory: what is there can be made again, and may be removed at any time.

use std::env;
use std::path::PathBuf;

/// `$XDG_CACHE_HOME/llmcls/<name>`, or under `~/.cache`; `None` where the system names neither.
#[must_use]
pub fn directory(name: &str) -> Option<PathBuf> {
    let set = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = set.or_else(|| env::home_dir().map(|home| home.join(".cache")))?;
    Some(cache.join("llmcls").join(name))
}
