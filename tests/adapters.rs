//! LoRA of peft 0.21.2 in its less usual forms, and heads of the base; the numbers are made by
//! `scripts/make_adapter_fixtures.py`.

use std::fs;
use std::path::{Path, PathBuf};

use llmcls::kernels::device::Device;
use llmcls::model::batch::Batch;
use llmcls::model::classifier::{Classifier, ClassifierOptions, Problem};
use llmcls::model::config::BackboneConfig;
use llmcls::model::lora::LoraOptions;
use llmcls::model::quantization::Quantization;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use llmcls::ops::loss::BceWeights;
use llmcls::ops::tape::Tape;
use llmcls::run::adapter::{self, BaseName};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    /// The fixture of the base, if it does not stand beside the adapter.
    base: Option<String>,
    token_ids: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn expected(directory: &Path) -> Expected {
    serde_json::from_str(&fs::read_to_string(directory.join("expected.json")).unwrap()).unwrap()
}

fn build(directory: &Path, expected: &Expected, lora: &LoraOptions) -> Classifier {
    let base = expected.base.as_ref().map_or_else(|| directory.to_owned(), |base| root().join(base));
    let config = BackboneConfig::from_file(&base.join("config.json")).unwrap();
    let weights = Weights::Checkpoint(Checkpoint::open(&[base.join("model.safetensors")]).unwrap());
    let labels = expected.logits[0].len();
    let options = ClassifierOptions {
        labels,
        base_rows: (config.labels.len() == labels).then(|| (0..labels).collect()),
        problem: Problem::MultiLabel,
        storage: BaseStorage { precision: Precision::Float32, is_4bit: false },
        lora: lora.clone(),
        weights: BceWeights::default(),
        recompute: false,
        quantization: Quantization::Off,
        device: Device::cpu(),
    };
    Classifier::new(&config, &weights, &options).unwrap()
}

fn logits(classifier: &Classifier, tokens: &[u32], labels: usize) -> Vec<f32> {
    let batch = Batch::new([(tokens, &*vec![0.0; labels])]).unwrap();
    classifier.logits(&Tape::off(), &batch).unwrap().tensor().flatten_all().unwrap().to_vec1().unwrap()
}

fn difference(classifier: &Classifier, expected: &Expected) -> f32 {
    let rows = expected.token_ids.iter().zip(&expected.logits);
    rows.flat_map(|(tokens, row)| {
        let found = logits(classifier, tokens, row.len());
        found.into_iter().zip(row).map(|(a, b)| (a - b).abs()).collect::<Vec<_>>()
    })
    .fold(0.0, f32::max)
}

/// Logits of up to 3, from sums of up to 80 products in f32 in another order.
const TOLERANCE: f32 = 2e-5;

#[test]
fn every_plain_lora_of_peft_gives_its_logits_also_when_saved_again() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("adapters")).unwrap() {
        let directory = entry.unwrap().path();
        let expected = expected(&directory);
        let (lora, _) = adapter::read_config(&directory).unwrap();
        let classifier = build(&directory, &expected, &lora);
        adapter::load(&directory, &classifier).unwrap();
        let error = difference(&classifier, &expected);
        assert!(error < TOLERANCE, "{}: {error}", directory.display());
        seen += 1;
        // A layer of the head that has an adapter stays one only where peft wrote the file.
        if directory.ends_with("modernbert_head_adapted") {
            continue;
        }
        let again = tempfile::tempdir().unwrap();
        adapter::save(again.path(), &classifier, &lora, BaseName { name: "base", revision: None }).unwrap();
        let (lora, _) = adapter::read_config(again.path()).unwrap();
        let classifier = build(&directory, &expected, &lora);
        adapter::load(again.path(), &classifier).unwrap();
        let error = difference(&classifier, &expected);
        assert!(error < TOLERANCE, "{}, saved again: {error}", directory.display());
    }
    assert_eq!(seen, 13);
}

/// Training starts from the head that the checkpoint brings, and goes on to train it.
#[test]
fn heads_that_a_base_brings_are_where_training_starts() {
    for (name, param) in [
        ("modernbert_head_left_out", "head.dense.weight"),
        ("modernbert_head_left_out", "head.norm.bias"),
        ("distilbert_head_left_out", "pre_classifier.bias"),
        ("roberta_head_of_the_base", "classifier.dense.weight"),
        ("roberta_head_of_the_base", "classifier.out_proj.weight"),
    ] {
        let directory = root().join("adapters").join(name);
        let expected = expected(&directory);
        let lora = LoraOptions { modules_to_save: None, ..adapter::read_config(&directory).unwrap().0 };
        let classifier = build(&directory, &expected, &lora);
        classifier.initialize(7).unwrap();
        let found = classifier.params().iter().find(|found| found.name() == param).unwrap();
        let base = Checkpoint::open(&[directory.join("model.safetensors")]).unwrap();
        let values: Vec<f32> = found.value().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, base.floats(param, found.value().dims()).unwrap(), "{name}: {param}");
    }
}

#[test]
fn rows_of_the_head_are_taken_by_label_and_new_labels_keep_their_own() {
    let directory = root().join("adapters/rslora");
    let expected = expected(&directory);
    let (lora, _) = adapter::read_config(&directory).unwrap();
    let classifier = build(&directory, &expected, &lora);
    let stored = adapter::Stored::open(&directory).unwrap();
    assert_eq!(stored.labels(&classifier), Some(3));
    stored.set(&classifier, Some(&[Some(2), None, Some(0)])).unwrap();
    let found = logits(&classifier, &expected.token_ids[0], 3);
    for (label, row) in [(0, 2), (2, 0)] {
        assert!((found[label] - expected.logits[0][row]).abs() < TOLERANCE, "{found:?}");
    }
    assert_eq!(found[1], 0.0, "parameters are zero until they are set");
}

#[test]
fn an_adapter_without_a_head_is_refused_with_the_way_out() {
    let directory = root().join("adapters/roberta_head_of_the_base");
    let mut expected = expected(&directory);
    expected.logits.iter_mut().for_each(|row| row.truncate(2));
    let (lora, _) = adapter::read_config(&directory).unwrap();
    let classifier = build(&directory, &expected, &lora);
    let error = format!("{:#}", adapter::load(&directory, &classifier).unwrap_err());
    assert!(error.contains("no classification head") && error.contains("modules_to_save"), "{error}");
}
