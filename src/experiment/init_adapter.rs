//! `model.init_adapter`: training starts from an adapter, which must fit the configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::base_model::BaseModel;
use crate::config::model::ModelConfig;
use crate::console::Console;
use crate::data::table::abridged;
use crate::model::classifier::Classifier;
use crate::model::lora::{AdapterShape, LoraOptions};
use crate::run::adapter;
use crate::run::classifier_file::ClassifierFile;
use crate::run::trained::find_verified;

/// An adapter that training starts from.
pub struct InitAdapter {
    directory: PathBuf,
    tensors: adapter::Stored,
    /// For each label its row in the adapter's head; none: the label is new. Without it labels stand in the same order.
    rows: Option<Vec<Option<usize>>>,
}

impl InitAdapter {
    /// Opens the adapter that the configuration names, if it names one, and compares it with the configuration.
    ///
    /// # Errors
    /// If it has another rank, α, targets, rsLoRA, base or number of labels, or a tensor does not fit.
    pub fn open(
        model: &ModelConfig,
        base: &BaseModel,
        labels: &[String],
        lora: &LoraOptions,
        classifier: &Classifier,
        console: Console,
    ) -> Result<Option<Self>> {
        let Some(path) = &model.init_adapter else { return Ok(None) };
        let open = || -> Result<Self> {
            let Found { directory, tensors, file } = find(path, base, lora, classifier, console)?;
            if let Some(file) = &file {
                check_problem(&file.model_config()?, model)?;
                ensure!(
                    file.form == base.form,
                    "it was trained with {}, and the configuration has {}",
                    file.form,
                    base.form
                );
            }
            let rows = match &file {
                Some(file) => Some(match_labels(&file.labels, labels, console)?),
                None => {
                    check_count(&tensors, labels, classifier)?;
                    None
                }
            };
            let opened = Self { directory, tensors, rows };
            opened.apply(classifier)?;
            Ok(opened)
        };
        open().with_context(|| format!("model.init_adapter: {}", path.display())).map(Some)
    }

    /// Opens an adapter as [`InitAdapter::open`] does, for labels without names: they take the head's rows in order,
    /// as far as there are any.
    pub fn open_for_timing(
        model: &ModelConfig,
        base: &BaseModel,
        labels: usize,
        lora: &LoraOptions,
        classifier: &Classifier,
        console: Console,
    ) -> Result<Option<Self>> {
        let Some(path) = &model.init_adapter else { return Ok(None) };
        let open = || -> Result<Self> {
            let Found { directory, tensors, .. } = find(path, base, lora, classifier, console)?;
            let stored = tensors.labels(classifier).unwrap_or(labels);
            let rows = (0..labels).map(|label| (label < stored).then_some(label)).collect();
            Ok(Self { directory, tensors, rows: Some(rows) })
        };
        open().with_context(|| format!("model.init_adapter: {}", path.display())).map(Some)
    }

    /// Sets the classifier's adapters and head; new labels keep their numbers.
    pub fn apply(&self, classifier: &Classifier) -> Result<()> {
        self.tensors
            .set(classifier, self.rows.as_deref())
            .with_context(|| format!("model.init_adapter: {}", self.directory.display()))
    }
}

/// An adapter of the right base and shape.
struct Found {
    directory: PathBuf,
    tensors: adapter::Stored,
    file: Option<ClassifierFile>,
}

/// Opens the adapter in a directory, or the best one of a run or a seed.
fn find(path: &Path, base: &BaseModel, lora: &LoraOptions, classifier: &Classifier, console: Console) -> Result<Found> {
    ensure!(path.is_dir(), "there is no such directory; it must be a peft directory, a run, or a seed of a run");
    let directory = find_verified(path)?.adapter;
    if directory != *path {
        console.say(format!("model.init_adapter: using {}", directory.display()));
    }
    let (theirs, base_name) = adapter::read_config(&directory)?;
    let file = ClassifierFile::load(&directory)?;
    check_base(base, file.as_ref(), base_name.as_deref(), console)?;
    check_shape(&theirs, lora, classifier)?;
    Ok(Found { tensors: adapter::Stored::open(&directory)?, directory, file })
}

