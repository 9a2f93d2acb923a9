//! What train, eval and predict have in common: from configuration to model, tokenizer and samples.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::split_rows::explain_missing;
use crate::cli::RunArgs;
use crate::config::Config;
use crate::config::data::DataConfig;
use crate::config::model::{ModelConfig, ProblemType, TargetModules};
use crate::config::overrides::Overrides;
use crate::config::train::{ClassWeights, Loss, TuneThresholds};
use crate::console::Console;
use crate::data::formats::Quoting;
use crate::data::table::{Columns, Example, LabelList, abridged, find_labels};
use crate::experiment::base_model::BaseModel;
use crate::kernels::device::Device;
use crate::model::config::BackboneConfig;
use crate::model::lora::{LoraOptions, Targets};
use crate::ops::loss::BceWeights;
use crate::predictor::{self, Predictor};
use crate::run::classifier_file::{Base, ClassifierFile};
use crate::run::directory::newest_finished;
use crate::thresholds::Scope;

/// The adapters of a configuration's `model` section. Without `lora_target_modules` they are in the modules that the
/// family's models usually get them in.
///
/// # Errors
/// If the pattern of target modules does not parse.
pub fn lora_options(model: &ModelConfig, base: &BackboneConfig) -> Result<LoraOptions> {
    let targets = match &model.lora_target_modules {
        Some(TargetModules::Names(names)) => Targets::Names(names.clone()),
        Some(TargetModules::Pattern(pattern)) => Targets::from_pattern(pattern).context("model.lora_target_modules")?,
        None if base.default_targets.is_empty() => Targets::AllLinear,
        None => Targets::names(base.default_targets),
    };
    let lora = LoraOptions::new(model.lora_r, model.lora_alpha, model.lora_dropout, targets);
    Ok(LoraOptions { use_rslora: model.use_rslora, ..lora })
}

/// Tokens after which texts are cut: `data.max_length`, or without it 1,024, and no more than the base can take.
#[must_use]
pub fn max_length(data: &DataConfig, base: &BaseModel, console: Console) -> usize {
    let usual = DataConfig::MAX_LENGTH;
    match (data.max_length, base.config.max_tokens) {
        (Some(given), _) => given,
        (None, Some(longest)) if longest < usual => {
            console.say(format!("data.max_length is not set: {longest}, the most that `{}` can take", base.files.name));
            longest
        }
        (None, _) => usual,
    }
}

/// The columns that a configuration's `data` section names; labels are found if it names none.
///
/// # Errors
/// If the training file cannot be read or has no label columns.
pub fn columns(data: &DataConfig, console: Console) -> Result<Columns> {
    let list = data.labels_column.as_ref().map(|column| LabelList {
        column: column.clone(),
        separator: data.label_separator.clone(),
        order: None,
    });
    let mut columns = Columns {
        id: data.id_column.clone(),
        text_fields: data.text_fields.clone(),
        text: data.target_text_column.clone(),
        labels: data.label_columns.clone().unwrap_or_default(),
        label_list: list,
        quoting: data.quoting,
        ..Columns::default()
    };
    if columns.labels.is_empty() {
        let found = find_labels(&data.train_csv, &columns).map_err(explain_missing)?;
        columns.labels_were_found = columns.label_list.is_none();
        columns.labels = found.labels;
        let what = match &mut columns.label_list {
            Some(list) => {
                // The other splits are read as the training rows are.
                list.separator.clone_from(&found.listing.separator);
                format!("that `{}` names, {}", list.column, found.listing.describe())
            }
            None => "columns that hold only 0 and 1".to_owned(),
        };
        console.say(format!("labels: {} {what}: {}", columns.labels.len(), abridged(&columns.labels)));
        found.doubts.into_iter().for_each(|doubt| console.warn(doubt));
    }
    Ok(columns)
}

/// A positive counts for at most this much, if weights are balanced.
const MAX_BALANCED_WEIGHT: f32 = 10.0;

