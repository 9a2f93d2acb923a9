//! `data:` where examples come from.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error};

use super::keys::{empty_is_none, or, required, section};
use super::reader::Section;
use super::value::yaml_enum;

section! {
    /// The section's keys, named as in the original project.
    pub struct DataConfig in "data" checked by check_names {
        /// Names the data set in the output path.
        dataset_name: String = required();
        /// The data set's name on the Hub, for the model card.
        hub_dataset: Option<String> = or(None);
        /// The texts' language (ISO 639), for the model card.
        language: Option<String> = or(None);
        /// Column with a row's id. Without it the id is the row's number, from 0.
        id_column: Option<String> = or(None);
        /// Columns that are joined with ". " to make the text. Without it the text is `target_text_column`.
        text_fields: Option<Vec<String>> = or(None).normalize(empty_is_none);
        /// Column with the text.
        target_text_column: String = or("text".to_owned());
        /// Longest sequence, in tokens, special tokens included; longer texts are cut. Without it: 1024, or the model's
        /// limit if that is lower.
        max_length: Option<usize> = or(None).at_least(1).at_most(i32::MAX);
        /// Texts of more than `max_length` tokens: `cut` reads their beginning; `head_tail` reads the first and the last half
        /// of `max_length`; `windows` reads up to `max_windows` parts of `max_length` one by one, in training and in
        /// predicting, and combines their logits.
        long_text: LongText = or(LongText::Cut);
        /// With `long_text: windows`: a label's logit is the mean over the windows, or the largest.
        window_pooling: WindowPooling = or(WindowPooling::Mean);
        /// With `long_text: windows`: the most windows of a text; what is behind them is cut. A training step takes memory
        /// and time for all of them.
        max_windows: usize = or(8).at_least(2).at_most(1024);
        /// Training rows: CSV, JSON Lines or Parquet.
        train_csv: PathBuf = required();
        /// Validation rows, which choose the best epoch. Required unless `val_fraction` is set.
        val_csv: Option<PathBuf> = or(None);
        /// In place of `val_csv`: the share of the rows of `train_csv` that validate and do not train. Each label has
        /// its share of them, and equal texts stay on one side.
        val_fraction: Option<f64> = or(None).above(0).below(1);
        /// Test rows, scored at the end.
        test_csv: Option<PathBuf> = or(None);
        /// Label columns, or, with `labels_column`, the labels to use, in the order of multi-hot lists. Without it: every
        /// remaining column that holds only 0 and 1 or true and false, or every label that `labels_column` names in the
        /// training rows. Columns of yes and no, or of marks and empty cells, are read if you list them here.
        label_columns: Option<Vec<String>> = or(None).normalize(empty_is_none);
        /// One column that lists a row's labels, in place of a column for each label: text with separators, JSON or
        /// Python lists, multi-hot lists, `__label__x`, or Label Studio's choices.
        labels_column: Option<String> = or(None);
        /// The text between two labels in `labels_column`. Without it: the one of `,`, `;` and `|` that the training
        /// rows use, which `train` prints.
        label_separator: Option<String> = or(None).check(|text| text.as_deref() != Some(""), "is empty");
        /// What labels mean, in a few words each: a mapping of labels to texts, which `llmcls zeroshot` shows the model.
        label_descriptions: Option<BTreeMap<String, String>> = or(None);
        /// Quotes in CSV files: `standard`, or `none` to take them as ordinary characters.
        quoting: Quoting = or(Quoting::Standard);
        /// Use only the first n rows of `train_csv`.
        max_train_samples: Option<usize> = or(None).at_least(1);
        /// Use only the first n rows of `val_csv`.
        max_val_samples: Option<usize> = or(None).at_least(1);
        /// Use only the first n rows of `test_csv`.
        max_test_samples: Option<usize> = or(None).at_least(1);
    }
}

impl DataConfig {
    /// Tokens after which texts are cut unless `max_length` is set.
    pub const MAX_LENGTH: usize = 1024;

    fn check_names(&self, section: &Section) {
        for (name, list) in [("label_columns", &self.label_columns), ("text_fields", &self.text_fields)] {
            check_names(section, name, list.as_deref().unwrap_or_default());
        }
        let (has_rows, has_fraction) = (self.val_csv.is_some(), self.val_fraction.is_some());
        section.check(
            has_rows || has_fraction,
            "val_csv",
            "is missing; name validation rows, or split them off the training rows with data.val_fraction: 0.1",
        );
        section.check(!(has_rows && has_fraction), "val_fraction", "is set beside val_csv; drop one of them");
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

yaml_enum! {
    /// The part that the model reads of a text longer than `max_length`.
    #[derive(serde::Deserialize)]
    LongText {
        /// Its beginning.
        Cut = "cut",
        /// Its beginning and its end.
        HeadTail = "head_tail",
        /// All of it, in parts.
        Windows = "windows",
    }
}

yaml_enum! {
    /// How the logits of a text's windows become one.
    #[derive(serde::Deserialize)]
    WindowPooling {
        /// Their mean.
        Mean = "mean",
        /// The largest: a label that one window shows.
        Max = "max",
    }
}

yaml_enum! {
    /// Quotes in CSV files.
    Quoting {
        /// You can put a cell in double quotes, and must double each quote inside it (RFC 4180).
        Standard = "standard",
        /// Quotes are characters like others.
        None = "none",
    }
}

#[expect(clippy::derivable_impls, reason = "the macro declares the enum for all keys, most of which have no default")]
impl Default for Quoting {
    fn default() -> Self {
        Self::Standard
    }
}

impl FromStr for Quoting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "standard" => Ok(Self::Standard),
            "none" => Ok(Self::None),
            _ => Err("expected standard or none"),
        }
    }
}

impl<'de> Deserialize<'de> for Quoting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
