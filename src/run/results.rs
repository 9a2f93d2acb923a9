//! Results as they are written and read back: an evaluation's metrics, a seed's result, a run's summary.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::folds::FoldSummary;
pub use super::over_seeds::OverSeeds;
use crate::evaluation::Evaluation;
use crate::metrics::bootstrap::{Interval, Intervals};
use crate::metrics::{LabelScores, Metric, Scores};
use crate::thresholds::Reached;

/// Metrics of an evaluation, under transformers' names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// Mean over the samples; not a number if they have no labels.
    #[serde(rename = "eval_loss", deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// All other metrics.
    #[serde(flatten, with = "prefixed")]
    pub scores: Scores,
    /// Seconds.
    #[serde(rename = "eval_runtime")]
    pub runtime: f64,
    #[serde(rename = "eval_samples_per_second", deserialize_with = "null_is_nan")]
    pub samples_per_second: f64,
    #[serde(rename = "eval_steps_per_second", deserialize_with = "null_is_nan")]
    pub steps_per_second: f64,
    /// Passes of training before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<f64>,
    /// Optimizer steps before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// 95% intervals.
    #[serde(flatten)]
    pub intervals: Option<MetricIntervals>,
}

impl EvalMetrics {
    #[must_use]
    pub fn new(evaluation: &Evaluation, scores: &Scores, seconds: f64, batches: usize) -> Self {
        Self {
            loss: evaluation.loss,
            scores: scores.clone(),
            runtime: seconds,
            samples_per_second: evaluation.predictions.predicted.len() as f64 / seconds,
            steps_per_second: batches as f64 / seconds,
            epoch: None,
            step: None,
            intervals: None,
        }
    }

    #[must_use]
    pub fn get(&self, metric: &Metric) -> f64 {
        (metric.of)(self.loss, &self.scores)
    }
}

/// 95% intervals of three metrics; empty ends where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricIntervals {
    pub eval_f1_micro_ci95: [Option<f64>; 2],
    eval_f1_macro_ci95: [Option<f64>; 2],
    eval_accuracy_ci95: [Option<f64>; 2],
}

impl From<&Intervals> for MetricIntervals {
    fn from(intervals: &Intervals) -> Self {
        let ends = |interval: Interval| interval.map(|end| end.is_finite().then_some(end));
        Self {
            eval_f1_micro_ci95: ends(intervals.f1_micro),
            eval_f1_macro_ci95: ends(intervals.f1_macro),
            eval_accuracy_ci95: ends(intervals.accuracy),
        }
    }
}

impl From<&MetricIntervals> for Intervals {
    fn from(intervals: &MetricIntervals) -> Self {
        let ends = |interval: [Option<f64>; 2]| interval.map(|end| end.unwrap_or(f64::NAN));
        Self {
            f1_micro: ends(intervals.eval_f1_micro_ci95),
            f1_macro: ends(intervals.eval_f1_macro_ci95),
            accuracy: ends(intervals.eval_accuracy_ci95),
        }
    }
}

/// A seed's scores on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitResult {
    #[serde(flatten)]
    pub metrics: EvalMetrics,
    pub per_label: Vec<LabelScores>,
    /// Scores with thresholds of 0.5, if others were tuned.
    #[serde(rename = "with_threshold_0.5", default, skip_serializing_if = "Option::is_none")]
    pub untuned: Option<Scores>,
}

impl SplitResult {
    /// All scores: the file has those of labels in a list of their own.
    #[must_use]
    pub fn scores(&self) -> Scores {
        Scores { per_label: self.per_label.clone(), ..self.metrics.scores.clone() }
    }
}

/// Tuned thresholds, and what each label reaches with its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunedThresholds {
    pub objective: String,
    pub labels: Vec<Reached>,
}

/// A temperature that was fitted on the validation split, and what it changed there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibrated {
    pub temperature: f32,
    pub before: CalibrationScores,
    pub after: CalibrationScores,
}

/// How well probabilities mean what they say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationScores {
    pub calibration_error: f64,
    pub brier: f64,
    pub log_loss: f64,
}

impl CalibrationScores {
    #[must_use]
    pub fn of(scores: &Scores) -> Self {
        Self { calibration_error: scores.calibration_error, brier: scores.brier, log_loss: scores.log_loss }
    }
}

/// `result.json`: what one training gave. A seed is finished when its file exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedResult {
    pub seed: u32,
    /// Mean over all micro-batches.
    pub train_loss: f64,
    /// Seconds, evaluation included.
    pub train_runtime: f64,
    pub train_samples_per_second: f64,
    pub train_steps_per_second: f64,
    pub train_tokens_per_second: f64,
    /// Optimizer steps.
    pub steps: usize,
    /// Passes.
    pub epoch: f64,
    /// Passes before the best evaluation.
    pub best_epoch: f64,
    pub optimizer_bytes: usize,
    pub thresholds: Vec<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<TunedThresholds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibrated>,
    pub validation: SplitResult,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<SplitResult>,
}

