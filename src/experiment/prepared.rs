//! An experiment, ready to train: configuration, rows and model.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::base_model::{BaseModel, trained_part};
use super::choices::FEWEST_STEPS;
use super::dataset::{self, Dataset};
use super::init_adapter::InitAdapter;
use super::materials::Materials;
use super::{base_head, resume, sentence_pooling};
use crate::cluster::Group;
use crate::config::Config;
use crate::config::data::LongText;
use crate::config::model::Trains;
use crate::config::train::SchedulerType;
use crate::console::{Console, bytes, counted};
use crate::data::table::Columns;
use crate::data::tokenize::TextEncoder;
use crate::kernels::cpu::memory::Limits;
use crate::kernels::device::Device;
use crate::metrics::{METRICS, Metric, Predictions};
use crate::model::classifier::{Classifier, ClassifierOptions, Problem};
use crate::model::lora::LoraOptions;
use crate::model::quantization::Quantization;
use crate::run::adapter::BaseName;
use crate::run::classifier_file::{Base, ClassifierFile};
use crate::training::estimate::{self, MemoryEstimate};
use crate::training::schedule::{Decay, Schedule};
use crate::training::trainer::{TrainOptions, moment_storage};

/// Everything that the seeds share.
pub struct Experiment<'a> {
    pub config: &'a Config,
    /// Chooses the best epoch and the best seed.
    pub metric: &'static Metric,
    pub base: BaseModel,
    pub encoder: TextEncoder,
    pub lora: LoraOptions,
    pub file: ClassifierFile,
    pub classifier: Classifier,
    pub init_adapter: Option<InitAdapter>,
    pub train: Dataset,
    pub validation: Dataset,
    pub test: Option<Dataset>,
    /// Everything that determines the result: the configuration, and hashes of data and base.
    pub inputs: Value,
    pub console: Console,
    pub(super) columns: Columns,
    /// The memory before the base was loaded.
    pub(super) limits: Option<Limits>,
    /// The out-of-fold predictions of the training rows, once folds are trained.
    pub(super) out_of_fold: Option<Predictions>,
    /// True while a training stands in for a fold.
    pub(super) is_fold: bool,
    /// True where only the best of several runs is to show its test scores.
    pub(super) hides_test: bool,
}

impl<'a> Experiment<'a> {
    /// Reads and builds all that training needs, and refuses what would not fit into memory.
    /// The ranks of `group` share the tokenizing.
    pub fn prepare(config: &'a Config, device: &Device, group: &Group, console: Console) -> Result<Self> {
        metric(config)?;
        Self::assemble(config, Materials::read(config, device, group, console)?, console)
    }

    /// Builds the model on a base and on rows that were read.
    pub fn assemble(config: &'a Config, materials: Materials, console: Console) -> Result<Self> {
        let metric = metric(config)?;
        let Materials { mut base, encoder, columns, max_length, train, validation, test, limits, since } = materials;
        check_steps(config, train.samples.len(), console)?;
        let problem = Problem::from(config.model.problem_type);
        base.configure(&config.model)?;
        if config.model.pooling.is_none() {
            sentence_pooling::suggest(&base.files, &base.config, console);
        }
        // Before the base is loaded: the estimates include it.
        let base_bytes = estimate::base_bytes(&base.config, base.storage, &base.device);
        refuse_what_does_not_fit("the base's weights alone take", base_bytes, limits, &base.device, console)?;
        let lora = trained_part(&config.model, &base)?;
        // The head of `init_adapter` counts in any case.
        let messages = config.model.init_adapter.is_none().then_some((console, &*base.files.name));
        let classifier = base.classifier(&ClassifierOptions {
            labels: columns.labels.len(),
            base_rows: base_head::rows((&base.config, &base.weights), &columns.labels, messages),
            problem,
            storage: base.storage,
            lora: lora.clone(),
            weights: dataset::loss_weights(config, &columns.labels, &train.examples)?,
            recompute: config.train.gradient_checkpointing,
            quantization: Quantization::Off,
            device: base.device.clone(),
        })?;
        classifier.set_window_pooling(config.data.window_pooling);
        let init_adapter = InitAdapter::open(&config.model, &base, &columns.labels, &lora, &classifier, console)?;
        let mut file = describe(config, columns.clone(), max_length, base.record(console)?);
        file.set_form(base.form);
        console.say(format!(
            "{}: {} frozen weights in {}, {} trained in {}; {} / {} / {} rows, {}; ready in {:.1} s",
            file.base_title(),
            classifier.base().parameters,
            bytes(classifier.base().bytes as u64),
            classifier.trained_parameters(),
            bytes(4 * classifier.trained_parameters() as u64),
            train.examples.len(),
            validation.examples.len(),
            test.as_ref().map_or(0, |test| test.examples.len()),
            counted(file.labels.len(), "label"),
            since.elapsed().as_secs_f64()
        ));
        let inputs = resume::inputs(config, &file.base.fingerprint, &base.device)?;
        let experiment = Self {
            config,
            metric,
            base,
            encoder,
            lora,
            file,
            classifier,
            init_adapter,
            train,
            validation,
            test,
            inputs,
            console,
            columns,
            limits,
            out_of_fold: None,
            is_fold: false,
            hides_test: false,
        };
        let estimate = experiment.memory_estimate();
        let needed = estimate.total();
        refuse_what_does_not_fit("training is estimated to take", needed, limits, &experiment.base.device, console)?;
        if estimate.packed > 0 {
            experiment.classifier.pack_weights();
        }
        Ok(experiment)
    }

