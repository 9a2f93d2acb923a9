//! The YAML configuration: one file per section, and how they come together.
//!
//! Files merge key by key, later over earlier; `--set` comes last. Every problem is reported, each
//! with its file, line and key, before anything runs.

pub mod data;
pub mod exp;
pub mod keys;
pub mod model;
pub mod overrides;
pub mod reader;
pub mod reference;
pub mod train;
mod tree;
pub mod value;
mod write;
pub mod zeroshot;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use data::DataConfig;
use exp::ExpConfig;
use model::ModelConfig;
use reader::Section;
use train::TrainConfig;
use tree::{Node, Tree};
use zeroshot::ZeroshotConfig;

use crate::exit::{self, Usage};
use crate::secret;

/// The configuration of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Where examples come from.
    pub data: DataConfig,
    /// The base model and its adapters.
    #[serde(serialize_with = "model::serialize")]
    pub model: ModelConfig,
    /// The training loop.
    pub train: TrainConfig,
    /// Where results go, and the seeds.
    pub exp: ExpConfig,
    /// What `llmcls zeroshot` asks the model.
    pub zeroshot: ZeroshotConfig,
}

/// Refuses a file of rows: as YAML, most are a text or have keys that nobody knows.
fn refuse_rows(file: &Path) -> Result<()> {
    let ending = file.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    let is_table = ["csv", "tsv", "jsonl", "ndjson", "parquet"].contains(&&*ending);
    let name = file.display().to_string();
    let command = exit::quoted(&name);
    ensure!(!is_table, "{name}: holds rows, not a configuration; `llmcls init {command}` makes one for them");
    Ok(())
}

impl Config {
    /// Merges files, then `key=value` settings, and checks the result.
    ///
    /// # Errors
    /// If a file cannot be read or parsed, or with the list of all problems found.
    pub fn load(files: &[PathBuf], settings: &[String]) -> Result<Self> {
        let mut tree = Tree::empty();
        for file in files {
            refuse_rows(file)?;
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("{}: cannot read the configuration", file.display()))?;
            tree.merge(Tree::parse(&text, &file.display().to_string())?);
        }
        for setting in settings {
            tree.merge(parse_setting(setting)?.1);
        }
        Self::from_tree(tree)
    }

    /// This configuration with some keys changed, as `--set` changes them.
    pub fn with(&self, settings: &[String]) -> Result<Self> {
        let mut tree = Tree::parse(&self.to_yaml(), "the configuration")?;
        for setting in settings {
            tree.merge(parse_setting(setting)?.1);
        }
        let mut config = Self::from_tree(tree)?;
        // A token is never written.
        config.model.hf_token.clone_from(&self.model.hf_token);
        Ok(config)
    }

    /// Reads the configuration that a run recorded.
    pub fn of_run(path: &Path) -> Result<Self> {
        // Runs from before the key computed in f32.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let is_older = !text.lines().any(|line| line.trim_start().starts_with("compute:"));
        let set = is_older.then(|| "model.compute=float32".to_owned());
        Self::load(&[path.to_owned()], set.as_slice())
    }

    /// Reads the configuration that a record holds as JSON.
    pub fn recorded(value: &serde_json::Value) -> Result<Self> {
        Self::from_tree(Tree::parse(&value.to_string(), "the recorded configuration")?)
    }

    fn from_tree(tree: Tree) -> Result<Self> {
        let mut root = Section::root(tree);
        let config = Self {
            data: DataConfig::read(&mut root.section("data")),
            model: ModelConfig::read(&mut root.section("model")),
            train: TrainConfig::read(&mut root.section("train")),
            exp: ExpConfig::read(&mut root.section("exp")),
            zeroshot: ZeroshotConfig::read(&mut root.section("zeroshot")),
        };
        let problems = root.finish();
        if problems.is_empty() {
            return Ok(config);
        }
        let count = problems.len();
        bail!(
            "the configuration has {count} problem{}:\n  {}",
            if count == 1 { "" } else { "s" },
            problems.join("\n  ")
        );
    }

    /// The resolved configuration as YAML. The token is left out.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let value = serde_json::to_value(self).expect("a configuration is plain data");
        write::yaml(&value)
    }
}

/// The key and the values of `KEY=[VALUE, …]`, each as `--set` takes it.
pub fn list_of_setting(setting: &str) -> Result<(String, Vec<String>)> {
    const EXPECTED: &str = "expected KEY=[VALUE,…], such as train.learning_rate=[1e-4,5e-4]";
    let Some((key, value)) = setting.split_once('=') else {
        return Err(Usage(format!("--grid {setting}: {EXPECTED}")).into());
    };
    let key = key.trim();
    let tree = Tree::parse(value, &format!("--grid {key}"))?;
    match tree.node {
        Node::List(items) if !items.is_empty() => {
            Ok((key.to_owned(), items.iter().map(|item| item.node.as_setting()).collect()))
        }
        _ => Err(Usage(format!("--grid {key}={value}: {EXPECTED}")).into()),
    }
}

