//! `llmcls train`: one run, one training a seed.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::init_adapter::InitAdapter;
use super::report::BOOTSTRAP_SEED;
use super::setup;
use super::split_rows::SplitRows;
use super::summary::{report, seed_record, summarize, write_environment};
use super::tuned::Tuned;
use super::{outcome, resume, warnings};
use crate::atomic_file;
use crate::cli::TrainArgs;
use crate::config::Config;
use crate::config::model::ProblemType;
use crate::config::train::{Reduction, Reporter, SchedulerType};
use crate::console::{Console, bytes};
use crate::data::table::Example;
use crate::data::tokenize::TextEncoder;
use crate::device;
use crate::evaluation::{NotFinite, Sample, evaluate};
use crate::exit::{Resumable, Usage};
use crate::experiment::base_head;
use crate::experiment::base_model::{BaseModel, settle_compute};
use crate::experiment::choices::FEWEST_STEPS;
use crate::interrupt::{self, Interrupted};
use crate::kernels::cpu::memory::Limits;
use crate::kernels::device::Device;
use crate::metrics::bootstrap::Intervals;
use crate::metrics::{Decision, METRICS};
use crate::model::classifier::{Classifier, ClassifierOptions, Problem};
use crate::model::lora::LoraOptions;
use crate::predictor::{self, Rows};
use crate::run::adapter::BaseName;
use crate::run::classifier_file::ClassifierFile;
use crate::run::directory::{RunDir, SeedDir};
use crate::run::model_card::{CardFacts, model_card};
use crate::run::{adapter, manifest, records};
use crate::secret;
use crate::thresholds::Objective;
use crate::training::estimate::{self, MemoryEstimate, StepShape};
use crate::training::optimizer::AdamW;
use crate::training::schedule::{Decay, Schedule};
use crate::training::scored::score;
use crate::training::trainer::{TrainOptions, Trainer, moment_storage};

/// One split, as rows and as tokens.
pub(super) struct Split {
    pub(super) examples: Vec<Example>,
    pub(super) samples: Vec<Sample>,
}

/// Everything that the seeds share.
pub(super) struct Setting<'a> {
    pub(super) config: &'a Config,
    pub(super) base: BaseModel,
    encoder: TextEncoder,
    lora: LoraOptions,
    pub(super) file: ClassifierFile,
    pub(super) classifier: Classifier,
    init_adapter: Option<InitAdapter>,
    pub(super) train: Split,
    pub(super) validation: Split,
    pub(super) test: Option<Split>,
    /// What decides the result: the configuration, and hashes of data and base.
    inputs: Value,
    console: Console,
}

/// Trains.
///
/// # Errors
/// If the configuration, the data or the model cannot be used, or training fails.
pub fn run(args: &TrainArgs, device: &Device, console: Console) -> Result<()> {
    if args.dry_run {
        return super::check::run(&args.config, device, console);
    }
    let mut config = match &args.resume {
        Some(run) => resume::configuration(run, &args.config)?,
        None => super::load_config(&args.config)?.ok_or_else(|| {
            Usage("train needs --config FILE; configs/tiny.yaml is one that works as it is".to_owned())
        })?,
    };
    if !device.is_gpu() {
        settle_compute(&mut config.model);
    }
    if args.resume.is_none() {
        BaseModel::refuse_unused_weights(&config.model, console)?;
    }
    let setting = prepare(&config, device, console)?;
    // Until here Ctrl-C ends at once, and leaves nothing.
    interrupt::finish_steps()?;
    let run = match &args.resume {
        Some(run) => {
            let run = RunDir::reopen(run)?;
            resume::check_inputs(run.path(), &setting.inputs, &setting.base, console)?;
            if run.error().exists() {
                std::fs::remove_file(run.error())
                    .with_context(|| format!("{}: cannot remove", run.error().display()))?;
            }
            run
        }
        None => RunDir::create(&config.exp.output_root, &config.model.model_name, &config.data.dataset_name)?,
    };
    // Again on a resumed run: where its base and data lie may have changed.
    atomic_file::write_bytes(&run.config(), config.to_yaml().as_bytes())?;
    resume::record_inputs(run.path(), &setting.inputs)?;
    console.say(format!("run {}", run.path().display()));
    train_all(&setting, &run, !args.no_text)
        .inspect_err(|error| record_error(error, &run))
        .map_err(|error| explain_unfinished(error, &run))?;
    let printed = outcome::print_results(&run, args.json);
    run.unlock();
    printed
}

