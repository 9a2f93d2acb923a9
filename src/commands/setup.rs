//! What train, eval and predict have in common: from configuration to model, tokenizer and samples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::artifacts::classifier_file::{Base, ClassifierFile};
use crate::artifacts::run_dir::{Trained, find_trained, newest_finished};
use crate::artifacts::{adapter, manifest};
use crate::cli::RunArgs;
use crate::config::Config;
use crate::config::data::DataConfig;
use crate::config::model::{ModelConfig, ProblemType, TargetModules};
use crate::config::train::{ClassWeights, Loss, TuneThresholds};
use crate::console::Console;
use crate::data::table::{Columns, Example, LabelList, check_single_label, find_labels, read_examples};
use crate::data::tokenize::TextEncoder;
use crate::evaluation::Sample;
use crate::experiment::base_model::BaseModel;
use crate::kernels::device::Device;
use crate::model::classifier::{Classifier, ClassifierOptions, Problem};
use crate::model::lora::{LoraOptions, Targets};
use crate::ops::loss::BceWeights;
use crate::thresholds::Scope;

/// The adapters of a configuration's `model` section.
///
/// # Errors
/// If the pattern of target modules does not parse.
pub fn lora_options(model: &ModelConfig) -> Result<LoraOptions> {
    let targets = match &model.lora_target_modules {
        TargetModules::Names(names) => Targets::Names(names.clone()),
        TargetModules::Pattern(pattern) => Targets::from_pattern(pattern).context("model.lora_target_modules")?,
    };
    Ok(LoraOptions { rank: model.lora_r, alpha: model.lora_alpha, dropout: model.lora_dropout, targets })
}

/// Sets adapters and head from `model.init_adapter`, if it is set: a peft directory of the same shape.
///
/// # Errors
/// If a tensor is missing, or its rank or targets are others.
pub fn start_from_adapter(classifier: &Classifier, model: &ModelConfig) -> Result<()> {
    let Some(path) = &model.init_adapter else { return Ok(()) };
    let context = || format!("model.init_adapter: {}", path.display());
    let (lora, _) = adapter::read_config(path).with_context(context)?;
    ensure!(
        lora.rank == model.lora_r,
        "model.init_adapter: {} has r = {}, the configuration lora_r = {}",
        path.display(),
        lora.rank,
        model.lora_r
    );
    adapter::load(path, classifier).with_context(context)
}

/// What the labels are to each other.
#[must_use]
pub fn problem(problem_type: ProblemType) -> Problem {
    match problem_type {
        ProblemType::MultiLabel => Problem::MultiLabel,
        ProblemType::SingleLabel => Problem::SingleLabel,
    }
}