    /// What another experiment can be made of.
    #[must_use]
    pub fn into_materials(self) -> Materials {
        let Self { base, encoder, columns, mut train, mut validation, mut test, file, limits, .. } = self;
        for split in [Some(&mut train), Some(&mut validation), test.as_mut()].into_iter().flatten() {
            // Other layers may be frozen there.
            split.samples.iter_mut().for_each(|sample| sample.frozen = None);
        }
        let (max_length, since) = (file.max_length, Instant::now());
        Materials { base, encoder, columns, max_length, train, validation, test, limits, since }
    }

    /// Estimates the memory of the largest step of any seed and epoch.
    pub fn memory_estimate(&self) -> MemoryEstimate {
        /// Rows that are put in order for this, a seed: about two seconds.
        const MOST_ROWS: usize = 50_000_000;
        let train = &self.config.train;
        let length = |&index: &usize| self.train.samples[index].tokens.token_ids.len();
        let mut tokens = 0;
        for &seed in &self.config.exp.seeds {
            let options = self.options(seed);
            let rows = self.train.samples.len();
            let per_epoch = train.steps_per_epoch(rows);
            // Early stopping ends most trainings long before; more orders would change little and take long.
            let epochs = options.total_steps.div_ceil(per_epoch).min((MOST_ROWS / rows).max(1));
            for epoch in 0..epochs {
                let order = options.order(&self.train.samples, epoch);
                let batches = order.chunks(train.batch_size).map(|batch| batch.iter().map(length).sum());
                tokens = batches.fold(tokens, usize::max);
            }
        }
        let shape = self.base.step_shape(self.config, &self.lora, &self.classifier, tokens);
        let rows = self.train.samples.len();
        let all_tokens: usize = self.train.samples.iter().map(|sample| sample.tokens.token_ids.len()).sum();
        let mean_tokens = all_tokens * train.batch_size.min(rows) / rows.max(1);
        MemoryEstimate::new(&shape).with_copies(&shape, mean_tokens, self.limits.map(|limits| limits.available))
    }

    pub fn options(&self, seed: u32) -> TrainOptions<'_> {
        let train = &self.config.train;
        let per_epoch = train.steps_per_epoch(self.train.samples.len());
        let total_steps = train.total_steps(per_epoch).expect("counted by check_steps");
        let warmup_steps = match train.warmup_steps {
            0 => (train.warmup_ratio * total_steps as f64).ceil() as usize,
            steps => steps,
        };
        let decay = match train.lr_scheduler_type {
            SchedulerType::Linear => Decay::Linear,
            SchedulerType::Cosine => Decay::Cosine,
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => Decay::Constant,
        };
        let schedule = |learning_rate: f64| Schedule { learning_rate, warmup_steps, total_steps, decay };
        TrainOptions {
            seed,
            config: train,
            total_steps,
            schedule: schedule(train.learning_rate),
            head_schedule: train.head_learning_rate.map(schedule),
            moments: moment_storage(self.config.model.use_4bit, train),
            metric: self.metric,
        }
    }

    /// The rows that reports show: of test, or of validation where there is no test split.
    pub fn reported(&self) -> (&'static str, &Dataset) {
        match &self.test {
            Some(test) => ("test", test),
            None => ("validation", &self.validation),
        }
    }

    /// The base as peft names it.
    pub fn base_name(&self) -> BaseName<'_> {
        BaseName { name: &self.base.files.name, revision: self.base.files.revision.as_deref() }
    }
}

/// The metric that chooses the best epoch.
pub(super) fn metric(config: &Config) -> Result<&'static Metric> {
    let name = &config.train.metric_for_best_model;
    Metric::find(name).with_context(|| {
        format!(
            "train.metric_for_best_model is `{}`; evaluation reports {}",
            name,
            METRICS.map(|metric| metric.name).join(", ")
        )
    })
}