impl SeedResult {
    /// The splits that were scored, by name.
    pub fn splits(&self) -> impl Iterator<Item = (&'static str, &SplitResult)> {
        self.test.iter().map(|test| ("test", test)).chain([("validation", &self.validation)])
    }

    /// The split that reports show: test rows if there are any.
    #[must_use]
    pub fn reported(&self) -> &SplitResult {
        self.test.as_ref().unwrap_or(&self.validation)
    }
}

/// `summary.json`: written last; a run is finished when it exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    pub run_name: Option<String>,
    pub metric_for_best_model: String,
    pub best_seed: u32,
    pub labels: Vec<String>,
    pub rows: RowCounts,
    pub memory: Memory,
    pub parameters: Parameters,
    /// By split and metric, such as `test_f1_micro`.
    pub over_seeds: BTreeMap<String, OverSeeds>,
    /// Of the best seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Yardstick>,
    /// Of `exp.folds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folds: Option<FoldSummary>,
    pub seeds: Vec<SeedResult>,
}

/// What classifiers without a language model reach on the reported rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yardstick {
    /// The rows that are scored.
    pub split: String,
    /// Predicted for every row.
    pub most_frequent_labels: Vec<String>,
    /// Of those labels.
    pub most_frequent: BaselineScores,
    /// Of TF-IDF and logistic regression, trained on the same rows.
    pub linear: BaselineScores,
    /// Words and pairs of words.
    pub linear_features: usize,
    /// Seconds that training and scoring took.
    pub runtime: f64,
    /// The classifier's own scores, if it is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<BaselineScores>,
    /// The classifier's scores less those of the linear baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<ScoreDifference>,
}

/// The headline scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaselineScores {
    pub f1_micro: f64,
    pub f1_macro: f64,
    pub accuracy: f64,
}

impl BaselineScores {
    #[must_use]
    pub fn of(scores: &Scores) -> Self {
        Self { f1_micro: scores.f1_micro, f1_macro: scores.f1_macro, accuracy: scores.accuracy }
    }
}

/// Differences of two classifiers on the same rows, with 95% intervals over rows drawn together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreDifference {
    pub f1_micro: f64,
    pub f1_micro_ci95: [Option<f64>; 2],
    pub f1_macro: f64,
    pub f1_macro_ci95: [Option<f64>; 2],
    pub accuracy: f64,
    pub accuracy_ci95: [Option<f64>; 2],
}

impl ScoreDifference {
    /// `of − than`
    #[must_use]
    pub fn new(of: &Scores, than: &Scores, intervals: &Intervals) -> Self {
        let ends = |interval: Interval| interval.map(|end| end.is_finite().then_some(end));
        Self {
            f1_micro: of.f1_micro - than.f1_micro,
            f1_micro_ci95: ends(intervals.f1_micro),
            f1_macro: of.f1_macro - than.f1_macro,
            f1_macro_ci95: ends(intervals.f1_macro),
            accuracy: of.accuracy - than.accuracy,
            accuracy_ci95: ends(intervals.accuracy),
        }
    }
}

impl Yardstick {
    /// For the terminal: a line each, and what the classifier adds.
    #[must_use]
    pub fn to_text(&self) -> String {
        let line = |name: &str, scores: &BaselineScores| {
            format!("{name:<36}  {:<8.4}  {:.4}\n", scores.f1_micro, scores.f1_macro)
        };
        let mut out = format!("{:<36}  {:<8}  macro-F1\n", format!("baselines on {}", self.split), "micro-F1");
        let always = match self.most_frequent_labels.as_slice() {
            [label] if label.chars().count() <= 24 => format!("always `{label}`"),
            labels => format!("always the {} most frequent labels", labels.len()),
        };
        out.push_str(&line(&always, &self.most_frequent));
        out.push_str(&line("TF-IDF and logistic regression", &self.linear));
        if let Some(difference) = &self.difference {
            let interval = match difference.f1_micro_ci95 {
                [Some(low), Some(high)] => format!(", 95% interval {low:+.4} to {high:+.4}"),
                _ => String::new(),
            };
            let added = difference.f1_micro;
            if self.most_frequent.f1_micro > self.linear.f1_micro {
                let over_always = added + self.linear.f1_micro - self.most_frequent.f1_micro;
                out.push_str(&format!("this classifier adds {over_always:+.4} micro-F1 to {always}\n"));
            }
            out.push_str(&format!("this classifier adds {added:+.4} micro-F1 to TF-IDF{interval}\n"));
        }
        out
    }
}

/// Rows of each split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    pub train: usize,
    pub validation: usize,
    pub test: Option<usize>,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub base_bytes: usize,
    pub adapter_bytes: usize,
    pub optimizer_bytes: usize,
    pub peak_bytes: Option<u64>,
}

/// Numbers of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    pub frozen: usize,
    pub trained: usize,
}

/// A line of `history.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HistoryLine {
    Evaluation(Box<EvalMetrics>),
    Step(StepRecord),
}

impl HistoryLine {
    #[must_use]
    pub fn step(&self) -> Option<&StepRecord> {
        if let Self::Step(step) = self { Some(step) } else { None }
    }

