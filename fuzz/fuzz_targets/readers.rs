//! The first byte chooses the reader, the rest is the file.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

#[allow(dead_code, reason = "the examples are for scripts/fuzz")]
#[path = "../../tests/readers.rs"]
mod readers;

static DIRECTORY: OnceLock<TempDir> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = readers::chosen(data) else { return };
    let directory = DIRECTORY.get_or_init(|| tempfile::tempdir().expect("a temporary directory"));
    let _ = readers::read(kind, bytes, directory.path());
});
