//! Fingerprints of a base: SHA-256 over all that decides what it computes, to tell whether it has changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::digest_cache::{self, Digests};
use super::tensor_in_file::TensorInFile;
use super::weights::{Checkpoint, Weights};
use crate::atomic_file::hex;
use crate::console::{Console, bytes};
use crate::kernels::cpu::memory::release_pages;

/// Bytes that are hashed before their pages are given back.
const PIECE: usize = 16 << 20;
/// Weights from which on the first reading takes long enough to say so.
const WORTH_SAYING: usize = 2 << 30;
/// Keys of `config.json` that say who wrote it and how the weights are stored, not what they compute.
const BOOKKEEPING: [&str; 4] = ["_name_or_path", "transformers_version", "torch_dtype", "dtype"];

/// Digests of a base's parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// `config.json` as parsed: neither white space nor the order of its keys counts.
    pub configuration: String,
    /// Names, shapes, dtypes and all bytes of the tensors; or the seed of random weights.
    pub weights: String,
    /// The tokenizer's files, JSON as parsed.
    pub tokenizer: String,
    /// The beginning of each tensor's digest, to tell which one has changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: BTreeMap<String, String>,
}

impl Fingerprint {
    /// Takes the fingerprint of a base. Digests of large files come from the user's cache if they are there.
    pub fn new(config: &Path, weights: &Weights, tokenizer: &[PathBuf], console: Console) -> Result<Self> {
        let (weights, tensors) = of_weights(weights, console);
        Ok(Self { configuration: of_configuration(config)?, weights, tokenizer: of_tokenizer(tokenizer)?, tensors })
    }

    /// The parts that differ.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let parts = [
            ("configuration (config.json)", &self.configuration, &other.configuration),
            ("weights", &self.weights, &other.weights),
            ("tokenizer", &self.tokenizer, &other.tokenizer),
        ];
        parts.into_iter().filter(|(_, own, other)| own != other).map(|(name, ..)| name).collect()
    }

    /// The tensors that differ or are in one of both only, as far as both know theirs.
    #[must_use]
    pub fn changed_tensors<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        if self.tensors.is_empty() || other.tensors.is_empty() {
            return Vec::new();
        }
        let mut names: Vec<&str> = self.tensors.keys().chain(other.tensors.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| self.tensors.get(*name) != other.tensors.get(*name));
        names
    }
}

/// The fingerprint of older versions: the configuration's bytes, and the first 256 bytes of each tensor.
pub fn sampled(config: &Path, weights: &Weights) -> Result<String> {
    const SAMPLE: usize = 256;
    let config = fs::read(config).with_context(|| format!("{}: cannot read", config.display()))?;
    let mut hash = Sha256::new_with_prefix(config);
    match weights {
        Weights::Checkpoint(checkpoint) => {
            for (name, tensor) in checkpoint.tensors() {
                hash.update(format!("{name} {:?} {:?}", tensor.dtype, tensor.shape));
                let bytes = tensor.bytes();
                hash.update(&bytes[..SAMPLE.min(bytes.len())]);
            }
        }
        Weights::Random { seed, std, .. } => hash.update(format!("random {seed} {std}")),
    }
    Ok(hex(&hash.finalize()))
}

fn of_configuration(path: &Path) -> Result<String> {
    let text = fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let mut value: Value =
        serde_json::from_slice(&text).with_context(|| format!("{}: not valid JSON", path.display()))?;
    if let Some(keys) = value.as_object_mut() {
        BOOKKEEPING.iter().for_each(|key| drop(keys.remove(*key)));
    }
    Ok(of_value(&value))
}

fn of_tokenizer(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hash.update(format!("{name:?} {}\n", of_file(path)?));
    }
    Ok(hex(&hash.finalize()))
}

/// The digest of a file's contents: of what JSON says, of any other file's bytes.
fn of_file(path: &Path) -> Result<String> {
    const WHOLE: &str = "";
    let identity = digest_cache::identity(path);
    if let Some(digest) = identity.as_ref().and_then(digest_cache::load).and_then(|mut known| known.remove(WHOLE)) {
        return Ok(digest);
    }
    let contents = fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let digest = match serde_json::from_slice::<Value>(&contents) {
        Ok(value) => of_value(&value),
        Err(_) => hex(&Sha256::digest(&contents)),
    };
    if let Some(identity) = identity {
        digest_cache::store(path, &identity, Digests::from([(WHOLE.to_owned(), digest.clone())]));
    }
    Ok(digest)
}

fn of_value(value: &Value) -> String {
    let mut text = Vec::new();
    write_sorted(value, &mut text);
    hex(&Sha256::digest(&text))
}

/// JSON without white space, keys in order.
fn write_sorted(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(entries) => {
            let sorted: BTreeMap<&String, &Value> = entries.iter().collect();
            out.push(b'{');
            for (key, value) in sorted {
                out.extend(Value::from(key.as_str()).to_string().bytes());
                out.push(b':');
                write_sorted(value, out);
                out.push(b',');
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for item in items {
                write_sorted(item, out);
                out.push(b',');
            }
            out.push(b']');
        }
        leaf => out.extend(leaf.to_string().bytes()),
    }
}

