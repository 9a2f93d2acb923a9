//! Language models against transformers 4.57.6. `scripts/make_language_fixtures.py` makes the numbers.

use std::fs;
use std::path::{Path, PathBuf};

use llmcls::kernels::device::Device;
use llmcls::model::config::BackboneConfig;
use llmcls::model::key_values::{KeyValues, Next};
use llmcls::model::language_model::LanguageModel;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;

const MODELS: [&str; 12] = [
    "llama_tied",
    "llama_untied",
    "mistral",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "smollm3",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "granite",
];
const FLOAT32: BaseStorage = BaseStorage { precision: Precision::Float32, is_4bit: false };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn model(name: &str, storage: BaseStorage, device: &Device) -> LanguageModel {
    let read = |path: PathBuf| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
    let mut config = read(fixtures().join(name).join("config.json"));
    for (key, value) in read(fixtures().join("language").join(format!("{name}.json"))).as_object().unwrap() {
        config[key] = value.clone();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let config = BackboneConfig::from_file(&path).unwrap();
    let files = [fixtures().join(name).join("model.safetensors"), numbers(name)];
    LanguageModel::new(&config, &Weights::Checkpoint(Checkpoint::open(&files).unwrap()), storage, device).unwrap()
}

fn numbers(name: &str) -> PathBuf {
    fixtures().join("language").join(format!("{name}.safetensors"))
}

/// A prompt, the logits after each of its tokens, and the tokens that follow.
struct Expected {
    prompt: Vec<u32>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

fn expected(name: &str) -> Vec<Expected> {
    let bytes = fs::read(numbers(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |key: String| -> Vec<u32> {
        let data = file.tensor(&key).unwrap().data().to_vec();
        data.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
    };
    let of_prompt = |index: usize| {
        let logits = file.tensor(&format!("logits.{index}")).unwrap();
        let numbers = logits.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        let numbers: Vec<f32> = numbers.collect();
        Expected {
            prompt: words(format!("prompt.{index}")),
            logits: numbers.chunks(logits.shape()[1]).map(<[f32]>::to_vec).collect(),
            greedy: words(format!("greedy.{index}")),
        }
    };
    (0..3).map(of_prompt).collect()
}

fn best(logits: &[f32]) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).unwrap() as u32
}

fn greedy(model: &LanguageModel, prompt: &[u32], count: usize) -> Vec<u32> {
    let (mut past, mut next, mut tokens) = (KeyValues::default(), prompt.to_vec(), Vec::new());
    while tokens.len() < count {
        let (logits, mut kept) = model.extend(&[Next { past: &past, token_ids: &next }]).unwrap();
        tokens.push(best(logits.rows().next().unwrap()));
        (past, next) = (kept.remove(0), vec![tokens[tokens.len() - 1]]);
    }
    assert_eq!(past.tokens(), prompt.len() + count - 1);
    tokens
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    for name in MODELS {
        for device in [Device::cpu(), Device::cpu().packing_weights(true)] {
            let model = model(name, FLOAT32, &device);
            for Expected { prompt, logits, greedy: tokens } in expected(name) {
                let none = KeyValues::default();
                for (index, expected) in logits.iter().enumerate() {
                    let found = model.next(&[Next { past: &none, token_ids: &prompt[..=index] }]).unwrap();
                    let found = found.rows().next().unwrap();
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(expected) {
                        // f32 sums in another order, through three layers.
                        let error = (found - expected).abs();
                        assert!(error < 3e-4 * (1.0 + expected.abs()), "{name}: {found}, expected {expected}");
                    }
                }
                assert_eq!(greedy(&model, &prompt, tokens.len()), tokens, "{name}");
            }
        }
    }
}

/// In every storage: a text in pieces, among others, after a past that it shares, has the very bits of the whole text.
#[test]
fn kept_keys_and_values_change_no_bit() {
    let four_bits = BaseStorage { is_4bit: true, ..FLOAT32 };
    let bf16 = BaseStorage { precision: Precision::Bfloat16, is_4bit: false };
    for name in MODELS {
        for storage in [FLOAT32, bf16, four_bits] {
            let model = model(name, storage, &Device::cpu().packing_weights(storage == FLOAT32));
            let [a, b, _] = expected(name).try_into().unwrap_or_else(|_| panic!("three prompts"));
            let none = KeyValues::default();
            let whole = |tokens: &[u32]| {
                let logits = model.next(&[Next { past: &none, token_ids: tokens }]).unwrap();
                logits.rows().next().unwrap().to_vec()
            };
            let (first, rest) = a.prompt.split_at(14);
            let (_, kept) = model.extend(&[Next { past: &none, token_ids: first }]).unwrap();
            let next = |past, token_ids| Next { past, token_ids };
            let other: Vec<u32> = rest.iter().rev().take(3).copied().collect();
            let texts =
                [next(&kept[0], rest), next(&none, &b.prompt), next(&kept[0], &other), next(&kept[0], &rest[..1])];
            let (logits, extended) = model.extend(&texts).unwrap();
            let logits: Vec<&[f32]> = logits.rows().collect();
            assert_eq!(logits[0], whole(&a.prompt), "{name} {storage:?}");
            assert_eq!(logits[1], whole(&b.prompt), "{name} {storage:?}");
            assert_eq!(logits[2], whole(&[first, &other].concat()), "{name} {storage:?}");
            assert_eq!(logits[3], whole(&a.prompt[..15]), "{name} {storage:?}");
            let last = model.next(&[next(&extended[2], &[5]), next(&extended[3], &rest[1..])]).unwrap();
            let last: Vec<&[f32]> = last.rows().collect();
            assert_eq!(last[0], whole(&[first, &other, &[5]].concat()), "{name} {storage:?}");
            assert_eq!(last[1], whole(&a.prompt), "{name} {storage:?}");
            assert_ne!(last[0], last[1]);
        }
    }
}

#[test]
fn models_without_a_language_model_head_are_refused() {
    let error = |name: &str, files: &[&str]| {
        let config = BackboneConfig::from_file(&fixtures().join(name).join("config.json")).unwrap();
        let files: Vec<PathBuf> = files.iter().map(|file| fixtures().join(name).join(file)).collect();
        let weights = Weights::Checkpoint(Checkpoint::open(&files).unwrap());
        LanguageModel::new(&config, &weights, FLOAT32, &Device::cpu()).err().unwrap().to_string()
    };
    for encoder in ["bert", "modernbert", "gemma3_both_sides"] {
        assert!(error(encoder, &["model.safetensors"]).contains("encoder, without a language-model head"), "{encoder}");
    }
    assert!(error("llama_untied", &["model.safetensors"]).contains("`lm_head.weight`"));
    assert!(error("llama_4bit", &["model.safetensors"]).contains("it is a classifier, with a tensor `score.weight`"));
}

#[derive(Deserialize)]
struct Continued {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

/// `LLMCLS_SMOLLM2` names the directory that `scripts/get_smollm2` makes.
#[test]
#[ignore = "needs SmolLM2-135M-Instruct"]
fn fifty_greedy_tokens_of_smollm2_are_those_of_transformers() {
    let directory = PathBuf::from(std::env::var("LLMCLS_SMOLLM2").expect("LLMCLS_SMOLLM2 names the model"));
    let config = BackboneConfig::from_file(&directory.join("config.json")).unwrap();
    let weights = Weights::Checkpoint(Checkpoint::open(&[directory.join("model.safetensors")]).unwrap());
    let model = LanguageModel::new(&config, &weights, FLOAT32, &Device::cpu().packing_weights(true)).unwrap();
    let text = fs::read_to_string(fixtures().join("language/smollm2_greedy.json")).unwrap();
    let rows: Vec<Continued> = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.len(), 20);
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(greedy(&model, &row.prompt, 50), row.greedy, "prompt {index}");
    }
}
