//! One training of an experiment: the loop, its scores, and the files of its directory.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::dataset::{self, Dataset, Rows};
use super::prepared::Experiment;
use super::run_report::BOOTSTRAP_SEED;
use super::tuned::Tuned;
use super::{resume, warnings};
use crate::atomic_file;
use crate::cluster::Group;
use crate::config::train::{Calibration, Reporter, TrainConfig};
use crate::device;
use crate::evaluation::{Sample, evaluate};
use crate::metrics::bootstrap::Intervals;
use crate::metrics::{Decision, METRICS, temperature};
use crate::model::classifier::Problem;
use crate::model::families::python::PythonNeeds;
use crate::model::weights::Precision;
use crate::run::classifier_file::ClassifierFile;
use crate::run::directory::SeedDir;
use crate::run::model_card::{CardFacts, model_card};
use crate::run::model_directory::CompleteModel;
use crate::run::results::{Calibrated, CalibrationScores, EvalMetrics, SeedResult, SplitResult};
use crate::run::tensorboard::EventWriter;
use crate::run::{adapter, manifest, records, trained_weights, whole_model};
use crate::thresholds::{Objective, Scope};
use crate::training::scored::{Scored, score};
use crate::training::trainer::{TrainOutcome, Trainer};

impl Experiment<'_> {
    /// Trains one seed on the ranks of `group`. The one with a directory writes it, and gets the seed's part of the
    /// summary, unless the seed pauses after `pause_after` evaluations.
    pub fn train_seed(
        &self,
        seed: u32,
        directory: Option<&SeedDir>,
        group: &Group,
        pause_after: Option<usize>,
    ) -> Result<Option<SeedResult>> {
        self.classifier.initialize(seed)?;
        self.classifier.set_temperature(1.0);
        if let Some(adapter) = &self.init_adapter {
            adapter.apply(&self.classifier)?;
        }
        let options = self.options(seed);
        let eval_batch_size = options.config.eval_batch_size();
        let trainer = Trainer {
            classifier: &self.classifier,
            train: &self.train.samples,
            validation: &self.validation.samples,
            labels: &self.file.labels,
            thresholds: &self.file.thresholds,
            lora: &self.lora,
            base: self.base_name(),
            group,
            directory,
            writes_events: self.config.train.report_to.0.contains(&Reporter::Tensorboard),
            resume_from: directory.map(|seed| resume::newest_checkpoint(seed, self.console)).transpose()?.flatten(),
            inputs: self.inputs.clone(),
            options,
            console: self.console,
        };
        let Some(mut outcome) = trainer.run(pause_after)? else { return Ok(None) };
        let usual = Decision::above(&self.file.thresholds);
        let labels = &self.file.labels;
        let score = |split: &Dataset| {
            score(&self.classifier, &split.samples, labels, &usual, eval_batch_size, group, self.console)
        };
        let mut validation = outcome.validation.take().map_or_else(|| score(&self.validation), Ok)?;
        let mut file = self.file.clone();
        let mut calibration = None;
        if self.config.train.calibration == Calibration::Temperature {
            let before = CalibrationScores::of(&validation.scores);
            let is_single = self.classifier.problem() == Problem::SingleLabel;
            file.temperature = temperature::fit(&validation.evaluation.predictions, is_single) as f32;
            self.classifier.set_temperature(file.temperature);
            validation = score(&self.validation)?;
            let after = CalibrationScores::of(&validation.scores);
            self.console.say(format!(
                "seed {seed}, temperature {:.3}: calibration error on validation {:.4}, before {:.4}",
                file.temperature, after.calibration_error, before.calibration_error
            ));
            calibration = Some(Calibrated { temperature: file.temperature, before, after });
        }
        let mut splits = vec![("validation", &self.validation, validation)];
        if let Some(test) = &self.test {
            splits.push(("test", test, score(test)?));
        }
        let Some(directory) = directory else { return Ok(None) };
        let mut tuned = None;
        if let Some(scope) = Scope::of(self.config.train.tune_thresholds) {
            let of_validation = &splits[0].2.evaluation.predictions;
            let found = Tuned::find(self.out_of_fold.as_ref().unwrap_or(of_validation), labels, scope, Objective::F1);
            file.thresholds = found.thresholds();
            tuned = Some(found);
        }
        self.save_best(directory, &file)?;
        self.verify_best(directory, eval_batch_size)?;
        if let Some(tuned) = &tuned {
            let rows = if self.out_of_fold.is_some() { "out-of-fold rows" } else { "validation" };
            let table = tuned.table(rows);
            self.console.say(format!("seed {seed}, thresholds tuned for F1:\n{}", table.trim_end()));
            tuned.warn(self.console);
        }
        let mut results = Vec::new();
        for (name, split, scored) in splits {
            results.push(self.write_split((seed, name), split, scored, (&outcome, &file.thresholds), directory)?);
        }
        let mut results = results.into_iter();
        let result = SeedResult {
            seed,
            train_loss: outcome.train_loss,
            train_runtime: outcome.runtime,
            train_samples_per_second: outcome.examples as f64 / outcome.runtime,
            train_steps_per_second: outcome.steps as f64 / outcome.runtime,
            train_tokens_per_second: outcome.tokens as f64 / outcome.runtime,
            steps: outcome.steps,
            epoch: outcome.epoch,
            best_epoch: outcome.best_epoch,
            optimizer_bytes: outcome.optimizer_bytes,
            thresholds: file.thresholds.clone(),
            tuned: tuned.as_ref().map(Tuned::record),
            calibration,
            validation: results.next().context("the validation rows were scored")?,
            test: results.next(),
        };
        self.write_test_events(directory, &result)?;
        records::write_history_csv(&directory.history(), &directory.history_csv())?;
        self.write_card(directory, &file, &result)?;
        records::write_json(&directory.result(), &serde_json::to_value(&result)?)?;
        Ok(Some(result))
    }

    /// Writes and says a split's scores with the seed's thresholds.
    fn write_split(
        &self,
        (seed, name): (u32, &str),
        split: &Dataset,
        mut scored: Scored,
        (outcome, thresholds): (&TrainOutcome, &[f32]),
        directory: &SeedDir,
    ) -> Result<SplitResult> {
        let labels = &self.file.labels;
        let untuned = (thresholds != self.file.thresholds).then(|| scored.scores.clone());
        if untuned.is_some() {
            scored.decide(&Decision::above(thresholds), labels);
        }
        let ids: Vec<String> = split.examples.iter().map(|example| example.id.clone()).collect();
        records::write_predictions(&directory.predictions(name), &ids, labels, &scored.evaluation)?;
        let intervals = Intervals::new(&scored.evaluation.predictions, BOOTSTRAP_SEED);
        let metrics =
            EvalMetrics { epoch: Some(outcome.epoch), intervals: Some((&intervals).into()), ..scored.metrics };
        if name == "validation" {
            warnings::about_unpredicted(&scored.scores, self.console);
        }
        if name == "test" && !self.is_fold {
            records::write_json(&directory.test_metrics(), &serde_json::to_value(&metrics)?)?;
            if !self.hides_test {
                let table = records::score_table(&scored.scores, scored.evaluation.loss);
                self.console.say(format!("seed {seed} on test:\n{table}"));
            }
        }
        if let Some(untuned) = untuned.as_ref().filter(|_| name != "test" || !self.hides_test) {
            self.console.say(format!(
                "seed {seed} on {name}: f1_micro {:.4}, f1_macro {:.4} with tuned thresholds; {:.4}, {:.4} with 0.5",
                scored.scores.f1_micro, scored.scores.f1_macro, untuned.f1_micro, untuned.f1_macro
            ));
        }
        Ok(SplitResult { metrics, per_label: scored.scores.per_label, untuned })
    }

    /// The test scores for TensorBoard, in an event file of their own.
    fn write_test_events(&self, directory: &SeedDir, result: &SeedResult) -> Result<()> {
        let is_wanted = self.config.train.report_to.0.contains(&Reporter::Tensorboard);
        let Some(test) = result.test.as_ref().filter(|_| is_wanted) else { return Ok(()) };
        let scores: Vec<(String, f64)> =
            METRICS.iter().map(|metric| (format!("test/{}", metric.name), test.metrics.get(metric))).collect();
        let scores = scores.iter().map(|(tag, score)| (tag.as_str(), *score));
        EventWriter::create(&directory.logs())?.scalars(result.steps, scores)
    }

    /// Writes `best/`, once: adapter, tokenizer and `classifier.json`.
    fn save_best(&self, directory: &SeedDir, file: &ClassifierFile) -> Result<()> {
        // A run that was killed after this.
        if directory.best().is_dir() {
            return Ok(());
        }
        atomic_file::write_directory(&directory.best(), |inside| {
            self.encoder.save(inside)?;
            if self.lora.trains_base {
                let model = CompleteModel {
                    tensors: whole_model::tensors(&self.classifier),
                    dtype: Precision::Float32,
                    shard_bytes: u64::MAX,
                    base_config: &self.base.files.config,
                    config: &self.base.config,
                    file,
                    encoder: &self.encoder,
                };
                model.write(inside)?;
            } else {
                adapter::save(inside, &self.classifier, &self.lora, self.base_name())?;
                file.save(inside)?;
            }
            manifest::write(inside)
        })
    }

    /// The layers with adapters, in words.
    fn describe_layers(&self) -> String {
        match &self.lora.layers {
            _ if self.lora.is_probe() || self.lora.trains_base => "none".to_owned(),
            Some(layers) => {
                let listed: Vec<String> = layers.indices().iter().map(usize::to_string).collect();
                format!("{} of 0 to {}", listed.join(", "), self.classifier.layer_count() - 1)
            }
            None => "all".to_owned(),
        }
    }

    fn write_card(&self, directory: &SeedDir, file: &ClassifierFile, result: &SeedResult) -> Result<()> {
        let (model, train) = (&self.config.model, &self.config.train);
        let mut rows = vec![("train", self.train.examples.len()), ("validation", self.validation.examples.len())];
        rows.extend(self.test.as_ref().map(|test| ("test", test.examples.len())));
        let facts = CardFacts {
            dataset: &self.config.data.dataset_name,
            rows: &rows,
            settings: &[
                ("seed", result.seed.to_string()),
                match self.lora.trains_base {
                    true => ("trained", "every weight".to_owned()),
                    false if self.lora.is_probe() => ("trained", "only the head".to_owned()),
                    false => (
                        "LoRA r, α, dropout",
                        format!("{}, {}, {}", model.lora_r, model.lora_alpha, model.lora_dropout),
                    ),
                },
                ("adapted layers", self.describe_layers()),
                ("computed with", self.base.form.to_string()),
                ("base in 4 bits", model.use_4bit.to_string()),
                ("batch × accumulation", format!("{} × {}", train.batch_size, train.gradient_accumulation_steps)),
                (
                    "learning rate",
                    match train.head_learning_rate {
                        Some(of_head) => format!("{}, of the head {of_head}", train.learning_rate),
                        None => train.learning_rate.to_string(),
                    },
                ),
                ("weight decay", train.weight_decay.to_string()),
                ("loss", loss_name(train)),
                (
                    "weights",
                    match train.average_last {
                        Some(count) => format!("the mean of the last {count} epochs"),
                        None => "the best epoch's".to_owned(),
                    },
                ),
                ("optimizer steps", result.steps.to_string()),
                ("epochs", json!(result.epoch).to_string()),
            ],
            result,
            hardware: &match self.base.device.description() {
                Some(gpu) => gpu.name,
                None => format!("{}, {} threads", device::cpu_name(), rayon::current_num_threads()),
            },
            language: self.config.data.language.as_deref(),
            hub_dataset: self.config.data.hub_dataset.as_deref(),
            is_probe: self.lora.is_probe(),
            python: PythonNeeds::of(&self.base.files.config)?,
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
            let evaluation = evaluate(&self.classifier, samples, &decision, batch_size, &Group::alone(), |_| ())?;
            Ok(evaluation.predictions.probabilities)
        };
        let expected = predict(&self.validation.samples[..examples.len()])?;
        manifest::verify(&best)?;
        let lora = match self.lora.trains_base {
            true => self.lora.clone(),
            false => adapter::read_config(&best)?.0,
        };
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
        trained_weights::load(&best, &self.classifier)?;
        let encoder = self.base.encoder_of(&best, true, self.file.limit())?;
        let rows = Rows { examples, source: "validation", before: 0 };
        let found = predict(&dataset::encode(&encoder, self.base.config.vocab_size, &rows)?)?;
        ensure!(
            found == expected,
            "{}: the saved model gives different predictions from the one in memory; this is a bug in llmcls, please report it",
            best.display()
        );
        Ok(())
    }
}

/// The training loss, in the configuration's words.
fn loss_name(train: &TrainConfig) -> String {
    let name = json!(train.loss).as_str().unwrap_or_default().to_owned();
    match train.label_smoothing > 0.0 {
        true => format!("{name}, label smoothing {}", train.label_smoothing),
        false => name,
    }
}