/// The weights of the training loss, for labels as they stand in the training rows.
///
/// # Errors
/// If a weight is given for a label that is not there, or for a problem that has none.
pub fn loss_weights(config: &Config, labels: &[String], train: &[Example]) -> Result<BceWeights> {
    let settings = &config.train;
    let gamma = if settings.loss == Loss::Focal { settings.focal_gamma as f32 } else { 0.0 };
    let is_plain = settings.class_weights == ClassWeights::None && settings.loss == Loss::Bce;
    ensure!(
        is_plain || config.model.problem_type == ProblemType::MultiLabel,
        "train.class_weights and train.loss do not apply to single_label_classification"
    );
    let positive = match &settings.class_weights {
        ClassWeights::None => None,
        ClassWeights::Balanced => Some(
            (0..labels.len())
                .map(|label| {
                    let positives = train.iter().filter(|example| example.labels[label] > 0.5).count();
                    // A label without positives has no term that a weight could change.
                    let ratio = (train.len() - positives) as f32 / positives.max(1) as f32;
                    if positives == 0 { 1.0 } else { ratio.min(MAX_BALANCED_WEIGHT) }
                })
                .collect(),
        ),
        ClassWeights::Given(weights) => {
            let mut positive = vec![1.0; labels.len()];
            for (name, weight) in weights {
                let label = labels.iter().position(|label| label == name);
                let label = label.with_context(|| {
                    format!("train.class_weights: no label `{name}`; there are {}", labels.join(", "))
                })?;
                positive[label] = *weight as f32;
            }
            Some(positive)
        }
    };
    Ok(BceWeights { positive, gamma })
}

/// Which thresholds are to be found.
#[must_use]
pub fn scope(tune: TuneThresholds) -> Option<Scope> {
    match tune {
        TuneThresholds::None => None,
        TuneThresholds::Global => Some(Scope::Global),
        TuneThresholds::PerLabel => Some(Scope::PerLabel),
    }
}

/// The classifier that a command's flags name.
pub struct Loaded {
    /// The classifier.
    pub predictor: Predictor,
    /// The configuration of its run, or the one given for a peft directory.
    pub config: Option<Config>,
    overrides: Overrides,
}

impl Loaded {
    /// Finds and loads the classifier that the flags name.
    ///
    /// # Errors
    /// If there is none, or a part of it does not fit the others.
    pub fn open(args: &RunArgs, device: &Device, console: Console) -> Result<Self> {
        let given = selecting_config(args)?;
        let run = match &args.run {
            Some(run) => run.clone(),
            None => newest_run(args, given.as_ref())?,
        };
        let trained = predictor::find(&run)?;
        console.say(format!("using {}", trained.adapter.display()));
        let run_config = trained.config.as_deref().map(Config::of_run).transpose()?;
        let file = ClassifierFile::load(&trained.adapter)?;
        // A directory of peft's has nothing that governs but the given configuration, `--set` and all.
        let (given, overrides) = match &file {
            Some(_) => (given, Overrides::read(&args.config.set)?),
            None => (super::load_config(&args.config)?, Overrides::default()),
        };
        // The run's own configuration governs; the given one only selects, and brings a token.
        let config = run_config.or_else(|| given.clone());
        let mut model = match (&file, &config) {
            (Some(file), _) => predictor::model_of(file)?,
            (None, Some(config)) => config.model.clone(),
            (None, None) => bail!(
                "{}: has no classifier.json, as a directory saved by peft; name base and labels with --config",
                trained.adapter.display()
            ),
        };
        model.hf_token = given.as_ref().or(config.as_ref()).and_then(|config| config.model.hf_token.clone());
        if let Some(name) = &overrides.model_name {
            model.model_name.clone_from(name);
        }
        let base = BaseModel::open(&model, device, console).with_context(|| {
            format!(
                "the base of {} cannot be used; --set model.model_name=DIR says where it lies now",
                trained.adapter.display()
            )
        })?;
        let is_of_a_run = file.is_some();
        let file = match (file, &config) {
            (Some(file), _) => {
                predictor::ensure_base(&trained, &file, &base, console)?;
                file
            }
            (None, Some(config)) => {
                let max_length = max_length(&config.data, &base, console);
                describe(config, columns(&config.data, console)?, max_length, base.record(console)?)
            }
            (None, None) => unreachable!("refused above"),
        };
        Ok(Self { predictor: Predictor::open(trained, file, is_of_a_run, &base)?, config, overrides })
    }

    /// The columns of the rows that a command was given: those of training, as `--set` changes them.
    ///
    /// # Errors
    /// If `--set` names labels that are not the classifier's.
    pub fn columns(&self, with_labels: bool) -> Result<Columns> {
        let Overrides { id_column, text_fields, target_text_column, .. } = &self.overrides;
        let mut columns = self.training_columns(with_labels);
        columns.quoting = self.overrides.quoting.unwrap_or(columns.quoting);
        if let Some(id) = id_column {
            columns.id_may_be_absent = false;
            columns.id.clone_from(id);
        }
        if let Some(fields) = text_fields {
            columns.text_fields.clone_from(fields);
        }
        if let Some(text) = target_text_column {
            columns.text.clone_from(text);
            // The text is one column, unless fields are given with it.
            columns.text_fields = text_fields.clone().flatten();
        }
        if with_labels {
            self.override_labels(&mut columns)?;
        }
        Ok(columns)
    }

