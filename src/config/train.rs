//! `train:` how it is trained.

use serde::Serialize;

use super::reader::{FromNode, Section, Value, yaml_enum};

/// The section's keys, named as in the original project and in transformers.
#[derive(Clone, Debug, Serialize)]
pub struct TrainConfig {
    /// Examples in a micro-batch.
    pub batch_size: usize,
    /// Most passes over the training rows.
    pub num_train_epochs: usize,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Micro-batches in an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Epochs without improvement after which training stops; none: off.
    pub early_stopping_patience: Option<usize>,
    /// The metric that chooses the best epoch.
    pub metric_for_best_model: String,
    /// Optimizer steps between two checkpoints, beside that of each epoch; none: each epoch's alone.
    pub save_steps: Option<usize>,
    /// Checkpoints kept, beside the best; none: all.
    pub save_total_limit: Option<usize>,
    /// What a positive counts for in the loss.
    pub class_weights: ClassWeights,
    /// The loss of independent labels.
    pub loss: Loss,
    /// γ of the focal loss.
    pub focal_gamma: f64,
    /// Find thresholds on the validation split after training.
    pub tune_thresholds: TuneThresholds,
    /// Hold AdamW's moments in 8 bits if the base is in 4.
    pub optim_8bit_when_4bit: bool,
    /// Where metrics go, beside the run's JSON files.
    pub report_to: ReportTo,
    /// Optimizer steps; overrides epochs and sets the schedule's length.
    pub max_steps: Option<usize>,
    /// Examples in a batch of evaluation; none: `batch_size`.
    pub eval_batch_size: Option<usize>,
    /// Permute the training rows each epoch.
    pub shuffle: bool,
    /// Batches of examples of a similar length, in another order than transformers' default.
    pub group_by_length: bool,
    /// Largest norm of all gradients together; 0: off.
    pub max_grad_norm: f64,
    /// How the learning rate changes.
    pub lr_scheduler_type: SchedulerType,
    /// Steps until the largest learning rate; beats `warmup_ratio`.
    pub warmup_steps: usize,
    /// The same as a share of all steps.
    pub warmup_ratio: f64,
    /// How micro-batches make a gradient.
    pub accumulation_reduction: Reduction,
    /// Optimizer steps between two lines of `history.jsonl`.
    pub logging_steps: usize,
    /// Keep one input a layer and compute the rest again in the backward.
    pub gradient_checkpointing: bool,
}

yaml_enum! {
    /// How the learning rate changes, by transformers' formulas.
    SchedulerType {
        /// Falls to 0 in a straight line.
        Linear = "linear",
        /// Falls to 0 along half a cosine.
        Cosine = "cosine",
        /// Stays, from the first step on.
        Constant = "constant",
        /// Stays, after the warm-up.
        ConstantWithWarmup = "constant_with_warmup",
    }
}

yaml_enum! {
    /// How the gradients of a window's micro-batches make one.
    Reduction {
        /// Their mean.
        Mean = "mean",
        /// Their sum, as transformers 4.54 and later do for Llama.
        Sum = "sum",
    }
}

/// What a positive counts for in the loss.
#[derive(Clone, Debug, PartialEq)]
pub enum ClassWeights {
    /// As much as a negative.
    None,
    /// Negatives over positives of its label in the training rows, at most 10.
    Balanced,
    /// As given; labels that are not named count 1.
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
                weights.iter().all(|(_, weight)| *weight > 0.0).then_some(Self::Given(weights))
            }
        }
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
    }
}

yaml_enum! {
    /// Whether thresholds are found on the validation split.
    TuneThresholds {
        /// All are 0.5.
        None = "none",
        /// One for all labels.
        Global = "global",
        /// One a label.
        PerLabel = "per_label",
    }
}

yaml_enum! {
    /// A place where metrics go.
    Reporter {
        /// Event files.
        Tensorboard = "tensorboard",
        /// `history.jsonl` and the other JSON files, which are always written.
        Json = "json",
        /// `history.csv`, which is always written, too.
        Csv = "csv",
        /// Nowhere else.
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
}

impl TrainConfig {
    pub(super) fn read(section: &mut Section) -> Self {
        let config = Self {
            batch_size: section.key("batch_size", 4),
            num_train_epochs: section.key("num_train_epochs", 20),
            learning_rate: section.key("learning_rate", 2e-4),
            weight_decay: section.key("weight_decay", 0.01),
            gradient_accumulation_steps: section.key("gradient_accumulation_steps", 8),
            early_stopping_patience: section.nullable("early_stopping_patience", 2),
            metric_for_best_model: section.key("metric_for_best_model", "f1_micro".into()),
            save_steps: section.optional("save_steps"),
            save_total_limit: section.optional("save_total_limit"),
            class_weights: section.key("class_weights", ClassWeights::None),
            loss: section.key("loss", Loss::Bce),
            focal_gamma: section.key("focal_gamma", 2.0),
            tune_thresholds: section.key("tune_thresholds", TuneThresholds::None),
            optim_8bit_when_4bit: section.key("optim_8bit_when_4bit", true),
            report_to: section.key("report_to", ReportTo(vec![Reporter::Json])),
            max_steps: section.optional("max_steps").filter(|&steps| steps > 0),
            eval_batch_size: section.optional("eval_batch_size"),
            shuffle: section.key("shuffle", true),
            group_by_length: section.key("group_by_length", false),
            max_grad_norm: section.key("max_grad_norm", 1.0),
            lr_scheduler_type: section.key("lr_scheduler_type", SchedulerType::Linear),
            warmup_steps: section.key("warmup_steps", 0),
            warmup_ratio: section.key("warmup_ratio", 0.0),
            accumulation_reduction: section.key("accumulation_reduction", Reduction::Mean),
            logging_steps: section.key("logging_steps", 10),
            gradient_checkpointing: section.key("gradient_checkpointing", false),
        };
        config.check(section);
        config
    }

    fn check(&self, section: &Section) {
        for (name, value) in [
            ("batch_size", self.batch_size),
            ("num_train_epochs", self.num_train_epochs),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("logging_steps", self.logging_steps),
            ("eval_batch_size", self.eval_batch_size()),
            ("save_steps", self.save_steps.unwrap_or(1)),
            ("save_total_limit", self.save_total_limit.unwrap_or(1)),
            ("early_stopping_patience", self.early_stopping_patience.unwrap_or(1)),
        ] {
            section.check(value > 0, name, "is 0, expected at least 1");
        }
        for (name, value) in [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("focal_gamma", self.focal_gamma),
        ] {
            section.check(value >= 0.0, name, "must not be negative");
        }
        section.check((0.0..=1.0).contains(&self.warmup_ratio), "warmup_ratio", "must lie between 0 and 1");
        let has_warmup = self.warmup_steps > 0 || self.warmup_ratio > 0.0;
        section.check(
            !(has_warmup && self.lr_scheduler_type == SchedulerType::Constant),
            "lr_scheduler_type",
            "is `constant`, which has no warm-up; use `constant_with_warmup`, or drop warmup_steps and warmup_ratio",
        );
    }

    /// Examples in a batch of evaluation.
    #[must_use]
    pub fn eval_batch_size(&self) -> usize {
        self.eval_batch_size.unwrap_or(self.batch_size)
    }
}
