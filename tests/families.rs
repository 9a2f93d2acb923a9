//! `config.json` of every family, as transformers 4.57.6 and 5.24.0 write it; the files are made by
//! `scripts/make_config_fixtures.py`.

use std::path::Path;

use llmcls::model::config::BackboneConfig;
use serde::Deserialize;
use serde_json::Value;

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
