//! The classifier that `--run` and `--config` name, and the columns of the rows that it is given.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::configuration;
use crate::cli::{ConfigArgs, PrecisionArgs, RunArgs};
use crate::config::Config;
use crate::config::model::Token;
use crate::config::overrides::Overrides;
use crate::console::Console;
use crate::data::formats::Quoting;
use crate::data::table::{Columns, LabelList, abridged};
use crate::embedded;
use crate::experiment::base_model::BaseModel;
use crate::experiment::dataset;
use crate::experiment::prepared::describe;
use crate::kernels::device::Device;
use crate::model::quantization::Quantization;
use crate::predictor::{self, Precision, Predictor};
use crate::run::classifier_file::ClassifierFile;
use crate::run::trained::{find_verified, newest_finished};

/// The classifier that a command's flags name.
pub struct Loaded {
    pub predictor: Predictor,
    /// The configuration of its run, or the one given for a peft directory.
    pub config: Option<Config>,
    /// The frozen model, or the complete one.
    pub base: BaseModel,
    /// For the Hub, if the configuration has one.
    pub token: Option<Token>,
    overrides: Overrides,
}

impl Loaded {
    /// Finds and loads the classifier that the flags name.
    pub fn open(args: &RunArgs, device: &Device, console: Console) -> Result<Self> {
        Self::open_as(args, PrecisionArgs::default(), None, device, console)
    }

    /// The same, computing as the flags ask for.
    pub fn open_in(args: &RunArgs, precision: PrecisionArgs, device: &Device, console: Console) -> Result<Self> {
        Self::open_as(args, precision, None, device, console)
    }

    /// The same, with linear modules built in a given way.
    pub(super) fn open_as(
        args: &RunArgs,
        precision: PrecisionArgs,
        quantization: Option<Quantization>,
        device: &Device,
        console: Console,
    ) -> Result<Self> {
        let given = selecting_config(&args.config)?;
        let run = match &args.run {
            Some(run) => run.clone(),
            None => newest_run(&args.config, given.as_ref())?,
        };
        let trained = find_verified(&run)?;
        // A measurement opens it more than once.
        if quantization.is_none() {
            console.say(format!("using {}", trained.adapter.display()));
        }
        let run_config = trained.config.as_deref().map(Config::of_run).transpose()?;
        let file = ClassifierFile::load(&trained.adapter)?;
        // A directory of peft's has nothing that governs but the given configuration, `--set` and all.
        let (given, overrides) = match &file {
            Some(_) => (given, Overrides::read(&args.config.set)?),
            None => (configuration::load(&args.config)?, Overrides::default()),
        };
        // The run's own configuration governs; the given one only selects, and may have a token.
        let config = run_config.or_else(|| given.clone());
        let mut model = match (&file, &config) {
            (Some(file), _) => file.model_config()?,
            (None, Some(config)) => config.model.clone(),
            (None, None) => bail!(
                "{}: has no classifier.json, as a directory saved by peft; name base and labels with --config",
                trained.adapter.display()
            ),
        };
        model.hf_token = given.as_ref().or(config.as_ref()).and_then(|config| config.model.hf_token.clone());
        predictor::place_base(&trained, &mut model, overrides.model_name.as_deref())?;
        if let Some(precision) = precision.precision {
            precision.overrule(&mut model, device)?;
        }
        let maxima = match (&quantization, precision.precision) {
            (None, Some(Precision::Int8)) => {
                Some(predictor::int8_maxima(&trained, file.as_ref(), precision.accept_loss)?)
            }
            _ => None,
        };
        let is_plain = quantization.is_none();
        let quantization = quantization.unwrap_or_else(|| Quantization::of(maxima.as_ref()));
        let base = BaseModel::open(&model, device, console).with_context(|| match trained.is_complete() {
            true => "the model cannot be used".to_owned(),
            false => format!(
                "the base of {} cannot be used; if it has moved, name its directory with --set model.model_name=DIR",
                trained.adapter.display()
            ),
        })?;
        let is_of_a_run = file.is_some();
        let file = match (file, &config) {
            (Some(file), _) => {
                predictor::ensure_base(&trained, &file, &base, console)?;
                file
            }
            (None, Some(config)) => {
                let max_length = dataset::max_length(&config.data, &base, console);
                let columns = dataset::columns(&config.data, console)?;
                let mut file = describe(config, columns, max_length, base.record(console)?);
                file.set_form(base.form);
                file
            }
            (None, None) => unreachable!("refused above"),
        };
        let mut predictor = Predictor::open_as(trained, file, is_of_a_run, &base, quantization)?;
        if is_plain {
            predictor = predictor.with_crew(&model, &base, maxima.as_ref());
        }
        Ok(Self { predictor, config, base, token: model.hf_token, overrides })
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
            quoting: (self.predictor.file.quoting)
                .or(self.config.as_ref().map(|config| config.data.quoting))
                .unwrap_or(Quoting::Standard),
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
pub(super) fn selecting_config(args: &ConfigArgs) -> Result<Option<Config>> {
    if args.config.is_empty() {
        return Ok(None);
    }
    let mut config = Config::load(&args.config, &[]).or_else(|_| Config::load(&args.config, &args.set))?;
    if let Some(root) = &args.override_output_root {
        config.exp.output_root.clone_from(root);
    }
    Ok(Some(config))
}

pub(super) fn newest_run(args: &ConfigArgs, given: Option<&Config>) -> Result<PathBuf> {
    // A program that carries a classifier is for that one.
    if let Some(root) = embedded::root() {
        return Ok(root.join(predictor::CLASSIFIER));
    }
    let default = PathBuf::from("outputs");
    let root = args.override_output_root.as_ref();
    let root = root.or(given.map(|config| &config.exp.output_root)).unwrap_or(&default);
    newest_finished(root, given.map(|config| (config.model.model_name.as_str(), config.data.dataset_name.as_str())))
}