/// Refuses trainings that are longer than the counters of steps and of randomness.
fn check_steps(config: &Config, rows: usize, console: Console) -> Result<()> {
    if let Some(folds) = config.exp.folds {
        ensure!(folds <= rows, "exp.folds is {folds}, and there are {rows} training rows; use fewer folds");
    }
    let train = &config.train;
    let batches = rows.div_ceil(train.batch_size);
    let per_epoch = train.steps_per_epoch(rows);
    let is_by_min_steps = train.min_steps.is_some_and(|steps| steps.div_ceil(per_epoch) > train.num_train_epochs);
    let key = match train.max_steps {
        Some(_) => "train.max_steps",
        None if is_by_min_steps => "train.min_steps",
        None => "train.num_train_epochs",
    };
    let steps = train.total_steps(per_epoch);
    let epochs = steps.map(|steps| steps.div_ceil(per_epoch));
    let micro_batches = epochs.and_then(|epochs| epochs.checked_mul(batches));
    ensure!(
        steps.is_some_and(|steps| i32::try_from(steps).is_ok())
            && micro_batches.is_some_and(|count| u32::try_from(count).is_ok()),
        "{key} is too large: {rows} rows make {batches} micro-batches a pass, and training may have {} steps and {} \
         micro-batches at most; use fewer steps, and early stopping",
        i32::MAX,
        u32::MAX
    );
    for (key, rate) in [("learning_rate", Some(train.learning_rate)), ("head_learning_rate", train.head_learning_rate)]
    {
        /// AdamW moves every number by about the rate in each step.
        const HIGH: f64 = 0.1;
        if let Some(rate) = rate.filter(|&rate| rate > HIGH) {
            console.warn(format!(
                "train.{key} is {rate}, and training will most likely diverge; usual rates lie between 1e-5 and 1e-2"
            ));
        }
    }
    if let Some(steps) = steps.filter(|&steps| steps < FEWEST_STEPS) {
        console.warn(format!(
            "{steps} optimizer steps are planned in all; fewer than about {FEWEST_STEPS} often leave every score near 0, \
             whatever the data. More passes over the rows help: {}, or smaller steps with train.batch_size and \
             train.gradient_accumulation_steps",
            match config.train.max_steps {
                Some(_) => "a higher train.max_steps, or none".to_owned(),
                None => format!("train.min_steps={FEWEST_STEPS}"),
            }
        ));
    }
    Ok(())
}

/// Compares what is needed with what this machine had before the base was loaded.
fn refuse_what_does_not_fit(
    what: &str,
    needed: u64,
    limits: Option<Limits>,
    device: &Device,
    console: Console,
) -> Result<()> {
    const HELP: &str = "these keys lower it: train.batch_size, data.max_length, train.gradient_checkpointing=true, \
                        model.use_4bit=true, model.torch_dtype=bfloat16";
    let Some(limits) = limits else { return Ok(()) };
    if device.is_gpu() {
        // Nothing is swapped out of a GPU: what is not free now cannot be had.
        ensure!(
            needed <= limits.available,
            "{what} {}, and the GPU has {} free of {}; {HELP}",
            bytes(needed),
            bytes(limits.available),
            bytes(limits.total)
        );
        return Ok(());
    }
    ensure!(
        needed <= limits.total,
        "{what} {}, and this machine, or the control group of this process, has {}; {HELP}",
        bytes(needed),
        bytes(limits.total)
    );
    if needed > limits.available {
        console.warn(format!("{what} {}, and only {} is free now; {HELP}", bytes(needed), bytes(limits.available)));
    }
    Ok(())
}

/// `classifier.json` for a model that a configuration describes.
#[must_use]
pub fn describe(config: &Config, columns: Columns, max_length: usize, base: Base) -> ClassifierFile {
    let (has_rest, has_windows) = (config.data.long_text != LongText::Cut, config.data.long_text == LongText::Windows);
    let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    ClassifierFile {
        format_version: if has_rest { ClassifierFile::VERSION } else { ClassifierFile::OF_CUT_TEXTS },
        thresholds: vec![0.5; columns.labels.len()],
        labels: columns.labels,
        problem_type: text(serde_json::json!(config.model.problem_type)),
        text_fields: config.data.text_fields.clone(),
        target_text_column: config.data.target_text_column.clone(),
        id_column: config.data.id_column.clone(),
        labels_column: config.data.labels_column.clone(),
        label_separator: columns.label_list.and_then(|list| list.separator),
        temperature: 1.0,
        quoting: Some(config.data.quoting),
        max_length,
        long_text: has_rest.then_some(config.data.long_text),
        window_pooling: has_windows.then_some(config.data.window_pooling),
        max_windows: has_windows.then_some(config.data.max_windows),
        base,
        is_whole_model: config.model.train == Trains::All,
        random_init: config.model.random_init,
        init_seed: config.model.init_seed,
        torch_dtype: text(serde_json::json!(config.model.torch_dtype)),
        compute: text(serde_json::json!(config.model.compute)),
        use_4bit: config.model.use_4bit,
        form: config.model.form(),
    }
}