    /// The columns of the rows that the classifier was trained on.
    #[must_use]
    pub fn training_columns(&self, with_labels: bool) -> Columns {
        let list = self.predictor.file.labels_column.as_ref().map(|column| LabelList {
            column: column.clone(),
            separator: self.predictor.file.label_separator.clone(),
            order: None,
        });
        Columns {
            id: self.predictor.file.id_column.clone(),
            id_may_be_absent: true,
            text_fields: self.predictor.file.text_fields.clone(),
            text: self.predictor.file.target_text_column.clone(),
            labels: if with_labels { self.predictor.file.labels.clone() } else { Vec::new() },
            label_list: list,
            labels_were_found: false,
            quoting: self.config.as_ref().map_or(Quoting::Standard, |config| config.data.quoting),
        }
    }

    fn override_labels(&self, columns: &mut Columns) -> Result<()> {
        let Overrides { label_columns, labels_column, label_separator, .. } = &self.overrides;
        if let Some(names) = label_columns.iter().flatten().next() {
            let known = &self.predictor.file.labels;
            for (names, others, what) in
                [(names, known, "is no label of the classifier"), (known, names, "is left out")]
            {
                if let Some(name) = names.iter().find(|name| !others.contains(name)) {
                    bail!("--set data.label_columns: `{name}` {what}; its labels are {}", abridged(known));
                }
            }
            if labels_column.is_none() {
                columns.label_list = None;
            }
        }
        if let Some(column) = labels_column {
            columns.label_list =
                column.as_ref().map(|column| LabelList { column: column.clone(), ..LabelList::default() });
        }
        match (&mut columns.label_list, label_separator) {
            (Some(list), Some(separator)) => {
                ensure!(separator.as_deref() != Some(""), "--set data.label_separator: is empty");
                list.separator.clone_from(separator);
            }
            (None, Some(Some(_))) => {
                bail!("--set data.label_separator: set data.labels_column, too, which it separates")
            }
            _ => {}
        }
        if let Some(list) = &mut columns.label_list {
            list.order = label_columns.clone().flatten();
        }
        Ok(())
    }

    /// Rows in a batch: as asked, or as the run evaluated.
    #[must_use]
    pub fn batch_size(&self, args: &RunArgs) -> usize {
        let of_run = self.config.as_ref().map_or(8, |config| config.train.eval_batch_size());
        args.batch_size.or(self.overrides.eval_batch_size).unwrap_or(of_run).max(1)
    }
}

/// The configuration that selects a run: `--set` is for the classifier, unless the files are not whole without.
fn selecting_config(args: &RunArgs) -> Result<Option<Config>> {
    if args.config.config.is_empty() {
        return Ok(None);
    }
    let mut config =
        Config::load(&args.config.config, &[]).or_else(|_| Config::load(&args.config.config, &args.config.set))?;
    if let Some(root) = &args.config.override_output_root {
        config.exp.output_root.clone_from(root);
    }
    Ok(Some(config))
}

fn newest_run(args: &RunArgs, given: Option<&Config>) -> Result<PathBuf> {
    let default = PathBuf::from("outputs");
    let root = args.config.override_output_root.as_ref();
    let root = root.or(given.map(|config| &config.exp.output_root)).unwrap_or(&default);
    newest_finished(root, given.map(|config| (config.model.model_name.as_str(), config.data.dataset_name.as_str())))
}

/// `classifier.json` for a model that a configuration describes.
#[must_use]
pub fn describe(config: &Config, columns: Columns, max_length: usize, base: Base) -> ClassifierFile {
    let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    ClassifierFile {
        format_version: ClassifierFile::VERSION,
        thresholds: vec![0.5; columns.labels.len()],
        labels: columns.labels,
        problem_type: text(serde_json::json!(config.model.problem_type)),
        text_fields: config.data.text_fields.clone(),
        target_text_column: config.data.target_text_column.clone(),
        id_column: config.data.id_column.clone(),
        labels_column: config.data.labels_column.clone(),
        label_separator: columns.label_list.and_then(|list| list.separator),
        max_length,
        base,
        random_init: config.model.random_init,
        init_seed: config.model.init_seed,
        torch_dtype: text(serde_json::json!(config.model.torch_dtype)),
        compute: text(serde_json::json!(config.model.compute)),
        use_4bit: config.model.use_4bit,
    }
}
