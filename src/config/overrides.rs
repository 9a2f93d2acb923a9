//! The keys that `eval` and `predict` take by `--set` beside the configuration of the run.

use anyhow::{Result, bail, ensure};

use super::data::{Quoting, check_names};
use super::parse_setting;
use super::reader::Section;
use super::tree::Tree;

/// The keys. All others are those of training, and the run has decided them.
const KEYS: [&str; 9] = [
    "model.model_name",
    "data.id_column",
    "data.text_fields",
    "data.target_text_column",
    "data.label_columns",
    "data.labels_column",
    "data.label_separator",
    "data.quoting",
    "train.eval_batch_size",
];

/// Settings of a trained classifier that `--set` overrides. `Some(None)` is a key that was set to null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Where the base is now.
    pub model_name: Option<String>,
    /// The column with the id of a row.
    pub id_column: Option<Option<String>>,
    /// Columns that make the text.
    pub text_fields: Option<Option<Vec<String>>>,
    /// The column with the text.
    pub target_text_column: Option<String>,
    /// The labels' columns, or their order in multi-hot lists.
    pub label_columns: Option<Option<Vec<String>>>,
    /// The column that lists labels.
    pub labels_column: Option<Option<String>>,
    /// Between the labels of that column.
    pub label_separator: Option<Option<String>>,
    /// Quotes in CSV files.
    pub quoting: Option<Quoting>,
    /// Rows in a batch.
    pub eval_batch_size: Option<usize>,
}

impl Overrides {
    /// Reads `--set` of a command that uses a trained classifier.
    ///
    /// # Errors
    /// If a key is not one of these, or a value is not valid.
    pub fn read(settings: &[String]) -> Result<Self> {
        let mut tree = Tree::empty();
        for setting in settings {
            let (key, value) = parse_setting(setting)?;
            if !KEYS.contains(&key) {
                bail!("--set {key}: the run fixes this key; eval and predict accept {}", KEYS.join(", "));
            }
            tree.merge(value);
        }
        let mut root = Section::root(tree);
        let mut overrides = Self::default();
        {
            let mut model = root.section("model");
            overrides.model_name = model.given("model_name").flatten();
        }
        {
            let mut train = root.section("train");
            overrides.eval_batch_size = train.given("eval_batch_size").flatten();
            train.check(overrides.eval_batch_size != Some(0), "eval_batch_size", "is 0, expected at least 1");
        }
        overrides.read_data(&mut root.section("data"));
        let problems = root.finish();
        ensure!(problems.is_empty(), "{}", problems.join("\n  "));
        Ok(overrides)
    }

    fn read_data(&mut self, data: &mut Section) {
        let some = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
        self.id_column = data.given("id_column");
        self.text_fields = data.given("text_fields").map(|list| list.and_then(some));
        self.target_text_column = data.given("target_text_column").flatten();
        self.label_columns = data.given("label_columns").map(|list| list.and_then(some));
        self.labels_column = data.given("labels_column");
        self.label_separator = data.given("label_separator");
        self.quoting = data.given("quoting").flatten();
        for (name, list) in [("label_columns", &self.label_columns), ("text_fields", &self.text_fields)] {
            check_names(data, name, list.iter().flatten().next().map_or(&[], Vec::as_slice));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &[&str]) -> Result<Overrides> {
        Overrides::read(&settings.iter().map(|&setting| setting.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn keys_of_rows_are_taken_and_null_is_not_absent() {
        let read = read(&["data.id_column=null", "data.labels_column=tags", "data.label_separator=|"]).unwrap();
        let expected = Overrides {
            id_column: Some(None),
            labels_column: Some(Some("tags".into())),
            label_separator: Some(Some("|".into())),
            ..Overrides::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn other_keys_are_refused_by_name() {
        for setting in ["train.learning_rate=1", "data.max_length=3", "data={id_column: x}", "data.label_colums=[a]"] {
            let error = read(&[setting]).unwrap_err().to_string();
            assert!(error.contains(setting.split('=').next().unwrap()) && error.contains("data.id_column"), "{error}");
        }
        let error = read(&["data.label_columns=[a, a]"]).unwrap_err().to_string();
        assert!(error.contains("`data.label_columns` names `a` twice"), "{error}");
        assert!(read(&["train.eval_batch_size=0"]).is_err());
    }
}