/// Leaves the reason in the run, for `llmcls runs`. What Ctrl-C stops has not failed.
fn record_error(error: &anyhow::Error, run: &RunDir) {
    if !error.is::<Interrupted>() {
        // The error itself is told in any case.
        let _ =
            atomic_file::write_bytes(&run.error(), format!("{}\n", secret::masked(&format!("{error:#}"))).as_bytes());
    }
}

/// Adds how to go on, where going on can help: a number that is not finite comes again.
fn explain_unfinished(error: anyhow::Error, run: &RunDir) -> anyhow::Error {
    if error.is::<NotFinite>() {
        let stands = run.newest_checkpoint().map_or_else(String::new, |path| format!("; {} stands", path.display()));
        return error.context(format!("{}: not finished{stands}", run.path().display()));
    }
    error.context(Resumable { run: run.path().to_owned() })
}

/// Trains the seeds that are not finished, and writes the summary.
fn train_all(setting: &Setting<'_>, run: &RunDir, shows_texts: bool) -> Result<()> {
    write_environment(run, &setting.base.device)?;
    let mut seeds = Vec::new();
    for &seed in &setting.config.exp.seeds {
        let directory = run.seed(seed)?;
        seeds.push(match resume::finished_seed(&directory)? {
            Some(result) => result,
            None => {
                // Of the first one a step is done first, so that there is something to go on from.
                if !seeds.is_empty() {
                    interrupt::check()?;
                }
                setting.train_seed(seed, &directory)?
            }
        });
    }
    write_environment(run, &setting.base.device)?;
    let summary = summarize(setting, seeds);
    report(&summary, setting.console);
    super::report::write(setting, run, &summary, shows_texts)?;
    records::write_json(&run.summary(), &summary)
}

/// Refuses what is not built, before any work.
fn check_keys(config: &Config) -> Result<()> {
    let metric = metric_name(config);
    ensure!(
        METRICS.contains(&metric),
        "train.metric_for_best_model is `{}`; evaluation reports {}",
        config.train.metric_for_best_model,
        METRICS.join(", ")
    );
    ensure!(
        setup::scope(config.train.tune_thresholds).is_none() || config.model.problem_type == ProblemType::MultiLabel,
        "train.tune_thresholds: thresholds do not apply to single_label_classification"
    );
    Ok(())
}

/// Refuses trainings that are longer than the counters of steps and of randomness.
fn check_steps(config: &Config, rows: usize, console: Console) -> Result<()> {
    let train = &config.train;
    let batches = rows.div_ceil(train.batch_size);
    let per_epoch = TrainOptions::steps_per_epoch(rows, train.batch_size, train.gradient_accumulation_steps);
    let key = if train.max_steps.is_some() { "train.max_steps" } else { "train.num_train_epochs" };
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
    if let Some(steps) = steps.filter(|&steps| steps < FEWEST_STEPS) {
        console.warn(format!(
            "{steps} optimizer steps are planned in all; fewer than about {FEWEST_STEPS} often leave every score near 0, \
             whatever the data. More passes over the rows help: train.min_steps={FEWEST_STEPS}, or smaller steps with \
             train.batch_size and train.gradient_accumulation_steps"
        ));
    }
    Ok(())
}

fn metric_name(config: &Config) -> &str {
    let name = &config.train.metric_for_best_model;
    name.strip_prefix("eval_").unwrap_or(name)
}