/// Refuses an adapter of another base: by the base's fingerprint, or where there is none by its name.
fn check_base(base: &BaseModel, file: Option<&ClassifierFile>, name: Option<&str>, console: Console) -> Result<()> {
    if let Some(file) = file {
        base.ensure_is(&file.base, true, console).with_context(|| {
            format!(
                "it was trained on another base: `{}`, and model.model_name is `{}`",
                file.base.name, base.files.name
            )
        })?;
        return Ok(());
    }
    // A directory's name in place of the Hub's is the same model.
    let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    match name {
        Some(name) if last(name) != last(&base.files.name) => bail!(
            "it was trained on another base: base_model_name_or_path is `{name}`, and model.model_name is `{}`; if they are \
             the same model, write that name into its adapter_config.json",
            base.files.name
        ),
        _ => Ok(()),
    }
}

/// Refuses an adapter that was trained with labels of another kind.
fn check_problem(theirs: &ModelConfig, ours: &ModelConfig) -> Result<()> {
    ensure!(
        theirs.problem_type == ours.problem_type,
        "problem_type is {} there, and model.problem_type is {}",
        json!(theirs.problem_type),
        json!(ours.problem_type)
    );
    Ok(())
}

/// Refuses an adapter of another shape; the error names both values.
fn check_shape(theirs: &LoraOptions, ours: &LoraOptions, classifier: &Classifier) -> Result<()> {
    ensure!(
        theirs.use_rslora == ours.use_rslora,
        "`use_rslora` is {} there, and model.use_rslora is {}",
        theirs.use_rslora,
        ours.use_rslora
    );
    let shapes = || classifier.modules().iter().map(|module| (module, theirs.shape_of(module), ours.shape_of(module)));
    let mut both = shapes().filter_map(|(module, theirs, ours)| Some((module, theirs?, ours?)));
    let differs = |(_, theirs, ours): &(&String, AdapterShape, AdapterShape)| theirs != ours;
    if let Some((module, a, b)) = both.find(differs) {
        let (r, alpha) = (theirs.rank, theirs.alpha);
        ensure!(a.rank == r, "`rank_pattern` gives `{module}` r = {} there, and model.lora_r is {}", a.rank, b.rank);
        ensure!(a.rank == b.rank, "r is {} there, and model.lora_r is {}", a.rank, b.rank);
        ensure!(
            a.alpha == alpha,
            "`alpha_pattern` gives `{module}` lora_alpha = {} there, and model.lora_alpha is {}",
            a.alpha,
            b.alpha
        );
        bail!("lora_alpha is {} there, and model.lora_alpha is {}", a.alpha, b.alpha);
    }
    let only_theirs: Vec<&str> = shapes().filter(|(_, a, b)| a.is_some() && b.is_none()).map(|(m, ..)| &**m).collect();
    let only_ours: Vec<&str> = shapes().filter(|(_, a, b)| a.is_none() && b.is_some()).map(|(m, ..)| &**m).collect();
    ensure!(
        only_theirs.is_empty() && only_ours.is_empty(),
        "it adapts other modules than model.lora_target_modules: only the adapter has {}; only the configuration has {}",
        abridged(&only_theirs),
        abridged(&only_ours)
    );
    Ok(())
}

/// The row of each label in the adapter's head, by name.
fn match_labels(theirs: &[String], ours: &[String], console: Console) -> Result<Vec<Option<usize>>> {
    let rows: Vec<Option<usize>> = ours.iter().map(|label| theirs.iter().position(|other| other == label)).collect();
    ensure!(
        rows.iter().any(Option::is_some),
        "none of its labels ({}) is a label of this run ({})",
        abridged(theirs),
        abridged(ours)
    );
    let new: Vec<&String> = ours.iter().filter(|label| !theirs.contains(label)).collect();
    let dropped: Vec<&String> = theirs.iter().filter(|label| !ours.contains(label)).collect();
    if !new.is_empty() {
        console.warn(format!("model.init_adapter: labels that are new, and start fresh: {}", abridged(&new)));
    }
    if !dropped.is_empty() {
        console
            .warn(format!("model.init_adapter: labels that this run lacks, and are dropped: {}", abridged(&dropped)));
    }
    Ok(rows)
}

/// Without names the number of labels must be the same.
fn check_count(tensors: &adapter::Stored, labels: &[String], classifier: &Classifier) -> Result<()> {
    match tensors.labels(classifier) {
        Some(count) if count != labels.len() => bail!(
            "it has {count} labels, and this run has {} ({}); without a classifier.json their names are not known, so the \
             number must be the same",
            labels.len(),
            abridged(labels)
        ),
        _ => Ok(()),
    }
}
