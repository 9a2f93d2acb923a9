//! Models that pool other tokens, or see both sides, against transformers 5.24, peft 0.21.2 and torch 2.15; the numbers
//! are made by `scripts/make_pooling_fixtures.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use llmcls::config::model::{AttentionMode, Form, PoolingMode};
use llmcls::kernels::device::Device;
use llmcls::model::batch::Batch;
use llmcls::model::classifier::{Classifier, ClassifierOptions, Problem};
use llmcls::model::config::BackboneConfig;
use llmcls::model::quantization::Quantization;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use llmcls::ops::loss::BceWeights;
use llmcls::ops::tape::Tape;
use llmcls::run::adapter;
use serde::Deserialize;

#[derive(Deserialize)]
struct BatchFile {
    token_ids: Vec<Vec<u32>>,
    labels: Vec<Vec<f32>>,
    problem_type: String,
}

const fn form(pooling: PoolingMode, bidirectional_from: Option<usize>) -> Form {
    let attention = if bidirectional_from.is_some() { Some(AttentionMode::Bidirectional) } else { None };
    Form { pooling: Some(pooling), attention, bidirectional_from_layer: bidirectional_from }
}

const CASES: [(&str, &str, Form); 10] = [
    ("bert_mean", "bert", form(PoolingMode::Mean, None)),
    ("roberta_mean", "roberta", form(PoolingMode::Mean, None)),
    ("distilbert_last", "distilbert", form(PoolingMode::Last, None)),
    ("mpnet_mean", "mpnet", form(PoolingMode::Mean, None)),
    ("deberta_mean", "deberta_v3", form(PoolingMode::Mean, None)),
    ("llama_mean", "llama_tied", form(PoolingMode::Mean, None)),
    ("llama_last_bidirectional", "llama_tied", form(PoolingMode::Last, Some(0))),
    ("llama_mean_from_1", "llama_tied", form(PoolingMode::Mean, Some(1))),
    ("qwen3_first_from_2", "qwen3", form(PoolingMode::First, Some(2))),
    ("qwen3_last_from_1", "qwen3", form(PoolingMode::Last, Some(1))),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn config(base: &str) -> BackboneConfig {
    BackboneConfig::from_file(&fixture(base).join("config.json")).unwrap()
}

/// The classifier with the parameters of `expected`, its batch, and what of the form differs from the family.
fn open(base: &str, form: Form, recompute: bool, expected: &Checkpoint) -> (Classifier, Batch, Form) {
    let directory = fixture(base);
    let batch: BatchFile =
        serde_json::from_str(&std::fs::read_to_string(directory.join("batch.json")).unwrap()).unwrap();
    let mut config = config(base);
    let changed = config.set_form(form).unwrap();
    let weights = Weights::Checkpoint(Checkpoint::open(&[directory.join("model.safetensors")]).unwrap());
    let (mut lora, _) = adapter::read_config(&directory.join("adapter")).unwrap();
    lora.dropout = 0.0;
    let options = ClassifierOptions {
        labels: batch.labels[0].len(),
        base_rows: None,
        problem: if batch.problem_type.starts_with("single") { Problem::SingleLabel } else { Problem::MultiLabel },
        storage: BaseStorage { precision: Precision::Float32, is_4bit: false },
        lora,
        weights: BceWeights::default(),
        recompute,
        quantization: Quantization::Off,
        device: Device::cpu(),
    };
    let classifier = Classifier::new(&config, &weights, &options).unwrap();
    let value = |name: &str, shape: &[usize]| {
        expected
            .floats(&format!("value.base_model.model.{name}"), shape)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"))
    };
    let values: Vec<Vec<f32>> =
        classifier.params().iter().map(|param| value(param.name(), param.value().dims())).collect();
    classifier.set(&values).unwrap();
    let rows = batch.token_ids.iter().zip(&batch.labels).map(|(tokens, labels)| (&**tokens, &**labels));
    (classifier, Batch::new(rows).unwrap(), changed)
}

fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance * (1.0 + largest),
            "{name}[{index}]: {found}, expected {expected}"
        );
    }
}