/// Reads and builds all that training needs, and refuses what would not fit into memory.
pub(super) fn prepare<'a>(config: &'a Config, device: &Device, console: Console) -> Result<Setting<'a>> {
    let started = Instant::now();
    check_keys(config)?;
    let (data, problem) = (&config.data, Problem::from(config.model.problem_type));
    let columns = setup::columns(data, console)?;
    let base = BaseModel::open(&config.model, device, console)?;
    let max_length = setup::max_length(data, &base, console);
    let encoder = base.encoder(max_length)?;
    let split = |name: &str, rows: &SplitRows| -> Result<Split> {
        let examples = rows.read(&columns, problem, console)?;
        let rows = Rows { examples: &examples, source: &format!("{name} ({})", rows.path.display()), before: 0 };
        let samples = predictor::encode(&encoder, base.config.vocab_size, &rows)?;
        warnings::about(name, &examples, &samples, max_length, console);
        Ok(Split { examples, samples })
    };
    let train = split("train", &SplitRows::train(data, &columns)?)?;
    check_steps(config, train.samples.len(), console)?;
    let validation = split("validation", &SplitRows::validation(data, &columns)?)?;
    let test = data
        .test_csv
        .as_ref()
        .map(|path| split("test", &SplitRows::of_file(path, data.max_test_samples)))
        .transpose()?;
    let mut splits = vec![("train", &*train.examples), ("validation", &*validation.examples)];
    splits.extend(test.as_ref().map(|test| ("test", &*test.examples)));
    warnings::about_labels(&columns.labels, &splits, problem, console);
    warnings::about_leaks(&splits, console);

    // Before the base is loaded: the estimates include it.
    let memory = base.device.memory();
    let base_bytes = estimate::base_bytes(&base.config, base.storage, &base.device);
    refuse_what_does_not_fit("the base's weights alone take", base_bytes, memory, &base.device, console)?;
    let lora = setup::lora_options(&config.model, &base.config)?;
    // The head of `init_adapter` counts in any case.
    let messages = config.model.init_adapter.is_none().then_some((console, &*base.files.name));
    let classifier = base.classifier(&ClassifierOptions {
        labels: columns.labels.len(),
        base_rows: base_head::rows((&base.config, &base.weights), &columns.labels, messages),
        problem,
        storage: base.storage,
        lora: lora.clone(),
        weights: setup::loss_weights(config, &columns.labels, &train.examples)?,
        recompute: config.train.gradient_checkpointing,
        device: base.device.clone(),
    })?;
    let init_adapter = InitAdapter::open(&config.model, &base, &columns.labels, &lora, &classifier, console)?;
    let file = setup::describe(config, columns, max_length, base.record(console)?);
    console.say(format!(
        "{}: {} frozen weights in {}, {} trained in {}; {} / {} / {} rows, {} labels; ready in {:.1} s",
        file.base_title(),
        classifier.base().parameters,
        bytes(classifier.base().bytes as u64),
        classifier.trained_parameters(),
        bytes(4 * classifier.trained_parameters() as u64),
        train.examples.len(),
        validation.examples.len(),
        test.as_ref().map_or(0, |test| test.examples.len()),
        file.labels.len(),
        started.elapsed().as_secs_f64()
    ));
    let inputs = resume::inputs(config, &file.base.fingerprint, &base.device)?;
    let setting = Setting {
        config,
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
    };
    let needed = setting.memory_estimate().total();
    refuse_what_does_not_fit("training is estimated to take", needed, memory, &setting.base.device, console)?;
    Ok(setting)
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

