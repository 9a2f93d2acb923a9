//! Going on with a run: what it was given must be what it is given now.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::artifacts::run_dir::SeedDir;
use crate::atomic_file::{self, sha256};
use crate::cli::ConfigArgs;
use crate::config::Config;
use crate::config::model::ComputeType;
use crate::console::Console;
use crate::training::checkpoint;

/// Keys that may change while a run is stopped: they change nothing that it computes.
const MAY_CHANGE: [&str; 6] = [
    "exp.output_root",
    "exp.run_name",
    "train.eval_batch_size",
    "train.report_to",
    "train.save_steps",
    "train.save_total_limit",
];

/// The configuration of a run, with what the flags change of it.
///
/// # Errors
/// If the run has none, or a flag changes a key that decides the result; the error shows each.
pub(super) fn configuration(run: &Path, args: &ConfigArgs) -> Result<Config> {
    let path = run.join("config.yaml");
    ensure!(path.is_file(), "{}: not a run: it has no config.yaml", run.display());
    let recorded = Config::of_run(&path)?;
    let mut files = vec![path];
    files.extend(args.config.iter().cloned());
    let mut wanted = Config::load(&files, &args.set)?;
    if wanted.model.compute == ComputeType::Auto {
        wanted.model.compute = recorded.model.compute;
    }
    refuse_changes(run, &json!(recorded), &json!(wanted))?;
    Ok(wanted)
}

/// What decides a run's result, for its checkpoints.
///
/// # Errors
/// If a data file cannot be read.
pub(super) fn inputs(config: &Config, base_fingerprint: &str) -> Result<Value> {
    let data = &config.data;
    let mut hashes = Map::new();
    let files =
        [("train_csv", Some(&data.train_csv)), ("val_csv", Some(&data.val_csv)), ("test_csv", data.test_csv.as_ref())];
    for (name, path) in files.into_iter().filter_map(|(name, path)| Some((name, path?))) {
        hashes.insert(name.to_owned(), json!(sha256(path)?));
    }
    Ok(json!({
        "config": config,
        "sha256 of data": hashes,
        "base model": base_fingerprint,
        "llmcls": env!("CARGO_PKG_VERSION"),
    }))
}

/// Checks that a run's checkpoints were made of the same.
///
/// # Errors
/// Shows what differs.
pub(super) fn check_inputs(run: &Path, now: &Value) -> Result<()> {
    for entry in std::fs::read_dir(run).with_context(|| format!("{}: cannot read", run.display()))? {
        let seed = entry?.path();
        if !seed.is_dir() {
            continue;
        }
        for (_, path) in checkpoint::list(&seed)? {
            let then = checkpoint::inputs(&path)?;
            refuse_changes(run, &then["config"], &now["config"])?;
            refuse_changes(run, &without_config(&then), &without_config(now))?;
        }
    }
    Ok(())
}

/// The result of a seed, if it is finished.
///
/// # Errors
/// If the file is there and not valid.
pub(super) fn finished_seed(directory: &SeedDir) -> Result<Option<Value>> {
    let path = directory.result();
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(Some(serde_json::from_str(&text).with_context(|| format!("{}: not valid JSON", path.display()))?))
}

/// The newest checkpoint of a seed, if it has one.
///
/// # Errors
/// If the directory cannot be read.
pub(super) fn newest_checkpoint(directory: &SeedDir, console: Console) -> Result<Option<std::path::PathBuf>> {
    atomic_file::sweep(directory.path(), "");
    let newest = checkpoint::list(directory.path())?.pop();
    if let Some((_, path)) = &newest {
        console.say(format!("resuming from {}", path.display()));
    }
    Ok(newest.map(|(_, path)| path))
}

fn without_config(inputs: &Value) -> Value {
    let mut rest = inputs.clone();
    if let Some(rest) = rest.as_object_mut() {
        rest.remove("config");
    }
    rest
}

fn refuse_changes(run: &Path, then: &Value, now: &Value) -> Result<()> {
    let mut changes = Vec::new();
    differences("", then, now, &mut changes);
    // Before there was a key for it, every run computed in f32.
    let is_older = |key: &str, then: &Value, now: &Value| {
        key == "model.compute" && then.is_null() && now == &json!(ComputeType::Float32)
    };
    changes.retain(|(key, then, now)| !MAY_CHANGE.contains(&key.as_str()) && !is_older(key, then, now));
    if changes.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = changes.iter().map(|(key, then, now)| format!("{key}: was {then}, is {now}")).collect();
    bail!(
        "{}: cannot go on, because what the run was started with has changed:\n  {}\nPut it back, or start a new run",
        run.display(),
        shown.join("\n  ")
    )
}

/// The leaves in which two trees differ, by their dotted names.
fn differences(name: &str, then: &Value, now: &Value, out: &mut Vec<(String, Value, Value)>) {
    if let (Value::Object(then), Value::Object(now)) = (then, now) {
        let mut keys: Vec<&String> = then.keys().chain(now.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            differences(&name, then.get(key).unwrap_or(&Value::Null), now.get(key).unwrap_or(&Value::Null), out);
        }
    } else if then != now {
        out.push((name.to_owned(), then.clone(), now.clone()));
    }
}
