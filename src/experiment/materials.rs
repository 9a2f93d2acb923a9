//! Base and rows, the latter as texts and as tokens: what experiments on the same data and the same base share.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;

use super::base_model::BaseModel;
use super::dataset::{self, Dataset, Rows};
use super::split_rows::SplitRows;
use super::warnings;
use crate::cluster::Group;
use crate::config::Config;
use crate::config::model::ProblemType;
use crate::console::Console;
use crate::data::long_text::Limit;
use crate::data::table::Columns;
use crate::data::tokenize::TextEncoder;
use crate::kernels::cpu::memory::Limits;
use crate::kernels::device::Device;
use crate::model::classifier::Problem;
use crate::thresholds::Scope;

/// What an experiment is made of, beside its configuration.
pub struct Materials {
    pub(super) base: BaseModel,
    pub(super) encoder: TextEncoder,
    pub(super) columns: Columns,
    pub(super) max_length: usize,
    pub(super) train: Dataset,
    pub(super) validation: Dataset,
    pub(super) test: Option<Dataset>,
    /// The memory before the base is loaded.
    pub(super) limits: Option<Limits>,
    /// When reading them, or the experiment with them, began.
    pub(super) since: Instant,
}

impl Materials {
    /// Opens the base, and reads and tokenizes the rows; the ranks of `group` share the tokenizing.
    pub fn read(config: &Config, device: &Device, group: &Group, console: Console) -> Result<Self> {
        let since = Instant::now();
        ensure!(
            Scope::of(config.train.tune_thresholds).is_none() || config.model.problem_type == ProblemType::MultiLabel,
            "train.tune_thresholds: thresholds do not apply to single_label_classification"
        );
        let (data, problem) = (&config.data, Problem::from(config.model.problem_type));
        let columns = dataset::columns(data, console)?;
        let base = BaseModel::open(&config.model, device, console)?;
        let max_length = dataset::max_length(data, &base, console);
        let limit = Limit::of(data, max_length);
        let encoder = base.encoder(limit)?;
        let split = |name: &str, rows: &SplitRows| -> Result<Dataset> {
            let examples = rows.read(&columns, problem, console)?;
            let rows = Rows { examples: &examples, source: &format!("{name} ({})", rows.path.display()), before: 0 };
            let samples = dataset::encode_together(group, &encoder, base.config.vocab_size, &rows)?;
            warnings::about(name, &examples, &samples, limit, console);
            Ok(Dataset { examples, samples })
        };
        let [train, validation] = SplitRows::of_training(data, &columns)?;
        let train = split("train", &train)?;
        let validation = split("validation", &validation)?;
        let test = data
            .test_csv
            .as_ref()
            .map(|path| split("test", &SplitRows::of_file(path, data.max_test_samples)))
            .transpose()?;
        let mut splits = vec![("train", &*train.examples), ("validation", &*validation.examples)];
        splits.extend(test.as_ref().map(|test| ("test", &*test.examples)));
        warnings::about_labels(&columns.labels, &splits, problem, console)?;
        warnings::about_leaks(&splits, console);
        let limits = base.device.memory();
        Ok(Self { base, encoder, columns, max_length, train, validation, test, limits, since })
    }

    /// Keeps the base's weights in memory for the experiments that follow.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.base.keep_weights();
        self
    }

    /// The number of training rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.train.samples.len()
    }

    /// Whether two configurations have the same base in the same storage, and the same rows.
    #[must_use]
    pub fn are_same(a: &Config, b: &Config) -> bool {
        const OF_BASE: [&str; 7] =
            ["model_name", "problem_type", "use_4bit", "torch_dtype", "compute", "random_init", "init_seed"];
        let (model_a, model_b) = (json!(a.model), json!(b.model));
        json!(a.data) == json!(b.data) && OF_BASE.iter().all(|key| model_a[key] == model_b[key])
    }
}
