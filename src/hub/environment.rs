//! Settings that the Hub's tools take from the environment.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::file_identity;

fn set(key: &str) -> Option<String> {
    env::var(key).ok().filter(|value| !value.is_empty())
}

/// Returns true if HF_HUB_OFFLINE is set.
pub(super) fn is_offline() -> bool {
    set("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.to_lowercase().as_str(), "0" | "off" | "false" | "no"))
}

/// Where the Hub's tools keep their files.
fn home() -> Option<PathBuf> {
    let base = || file_identity::user_cache().map(|cache| cache.join("huggingface"));
    set("HF_HOME").map(PathBuf::from).or_else(base)
}

/// The directory of downloaded repositories.
pub(super) fn cache_directory() -> Result<PathBuf> {
    let default = || home().map(|home| home.join("hub"));
    set("HF_HUB_CACHE").map(PathBuf::from).or_else(default).context("no home directory; set HF_HOME")
}

/// The token of HF_TOKEN, or the one that the `hf` command stored.
pub(super) fn token() -> Option<String> {
    let stored = || {
        let path = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home().map(|home| home.join("token")))?;
        let token = fs::read_to_string(path).ok()?.trim().to_owned();
        (!token.is_empty()).then_some(token)
    };
    set("HF_TOKEN").or_else(stored)
}

/// The time without a byte after which a connection counts as stalled.
pub(super) fn stall_timeout() -> Duration {
    let seconds =
        set("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok()).filter(|&seconds: &u64| seconds > 0);
    Duration::from_secs(seconds.unwrap_or(30))
}

pub(super) fn endpoint() -> Result<String> {
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
        bail!("HF_ENDPOINT is `{endpoint}`, expected an address such as https://huggingface.co");
    }
    Ok(endpoint)
}
