//! A directory whose subdirectories are classifiers: they come and go with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::app::App;

/// The last listing of the directory.
#[derive(Default)]
pub(super) struct Watch {
    seen: BTreeMap<String, Seen>,
}

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    path: PathBuf,
    /// When the newest of its files was changed, and how many there are.
    state: (Option<SystemTime>, usize),
}

impl Watch {
    /// Loads what has come or has changed, and drops what has gone. A classifier that cannot be used is told of once,
    /// and tried again when its files change; one that works goes on until its successor does.
    pub(super) fn look(&mut self, directory: &Path, app: &App) {
        let now = match classifiers(directory) {
            Ok(now) => now,
            Err(error) => {
                app.0.log.warn(&format!("{}: cannot read: {error}", directory.display()));
                return;
            }
        };
        for name in self.seen.keys().filter(|name| !now.contains_key(*name)) {
            if app.0.models.remove(name) {
                app.0.log.say(&format!("dropped model `{name}`"));
            }
        }
        for (name, seen) in &now {
            if self.seen.get(name) == Some(seen) {
                continue;
            }
            match app.0.models.load(name, &seen.path) {
                Ok(_) => app.0.log.say(&format!("loaded model `{name}`")),
                Err(error) => app.0.log.warn(&format!("model `{name}` is not loaded: {error:#}")),
            }
        }
        self.seen = now;
    }
}

/// The subdirectories, by name. Those that begin with a dot are being written.
fn classifiers(directory: &Path) -> std::io::Result<BTreeMap<String, Seen>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.starts_with('.') && path.is_dir() {
            let state = state_of(&path, 3);
            found.insert(name, Seen { path, state });
        }
    }
    Ok(found)
}

fn state_of(path: &Path, depth: usize) -> (Option<SystemTime>, usize) {
    let mut state = (None, 0);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        let of_entry = match path.is_dir() {
            true if depth > 0 => state_of(&path, depth - 1),
            _ => (fs::metadata(&path).and_then(|data| data.modified()).ok(), 1),
        };
        state = (state.0.max(of_entry.0), state.1 + of_entry.1);
    }
    state
}
