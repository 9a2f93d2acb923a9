//! Adapters merged into their base: the same numbers, under the names that transformers has; and the command.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use llmcls::kernels::device::Device;
use llmcls::model::batch::Batch;
use llmcls::model::classifier::{Classifier, ClassifierOptions, Problem};
use llmcls::model::config::BackboneConfig;
use llmcls::model::lora::LoraOptions;
use llmcls::model::quantization::Quantization;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use llmcls::ops::loss::BceWeights;
use llmcls::ops::tape::Tape;
use llmcls::run::{adapter, model_weights};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct BatchFile {
    token_ids: Vec<Vec<u32>>,
    labels: Vec<Vec<f32>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn options(labels: usize, base_rows: Option<Vec<usize>>, storage: BaseStorage, lora: LoraOptions) -> ClassifierOptions {
    ClassifierOptions {
        labels,
        base_rows,
        problem: Problem::MultiLabel,
        storage,
        lora,
        weights: BceWeights::default(),
        recompute: false,
        quantization: Quantization::Off,
        device: Device::cpu(),
    }
}

fn logits(classifier: &Classifier, batch: &BatchFile) -> Vec<f32> {
    let rows = batch.token_ids.iter().zip(&batch.labels).map(|(tokens, labels)| (tokens.as_slice(), labels.as_slice()));
    let batch = Batch::new(rows.collect::<Vec<_>>()).unwrap();
    classifier.logits(&Tape::off(), &batch).unwrap().tensor().flatten_all().unwrap().to_vec1().unwrap()
}

/// Logits of up to 10, from sums of up to 80 products in f32, in another order.
const TOLERANCE: f32 = 1e-4;

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

const DENSE: BaseStorage = BaseStorage { precision: Precision::Float32, is_4bit: false };

/// Merges an adapter into its base, writes the tensors, and builds a model of what was written.
fn merge(base: &Path, adapter: &Path, batch: &BatchFile, storage: BaseStorage) -> (Vec<f32>, Vec<f32>, Checkpoint) {
    let config = BackboneConfig::from_file(&base.join("config.json")).unwrap();
    let weights = Weights::Checkpoint(Checkpoint::open(&[base.join("model.safetensors")]).unwrap());
    let labels = batch.labels[0].len();
    let rows = || Some((0..labels).collect::<Vec<_>>());
    let lora = adapter::read_config(adapter).unwrap().0;
    let of_base = rows().filter(|_| config.labels.len() == labels);
    let apart = Classifier::new(&config, &weights, &options(labels, of_base, storage, lora)).unwrap();
    adapter::load(adapter, &apart).unwrap();

    let place = tempfile::tempdir().unwrap();
    let tensors = apart.merged(&weights, storage);
    model_weights::write(place.path(), &tensors, Precision::Float32, model_weights::SHARD_BYTES).unwrap();
    let path = place.path().join(model_weights::WEIGHTS);
    let written = Weights::Checkpoint(Checkpoint::open(std::slice::from_ref(&path)).unwrap());
    let mut config = config;
    config.labels = (0..labels).map(|label| label.to_string()).collect();
    let merged = Classifier::new(&config, &written, &options(labels, rows(), DENSE, LoraOptions::none())).unwrap();
    merged.set_to_base().unwrap();
    (logits(&apart, batch), logits(&merged, batch), Checkpoint::open(&[path]).unwrap())
}

fn state_dicts() -> BTreeMap<String, BTreeMap<String, Vec<usize>>> {
    serde_json::from_str(&fs::read_to_string(fixtures().join("state_dicts.json")).unwrap()).unwrap()
}

/// Names and shapes are those of transformers 4.57.6, and 5.24.0 for families that 4 lacks, made by `scripts/make_export_fixtures.py`.
#[test]
fn merged_equals_apart_in_every_family_under_the_names_of_transformers() {
    let names = state_dicts();
    assert!(names.len() >= 34, "{}", names.len());
    for (family, expected) in &names {
        let directory = fixtures().join(family);
        let batch: BatchFile =
            serde_json::from_str(&fs::read_to_string(directory.join("batch.json")).unwrap()).unwrap();
        let (apart, merged, written) = merge(&directory, &directory.join("adapter"), &batch, DENSE);
        let error = difference(&apart, &merged);
        assert!(error < TOLERANCE, "{family}: {error}");
        let found: BTreeMap<String, Vec<usize>> =
            written.names().map(|name| (name.to_owned(), written.shape(name).unwrap().to_vec())).collect();
        assert_eq!(found, *expected, "{family}");
    }
}

/// Ranks and alphas by pattern, rsLoRA, adapters in the head, heads of the base.
#[test]
fn merged_equals_apart_for_every_kind_of_lora() {
    #[derive(Deserialize)]
    struct Expected {
        base: Option<String>,
        token_ids: Vec<Vec<u32>>,
        logits: Vec<Vec<f32>>,
    }
    let mut seen = 0;
    for entry in fs::read_dir(fixtures().join("adapters")).unwrap() {
        let directory = entry.unwrap().path();
        let text = fs::read_to_string(directory.join("expected.json")).unwrap();
        let expected: Expected = serde_json::from_str(&text).unwrap();
        let base = expected.base.as_ref().map_or_else(|| directory.clone(), |base| fixtures().join(base));
        let labels = expected.logits.iter().map(|row| vec![0.0; row.len()]).collect();
        let batch = BatchFile { token_ids: expected.token_ids, labels };
        let (apart, merged, _) = merge(&base, &directory, &batch, DENSE);
        let error = difference(&apart, &merged);
        assert!(error < TOLERANCE, "{}: {error}", directory.display());
        let error = difference(&expected.logits.concat(), &merged);
        assert!(error < TOLERANCE, "{} against peft: {error}", directory.display());
        seen += 1;
    }
    assert!(seen >= 13, "{seen}");
}

/// The merged weights are the numbers that the 4-bit ones stand for, plus the adapter: not the original ones.
#[test]
fn a_base_in_4_bits_is_merged_from_the_numbers_that_it_stands_for() {
    for family in state_dicts().keys().filter(|family| *family != "llama_4bit") {
        let directory = fixtures().join(family);
        let batch: BatchFile =
            serde_json::from_str(&fs::read_to_string(directory.join("batch.json")).unwrap()).unwrap();
        let storage = BaseStorage { precision: Precision::Float32, is_4bit: true };
        let (apart, merged, _) = merge(&directory, &directory.join("adapter"), &batch, storage);
        let (of_dense, ..) = merge(&directory, &directory.join("adapter"), &batch, DENSE);
        assert!(difference(&apart, &merged) < TOLERANCE, "{family}: {}", difference(&apart, &merged));
        assert!(difference(&of_dense, &merged) > 100.0 * TOLERANCE, "{family} was not quantized");
    }
}

pub(super) const ROWS: &str =
    "id,text,red,blue\n1,red apple,1,0\n7,blue stone,0,1\nx,red and blue,1,1\n3,green apple,0,0\n";

pub(super) fn llmcls(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["--threads", "1"]).args(arguments);
    command
}

