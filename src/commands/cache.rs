//! `llmcls cache`: what the frozen layers made of texts, kept for later trainings.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cli::CacheArgs;
use crate::console::{bytes, print, print_json};
use crate::training::activation_cache::directory::{self, Listed};

/// Lists or clears the caches.
///
/// # Errors
/// If a cache cannot be removed, or standard output cannot be written.
pub fn run(args: &CacheArgs) -> Result<()> {
    let root = directory::root();
    let root = root.context("the system names no home directory: set XDG_CACHE_HOME")?;
    if args.clear {
        let removed = directory::clear(&root)?;
        return print(&format!("removed {} from {}\n", bytes(removed), root.display()));
    }
    let caches = directory::list(&root);
    if args.json {
        return print_json(&Value::from(caches.iter().map(to_json).collect::<Vec<_>>()));
    }
    if caches.is_empty() {
        return print(&format!("no cache in {}\n", root.display()));
    }
    let mut out = format!("{:<17}{:>10}  {:<15}{:<10}base\n", "used (UTC)", "size", "frozen layers", "compute");
    for cache in &caches {
        let about = cache.about.as_ref();
        out.push_str(&format!(
            "{:<17}{:>10}  {:<15}{:<10}{}\n",
            used(cache).unwrap_or_default(),
            bytes(cache.bytes),
            about.map_or_else(String::new, |about| format!("{} of {}", about.frozen_layers, about.layers)),
            about.map_or("", |about| &about.compute),
            about.map_or("?", |about| &about.base),
        ));
    }
    let total = caches.iter().map(|cache| cache.bytes).sum();
    out.push_str(&format!("{} in {}; `llmcls cache --clear` removes all\n", bytes(total), root.display()));
    print(&out)
}

fn used(cache: &Listed) -> Option<String> {
    let time = jiff::Timestamp::try_from(cache.used?).ok()?;
    Some(time.strftime("%Y-%m-%d %H:%M").to_string())
}

fn to_json(cache: &Listed) -> Value {
    let about = cache.about.as_ref();
    json!({
        "path": cache.path.display().to_string(),
        "bytes": cache.bytes,
        "used": cache.used.and_then(|used| jiff::Timestamp::try_from(used).ok()).map(|used| used.to_string()),
        "base": about.map(|about| &about.base),
        "frozen_layers": about.map(|about| about.frozen_layers),
        "layers": about.map(|about| about.layers),
        "compute": about.map(|about| &about.compute),
    })
}
