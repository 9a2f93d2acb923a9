//! `data:` where examples come from.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Serialize;

use super::reader::{FromNode, Section, Value};
use crate::data::formats::Quoting;

/// The section's keys, named as in the original project.
#[derive(Clone, Debug, Serialize)]
pub struct DataConfig {
    /// Names the data set in the output path.
    pub dataset_name: String,
    /// The data set's name on the Hub, for the model card.
    pub hub_dataset: Option<String>,
    /// The texts' language (ISO 639), for the model card.
    pub language: Option<String>,
    /// Column with the id of a row; none: the row's number.
    pub id_column: Option<String>,
    /// Columns that make the text, joined; none: `target_text_column` is the text.
    pub text_fields: Option<Vec<String>>,
    /// Column with the text.
    pub target_text_column: String,
    /// Longest sequence, in tokens, special ones included.
    pub max_length: usize,
    /// Training rows.
    pub train_csv: PathBuf,
    /// Validation rows.
    pub val_csv: PathBuf,
    /// Test rows; none: no test metrics.
    pub test_csv: Option<PathBuf>,
    /// Label columns, or, with `labels_column`, the labels in the order of multi-hot lists; none: every
    /// remaining column that holds only 0 and 1, or every label that `labels_column` of the training rows names.
    pub label_columns: Option<Vec<String>>,
    /// One column that lists a row's labels, as text with `label_separator` or as a JSON or Python list;
    /// none: each label has a column of its own.
    pub labels_column: Option<String>,
    /// Between the labels of `labels_column`; none: found in the training rows.
    pub label_separator: Option<String>,
    /// How the cells of CSV files are quoted: `standard`, or `none` where quotes are characters like others.
    pub quoting: Quoting,
    /// The first rows of `train_csv`; none: all.
    pub max_train_samples: Option<usize>,
    /// The first rows of `val_csv`; none: all.
    pub max_val_samples: Option<usize>,
    /// The first rows of `test_csv`; none: all.
    pub max_test_samples: Option<usize>,
}

impl DataConfig {
    pub(super) fn read(section: &mut Section) -> Self {
        let list = |list: Option<Vec<String>>| list.filter(|list| !list.is_empty());
        let config = Self {
            dataset_name: section.required("dataset_name"),
            hub_dataset: section.optional("hub_dataset"),
            language: section.optional("language"),
            id_column: section.optional("id_column"),
            text_fields: list(section.optional("text_fields")),
            target_text_column: section.key("target_text_column", "text".into()),
            max_length: section.key("max_length", 1024),
            train_csv: section.required("train_csv").into(),
            val_csv: section.required("val_csv").into(),
            test_csv: section.optional::<String>("test_csv").map(PathBuf::from),
            label_columns: list(section.optional("label_columns")),
            labels_column: section.optional("labels_column"),
            label_separator: section.optional("label_separator"),
            quoting: section.key("quoting", Quoting::Standard),
            max_train_samples: section.optional("max_train_samples"),
            max_val_samples: section.optional("max_val_samples"),
            max_test_samples: section.optional("max_test_samples"),
        };
        let separator = config.label_separator.as_deref();
        section.check(separator != Some(""), "label_separator", "is empty; leave it out to have it found");
        for (name, list) in [("label_columns", &config.label_columns), ("text_fields", &config.text_fields)] {
            check_names(section, name, list.as_deref().unwrap_or_default());
        }
        section.check(config.max_length > 0, "max_length", "is 0, expected at least 1 token");
        for (name, value) in [
            ("max_train_samples", config.max_train_samples),
            ("max_val_samples", config.max_val_samples),
            ("max_test_samples", config.max_test_samples),
        ] {
            section.check(value != Some(0), name, "is 0, which leaves no row; leave it out for all rows");
        }
        config
    }
}

/// Refuses names that are empty or given twice.
pub(super) fn check_names(section: &Section, key: &str, names: &[String]) {
    let mut seen = HashSet::new();
    for name in names {
        section.check(!name.trim().is_empty(), key, "holds an empty name");
        section.check(seen.insert(name), key, &format!("names `{name}` twice"));
    }
}

impl FromNode for Quoting {
    const EXPECTED: &'static str = "one of standard none";

    fn from_node(node: Value<'_>) -> Option<Self> {
        node.text()?.parse().ok()
    }
}
