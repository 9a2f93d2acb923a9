//! `llmcls bundle`: one program that carries a classifier.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::loaded::Loaded;
use super::probes;
use crate::atomic_file::{self, Temporary};
use crate::cli::BundleArgs;
use crate::console::{Console, bytes};
use crate::embedded::{self, Part};
use crate::experiment::base_model::BaseModel;
use crate::gguf;
use crate::kernels::device::Device;
use crate::model::weights::{Checkpoint, Weights};
use crate::predictor::{BASE, CLASSIFIER, Predictor};
use crate::run::classifier_file::ClassifierFile;
use crate::run::int8_file;
use crate::run::model_directory::without_paths;
use crate::run::model_weights;

/// Files of a classifier's directory, as far as they are there. `classifier.json` is written anew.
const CLASSIFIER_FILES: [&str; 7] = [
    int8_file::NAME,
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
    ensure!(
        !loaded.base.files.weights.iter().any(|file| gguf::is_gguf(file)),
        "bundle: {} is a GGUF file, which no program carries; bundle what `llmcls export` makes of this run",
        loaded.base.files.name
    );
    let int8 = if args.int8 { Some(in_8_bits(&loaded, &args.out, console)?) } else { None };
    let parts = parts(&loaded, int8.as_ref().map(Temporary::path))?;
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

/// Writes the base's weights in 8 bits beside the program, and says what that changes.
fn in_8_bits(loaded: &Loaded, out: &Path, console: Console) -> Result<Temporary> {
    const WORTH_A_WARNING: f32 = 0.01;
    let (predictor, base) = (&loaded.predictor, &loaded.base);
    ensure!(!base.storage.is_4bit, "--int8: this classifier was trained on a base in 4 bits; leave --int8 out");
    let bytes = predictor.classifier.base_in_8_bits(&base.weights).context("--int8")?;
    let directory = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = Temporary::made_of(out, directory, "safetensors");
    fs::write(file.path(), bytes).map_err(|error| anyhow!("{}: cannot write: {error}", out.display()))?;

    let mut model = predictor.file.model_config()?;
    model.model_name = base.files.config.parent().unwrap_or(Path::new(".")).display().to_string();
    let mut rounded = BaseModel::open(&model, &Device::cpu(), Console::new(true))?;
    rounded.weights = Weights::Checkpoint(Checkpoint::open(&[file.path().to_owned()])?);
    let is_of_a_run = ClassifierFile::is_in(&predictor.trained.adapter);
    let rounded = Predictor::open(predictor.trained.clone(), predictor.file.clone(), is_of_a_run, &rounded)?;
    let difference = probes::largest_difference(predictor, &rounded)?;
    let said = format!("in 8 bits a probability differs by up to {difference:.1e} on texts made of the labels");
    match difference > WORTH_A_WARNING {
        true => console.warn(said),
        false => console.say(said),
    }
    Ok(file)
}

/// Collects what the program will carry. If `weights` is given, that file replaces the base's own weights.
fn parts(loaded: &Loaded, weights: Option<&Path>) -> Result<BTreeMap<String, Part>> {
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
    for file in [&files.config].into_iter().chain(&files.tokenizer) {
        add(directory, file)?;
    }
    if weights.is_none() {
        files.weights.iter().try_for_each(|file| add(directory, file))?;
        if files.weights.len() > 1 || files.weights.first().is_some_and(|file| !file.ends_with(model_weights::WEIGHTS))
        {
            add(directory, &files.config.with_file_name(model_weights::INDEX))?;
        }
    }
    // What int8 costs was measured with the base's own weights.
    for name in CLASSIFIER_FILES.into_iter().filter(|&name| weights.is_none() || name != int8_file::NAME) {
        let path = trained.adapter.join(name);
        if embedded::is_file(&path) {
            add(CLASSIFIER, &path)?;
        }
    }
    let description = serde_json::to_vec_pretty(&without_paths(&loaded.predictor.file))?;
    parts.insert(format!("{CLASSIFIER}/classifier.json"), Part::Bytes(description));
    if let Some(weights) = weights {
        parts.insert(format!("{directory}/{}", model_weights::WEIGHTS), Part::File(weights.to_owned()));
    }
    Ok(parts)
}
