//! `train:` how it is trained.

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::keys::{or, section, zero_is_none};
use super::reader::Section;
use super::value::{FromNode, Value, yaml_enum};

/// The most rows in a micro-batch, and micro-batches in a step: larger ones overflow sizes derived from them.
const MOST_ROWS: i32 = 1 << 20;

section! {
    /// The section's keys, named as in the original project and in transformers.
    pub struct TrainConfig in "train" checked by check {
        /// Examples in a micro-batch.
        batch_size: usize = or(4).at_least(1).at_most(MOST_ROWS);
        /// Largest number of passes over the training rows.
        num_train_epochs: usize = or(20).at_least(1).at_most(i32::MAX);
        /// Optimizer steps that training has at least, by more passes than `num_train_epochs` if those are fewer
        /// steps: a few hundred rows need many passes. Early stopping still applies. Not used with `max_steps`.
        min_steps: Option<usize> = or(None).at_most(i32::MAX).normalize(zero_is_none);
        /// Peak learning rate of AdamW.
        learning_rate: f64 = or(2e-4).at_least(0);
        /// Peak learning rate of the classification head. Without it: `learning_rate`.
        head_learning_rate: Option<f64> = or(None).at_least(0);
        /// Decoupled weight decay. Biases and norms are left out, as in transformers.
        weight_decay: f64 = or(0.01).at_least(0);
        /// Micro-batches in an optimizer step.
        gradient_accumulation_steps: usize = or(8).at_least(1).at_most(MOST_ROWS);
        /// Stop after this many epochs without improvement. null: off.
        early_stopping_patience: Option<usize> = or(Some(2)).at_least(1).at_most(i32::MAX);
        /// The metric that chooses the best epoch: any that `eval` reports, with or without `eval_`.
        metric_for_best_model: String = or("f1_micro".to_owned());
        /// Take the mean of what was trained in the last so many epochs, in place of the best epoch. If fewer epochs were
        /// trained, the mean of all. Without it: the best epoch.
        average_last: Option<usize> = or(None).at_most(i32::MAX).normalize(zero_is_none);
        /// Optimizer steps between two checkpoints, in addition to one after each epoch.
        save_steps: Option<usize> = or(None).at_least(1).at_most(i32::MAX);
        /// Checkpoints to keep in addition to the best one. Without it all are kept.
        save_total_limit: Option<usize> = or(None).at_least(1).at_most(i32::MAX);
        /// Weight of positives in the loss: `none`, `balanced` (negatives over positives of the label, at most 10), or a
        /// mapping of labels to numbers.
        class_weights: ClassWeights = or(ClassWeights::None);
        /// The loss of independent labels.
        loss: Loss = or(Loss::Bce);
        /// γ of the losses `focal` and `distribution_balanced`.
        focal_gamma: f64 = or(2.0).at_least(0).at_most(100);
        /// γ₊ of the loss `asymmetric`.
        asymmetric_gamma_positive: f64 = or(1.0).at_least(0).at_most(100);
        /// γ₋ of the loss `asymmetric`.
        asymmetric_gamma_negative: f64 = or(4.0).at_least(0).at_most(100);
        /// Margin of the loss `asymmetric`: a label that does not hold and has a probability below it counts nothing.
        asymmetric_margin: f64 = or(0.05).at_least(0).below(1);
        /// ε: targets become `1 − ε/2` and `ε/2`, or of L classes `1 − ε + ε/L` and `ε/L`. Evaluation does not smooth.
        label_smoothing: f64 = or(0.0).at_least(0).below(1);
        /// Choose decision thresholds on the validation split after training.
        tune_thresholds: TuneThresholds = or(TuneThresholds::None);
        /// Make probabilities mean what they say: `temperature` divides the logits by one number, fitted on the validation
        /// split after training. It changes no ranking; thresholds are chosen after it.
        calibration: Calibration = or(Calibration::None);
        /// Hold AdamW's moments in 8 bits if the base is in 4 bits.
        optim_8bit_when_4bit: bool = or(true);
        /// Where metrics go in addition to the run's JSON and CSV files.
        report_to: ReportTo = or(ReportTo(vec![Reporter::Json]));
        /// Optimizer steps in all. Overrides the number of epochs and sets the schedule's length. 0: off.
        max_steps: Option<usize> = or(None).at_most(i32::MAX).normalize(zero_is_none);
        /// Examples in a batch of evaluation. Without it: `batch_size`.
        eval_batch_size: Option<usize> = or(None).at_least(1).at_most(MOST_ROWS);
        /// Shuffle the training rows in each epoch.
        shuffle: bool = or(true);
        /// Make batches of texts of similar length.
        group_by_length: bool = or(false);
        /// Clip the global norm of the gradients. 0: off.
        max_grad_norm: f64 = or(1.0).at_least(0);
        /// The learning-rate schedule, by transformers' formulas.
        lr_scheduler_type: SchedulerType = or(SchedulerType::Linear);
        /// Warm-up steps. Takes precedence over `warmup_ratio`.
        warmup_steps: usize = or(0).at_most(i32::MAX);
        /// Warm-up as a share of all steps.
        warmup_ratio: f64 = or(0.0).at_least(0).at_most(1);
        /// Combine the micro-batches' gradients by their mean or their sum. transformers 4.54 and later take the sum.
        accumulation_reduction: Reduction = or(Reduction::Mean);
        /// Optimizer steps between two lines of `history.jsonl`.
        logging_steps: usize = or(10).at_least(1).at_most(i32::MAX);
        /// Keep only each layer's input and recompute the rest in the backward pass: less memory, the same gradients.
        gradient_checkpointing: bool = or(false);
        /// The largest cache of the frozen layers' outputs, such as `20GB`, in `llmcls/activations` of the user's cache
        /// directory; the least recently used ones make room. 0: layers below the first adapter are computed each time.
        /// Without it: 10 GB.
        cache_limit: Option<ByteSize> = or(None);
    }
}

