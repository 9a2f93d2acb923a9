//! `config.json` of every family, as transformers 4.57.6 and 5.24.0 write it; the files are made by
//! `scripts/make_config_fixtures.py`. Runs of every family.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use llmcls::model::config::BackboneConfig;
use serde::Deserialize;
use serde_json::Value;

use crate::resume::{assert_same, contents};

#[derive(Deserialize)]
struct Cases {
    version: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Some keys alone.
    given: Value,
    /// All keys, with transformers' defaults.
    whole: Value,
    /// Configurations in the form of `save_pretrained`.
    saved: Value,
}

fn read(config: &Value) -> BackboneConfig {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    BackboneConfig::from_file(&path).unwrap_or_else(|error| panic!("{error:#}: {config}"))
}

fn cases(major: u32) -> Cases {
    let path = format!("tests/fixtures/configs/transformers_{major}.json");
    serde_json::from_str(&std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()).unwrap()
}

#[test]
fn absent_keys_have_the_defaults_of_transformers_and_both_versions_files_are_the_same_model() {
    for major in [4, 5] {
        let cases = cases(major);
        assert!(cases.version.starts_with(&major.to_string()) && cases.cases.len() > 30);
        for case in cases.cases {
            let given = read(&case.given);
            assert_eq!(given, read(&case.whole), "{}: all keys of {}", cases.version, case.given);
            assert_eq!(given, read(&case.saved), "{}: the file of {}", cases.version, case.given);
        }
    }
}

/// Families beside Llama, whose runs tests/resume.rs kills at every step.
const RUNS: [&str; 17] = [
    "albert",
    "bert",
    "deberta_v3",
    "distilbert",
    "electra",
    "eurobert",
    "gemma2",
    "gemma3",
    "granite",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "olmo2",
    "phi3",
    "qwen3",
    "roberta",
    "smollm3",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A base of random weights, with the sizes of a fixture and a tokenizer of words.
fn write_base(fixture: &str, base: &Path) {
    let read = |path: &str| -> Value { serde_json::from_slice(&fs::read(root().join(path)).unwrap()).unwrap() };
    let mut config = read(&format!("tests/fixtures/{fixture}/config.json"));
    config["vocab_size"] = read("data/tiny-llama/config.json")["vocab_size"].clone();
    for (key, token) in [("pad_token_id", 1), ("bos_token_id", 0), ("eos_token_id", 1)] {
        config[key] = token.into();
    }
    fs::create_dir(base).unwrap();
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    fs::copy(root().join("data/tiny-llama/tokenizer.json"), base.join("tokenizer.json")).unwrap();
}

fn llmcls(directory: &Path, arguments: &[&str], failpoint: Option<&str>) -> Output {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(directory).args(["--threads", "1"]).args(arguments);
    command.envs(failpoint.map(|failpoint| ("LLMCLS_FAILPOINT", failpoint)));
    command.output().unwrap()
}

/// Six epochs over 16 rows.
fn train(directory: &Path, out: &str, failpoint: Option<&str>) -> Output {
    let data = root().join("configs/data/debtags.yaml").display().to_string();
    let csv = root().join("data/debtags/train.csv").display().to_string();
    let mut arguments = ["train", "--config", &data, "--override_output_root", out].map(str::to_owned).to_vec();
    let files = ["train", "val", "test"].map(|split| format!("data.{split}_csv={csv}"));
    let settings = [
        "data.max_train_samples=16",
        "data.max_val_samples=6",
        "data.max_test_samples=5",
        "data.max_length=24",
        "model.model_name=base",
        "model.random_init=true",
        "model.use_4bit=true",
        "train.num_train_epochs=6",
        "train.batch_size=4",
        "train.gradient_accumulation_steps=2",
        "train.save_steps=5",
        "train.logging_steps=1",
        "train.learning_rate=0.01",
        "train.early_stopping_patience=6",
        "exp.seeds=[1]",
    ];
    for setting in files.iter().map(String::as_str).chain(settings) {
        arguments.extend(["--set", setting].map(str::to_owned));
    }
    llmcls(directory, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), failpoint)
}

fn run_of(out: &Path) -> PathBuf {
    fs::read_dir(out.join("base/debtags")).unwrap().next().unwrap().unwrap().path()
}

/// The export compares its predictions with the run's by itself, and fails if they differ.
#[test]
fn every_family_learns_over_4_bits_goes_on_after_a_kill_to_the_same_bytes_and_is_exported() {
    for name in RUNS {
        let place = tempfile::tempdir().unwrap();
        write_base(name, &place.path().join("base"));
        let expect = |output: Output| {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{name}: {errors}");
            errors
        };
        expect(train(place.path(), "whole", None));
        let whole = run_of(&place.path().join("whole"));
        let history = fs::read_to_string(whole.join("seed_1/history.jsonl")).unwrap();
        let losses: Vec<f64> =
            history.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64()).collect();
        assert_eq!(losses.len(), 12, "{name}: {losses:?}");
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..2]), mean(&losses[losses.len() - 2..]));
        assert!(last < 0.9 * first, "{name}: {losses:?}");

        assert!(!train(place.path(), "killed", Some("step:7:kill")).status.success());
        let killed = run_of(&place.path().join("killed"));
        expect(llmcls(place.path(), &["train", "--resume", killed.to_str().unwrap()], None));
        assert_same(&killed, &contents(&whole), name);

        let said =
            expect(llmcls(place.path(), &["export", "--run", whole.to_str().unwrap(), "--out", "complete"], None));
        assert!(said.contains("largest difference of a probability"), "{said}");
        let card = fs::read_to_string(place.path().join("complete/README.md")).unwrap();
        assert_eq!(card.contains("needs transformers 5"), ["eurobert", "nomic_bert"].contains(&name), "{card}");
    }
}
