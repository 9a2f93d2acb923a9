//! The commented `config.yaml` that `init` writes: the keys that matter, and why they are what they are.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::choices::{Choices, DEFAULT_BASE};
use crate::console::one_line;
use crate::data::recognise::{LabelForm, Recognised};

/// Contents of the configuration.
pub struct Starter<'a> {
    /// The file that `init` read.
    pub source: &'a Path,
    /// Where the configuration and the splits lie.
    pub directory: &'a Path,
    pub dataset: &'a str,
    /// Name of the base.
    pub model_name: &'a str,
    /// The recognised columns.
    pub recognised: &'a Recognised,
    /// True if multi-hot lists need the labels' names.
    pub is_multi_hot: bool,
    /// True if each row has one label.
    pub is_single_label: bool,
    /// Rows of the three splits.
    pub rows: [usize; 3],
    pub choices: &'a Choices,
}

/// One key: its value as JSON, which is YAML, and a comment.
struct Line(&'static str, Value, String);

impl Starter<'_> {
    /// A file of the three splits, or the configuration.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    #[must_use]
    pub fn yaml(&self) -> String {
        let mut text = format!(
            "# Written by `llmcls init` for {}: {} labels, {} rows to train on.\n\
             # `llmcls config-schema` lists all keys; `--set KEY=VALUE` changes one for a run.\n",
            one_line(&self.source.display().to_string()),
            self.recognised.labels.len(),
            self.rows[0]
        );
        let sections =
            [("data", self.data()), ("model", self.model()), ("train", self.train()), ("exp", self.experiment())];
        for (index, (name, lines)) in sections.into_iter().enumerate() {
            text.push_str(&format!("{}{name}:\n", if index == 0 { "" } else { "\n" }));
            for Line(key, value, comment) in lines {
                let comment = if comment.is_empty() { comment } else { format!(" # {comment}") };
                text.push_str(&format!("  {key}: {}{comment}\n", scalar(&value)));
            }
        }
        text
    }

    fn data(&self) -> Vec<Line> {
        let (recognised, choices) = (self.recognised, self.choices);
        let path = |name: &str| json!(self.path(name).display().to_string());
        let mut lines = vec![plain("dataset_name", json!(self.dataset))];
        if let Some(id) = &recognised.id {
            lines.push(plain("id_column", json!(id)));
        }
        lines.push(match recognised.text.as_slice() {
            [text] => plain("target_text_column", json!(text)),
            fields => Line("text_fields", json!(fields), "joined with \". \"".to_owned()),
        });
        match &recognised.form {
            LabelForm::Columns => lines.push(plain("label_columns", json!(recognised.labels))),
            LabelForm::List { column, listing } => {
                lines.push(plain("labels_column", json!(column)));
                if let Some(separator) = &listing.separator {
                    lines.push(plain("label_separator", json!(separator)));
                }
                if self.is_multi_hot {
                    lines.push(plain("label_columns", json!(recognised.labels)));
                }
            }
        }
        let cut = format!("in tokens; longer texts are cut, here {:.1}%", 100.0 * choices.cut);
        lines.extend([
            Line("max_length", json!(choices.max_length), cut),
            plain("train_csv", path("train.csv")),
            Line("val_csv", path("validation.csv"), "chooses the best epoch".to_owned()),
            Line("test_csv", path("test.csv"), "scored once, at the end".to_owned()),
        ]);
        lines
    }

    fn model(&self) -> Vec<Line> {
        let choices = self.choices;
        let about = if self.model_name == DEFAULT_BASE {
            "135 M parameters, Apache-2.0; or a directory"
        } else {
            "a directory, or org/name on the Hub"
        };
        let problem = if self.is_single_label { "single_label_classification" } else { "multi_label_classification" };
        let meaning = if self.is_single_label { "each row has exactly one label" } else { "a row may have several" };
        let mut lines = vec![
            Line("model_name", json!(self.model_name), about.to_owned()),
            Line("problem_type", json!(problem), meaning.to_owned()),
        ];
        lines.extend([
            Line("torch_dtype", json!(choices.torch_dtype), "what this machine computes fastest".to_owned()),
            Line("use_4bit", json!(choices.use_4bit), "true: the base in a quarter of the memory".to_owned()),
        ]);
        lines.extend(choices.pooling.map(|pooling| {
            Line("pooling", json!(pooling), "as the base was trained; `export` needs null, its family's".to_owned())
        }));
        lines.extend([
            Line(
                "lora_r",
                json!(choices.lora_r),
                "rank of the adapters, in the modules of the base's family".to_owned(),
            ),
            plain("lora_alpha", json!(2 * choices.lora_r)),
        ]);
        lines.extend(choices.lora_layers.map(|count| {
            Line("lora_layers", json!(count), "adapts the last ones; null: all, which takes longer".to_owned())
        }));
        lines
    }

    fn train(&self) -> Vec<Line> {
        let choices = self.choices;
        let memory = choices.memory.map_or_else(String::new, |bytes| {
            format!("about {:.1} GiB at the peak; less if smaller", bytes as f64 / f64::from(1 << 30))
        });
        let mut lines = vec![
            Line("batch_size", json!(choices.batch_size), memory),
            plain("gradient_accumulation_steps", json!(choices.accumulation)),
        ];
        if choices.recomputes {
            lines.push(Line("gradient_checkpointing", json!(true), "less memory, more time".to_owned()));
        }
        lines.extend([
            Line("num_train_epochs", json!(choices.epochs), "passes over the training rows".to_owned()),
            Line("min_steps", json!(choices.min_steps), "more passes if these are fewer steps".to_owned()),
            Line(
                "early_stopping_patience",
                json!(choices.patience),
                "epochs without a better score before it stops".to_owned(),
            ),
            plain("learning_rate", json!(choices.learning_rate)),
        ]);
        lines.extend(
            choices
                .head_learning_rate
                .map(|rate| Line("head_learning_rate", json!(rate), "the head is new".to_owned())),
        );
        lines.extend([plain("warmup_ratio", json!(0.06)), plain("metric_for_best_model", json!("f1_micro"))]);
        if choices.tunes_threshold {
            lines.push(Line("tune_thresholds", json!("global"), "one threshold, chosen on validation".to_owned()));
        }
        lines.push(plain("save_total_limit", json!(1)));
        lines
    }

    fn experiment(&self) -> Vec<Line> {
        vec![
            plain("output_root", json!("outputs")),
            Line("seeds", json!([1]), "[1, 2, 3] trains three times and shows the spread".to_owned()),
        ]
    }
}

fn plain(key: &'static str, value: Value) -> Line {
    Line(key, value, String::new())
}

/// YAML of a scalar or a list: as JSON, but for words that YAML reads as the same text.
fn scalar(value: &Value) -> String {
    let is_word = |text: &str| {
        let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '/');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        let means_more = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
        starts && text.chars().all(is_plain) && !means_more.contains(&text.to_lowercase().as_str())
    };
    match value {
        Value::String(text) if is_word(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(scalar).collect::<Vec<_>>().join(", ")),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_to_yaml_are_quoted() {
        for (value, yaml) in [
            (json!("tickets/train.csv"), "tickets/train.csv"),
            (json!("No"), "\"No\""),
            (json!("a: b #c"), "\"a: b #c\""),
            (json!("1e5"), "\"1e5\""),
            (json!(";"), "\";\""),
            (json!("C:\\x"), "\"C:\\\\x\""),
            (json!(["a", "b, c", "2"]), "[a, \"b, c\", \"2\"]"),
            (json!(0.0005), "0.0005"),
        ] {
            assert_eq!(scalar(&value), yaml);
        }
    }
}
