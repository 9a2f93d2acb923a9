//! Token ids of transformers' `AutoTokenizer`, for the directories of `scripts/make_token_fixtures.py`.

use std::fs;
use std::path::{Path, PathBuf};

use llmcls::data::tokenize::{Encoded, TextEncoder};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Fixtures {
    max_length: usize,
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// The name of a `tokenizer.json`, or its contents.
    base: Value,
    model_type: String,
    #[serde(default)]
    from_vocabulary: bool,
    files: Map<String, Value>,
    ids: Vec<Vec<u32>>,
}

/// Stands for a text without tokens.
const FALLBACK: u32 = 77_777;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers")
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Writes a case's directory; the files of its tokenizer, and its `config.json`.
fn write(case: &Case, directory: &Path) -> (Vec<PathBuf>, PathBuf) {
    let put = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let base = match &case.base {
        Value::String(name) => read(&root().join(format!("{name}.json"))),
        contents => contents.clone(),
    };
    let vocabulary = &base["model"]["vocab"];
    let mut files = Vec::new();
    if !case.from_vocabulary {
        files.push(put("tokenizer.json", base.to_string()));
    } else if base["model"]["type"] == "WordPiece" {
        let mut words: Vec<(&String, &Value)> = vocabulary.as_object().unwrap().iter().collect();
        words.sort_by_key(|(_, id)| id.as_u64());
        files.push(put("vocab.txt", words.iter().map(|(word, _)| format!("{word}\n")).collect()));
    } else {
        files.push(put("vocab.json", vocabulary.to_string()));
        let merges = base["model"]["merges"].as_array().unwrap().iter();
        let lines = merges.map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
        files.push(put("merges.txt", std::iter::once("#version: 0.2\n".to_owned()).chain(lines).collect()));
    }
    for (name, contents) in &case.files {
        files.push(put(name, contents.to_string()));
    }
    let config = put("config.json", format!(r#"{{"model_type": "{}"}}"#, case.model_type));
    (files, config)
}

fn compare(name: &str) {
    let fixtures: Fixtures = serde_json::from_value(read(&root().join(name))).unwrap();
    assert!(fixtures.cases.len() >= 8);
    let texts: Vec<&str> = fixtures.texts.iter().map(String::as_str).collect();
    let mut wrong = Vec::new();
    for (number, case) in fixtures.cases.iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let (files, config) = write(case, directory.path());
        let title = format!("case {number}: {} {} {:?}", case.model_type, case.from_vocabulary, case.files);
        let encoder = match TextEncoder::of_model(&files, &config, fixtures.max_length, Some(FALLBACK)) {
            Ok(encoder) => encoder,
            Err(error) => {
                wrong.push(format!("{title}: {error:#}"));
                continue;
            }
        };
        let best = directory.path().join("best");
        fs::create_dir(&best).unwrap();
        encoder.save(&best).unwrap();
        let saved = TextEncoder::open(&best.join("tokenizer.json"), fixtures.max_length, Some(FALLBACK)).unwrap();
        // Read as a model's directory it is the same, too.
        let names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
        let files: Vec<PathBuf> = names.iter().map(|name| best.join(name)).filter(|path| path.is_file()).collect();
        let again = TextEncoder::of_model(&files, &config, fixtures.max_length, Some(FALLBACK)).unwrap();
        for (kind, encoder) in [("loaded", encoder), ("saved", saved), ("saved, as a model", again)] {
            let found: Vec<Encoded> = encoder.encode(texts.clone()).unwrap();
            for ((text, found), expected) in texts.iter().zip(&found).zip(&case.ids) {
                let fallback = vec![FALLBACK];
                let expected = if expected.is_empty() { &fallback } else { expected };
                if found.token_ids != *expected {
                    wrong.push(format!("{title}\n  {kind} {text:?}: {:?}, expected {expected:?}", found.token_ids));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong, such as {}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
}

#[test]
fn ids_are_those_of_transformers_4() {
    compare("cases_4.json");
}

#[test]
fn ids_of_directories_of_transformers_5_are_its_own() {
    compare("cases_5.json");
}

/// A directory of the BERT fixture with this `tokenizer_config.json`, opened.
fn bert(config: &str, has_vocabulary: bool) -> anyhow::Result<TextEncoder> {
    let directory = tempfile::tempdir().unwrap();
    let file = ("tokenizer_config.json".to_owned(), serde_json::from_str(config).unwrap());
    let files: Map<String, Value> = std::iter::once(file).collect();
    let case = Case {
        base: "bert".into(),
        model_type: "bert".to_owned(),
        from_vocabulary: has_vocabulary,
        files,
        ids: Vec::new(),
    };
    let (mut files, config) = write(&case, directory.path());
    if !has_vocabulary {
        files.remove(0);
    }
    TextEncoder::of_model(&files, &config, 16, None)
}

#[test]
fn what_is_not_supported_is_refused_by_its_key() {
    for (config, named) in [
        (r#"{"tokenizer_class": "BertJapaneseTokenizer"}"#, "`BertJapaneseTokenizer`"),
        (r#"{"fix_mistral_regex": true}"#, "`fix_mistral_regex`"),
        (r#"{"from_slow": true}"#, "`from_slow`"),
        (r#"{"do_lower_case": "no"}"#, "`do_lower_case` is \"no\", expected true or false"),
        (r#"{"truncation_side": "both"}"#, "`truncation_side`"),
        (r#"{"added_tokens_decoder": {"x": 1}}"#, "`added_tokens_decoder`"),
        (r#"{"mask_token": 5}"#, "`mask_token`"),
        (r#"{"tokenizer_class": "LlamaTokenizer"}"#, "save_pretrained(DIR)"),
        (r#"{"tokenizer_class": "LlamaTokenizer", "add_eos_token": true, "eos_token": null}"#, "save_pretrained(DIR)"),
    ] {
        let error = format!("{:#}", bert(config, true).err().unwrap());
        assert!(error.contains(named), "{config}: {error}");
    }
    let error = format!("{:#}", bert("{}", false).err().unwrap());
    assert!(
        error.contains("`tokenizer.json` is missing, nor `vocab.txt`") && error.contains("save_pretrained(DIR)"),
        "{error}"
    );
}

#[test]
fn a_token_without_an_embedding_is_named_with_its_row() {
    let encoder = bert(r#"{"pad_token": "<pad>"}"#, true).unwrap();
    let texts = ["red", "a <pad> b", "apple", "<pad>"];
    let encoded = encoder.encode(texts.to_vec()).unwrap();
    let id = encoded[1].token_ids[2];
    let check = |size: u32| encoder.check_vocabulary(&encoded, size as usize, "train", 10, |row| texts[row]);
    check(id + 1).unwrap();
    let error = check(id).unwrap_err().to_string();
    let said = format!(
        "train: row 12 (id `a <pad> b`) has the token `<pad>` (id {id}), which is outside the model's vocabulary of {id}; \
         2 of 4 rows"
    );
    assert!(error.starts_with(&said), "{error}");
}