/// The columns that a configuration's `data` section names; labels are found if it names none.
///
/// # Errors
/// If the training file cannot be read or has no label columns.
pub fn columns(data: &DataConfig, console: Console) -> Result<Columns> {
    let mut columns = Columns {
        id: data.id_column.clone(),
        text_fields: data.text_fields.clone(),
        text: data.target_text_column.clone(),
        labels: data.label_columns.clone().unwrap_or_default(),
        label_list: label_list(data.labels_column.as_ref(), Some(&data.label_separator)),
    };
    if columns.labels.is_empty() {
        let found = find_labels(&data.train_csv, &columns).map_err(explain_missing)?;
        columns.labels = found.labels;
        let what = match &columns.label_list {
            Some(list) => format!("that `{}` names", list.column),
            None => "columns that hold only 0 and 1".to_owned(),
        };
        console.say(format!("labels: {} {what}: {}", columns.labels.len(), columns.labels.join(", ")));
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

fn label_list(column: Option<&String>, separator: Option<&String>) -> Option<LabelList> {
    let separator = separator.map_or_else(|| ",".to_owned(), String::clone);
    column.map(|column| LabelList { column: column.clone(), separator })
}

/// Reads a split.
///
/// # Errors
/// If a row is malformed, there is none, or a single-label row has not exactly one label.
pub fn read_split(
    path: &Path,
    columns: &Columns,
    limit: Option<usize>,
    problem: Problem,
    console: Console,
) -> Result<Vec<Example>> {
    let (examples, unknown) = read_examples(path, columns, limit).map_err(explain_missing)?;
    if !unknown.is_empty() {
        let shown: Vec<String> = unknown.iter().take(10).map(|(label, rows)| format!("{label} ({rows})")).collect();
        console.warn(format!(
            "{}: {} labels are listed that are not among the classifier's, and left out: {}{}",
            path.display(),
            unknown.len(),
            shown.join(", "),
            if unknown.len() > shown.len() { ", …" } else { "" }
        ));
    }
    if problem == Problem::SingleLabel {
        check_single_label(path, &examples)?;
    }
    Ok(examples)
}

/// Says how the files of the published run are made, where they are what is missing.
fn explain_missing(error: anyhow::Error) -> anyhow::Error {
    let is_amazon = error.to_string().contains("amazon_13k") && error.to_string().contains("cannot open");
    if is_amazon {
        error.context(
            "AmazonCat-13K does not come with llmcls: `llmcls prepare amazoncat` makes these files of the Hub's data set \
             pietrolesci/amazoncat-13k",
        )
    } else {
        error
    }
}

/// Tokenizes examples.
///
/// # Errors
/// If the tokenizer fails.
pub fn encode(encoder: &TextEncoder, examples: &[Example]) -> Result<Vec<Sample>> {
    let tokens = encoder.encode(examples.iter().map(|example| example.text.as_str()).collect())?;
    Ok(tokens
        .into_iter()
        .zip(examples)
        .map(|(tokens, example)| Sample { tokens, labels: example.labels.clone() })
        .collect())
}

/// A trained classifier, ready to predict.
pub struct Loaded {
    /// Where it lies.
    pub trained: Trained,
    /// Model and parameters.
    pub classifier: Classifier,
    /// Its tokenizer.
    pub encoder: TextEncoder,
    /// Labels, thresholds, columns.
    pub file: ClassifierFile,
    /// The configuration of its run, or the one given for a peft directory.
    pub config: Option<Config>,
}

impl Loaded {
    /// Finds and loads the classifier that the flags name.
    ///
    /// # Errors
    /// If there is none, or a part of it does not fit the others.
    pub fn open(args: &RunArgs, device: &Device, console: Console) -> Result<Self> {
        let given = super::load_config(&args.config)?;
        let run = match &args.run {
            Some(run) => run.clone(),
            None => newest_run(args, given.as_ref())?,
        };
        let trained = find_trained(&run)?;
        manifest::verify(&trained.adapter)?;
        console.say(format!("using {}", trained.adapter.display()));
        let run_config = trained.config.as_deref().map(Config::of_run).transpose()?;
        let file = ClassifierFile::load(&trained.adapter)?;
        // The run's own configuration governs; the given one only selects, and brings a token.
        let config = run_config.or_else(|| given.clone());
        let mut model = match (&file, &config) {
            (Some(file), _) => model_of(file)?,
            (None, Some(config)) => config.model.clone(),
            (None, None) => bail!(
                "{}: has no classifier.json, as a directory saved by peft; name base and labels with --config",
                trained.adapter.display()
            ),
        };
        model.hf_token = given.as_ref().or(config.as_ref()).and_then(|config| config.model.hf_token.clone());
        if let Some(name) = moved_base(&args.config.set) {
            model.model_name = name;
        }
        let base = BaseModel::open(&model, device, console).with_context(|| {
            format!(
                "the base of {} cannot be used; --set model.model_name=DIR says where it lies now",
                trained.adapter.display()
            )
        })?;
        let own = trained.adapter.join("tokenizer.json");
        let file = match (file, &config) {
            (Some(file), _) => {
                base.ensure_is(&file.base, !own.is_file(), console)
                    .with_context(|| format!("{}", trained.adapter.display()))?;
                file
            }
            (None, Some(config)) => describe(config, columns(&config.data, console)?.labels, base.record(console)?),
            (None, None) => unreachable!("refused above"),
        };
        let (lora, _) = adapter::read_config(&trained.adapter)?;
        let classifier = base.classifier(&ClassifierOptions {
            labels: file.labels.len(),
            problem: problem(model.problem_type),
            storage: base.storage,
            lora,
            weights: BceWeights::default(),
            recompute: false,
            device: base.device_for_predicting(),
        })?;
        adapter::load(&trained.adapter, &classifier)?;
        let encoder = match own.is_file() {
            true => base.encoder_from(&own, file.max_length)?,
            false => base.encoder(file.max_length)?,
        };
        Ok(Self { trained, classifier, encoder, file, config })
    }

    /// The columns of its text, id and labels.
    #[must_use]
    pub fn columns(&self, with_labels: bool) -> Columns {
        Columns {
            id: self.file.id_column.clone(),
            text_fields: self.file.text_fields.clone(),
            text: self.file.target_text_column.clone(),
            labels: if with_labels { self.file.labels.clone() } else { Vec::new() },
            label_list: label_list(self.file.labels_column.as_ref(), self.file.label_separator.as_ref()),
        }
    }

    /// Rows in a batch: as asked, or as the run evaluated.
    #[must_use]
    pub fn batch_size(&self, args: &RunArgs) -> usize {
        let of_run = self.config.as_ref().map_or(8, |config| config.train.eval_batch_size());
        args.batch_size.unwrap_or(of_run).max(1)
    }
}

/// Where `--set` says that a run's base lies now.
fn moved_base(settings: &[String]) -> Option<String> {
    let values = settings.iter().filter_map(|setting| setting.split_once('='));
    let (_, name) = values.filter(|(key, _)| key.trim() == "model.model_name").last()?;
    let name = name.trim();
    let unquoted = ['"', '\''].iter().find_map(|quote| name.strip_prefix(*quote)?.strip_suffix(*quote));
    Some(unquoted.unwrap_or(name).to_owned())
}

fn newest_run(args: &RunArgs, given: Option<&Config>) -> Result<PathBuf> {
    let default = PathBuf::from("outputs");
    let root = args.config.override_output_root.as_ref();
    let root = root.or(given.map(|config| &config.exp.output_root)).unwrap_or(&default);
    newest_finished(root, given.map(|config| (config.model.model_name.as_str(), config.data.dataset_name.as_str())))
}

/// `classifier.json` for a model that a configuration describes.
#[must_use]
pub fn describe(config: &Config, labels: Vec<String>, base: Base) -> ClassifierFile {
    let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    ClassifierFile {
        format_version: ClassifierFile::VERSION,
        thresholds: vec![0.5; labels.len()],
        labels,
        problem_type: text(serde_json::json!(config.model.problem_type)),
        text_fields: config.data.text_fields.clone(),
        target_text_column: config.data.target_text_column.clone(),
        id_column: config.data.id_column.clone(),
        labels_column: config.data.labels_column.clone(),
        label_separator: config.data.labels_column.as_ref().map(|_| config.data.label_separator.clone()),
        max_length: config.data.max_length,
        base,
        random_init: config.model.random_init,
        init_seed: config.model.init_seed,
        torch_dtype: text(serde_json::json!(config.model.torch_dtype)),
        compute: text(serde_json::json!(config.model.compute)),
        use_4bit: config.model.use_4bit,
    }
}

/// The `model` section that `classifier.json` stands for.
fn model_of(file: &ClassifierFile) -> Result<ModelConfig> {
    ModelConfig::from_pairs(&[
        ("model_name", file.base.exact_name().into()),
        ("problem_type", file.problem_type.clone().into()),
        ("torch_dtype", file.torch_dtype.clone().into()),
        ("compute", file.compute.clone().into()),
        ("use_4bit", file.use_4bit.into()),
        ("random_init", file.random_init.into()),
        ("init_seed", file.init_seed.into()),
    ])
}
