//! `data:` where examples come from.

use std::path::PathBuf;

use super::keys::{empty_is_none, or, required, section};

section! {
    /// The section's keys, named as in the original project.
    pub struct DataConfig in "data" {
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
        /// Longest sequence, in tokens, special tokens included. Longer texts are cut.
        max_length: usize = or(1024).at_least(1);
        /// Training rows: CSV, JSON Lines or Parquet.
        train_csv: PathBuf = required();
        /// Validation rows, which choose the best epoch.
        val_csv: PathBuf = required();
        /// Test rows, scored at the end.
        test_csv: Option<PathBuf> = or(None);
        /// Label columns, or, with `labels_column`, the labels to use. Without it: every remaining column that holds
        /// only 0 and 1, or every label that `labels_column` names in the training rows.
        label_columns: Option<Vec<String>> = or(None).normalize(empty_is_none);
        /// One column that lists a row's labels, in place of a column for each label.
        labels_column: Option<String> = or(None);
        /// The text between two labels in `labels_column`.
        label_separator: String = or(",".to_owned()).check(|text| !text.is_empty(), "is empty");
        /// Use only the first n rows of `train_csv`.
        max_train_samples: Option<usize> = or(None).at_least(1);
        /// Use only the first n rows of `val_csv`.
        max_val_samples: Option<usize> = or(None).at_least(1);
        /// Use only the first n rows of `test_csv`.
        max_test_samples: Option<usize> = or(None).at_least(1);
    }
}