impl Setting<'_> {
    /// What the largest step of any seed and epoch will take.
    pub(super) fn memory_estimate(&self) -> MemoryEstimate {
        /// Rows that are put in order for this, a seed: about two seconds.
        const MOST_ROWS: usize = 50_000_000;
        let train = &self.config.train;
        let length = |&index: &usize| self.train.samples[index].tokens.token_ids.len();
        let mut tokens = 0;
        for &seed in &self.config.exp.seeds {
            let options = self.options(seed);
            let rows = self.train.samples.len();
            let per_epoch = TrainOptions::steps_per_epoch(rows, options.batch_size, options.accumulation);
            // Early stopping ends most trainings long before; more orders would change little and take long.
            let epochs = options.total_steps.div_ceil(per_epoch).min((MOST_ROWS / rows).max(1));
            for epoch in 0..epochs {
                let order = options.order(&self.train.samples, epoch);
                let batches = order.chunks(options.batch_size).map(|batch| batch.iter().map(length).sum());
                tokens = batches.fold(tokens, usize::max);
            }
        }
        let storage = moment_storage(self.config.model.use_4bit, train);
        MemoryEstimate::new(&StepShape {
            config: &self.base.config,
            storage: self.base.storage,
            trained: self.classifier.trained_parameters(),
            optimizer_bytes: AdamW::bytes_for(self.classifier.params(), storage),
            recompute: train.gradient_checkpointing,
            tokens,
            device: &self.base.device,
        })
    }

    /// Trains one seed and writes its directory; returns its part of the summary.
    fn train_seed(&self, seed: u32, directory: &SeedDir) -> Result<Value> {
        self.classifier.initialize(seed)?;
        if let Some(adapter) = &self.init_adapter {
            adapter.apply(&self.classifier)?;
        }
        let options = self.options(seed);
        let eval_batch_size = options.eval_batch_size;
        let trainer = Trainer {
            classifier: &self.classifier,
            train: &self.train.samples,
            validation: &self.validation.samples,
            labels: &self.file.labels,
            thresholds: &self.file.thresholds,
            lora: &self.lora,
            base: self.base_name(),
            directory,
            writes_events: self.config.train.report_to.0.contains(&Reporter::Tensorboard),
            resume_from: resume::newest_checkpoint(directory, self.console)?,
            inputs: self.inputs.clone(),
            options,
            console: self.console,
        };
        let mut outcome = trainer.run()?;
        let usual = Decision::above(&self.file.thresholds);
        let labels = &self.file.labels;
        let score =
            |split: &Split| score(&self.classifier, &split.samples, labels, &usual, eval_batch_size, self.console);
        let validation = outcome.validation.take().map_or_else(|| score(&self.validation), Ok)?;
        let mut splits = vec![("validation", &self.validation, validation)];
        if let Some(test) = &self.test {
            splits.push(("test", test, score(test)?));
        }
        let mut file = self.file.clone();
        let mut tuned = None;
        if let Some(scope) = setup::scope(self.config.train.tune_thresholds) {
            let found = Tuned::find(&splits[0].2.evaluation.predictions, labels, scope, Objective::F1);
            file.thresholds = found.thresholds();
            tuned = Some(found);
        }
        self.save_best(directory, &file)?;
        self.verify_best(directory, eval_batch_size)?;
        let mut record = seed_record(seed, &outcome);
        record["thresholds"] = json!(file.thresholds);
        if let Some(tuned) = tuned {
            self.console.say(format!("seed {seed}, thresholds tuned for F1:\n{}", tuned.table().trim_end()));
            tuned.warn(self.console);
            record["tuned"] = tuned.to_json();
        }
        for (name, split, mut scored) in splits {
            let untuned = (file.thresholds != self.file.thresholds).then(|| scored.scores.clone());
            if untuned.is_some() {
                scored.decide(&Decision::above(&file.thresholds), labels);
            }
            let ids: Vec<String> = split.examples.iter().map(|example| example.id.clone()).collect();
            records::write_predictions(&directory.predictions(name), &ids, &self.file.labels, &scored.evaluation)?;
            let mut metrics = scored.record;
            metrics.insert("epoch".into(), json!(outcome.epoch));
            let intervals = Intervals::new(&scored.evaluation.predictions, BOOTSTRAP_SEED);
            metrics.extend(records::interval_entries(&intervals));
            if name == "validation" {
                warnings::about_unpredicted(&scored.scores, self.console);
            }
            if name == "test" {
                records::write_json(&directory.test_metrics(), &metrics)?;
                self.console.say(format!(
                    "seed {seed} on test:\n{}",
                    records::score_table(&scored.scores, scored.evaluation.loss)
                ));
            }
            record[name] = json!(metrics);
            record[name]["per_label"] = json!(scored.scores.per_label);
            if let Some(untuned) = untuned {
                self.console.say(format!(
                    "seed {seed} on {name}: f1_micro {:.4}, f1_macro {:.4} with tuned thresholds; {:.4}, {:.4} with 0.5",
                    scored.scores.f1_micro, scored.scores.f1_macro, untuned.f1_micro, untuned.f1_macro
                ));
                record[name]["with_threshold_0.5"] = json!(untuned);
            }
        }
        record["optimizer_bytes"] = json!(outcome.optimizer_bytes);
        records::write_history_csv(&directory.history(), &directory.history_csv())?;
        self.write_card(directory, &file, &record)?;
        records::write_json(&directory.result(), &record)?;
        Ok(record)
    }

    /// The metric that chooses the best epoch, without `eval_`.
    pub(super) fn metric(&self) -> &str {
        metric_name(self.config)
    }

    pub(super) fn options(&self, seed: u32) -> TrainOptions {
        let train = &self.config.train;
        let per_epoch = TrainOptions::steps_per_epoch(
            self.train.samples.len(),
            train.batch_size,
            train.gradient_accumulation_steps,
        );
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
        TrainOptions {
            seed,
            batch_size: train.batch_size,
            accumulation: train.gradient_accumulation_steps,
            averages_window: train.accumulation_reduction == Reduction::Mean,
            total_steps,
            schedule: Schedule { learning_rate: train.learning_rate, warmup_steps, total_steps, decay },
            weight_decay: train.weight_decay,
            moments: moment_storage(self.config.model.use_4bit, train),
            max_grad_norm: train.max_grad_norm,
            shuffle: train.shuffle,
            group_by_length: train.group_by_length,
            logging_steps: train.logging_steps,
            eval_batch_size: train.eval_batch_size(),
            metric: metric_name(self.config).to_owned(),
            patience: train.early_stopping_patience,
            save_steps: train.save_steps,
            save_total_limit: train.save_total_limit,
        }
    }

    /// The base as peft names it.
    fn base_name(&self) -> BaseName<'_> {
        BaseName { name: &self.base.files.name, revision: self.base.files.revision.as_deref() }
    }

    /// Writes `best/`, once: adapter, tokenizer and `classifier.json`.
    fn save_best(&self, directory: &SeedDir, file: &ClassifierFile) -> Result<()> {
        // A run that was killed after this.
        if directory.best().is_dir() {
            return Ok(());
        }
        atomic_file::write_directory(&directory.best(), |inside| {
            adapter::save(inside, &self.classifier, &self.lora, self.base_name())?;
            self.encoder.save(inside)?;
            file.save(inside)?;
            manifest::write(inside)
        })
    }

    fn write_card(&self, directory: &SeedDir, file: &ClassifierFile, record: &Value) -> Result<()> {
        let (model, train) = (&self.config.model, &self.config.train);
        let mut rows = vec![("train", self.train.examples.len()), ("validation", self.validation.examples.len())];
        rows.extend(self.test.as_ref().map(|test| ("test", test.examples.len())));
        let facts = CardFacts {
            dataset: &self.config.data.dataset_name,
            rows: &rows,
            settings: &[
                ("seed", record["seed"].to_string()),
                ("LoRA r, α, dropout", format!("{}, {}, {}", model.lora_r, model.lora_alpha, model.lora_dropout)),
                ("base in 4 bits", model.use_4bit.to_string()),
                ("batch × accumulation", format!("{} × {}", train.batch_size, train.gradient_accumulation_steps)),
                ("learning rate", train.learning_rate.to_string()),
                ("weight decay", train.weight_decay.to_string()),
                ("optimizer steps", record["steps"].to_string()),
                ("epochs", record["epoch"].to_string()),
            ],
            record,
            hardware: &match self.base.device.description() {
                Some(gpu) => gpu.name,
                None => format!("{}, {} threads", device::cpu_name(), rayon::current_num_threads()),
            },
            language: self.config.data.language.as_deref(),
            hub_dataset: self.config.data.hub_dataset.as_deref(),
        };
        atomic_file::write_bytes(&directory.best().join("README.md"), model_card(file, &facts).as_bytes())
    }

    /// Reads `best/` back from disk, as `eval` and `predict` do, and checks that it predicts what the model in memory
    /// does.
    fn verify_best(&self, directory: &SeedDir, batch_size: usize) -> Result<()> {
        const ROWS: usize = 8;
        let best = directory.best();
        let examples = &self.validation.examples[..ROWS.min(self.validation.examples.len())];
        let decision = Decision::above(&self.file.thresholds);
        let predict = |samples: &[Sample]| -> Result<Vec<Vec<f32>>> {
            let evaluation = evaluate(&self.classifier, samples, &decision, batch_size, |_| ())?;
            Ok(evaluation.predictions.probabilities)
        };
        let expected = predict(&self.validation.samples[..examples.len()])?;
        manifest::verify(&best)?;
        let (lora, _) = adapter::read_config(&best)?;
        let is_same = |module: &String| lora.shape_of(module) == self.lora.shape_of(module);
        ensure!(
            self.classifier.modules().iter().all(is_same),
            "{}: adapter_config.json describes other adapters than were trained; this is a bug in llmcls, please report it",
            best.display()
        );
        let file = ClassifierFile::load(&best)?;
        ensure!(
            file.is_some_and(|file| file.labels == self.file.labels && file.base == self.file.base),
            "{}: classifier.json describes another classifier than was trained; this is a bug in llmcls, please report it",
            best.display()
        );
        adapter::load(&best, &self.classifier)?;
        let encoder = self.base.encoder_of(&best, true, self.file.max_length)?;
        let rows = Rows { examples, source: "validation", before: 0 };
        let found = predict(&predictor::encode(&encoder, self.base.config.vocab_size, &rows)?)?;
        ensure!(found == expected, "{}: predicts something else than the model that was saved", best.display());
        Ok(())
    }
}