    #[must_use]
    pub fn evaluation(&self) -> Option<&EvalMetrics> {
        if let Self::Evaluation(metrics) = self { Some(metrics) } else { None }
    }

    #[must_use]
    pub fn epoch(&self) -> Option<f64> {
        match self {
            Self::Evaluation(metrics) => metrics.epoch,
            Self::Step(step) => Some(step.epoch),
        }
    }
}

/// A logged step of training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Mean over the micro-batches since the line before.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    pub epoch: f64,
    pub step: usize,
}

/// JSON has no NaN.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Scores under names that begin with `eval_`.
mod prefixed {
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    use crate::metrics::Scores;

    const PREFIX: &str = "eval_";

    pub(super) fn serialize<S: Serializer>(scores: &Scores, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::to_value(scores).map_err(S::Error::custom)? {
            Value::Object(map) => {
                serializer.collect_map(map.iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)))
            }
            _ => Err(S::Error::custom("scores are no object")),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scores, D::Error> {
        let map = Map::<String, Value>::deserialize(deserializer)?;
        let scores = map.into_iter().filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?.to_owned(), value)));
        serde_json::from_value(Value::Object(scores.collect())).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{METRICS, Predictions};

    fn result() -> SeedResult {
        let predictions = Predictions {
            probabilities: vec![vec![0.9, 0.2], vec![0.4, 0.7], vec![0.6, 0.1]],
            predicted: vec![vec![true, false], vec![false, true], vec![true, false]],
            targets: vec![vec![true, false], vec![true, true], vec![true, false]],
        };
        let scores = Scores::new(&predictions, &["a".to_owned(), "b".to_owned()]);
        let evaluation = Evaluation { predictions: predictions.clone(), loss: f64::NAN };
        let metrics = EvalMetrics {
            epoch: Some(1.5),
            intervals: Some((&Intervals::new(&predictions, 0)).into()),
            ..EvalMetrics::new(&evaluation, &scores, 0.5, 2)
        };
        let split = SplitResult { metrics, per_label: scores.per_label.clone(), untuned: Some(scores) };
        SeedResult {
            seed: 3,
            train_loss: 0.25,
            train_runtime: 7.0,
            train_samples_per_second: 4.0,
            train_steps_per_second: 2.0,
            train_tokens_per_second: 64.0,
            steps: 14,
            epoch: 1.5,
            best_epoch: 1.0,
            optimizer_bytes: 96,
            thresholds: vec![0.5, 0.3],
            tuned: None,
            calibration: None,
            validation: split.clone(),
            test: Some(split),
        }
    }

    #[test]
    fn a_result_is_read_back_as_it_was_written() {
        let written = serde_json::to_string(&result()).unwrap();
        let read: SeedResult = serde_json::from_str(&written).unwrap();
        // The loss is not a number, which equals nothing.
        assert!(read.validation.metrics.loss.is_nan());
        assert_eq!(serde_json::to_string(&read).unwrap(), written);
        assert_eq!(read.thresholds, result().thresholds);
        let found = read.validation.metrics.scores;
        assert_eq!(Scores { per_label: read.validation.per_label, ..found }, read.test.unwrap().untuned_scores());
        let value = serde_json::to_value(result()).unwrap();
        let names = value.pointer("/test").and_then(serde_json::Value::as_object).unwrap();
        for metric in &METRICS {
            assert!(names.contains_key(&format!("eval_{}", metric.name)), "{}", metric.name);
        }
        assert!(names.contains_key("eval_f1_micro_ci95") && names.contains_key("with_threshold_0.5"));
    }

    impl SplitResult {
        fn untuned_scores(self) -> Scores {
            Scores { per_label: self.per_label, ..self.untuned.unwrap() }
        }
    }

    #[test]
    fn a_result_without_a_metric_is_refused() {
        let mut value = serde_json::to_value(result()).unwrap();
        value.pointer_mut("/validation").and_then(serde_json::Value::as_object_mut).unwrap().remove("eval_brier");
        let error = serde_json::from_value::<SeedResult>(value).unwrap_err().to_string();
        assert!(error.contains("brier"), "{error}");
    }

    #[test]
    fn lines_of_the_history_are_told_apart() {
        let step = r#"{"epoch":0.5,"grad_norm":1.5,"learning_rate":0.1,"loss":0.7,"step":3}"#;
        assert!(matches!(serde_json::from_str(step).unwrap(), HistoryLine::Step(StepRecord { step: 3, .. })));
        let evaluation = serde_json::to_string(&result().validation.metrics).unwrap();
        let line: HistoryLine = serde_json::from_str(&evaluation).unwrap();
        assert!(matches!(&line, HistoryLine::Evaluation(_)) && line.epoch() == Some(1.5));
    }

    #[test]
    fn one_value_has_no_deviation() {
        assert_eq!(OverSeeds::new(&[0.5]), OverSeeds { mean: 0.5, sd: None });
        assert_eq!(OverSeeds::new(&[1.0, 3.0]), OverSeeds { mean: 2.0, sd: Some(2.0f64.sqrt()) });
    }
}