/// A number of bytes, as a number or with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl FromNode for ByteSize {
    const EXPECTED: &'static str = "a number of bytes, alone or with a unit: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB";

    fn from_node(node: Value<'_>) -> Option<Self> {
        const UNITS: [(&str, u64); 9] = [
            ("KIB", 1 << 10),
            ("MIB", 1 << 20),
            ("GIB", 1 << 30),
            ("TIB", 1 << 40),
            ("KB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("B", 1),
        ];
        let Some(text) = node.text() else { return Some(Self(usize::from_node(node)? as u64)) };
        let text = text.trim().to_ascii_uppercase();
        let (number, unit) = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)))?;
        let number: f64 = number.trim_end().parse().ok().filter(|number| (0.0..=1e6).contains(number))?;
        Some(Self((number * unit as f64) as u64))
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string" }] })
    }
}

yaml_enum! {
    /// Learning-rate schedules, by transformers' formulas.
    SchedulerType {
        /// Falls to 0 in a straight line.
        Linear = "linear",
        /// Falls to 0 along half a cosine.
        Cosine = "cosine",
        /// Stays, from the first step on.
        Constant = "constant",
        /// Warm-up, then constant.
        ConstantWithWarmup = "constant_with_warmup",
    }
}

yaml_enum! {
    /// How probabilities are calibrated.
    Calibration {
        /// They are the model's own.
        None = "none",
        /// Logits are divided by one number.
        Temperature = "temperature",
    }
}

yaml_enum! {
    /// A way to combine the gradients of the micro-batches in a step.
    Reduction {
        /// The mean of the gradients.
        Mean = "mean",
        /// Their sum, as transformers 4.54 and later do for Llama.
        Sum = "sum",
    }
}

/// The weight of positives in the loss.
#[derive(Clone, Debug, PartialEq)]
pub enum ClassWeights {
    /// The weight of negatives: 1.
    None,
    /// Negatives over positives of its label in the training rows, at most 10.
    Balanced,
    /// Given weights; labels without one have weight 1.
    Given(Vec<(String, f64)>),
}