/// Sums of up to 80 products in f32, in another order; `qwen3` has steeper scores.
#[test]
fn logits_loss_and_every_gradient_match_for_each_pooling_and_attention() {
    for (name, base, form) in CASES {
        for recompute in [false, true] {
            let expected = Checkpoint::open(&[fixture("pooling").join(format!("{name}.safetensors"))]).unwrap();
            let (classifier, batch, changed) = open(base, form, recompute, &expected);
            assert!(!changed.is_usual(), "{name}");
            let tape = Tape::recording(None);
            let logits = classifier.logits(&tape, &batch).unwrap();
            let loss = classifier.loss(&tape, &logits, &batch.labels).unwrap();
            let shape = [batch.len(), classifier.labels()];
            let found: Vec<f32> = logits.tensor().flatten_all().unwrap().to_vec1().unwrap();
            assert_close(name, &found, &expected.floats("logits", &shape).unwrap(), 1e-5);
            let value = loss.tensor().to_scalar().unwrap();
            assert_close(name, &[value], &expected.floats("loss", &[1]).unwrap(), 1e-5);
            let one = candle_core::Tensor::new(1f32, &candle_core::Device::Cpu).unwrap();
            tape.backward(&loss, one).unwrap();
            for param in classifier.params() {
                let key = format!("gradient.base_model.model.{}", param.name());
                let gradient: Vec<f32> = param.gradient().flatten_all().unwrap().to_vec1().unwrap();
                assert_close(&key, &gradient, &expected.floats(&key, param.value().dims()).unwrap(), 3e-5);
                assert!(gradient.iter().any(|&g| g != 0.0), "{name}: {key} is zero");
            }
        }
    }
}

#[test]
fn what_a_family_does_already_changes_nothing() {
    for (base, form) in [
        ("bert", form(PoolingMode::First, None)),
        ("llama_tied", form(PoolingMode::Last, None)),
        ("modernbert_mean", form(PoolingMode::Mean, None)),
        ("modernbert", Form { attention: Some(AttentionMode::Bidirectional), ..Form::default() }),
        ("llama_tied", Form { attention: Some(AttentionMode::Causal), ..Form::default() }),
    ] {
        let (usual, mut set) = (config(base), config(base));
        assert!(set.set_form(form).unwrap().is_usual(), "{base}");
        assert_eq!(set, usual, "{base}");
    }
}

#[test]
fn forms_that_make_no_sense_are_refused() {
    for (base, form, part) in [
        ("llama_tied", form(PoolingMode::First, None), "sees no other"),
        ("llama_tied", form(PoolingMode::Mean, Some(3)), "the last of the 3 layers is 2"),
        ("mistral", form(PoolingMode::Mean, Some(0)), "sliding window"),
        ("bert", Form { attention: Some(AttentionMode::Causal), ..Form::default() }, "see both sides"),
    ] {
        let error = config(base).set_form(form).unwrap_err().to_string();
        assert!(error.contains(part), "{base}: {error}");
    }
}

fn llmcls(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("XDG_CACHE_HOME", root.join("cache"));
    command.args(["--threads", "1"]).args(arguments).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_run_records_its_form_and_predicts_with_it() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("out").display().to_string();
    let mut arguments = vec!["train", "--config", "configs/tiny.yaml", "--override_output_root", &root];
    for setting in [
        "data.max_train_samples=24",
        "data.max_val_samples=9",
        "data.max_test_samples=12",
        "data.max_length=24",
        "train.max_steps=3",
        "model.lora_layers=1",
        "model.pooling=mean",
        "model.attention=bidirectional",
        "model.bidirectional_from_layer=1",
    ] {
        arguments.extend(["--set", setting]);
    }
    let trained = llmcls(place.path(), &arguments);
    assert!(trained.status.success(), "{}", errors(&trained));
    let run = fs::read_dir(place.path().join("out/tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path();
    let best = run.join("seed_1/best");
    let file: serde_json::Value = serde_json::from_slice(&fs::read(best.join("classifier.json")).unwrap()).unwrap();
    assert_eq!(
        [&file["pooling"], &file["attention"], &file["bidirectional_from_layer"], &file["format_version"]],
        [&"mean".into(), &"bidirectional".into(), &1.into(), &3.into()] as [&serde_json::Value; 4]
    );
    let card = fs::read_to_string(best.join("README.md")).unwrap();
    assert!(card.contains("attention bidirectional, bidirectional_from_layer 1, pooling mean"), "{card}");
    assert!(!card.contains("PeftModel"), "{card}");
    let scores = place.path().join("scores").display().to_string();
    let run = run.display().to_string();
    let evaluated = llmcls(place.path(), &["eval", "--run", &run, "--output_dir", &scores]);
    assert!(evaluated.status.success(), "{}", errors(&evaluated));
    let predictions = |path: PathBuf| fs::read_to_string(path).unwrap();
    assert_eq!(
        predictions(place.path().join("scores/predictions.jsonl")),
        predictions(best.join("../predictions_test.jsonl"))
    );
    let out = place.path().join("complete").display().to_string();
    let exported = llmcls(place.path(), &["export", "--run", &run, "--out", &out]);
    assert!(errors(&exported).contains("transformers would compute the exported model without that"));
    for (settings, part) in [
        (&["model.bidirectional_from_layer=1"][..], "without `model.attention: bidirectional`"),
        (&["model.pooling=first"], "sees no other"),
        (&["model.pooling=cls"], "one of last mean first"),
    ] {
        let mut arguments = vec!["check", "--config", "configs/tiny.yaml"];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        let checked = llmcls(place.path(), &arguments);
        assert!(!checked.status.success() && errors(&checked).contains(part), "{settings:?}: {}", errors(&checked));
    }
}