pub(super) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run(arguments: &[&str]) -> Output {
    let output = llmcls(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
    output
}

/// A run of the tiny model on two labels, and its rows.
pub(super) fn trained(root: &Path, more: &[&str]) -> (String, String) {
    let rows = root.join("rows.csv");
    fs::write(&rows, ROWS).unwrap();
    let rows = rows.to_str().unwrap().to_owned();
    let out = root.join("out").to_str().unwrap().to_owned();
    let mut command = llmcls(&["train", "--config", "configs/tiny.yaml", "--override_output_root", &out]);
    for key in ["train_csv", "val_csv", "test_csv"] {
        command.args(["--set", &format!("data.{key}={rows}")]);
    }
    for setting in ["data.id_column=id", "data.target_text_column=text", "data.text_fields=null", "train.max_steps=3"] {
        command.args(["--set", setting]);
    }
    let output = command.args(["--set", "train.learning_rate=0.05"]).args(more).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let run = fs::read_dir(root.join("out/tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path();
    (run.to_str().unwrap().to_owned(), rows)
}

fn probabilities(run_directory: &str, rows: &str) -> Vec<f64> {
    let output = run(&["predict", rows, "--run", run_directory, "-o", "-"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.flat_map(|row| row["probs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn an_exported_run_predicts_and_evaluates_without_its_base_and_names_no_path() {
    let root = tempfile::tempdir().unwrap();
    let (run_directory, rows) = trained(root.path(), &[]);
    let out = root.path().join("complete").to_str().unwrap().to_owned();
    let output = run(&["export", "--run", &run_directory, "--out", &out, "--max_shard_size", "3MB"]);
    assert!(errors(&output).contains("largest difference of a probability"), "{}", errors(&output));
    let (apart, complete) = (probabilities(&run_directory, &rows), probabilities(&out, &rows));
    let worst = apart.iter().zip(&complete).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart.len() == 8 && worst < 1e-5, "{worst}: {apart:?} {complete:?}");
    let printed = run(&["eval", "--run", &out, "--input_csv", &rows]);
    assert!(String::from_utf8_lossy(&printed.stdout).contains("f1_micro"));

    let read = |name: &str| fs::read_to_string(Path::new(&out).join(name)).unwrap();
    let json = |name: &str| serde_json::from_str::<Value>(&read(name)).unwrap();
    let config = json("config.json");
    assert_eq!(config["architectures"], serde_json::json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"], serde_json::json!({"0": "red", "1": "blue"}));
    assert_eq!(config["label2id"], serde_json::json!({"red": 0, "blue": 1}));
    assert_eq!(config["problem_type"], "multi_label_classification");
    // Padding is what the model passes over, and what Python's tokenizer writes.
    let tokenizer = json("tokenizer.json");
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let padding = added.iter().find(|token| token["id"] == config["pad_token_id"]).unwrap();
    assert_eq!(json("tokenizer_config.json")["pad_token"], padding["content"]);
    // A Llama takes no token types.
    assert_eq!(json("tokenizer_config.json")["model_input_names"], serde_json::json!(["input_ids", "attention_mask"]));
    assert!(read("model.safetensors.index.json").contains("model-00001-of-0000"));
    assert!(read("README.md").contains("top_k=None") && read("README.md").contains("| blue | 0.500 |"));
    for name in ["config.json", "classifier.json", "tokenizer_config.json", "README.md", "manifest.json"] {
        assert!(
            !read(name).contains("data/tiny-llama") && !read(name).contains(root.path().to_str().unwrap()),
            "{name}"
        );
    }
    // Damage is found.
    let shard = Path::new(&out).join("model-00002-of-00003.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&shard, bytes).unwrap();
    let damaged = llmcls(&["predict", "--run", &out, "--text", "a"]).output().unwrap();
    assert!(errors(&damaged).contains("has changed since it was written"), "{}", errors(&damaged));
}

#[test]
fn an_export_is_there_whole_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let (run_directory, _) = trained(root.path(), &[]);
    let out = root.path().join("complete");
    let name = out.to_str().unwrap();
    let failed = llmcls(&["export", "--run", &run_directory, "--out", name])
        .env("LLMCLS_FAILPOINT", "rename:1:full")
        .output()
        .unwrap();
    assert!(!failed.status.success() && !out.exists(), "{}", errors(&failed));
    fs::create_dir_all(&out).unwrap();
    let refused = llmcls(&["export", "--run", &run_directory, "--out", name]).output().unwrap();
    assert!(!refused.status.success() && errors(&refused).contains("is there already"), "{}", errors(&refused));
    let left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_run_in_4_bits_is_exported_in_float32_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let (run_directory, rows) = trained(root.path(), &["--set", "model.use_4bit=true"]);
    let out = root.path().join("complete").to_str().unwrap().to_owned();
    let output = run(&["export", "--run", &run_directory, "--out", &out]);
    assert!(errors(&output).contains("4 bits") && errors(&output).contains("float32"), "{}", errors(&output));
    let pairs = probabilities(&run_directory, &rows).into_iter().zip(probabilities(&out, &rows));
    assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-5);
    let card = fs::read_to_string(Path::new(&out).join("README.md")).unwrap();
    assert!(card.contains("NF4") && card.contains("library_name: transformers"), "{card}");
}

/// Linux and Windows; macOS runs no program with bytes behind its signature.
#[cfg(not(target_os = "macos"))]
#[test]
fn a_bundle_needs_nothing_else_and_damage_is_found() {
    let root = tempfile::tempdir().unwrap();
    let (run_directory, rows) = trained(root.path(), &[]);
    let expected = run(&["predict", &rows, "--run", &run_directory, "-o", "-"]).stdout;
    let complete = root.path().join("complete").to_str().unwrap().to_owned();
    run(&["export", "--run", &run_directory, "--out", &complete]);
    let of_complete = run(&["predict", &rows, "--run", &complete, "-o", "-"]).stdout;
    let bundle = |run_directory: &str, name: &str| {
        let out = root.path().join(name);
        run(&["bundle", "--run", run_directory, "--out", out.to_str().unwrap()]);
        out
    };
    let [apart, whole] = [bundle(&run_directory, "apart"), bundle(&complete, "whole")];
    // Gone, with the working directory's data: what is left is the program.
    fs::remove_dir_all(root.path().join("out")).unwrap();
    fs::remove_dir_all(&complete).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let predict = |program: &Path| {
        let mut command = Command::new(program);
        command.current_dir(elsewhere.path()).args(["--threads", "1", "predict", &rows, "-o", "-"]).output().unwrap()
    };
    for (program, expected) in [(&apart, &expected), (&whole, &of_complete)] {
        let output = predict(program);
        assert!(output.status.success(), "{}", errors(&output));
        assert_eq!(output.stdout, *expected, "{}", program.display());
    }
    // A bundle makes another one of its own classifier.
    let again = root.path().join("again");
    let output = Command::new(&apart).args(["bundle", "--out", again.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(fs::metadata(&again).unwrap().len(), fs::metadata(&apart).unwrap().len());
    assert_eq!(predict(&again).stdout, expected);

    // One bit of the weights, which are mapped.
    let mut bytes = fs::read(&whole).unwrap();
    let at = bytes.len() - (4 << 20);
    bytes[at] ^= 1;
    fs::write(&again, bytes).unwrap();
    let damaged = predict(&again);
    assert!(!damaged.status.success() && errors(&damaged).contains("damaged"), "{}", errors(&damaged));
}

#[cfg(not(target_os = "macos"))]
#[test]
fn a_bundle_in_8_bits_is_smaller_and_predicts_nearly_the_same() {
    let root = tempfile::tempdir().unwrap();
    let (run_directory, rows) = trained(root.path(), &[]);
    let [complete, large, small] =
        ["complete", "large", "small"].map(|name| root.path().join(name).to_str().unwrap().to_owned());
    run(&["export", "--run", &run_directory, "--out", &complete]);
    run(&["bundle", "--run", &complete, "--out", &large]);
    let said = errors(&run(&["bundle", "--int8", "--run", &complete, "--out", &small]));
    assert!(said.contains("in 8 bits a probability differs by up to"), "{said}");
    let probabilities = |program: &str| {
        let output = Command::new(program).args(["predict", &rows, "-o", "-"]).output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["probs"].clone()).collect::<Vec<_>>()
    };
    let flat = |rows: &[Value]| -> Vec<f32> {
        rows.iter().flat_map(|row| row.as_array().unwrap().iter().map(|p| p.as_f64().unwrap() as f32)).collect()
    };
    let (whole, rounded) = (probabilities(&large), probabilities(&small));
    let changed = difference(&flat(&whole), &flat(&rounded));
    // 8 bits round a weight by a part in 254 of the largest in its block.
    assert!(changed > 0.0 && changed < 0.01, "{changed}");
    // What is left of the weights is 34 bytes of 128.
    let [own, whole, rounded] =
        [env!("CARGO_BIN_EXE_llmcls"), &large, &small].map(|path| fs::metadata(path).unwrap().len());
    assert!((rounded - own) * 3 < whole - own, "{own} {whole} {rounded}");
    let names = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.collect();
    assert!(!names.iter().any(|name| name.contains("tmp-")), "{names:?}");

    // A bundle makes another one of its own classifier, but rounds nothing twice.
    let again = root.path().join("again").to_str().unwrap().to_owned();
    let made = Command::new(&small).args(["bundle", "--out", &again]).output().unwrap();
    assert!(made.status.success(), "{}", errors(&made));
    assert_eq!(probabilities(&again), probabilities(&small));
    for (program, run_directory, cause) in
        [(&small, None, "in fewer bits already"), (&large, Some(&run_directory), "random weights")]
    {
        let mut command = Command::new(program);
        command
            .args(["bundle", "--int8", "--out", &again])
            .args(run_directory.map(|run| ["--run", run]).into_iter().flatten());
        let refused = command.output().unwrap();
        assert!(!refused.status.success() && errors(&refused).contains(cause), "{}", errors(&refused));
    }
}