/// The key of a `--set`, and the tree that it stands for.
fn parse_setting(setting: &str) -> Result<(&str, Tree)> {
    let Some((key, value)) = setting.split_once('=') else {
        // What stands behind the key may be a token.
        let key: String = setting.chars().take_while(|c| c.is_alphanumeric() || "._".contains(*c)).collect();
        let message = format!("--set {key}: expected KEY=VALUE, such as train.learning_rate=1e-4");
        return Err(Usage(message).into());
    };
    let location = format!("--set {}", secret::setting(key, value));
    let key = key.trim();
    Ok((key, Tree::of_setting(value, &location).under(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "data: {dataset_name: d, train_csv: a.csv, val_csv: b.csv, target_text_column: text}\n\
                           model: {model_name: m, use_4bit: false}\n";

    fn load(text: &str, settings: &[&str]) -> Result<Config> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        Config::load(&[path], &settings.iter().map(|&s| s.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_fewest_number_of_steps_adds_passes() {
        let steps = |settings: &[&str]| load(MINIMAL, settings).unwrap().train.total_steps(30);
        assert_eq!(steps(&["train.num_train_epochs=4"]), Some(120));
        assert_eq!(steps(&["train.num_train_epochs=4", "train.min_steps=301"]), Some(330));
        assert_eq!(steps(&["train.num_train_epochs=20", "train.min_steps=301"]), Some(600));
        assert_eq!(steps(&["train.min_steps=301", "train.max_steps=7"]), Some(7));
        assert_eq!(steps(&["train.min_steps=0", "train.num_train_epochs=1"]), Some(30));
    }

    #[test]
    fn a_recorded_configuration_reads_back_the_same() {
        let config = load(
            MINIMAL,
            &[
                "train.learning_rate=1e-4",
                "exp.seeds=[3, 4]",
                "model.hf_token=s3cret",
                "train.class_weights={'a: b': 2, yes: 0.5}",
            ],
        )
        .unwrap();
        assert_eq!(config.train.learning_rate, 1e-4);
        assert_eq!(config.model.hf_token.as_ref().unwrap().secret(), "s3cret");
        let yaml = config.to_yaml();
        assert!(!yaml.contains("s3cret") && !format!("{config:?}").contains("s3cret"), "{yaml}");
        assert_eq!(load(&yaml, &[]).unwrap().to_yaml(), yaml);
    }

    #[test]
    fn all_problems_come_at_once_with_line_and_nearest_key() {
        let text = format!("{MINIMAL}train:\n  learning_rat: 1\n  batch_size: many\nexpo: {{}}\n");
        let error = load(&text, &["train.num_train_epochs=-3"]).unwrap_err().to_string();
        for part in [
            "c.yaml:4: unknown key `train.learning_rat`; did you mean `learning_rate`?",
            "c.yaml:5: `train.batch_size` is `many`, expected a whole number",
            "c.yaml:6: unknown key `expo`; did you mean `exp`?",
            "--set train.num_train_epochs=-3: `train.num_train_epochs` is `-3`",
            "4 problems",
        ] {
            assert!(error.contains(part), "{part} is not in:\n{error}");
        }
    }

    #[test]
    fn set_takes_the_value_of_a_text_key_as_it_is() {
        for (typed, held) in [
            ("|", Some("|")),
            ("#", Some("#")),
            (" / ", Some(" / ")),
            ("[", Some("[")),
            ("*", Some("*")),
            ("&", Some("&")),
            ("1.0", Some("1.0")),
            ("~", Some("~")),
            ("\"; \"", Some("; ")),
            ("'|'", Some("|")),
            ("\"\\t\"", Some("\t")),
            ("null", None),
            ("", None),
        ] {
            let config = load(MINIMAL, &[&format!("data.label_separator={typed}")]).unwrap();
            assert_eq!(config.data.label_separator.as_deref(), held, "{typed}");
        }
        assert_eq!(load(MINIMAL, &["data.dataset_name=yes"]).unwrap().data.dataset_name, "yes");
        let error = load(MINIMAL, &["data.dataset_name=null"]).unwrap_err().to_string();
        assert!(error.contains("`data.dataset_name` is missing"), "{error}");
        let error = load(MINIMAL, &["train.batch_size=|"]).unwrap_err().to_string();
        assert!(error.contains("train.batch_size"), "{error}");
        let error = load(MINIMAL, &["exp.seeds=[1, 2"]).unwrap_err().to_string();
        assert!(error.contains("exp.seeds=[1, 2") && error.contains("not valid YAML"), "{error}");
    }

    #[test]
    fn a_wrong_item_of_a_list_is_named_and_names_are_not_taken_twice() {
        for (setting, part) in [
            ("data.label_columns=[a, null]", "item 2 of the list is `null`, expected a string"),
            ("data.text_fields=[[a], b]", "item 1 of the list is `a list`, expected a string"),
            ("exp.seeds=[1, x]", "item 2 of the list is `x`, expected a whole number"),
            ("data.label_columns=[a, b, a]", "`data.label_columns` names `a` twice"),
            ("data.text_fields=[a, a]", "`data.text_fields` names `a` twice"),
            ("data.label_columns=[a, '']", "`data.label_columns` holds an empty name"),
        ] {
            let error = load(MINIMAL, &[setting]).unwrap_err().to_string();
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }

    #[test]
    fn missing_keys_and_broken_yaml_are_named() {
        let error = load("data: {dataset_name: d}", &[]).unwrap_err().to_string();
        assert!(
            error.contains("`data.train_csv` is missing") && error.contains("`model.model_name` is missing"),
            "{error}"
        );
        let error = format!("{:#}", load("data: {a: [1, 2}\n", &[]).unwrap_err());
        assert!(error.contains("c.yaml:1"), "{error}");
        let error = format!("{:#}", load("data:\n  a: 1\n  a: 2\n", &[]).unwrap_err());
        assert!(error.contains("c.yaml:3"), "{error}");
    }

    #[test]
    fn later_files_win_and_lists_replace() {
        let directory = tempfile::tempdir().unwrap();
        let paths = [
            ("a.yaml", MINIMAL),
            ("b.yaml", "exp: {seeds: [1, 2]}\nmodel: {lora_r: 3}"),
            ("c.yaml", "exp: {seeds: [5]}"),
        ]
        .map(|(name, text)| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
        let config = Config::load(&paths, &[]).unwrap();
        assert_eq!((config.exp.seeds.as_slice(), config.model.lora_r), ([5].as_slice(), 3));
    }
}