impl FromNode for ClassWeights {
    const EXPECTED: &'static str = "none, balanced, or a mapping of labels to positive numbers";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.text() {
            Some("none") => Some(Self::None),
            Some("balanced") => Some(Self::Balanced),
            Some(_) => None,
            None => {
                let weights = node.entries()?.map(|(label, weight)| Some((label.to_owned(), f64::from_node(weight)?)));
                let weights: Vec<_> = weights.collect::<Option<_>>()?;
                weights
                    .iter()
                    .all(|(_, weight)| *weight > 0.0 && (*weight as f32).is_finite())
                    .then_some(Self::Given(weights))
            }
        }
    }

    fn schema() -> Json {
        let given = json!({ "type": "object", "additionalProperties": { "type": "number", "exclusiveMinimum": 0 } });
        json!({ "anyOf": [{ "enum": ["none", "balanced"] }, given] })
    }
}

impl Serialize for ClassWeights {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Balanced => serializer.serialize_str("balanced"),
            Self::Given(weights) => serializer.collect_map(weights.iter().map(|(label, weight)| (label, weight))),
        }
    }
}

yaml_enum! {
    /// The loss of independent labels.
    Loss {
        /// Binary cross-entropy.
        Bce = "bce",
        /// The same with what is easy counting less.
        Focal = "focal",
        /// The same, with negatives that are easy counting less than positives (Ridnik et al., 2021).
        Asymmetric = "asymmetric",
        /// Focal, with rare labels weighing more and frequent negatives less (Wu et al., 2020).
        DistributionBalanced = "distribution_balanced",
    }
}

yaml_enum! {
    /// Choice of thresholds on the validation split.
    TuneThresholds {
        /// No tuning: every threshold is 0.5.
        None = "none",
        /// One threshold for all labels.
        Global = "global",
        /// One threshold for each label.
        PerLabel = "per_label",
    }
}

yaml_enum! {
    /// A destination of metrics.
    Reporter {
        /// TensorBoard event files.
        Tensorboard = "tensorboard",
        /// `history.jsonl` and the other JSON files, which are always written.
        Json = "json",
        /// `history.csv`, which is always written, too.
        Csv = "csv",
        /// Nothing in addition.
        None = "none",
    }
}

/// One reporter or a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct ReportTo(pub Vec<Reporter>);

impl FromNode for ReportTo {
    const EXPECTED: &'static str =
        "tensorboard, csv, json or none, or a list of them (wandb is not supported: use tensorboard or csv)";

    fn from_node(node: Value<'_>) -> Option<Self> {
        Reporter::from_node(node).map(|one| vec![one]).or_else(|| Vec::from_node(node)).map(Self)
    }

    fn schema() -> Json {
        json!({ "anyOf": [Reporter::schema(), Vec::<Reporter>::schema()] })
    }
}

impl TrainConfig {
    /// Optimizer steps of the whole training, where a pass has `per_epoch`; `None` if they cannot be counted.
    #[must_use]
    pub fn total_steps(&self, per_epoch: usize) -> Option<usize> {
        let passes = self.min_steps.map_or(0, |steps| steps.div_ceil(per_epoch)).max(self.num_train_epochs);
        self.max_steps.or_else(|| per_epoch.checked_mul(passes))
    }

    fn check(&self, section: &Section) {
        let has_warmup = self.warmup_steps > 0 || self.warmup_ratio > 0.0;
        section.check(
            !(has_warmup && self.lr_scheduler_type == SchedulerType::Constant),
            "lr_scheduler_type",
            "is `constant`, which has no warm-up; use `constant_with_warmup`, or drop warmup_steps and warmup_ratio",
        );
    }

    /// Optimizer steps of one pass over `rows`.
    #[must_use]
    pub fn steps_per_epoch(&self, rows: usize) -> usize {
        rows.div_ceil(self.batch_size).div_ceil(self.gradient_accumulation_steps)
    }

    /// Examples in a batch of evaluation.
    #[must_use]
    pub fn eval_batch_size(&self) -> usize {
        self.eval_batch_size.unwrap_or(self.batch_size)
    }
}