/// One digest over all, and the beginning of each tensor's own.
fn of_weights(weights: &Weights, console: Console) -> (String, BTreeMap<String, String>) {
    /// Digits that tell a tensor from the one it was; whether all are the same is for the whole digest to say.
    const SHOWN: usize = 12;
    let mut hash = Sha256::new();
    let mut tensors = BTreeMap::new();
    match weights {
        Weights::Random { seed, std, .. } => hash.update(format!("random {seed} {std}")),
        Weights::Checkpoint(checkpoint) => {
            let digests = of_tensors(checkpoint, console);
            for (name, tensor) in checkpoint.tensors() {
                let line = format!("{name:?} {:?} {:?} {}\n", tensor.dtype, tensor.shape, digests[name]);
                hash.update(&line);
                tensors.insert(name.to_owned(), hex(&Sha256::digest(&line))[..SHOWN].to_owned());
            }
        }
    }
    (hex(&hash.finalize()), tensors)
}

/// A digest a tensor, from the cache where it has a file's, else of the bytes, in parallel.
fn of_tensors(checkpoint: &Checkpoint, console: Console) -> Digests {
    let mut digests = Digests::new();
    let mut unknown = Vec::new();
    for (path, identity) in checkpoint.files() {
        let tensors: Vec<(&str, &TensorInFile)> =
            checkpoint.tensors().filter(|(_, tensor)| tensor.path == *path).collect();
        let known = identity.as_ref().and_then(digest_cache::load);
        match known.filter(|known| tensors.iter().all(|(name, _)| known.contains_key(*name))) {
            Some(known) => digests.extend(known),
            None => unknown.push((path, identity, tensors)),
        }
    }
    let total: usize = unknown.iter().flat_map(|(.., tensors)| tensors).map(|(_, tensor)| tensor.bytes.len()).sum();
    if total >= WORTH_SAYING {
        console.say(format!("reading all {} of the base once, to recognise it later", bytes(total as u64)));
    }
    for (path, identity, tensors) in unknown {
        let found: Digests = tensors.par_iter().map(|(name, tensor)| ((*name).to_owned(), of_tensor(tensor))).collect();
        digests.extend(found.clone());
        if let Some(identity) = identity {
            digest_cache::store(path, identity, found);
        }
    }
    digests
}

fn of_tensor(tensor: &TensorInFile) -> String {
    let mut hash = Sha256::new();
    let mut start = tensor.bytes.start;
    while start < tensor.bytes.end {
        let end = tensor.bytes.end.min(start + PIECE);
        hash.update(&tensor.file[start..end]);
        release_pages(&tensor.file, start..end);
        start = end;
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_order_and_bookkeeping_do_not_count_and_values_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let digest = |text: &str| {
            fs::write(&path, text).unwrap();
            of_configuration(&path).unwrap()
        };
        let first = digest(r#"{"a":1,"rms_norm_eps":1e-06,"rope":{"x":[1,2],"y":null}}"#);
        let same =
            r#"{ "rope": {"y": null, "x": [1, 2]}, "rms_norm_eps": 0.000001, "a": 1, "transformers_version": "5.0" }"#;
        assert_eq!(first, digest(same));
        for other in [
            r#"{"a":1,"rms_norm_eps":1e-05,"rope":{"x":[1,2],"y":null}}"#,
            r#"{"a":1,"rms_norm_eps":1e-06,"rope":{"x":[2,1],"y":null}}"#,
            r#"{"a":1,"rms_norm_eps":1e-06,"rope":{"x":[1,2]}}"#,
        ] {
            assert_ne!(first, digest(other), "{other}");
        }
    }

    #[test]
    fn every_byte_of_every_tensor_counts() {
        use safetensors::tensor::{Dtype, TensorView};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let digest = |name: &str, shape: [usize; 2], bytes: &[u8]| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
            let other = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
            let file = safetensors::serialize([(name, view), ("other", other)], None).unwrap();
            // A new file: the old one is mapped.
            let _ = fs::remove_file(&path);
            fs::write(&path, file).unwrap();
            let weights = Weights::Checkpoint(Checkpoint::open(std::slice::from_ref(&path)).unwrap());
            of_weights(&weights, Console::new(true)).0
        };
        let mut bytes = vec![3; 4 * 600];
        let first = digest("a", [20, 30], &bytes);
        assert_eq!(first, digest("a", [20, 30], &bytes));
        assert_ne!(first, digest("b", [20, 30], &bytes));
        assert_ne!(first, digest("a", [30, 20], &bytes));
        for index in [0, 255, 256, 1200, 2399] {
            bytes[index] ^= 1;
            assert_ne!(first, digest("a", [20, 30], &bytes), "byte {index}");
            bytes[index] ^= 1;
        }
    }
}
