//! Bases in GGUF: the numbers of gguf's own dequantization, bit for bit, and a training on one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use llmcls::console::Console;
use llmcls::data::tokenize::TextEncoder;
use llmcls::hub::model_files::ModelFiles;
use llmcls::kernels::device::Device;
use llmcls::model::config::BackboneConfig;
use llmcls::model::key_values::{KeyValues, Next};
use llmcls::model::language_model::LanguageModel;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use llmcls::zeroshot::chat_template::{ChatTemplate, Message};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Expected {
    shape: Vec<usize>,
    sha256: String,
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/tiny.gguf")
}

/// The numbers are made by `scripts/make_gguf_fixtures.py`.
#[test]
fn every_type_of_block_widens_to_the_bits_of_gguf() {
    let text = std::fs::read_to_string(file().with_file_name("expected.json")).unwrap();
    let expected: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
    let checkpoint = Checkpoint::open(&[file()]).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in expected {
        let numbers = checkpoint.floats(&name, &expected.shape).unwrap();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, expected.sha256, "{name}");
    }
}

#[test]
fn configuration_and_tokenizer_come_from_the_file() {
    let files = ModelFiles::find(file().to_str().unwrap(), None, true, Console::new(true)).unwrap();
    let config = BackboneConfig::from_file(&files.config).unwrap();
    assert_eq!((config.hidden_size, config.head_dim, config.num_key_value_heads, config.vocab_size), (256, 16, 1, 48));
    assert!(!config.language_head.unwrap().is_tied);
    let encoder = TextEncoder::open(&files.tokenizer[0], 32, config.empty_token).unwrap();
    let encoded = encoder.encode(vec!["abc c", "cab"]).unwrap();
    // <s> ab c Ġc, and <s> c ab.
    assert_eq!(encoded[0].token_ids, [0, 29, 4, 30]);
    assert_eq!(encoded[1].token_ids, [0, 4, 29]);
    let template = ChatTemplate::of_model(None, &files.tokenizer, &files.config, |_| None).unwrap().unwrap();
    let message = Message { role: "user".to_owned(), content: "abc".to_owned() };
    assert_eq!(template.render(&[message]).unwrap(), "abc");
}

/// The head is the tensor `output` of the file, which a classifier does not read.
#[test]
fn the_language_model_of_a_file_gives_finite_logits() {
    let files = ModelFiles::find(file().to_str().unwrap(), None, true, Console::new(true)).unwrap();
    let config = BackboneConfig::from_file(&files.config).unwrap();
    let weights = Weights::Checkpoint(Checkpoint::open(&files.weights).unwrap());
    let storage = BaseStorage { precision: Precision::Float32, is_4bit: false };
    let model = LanguageModel::new(&config, &weights, storage, &Device::cpu()).unwrap();
    let logits = model.next(&[Next { past: &KeyValues::default(), token_ids: &[0, 4, 29] }]).unwrap();
    assert_eq!(logits.rows().next().unwrap().len(), 48);
}

#[test]
fn a_gguf_file_that_is_cut_short_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.gguf");
    let whole = std::fs::read(file()).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    let error = format!("{:#}", Checkpoint::open(&[path]).err().unwrap());
    assert!(error.contains("cut.gguf") && error.contains("cut short"), "{error}");
}
