//! `llmcls bundle`: one program that carries a classifier.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::loaded::Loaded;
use crate::atomic_file;
use crate::cli::BundleArgs;
use crate::console::{Console, bytes};
use crate::embedded::{self, Part};
use crate::kernels::device::Device;
use crate::predictor::{BASE, CLASSIFIER};
use crate::run::model_directory::without_paths;
use crate::run::model_weights;

/// Files of a classifier's directory, as far as they are there. `classifier.json` is written anew.
const CLASSIFIER_FILES: [&str; 6] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "README.md",
];

/// Bundles.
///
/// # Errors
/// If the classifier cannot be used, or the file cannot be written.
pub fn run(args: &BundleArgs, console: Console) -> Result<()> {
    ensure!(
        !cfg!(target_os = "macos"),
        "bundle: macOS runs no program with bytes behind its signature; export the model, and install llmcls there"
    );
    let loaded = Loaded::open(&args.run, &Device::cpu(), console)?;
    let parts = parts(&loaded)?;
    let inputs = parts.values().filter_map(|part| match part {
        Part::File(path) => Some(path.as_path()),
        Part::Bytes(_) => None,
    });
    let program = std::env::current_exe().context("cannot find this program")?;
    atomic_file::refuse_input_as_output(&args.out, inputs.chain([program.as_path()]))?;
    let mut size = 0;
    atomic_file::write_file(&args.out, |writer| {
        size = embedded::write(writer, &parts)?;
        Ok(())
    })?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&args.out, std::fs::Permissions::from_mode(0o755))?;
    }
    console.say(format!("wrote {} ({})", args.out.display(), bytes(size)));
    let name = if args.out.is_absolute() { args.out.clone() } else { Path::new(".").join(&args.out) };
    console.say(format!("use it: {} predict --text \"…\"", name.display()));
    Ok(())
}

fn parts(loaded: &Loaded) -> Result<BTreeMap<String, Part>> {
    let trained = &loaded.predictor.trained;
    let mut parts = BTreeMap::new();
    let mut add = |directory: &str, from: &Path| {
        let Some(name) = from.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
        // Of a program that carries a classifier itself.
        let part = match embedded::contains(from) {
            true => Part::Bytes(embedded::read(from).with_context(|| format!("{}: cannot read", from.display()))?),
            false => Part::File(from.to_owned()),
        };
        parts.insert(format!("{directory}/{name}"), part);
        anyhow::Ok(())
    };
    let files = &loaded.base.files;
    let directory = if trained.is_complete() { CLASSIFIER } else { BASE };
    for file in [&files.config].into_iter().chain(&files.weights).chain(&files.tokenizer) {
        add(directory, file)?;
    }
    if files.weights.len() > 1 || files.weights.first().is_some_and(|file| !file.ends_with(model_weights::WEIGHTS)) {
        let index = files.config.with_file_name(model_weights::INDEX);
        add(directory, &index)?;
    }
    for name in CLASSIFIER_FILES {
        let path = trained.adapter.join(name);
        if embedded::is_file(&path) {
            add(CLASSIFIER, &path)?;
        }
    }
    let description = serde_json::to_vec_pretty(&without_paths(&loaded.predictor.file))?;
    parts.insert(format!("{CLASSIFIER}/classifier.json"), Part::Bytes(description));
    Ok(parts)
}
