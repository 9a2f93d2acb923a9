//! Integrated gradients on every family: their weights sum to what the text changes (completeness).

use std::path::Path;

use llmcls::data::tokenize::Encoded;
use llmcls::kernels::device::Device;
use llmcls::model::attributions::Explainer;
use llmcls::model::batch::Batch;
use llmcls::model::classifier::{Classifier, ClassifierOptions, Problem};
use llmcls::model::config::BackboneConfig;
use llmcls::model::quantization::Quantization;

use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use llmcls::ops::loss::BceWeights;
use llmcls::ops::tape::Tape;
use llmcls::run::adapter;
use serde_json::Value;

const NAMES: [&str; 33] = [
    "albert",
    "albert_inner",
    "bert",
    "bert_no_pooler",
    "deberta_c2p",
    "deberta_v2",
    "deberta_v3",
    "distilbert",
    "electra",
    "eurobert",
    "eurobert_bos",
    "eurobert_mean",
    "gemma2",
    "gemma3",
    "gemma3_both_sides",
    "granite",
    "llama_tied",
    "llama_untied",
    "mistral",
    "modernbert",
    "modernbert_mean",
    "mpnet",
    "nomic_bert",
    "nomic_bert_fused",
    "olmo2",
    "phi3",
    "phi3_long",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "roberta",
    "smollm3",
    "xlm_roberta",
];

/// A small model of tests/fixtures with its adapter, and its batch.
pub(crate) fn fixture(name: &str) -> (Classifier, Value) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let batch: Value = serde_json::from_str(&std::fs::read_to_string(directory.join("batch.json")).unwrap()).unwrap();
    let config = BackboneConfig::from_file(&directory.join("config.json")).unwrap();
    let weights = Weights::Checkpoint(Checkpoint::open(&[directory.join("model.safetensors")]).unwrap());
    let (lora, _) = adapter::read_config(&directory.join("adapter")).unwrap();
    let labels = batch["labels"][0].as_array().unwrap().len();
    let options = ClassifierOptions {
        labels,
        base_rows: None,
        problem: Problem::MultiLabel,
        storage: BaseStorage { precision: Precision::Float32, is_4bit: false },
        lora,
        weights: BceWeights::default(),
        recompute: false,
        device: Device::cpu(),
        quantization: Quantization::Off,
    };
    let classifier = Classifier::new(&config, &weights, &options).unwrap();
    adapter::load(&directory.join("adapter"), &classifier).unwrap();
    (classifier, batch)
}

/// Small models whose logits their own texts change by a twentieth at least.
const LIVELY: [&str; 12] = [
    "bert",
    "distilbert",
    "gemma2",
    "llama_tied",
    "mistral",
    "modernbert",
    "modernbert_mean",
    "phi3",
    "qwen2",
    "qwen3",
    "roberta",
    "xlm_roberta",
];

#[test]
fn the_weights_of_all_tokens_sum_to_the_change_of_the_logit() {
    for name in NAMES {
        let (classifier, batch) = fixture(name);
        let labels = batch["labels"][0].as_array().unwrap().len();
        let explainer = Explainer::new(&classifier).unwrap();
        let texts: Vec<Vec<u32>> = serde_json::from_value(batch["token_ids"].clone()).unwrap();
        let all: Vec<usize> = (0..labels).collect();
        // Summed over texts and labels: some of these small models answer to a text by a few thousandths alone.
        let (mut changes, mut errors, mut largest) = (0.0, 0.0, 0.0f64);
        for tokens in &texts {
            let one = Batch::new([(&**tokens, &[][..])]).unwrap();
            let logits = classifier.logits(&Tape::off(), &one).unwrap();
            let logits: Vec<f32> = logits.tensor().flatten_all().unwrap().to_vec1().unwrap();
            for attribution in explainer.attributions(&Encoded::whole(tokens.clone()), &all).unwrap() {
                let change = (attribution.logit - attribution.baseline).abs();
                assert!((attribution.logit - f64::from(logits[attribution.label])).abs() < 1e-4, "{name}");
                assert_eq!(attribution.weights.len(), tokens.len());
                assert!(
                    attribution.error() <= (0.02 * change).max(0.02),
                    "{name}: {} of {change}",
                    attribution.error()
                );
                largest = change.max(largest);
                let is_weighed = attribution.weights.iter().any(|weight| weight.abs() > 1e-4);
                assert!(is_weighed || !LIVELY.contains(&name), "{name}: no token weighs");
                changes += change;
                errors += attribution.error();
            }
        }
        assert!(changes > 0.02, "{name}: the texts change {changes}");
        assert!(largest > 0.05 || !LIVELY.contains(&name), "{name}: the texts change a logit by {largest} at most");
        assert!(errors <= 0.1 * changes, "{name}: the weights miss {errors} of {changes}");
    }
}
