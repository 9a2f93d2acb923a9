//! `llmcls zeroshot` on a small random decoder whose tokens are the printable characters of ASCII.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use llmcls::kernels::device::Device;
use llmcls::model::config::BackboneConfig;
use llmcls::model::key_values::{KeyValues, Next};
use llmcls::model::language_model::LanguageModel;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use serde_json::{Value, json};

const LABELS: [&str; 3] = ["game", "editor", "two words"];
const TEXTS: [(&str, [u8; 3]); 6] = [
    ("a game of chess", [1, 0, 0]),
    ("a small editor for text", [0, 1, 0]),
    ("a game about an editor", [1, 1, 0]),
    ("cards", [1, 0, 1]),
    ("it writes LaTeX in a window", [0, 1, 1]),
    ("nothing of that kind, and a rather long text that is cut at some token", [0, 0, 0]),
];

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        place.add_base("base", "llama_tied");
        for (file, shift) in [("train.csv", 0), ("validation.csv", 1), ("test.csv", 2)] {
            let mut rows = "text,game,editor,two words\n".to_owned();
            for (index, (text, labels)) in TEXTS.iter().enumerate() {
                writeln!(rows, "\"{text} {}\",{},{},{}", index + 10 * shift, labels[0], labels[1], labels[2]).unwrap();
            }
            fs::write(place.path(file), rows).unwrap();
        }
        let config = "data: {dataset_name: programs, train_csv: train.csv, val_csv: validation.csv, test_csv: test.csv, \
                      max_length: 40}\nmodel: {model_name: base, use_4bit: false, torch_dtype: float32}\n\
                      exp: {output_root: out}\n";
        fs::write(place.path("config.yaml"), config).unwrap();
        place
    }

    /// A fixture's weights with a byte-level tokenizer of 96 characters and one special token.
    fn add_base(&self, name: &str, fixture: &str) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        fs::create_dir(self.path(name)).unwrap();
        fs::copy(fixture.join("model.safetensors"), self.path(name).join("model.safetensors")).unwrap();
        self.write_config(name, json_of(&fixture.join("config.json")), 4096);
        let letters = ('!'..='~').map(String::from).chain(["Ġ".to_owned(), "Ċ".to_owned()]);
        let vocab: serde_json::Map<String, Value> =
            letters.enumerate().map(|(id, letter)| (letter, id.into())).collect();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 96, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "pre_tokenizer": level, "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        fs::write(self.path(name).join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let template = "{% for m in messages %}<|end|>{{ m.role }}: {{ m.content }}{% endfor %}<|end|>";
        fs::write(self.path(name).join("chat_template.jinja"), template).unwrap();
    }

    fn write_config(&self, name: &str, mut config: Value, tokens: usize) {
        if config["model_type"] == "llama" {
            config["max_position_embeddings"] = tokens.into();
        }
        fs::write(self.path(name).join("config.json"), config.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Output {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.current_dir(self.directory.path()).env("HF_HUB_OFFLINE", "1").env("XDG_CACHE_HOME", self.path("cache"));
        command.args(["--threads", "1", "zeroshot", "--config", "config.yaml"]).args(more).output().unwrap()
    }

    /// Runs, and gives the directory of the files.
    fn asked(&self, more: &[&str]) -> PathBuf {
        let before = self.outputs();
        let output = self.run(more);
        assert!(output.status.success(), "{}", errors(&output));
        let new: Vec<PathBuf> = self.outputs().into_iter().filter(|path| !before.contains(path)).collect();
        assert_eq!(new.len(), 1, "{new:?}");
        new[0].clone()
    }

    fn outputs(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.path("out/base/programs")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn expect_error(&self, more: &[&str], code: i32, part: &str) {
        let output = self.run(more);
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn lines_of(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The probability of y against n, the first characters of yes and no, after a whole prompt.
fn probability(base: &Path, prompt: &str) -> f64 {
    let config = BackboneConfig::from_file(&base.join("config.json")).unwrap();
    let weights = Weights::Checkpoint(Checkpoint::open(&[base.join("model.safetensors")]).unwrap());
    let storage = BaseStorage { precision: Precision::Float32, is_4bit: false };
    let model = LanguageModel::new(&config, &weights, storage, &Device::cpu()).unwrap();
    let mut tokens = Vec::new();
    for (index, part) in prompt.split("<|end|>").enumerate() {
        tokens.extend((index > 0).then_some(96));
        tokens.extend(part.bytes().map(|byte| match byte {
            b' ' => 94,
            b'\n' => 95,
            byte => u32::from(byte - b'!'),
        }));
    }
    let logits = model.next(&[Next { past: &KeyValues::default(), token_ids: &tokens }]).unwrap();
    let logits = logits.rows().next().unwrap().to_vec();
    let of = |letter: u8| f64::from(logits[usize::from(letter - b'!')]);
    1.0 / (1.0 + (of(b'n') - of(b'y')).exp())
}

#[test]
fn likelihoods_are_those_of_whole_prompts_and_files_have_evals_keys() {
    let place = Place::new();
    let directory = place.asked(&[]);
    let metrics = json_of(&directory.join("metrics.json"));
    for key in
        ["eval_f1_micro", "eval_f1_macro", "eval_loss", "eval_roc_auc_macro", "eval_f1_micro_ci95", "per_label", "rows"]
    {
        assert!(metrics.get(key).is_some_and(|value| !value.is_null()), "{key}");
    }
    assert!(metrics["baseline"]["linear"]["f1_micro"].is_number());
    assert_eq!(metrics["zeroshot"]["method"], "likelihood");
    let count = |key: &str| metrics["zeroshot"][key].as_u64().unwrap();
    assert!(count("computed_prompt_tokens") * 2 < count("prompt_tokens"));
    let rows = lines_of(&directory.join("predictions.jsonl"));
    assert_eq!(rows.len(), TEXTS.len());
    let prompt = fs::read_to_string(directory.join("prompt.txt")).unwrap();
    assert!(prompt.starts_with("<|end|>user: Decide") && prompt.ends_with("Answer yes or no.<|end|>"), "{prompt}");
    for (row, (text, targets)) in
        rows.iter().zip(TEXTS).take(5).enumerate().map(|(index, (line, text))| ((index, line), text))
    {
        let (index, line) = row;
        assert_eq!(line["targets"].as_array().unwrap().len(), targets.iter().filter(|&&is_set| is_set > 0).count());
        for (label, name) in LABELS.iter().enumerate() {
            let own = prompt.replace("a game of chess 20", &format!("{text} {}", index + 20));
            let own = own.replace("the label \"game\"", &format!("the label \"{name}\""));
            let expected = probability(&place.path("base"), &own);
            let found = line["probs"][label].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-6, "{index} {name}: {found}, expected {expected}");
        }
    }
    for file in ["config.yaml", "environment.json", "report.html", "errors.jsonl"] {
        assert!(directory.join(file).is_file(), "{file}");
    }
    assert!(!directory.join("answers.jsonl").exists());
}

#[test]
fn calibration_and_thresholds_are_fitted_to_validation() {
    let place = Place::new();
    let plain = json_of(&place.asked(&["--split", "validation"]).join("metrics.json"));
    let directory =
        place.asked(&["--split", "validation", "--calibrate", "--tune_thresholds", "per_label", "--no_text"]);
    let metrics = json_of(&directory.join("metrics.json"));
    let loss = |metrics: &Value| metrics["eval_loss"].as_f64().unwrap();
    assert!(loss(&metrics) < loss(&plain) && loss(&metrics) < 0.75, "{} {}", loss(&metrics), loss(&plain));
    assert!(metrics["zeroshot"]["calibration"]["slope"].is_number());
    assert_eq!(metrics["tuned"]["labels"].as_array().unwrap().len(), 3);
    assert!(metrics["eval_f1_micro"].as_f64() >= metrics["with_threshold_0.5"]["f1_micro"].as_f64());
    assert!(!directory.join("prompt.txt").exists());
}

#[test]
fn answers_are_lists_of_labels_whatever_the_batch() {
    let place = Place::new();
    let arguments = ["--method", "generate", "--shots", "2", "--set", "data.label_descriptions={game: you play it}"];
    let directory = place.asked(&[&arguments[..], &["--batch_size", "1"]].concat());
    let again = place.asked(&[&arguments[..], &["--batch_size", "4"]].concat());
    for file in ["predictions.jsonl", "answers.jsonl"] {
        assert_eq!(fs::read(directory.join(file)).unwrap(), fs::read(again.join(file)).unwrap(), "{file}");
    }
    let answers = lines_of(&directory.join("answers.jsonl"));
    for (answer, line) in answers.iter().zip(lines_of(&directory.join("predictions.jsonl"))) {
        let mut listed: Vec<String> = serde_json::from_str(answer["answer"].as_str().unwrap()).unwrap();
        let count = listed.len();
        listed.sort();
        listed.dedup();
        assert!(listed.len() == count && listed.iter().all(|label| LABELS.contains(&label.as_str())), "{answer}");
        let mut predicted: Vec<&str> =
            line["predicted"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
        predicted.sort_unstable();
        assert_eq!(listed, predicted);
    }
    let metrics = json_of(&directory.join("metrics.json"));
    assert_eq!(metrics["zeroshot"]["shots"].as_array().unwrap().len(), 2);
    assert_eq!(metrics["zeroshot"]["answers"]["broken"], 0);
    assert!(metrics["eval_loss"].is_null() && metrics["eval_f1_micro"].is_number());
    let prompt = fs::read_to_string(directory.join("prompt.txt")).unwrap();
    assert!(
        prompt.contains("- game: you play it\n- editor\n") && prompt.matches("\nLabels: [").count() == 2,
        "{prompt}"
    );
    // Two rows have all labels between them.
    assert!(LABELS.iter().all(|label| prompt.split("Text: ").any(|part| part.contains(&format!("\"{label}\"")))));

    let two = ["--set", "data.max_test_samples=2", "--set", "data.max_train_samples=2"];
    let filled = ["--method", "generate", "--set", "model.problem_type=single_label_classification"];
    let filled = place.asked(&[&filled[..], &two].concat());
    let filled = lines_of(&filled.join("predictions.jsonl"));
    assert!(filled.iter().all(|line| line["predicted"].as_array().unwrap().len() == 1));
    let free = json_of(&place.asked(&["--method", "generate", "--unconstrained"]).join("metrics.json"));
    assert_eq!(free["zeroshot"]["answers"]["broken"], 6, "a random model writes no JSON");
    assert_eq!(free["eval_recall_micro"], 0.0);
}

#[test]
fn what_cannot_be_asked_is_refused_by_name() {
    let place = Place::new();
    place.expect_error(&["--unconstrained"], 2, "--unconstrained is for --method generate");
    place.expect_error(&["--method", "generate", "--calibrate"], 2, "--method generate does not give");
    place.expect_error(
        &["--method", "generate", "--unconstrained", "--always_one"],
        2,
        "--always_one constrains lists",
    );
    place.expect_error(&["--split", "train", "--shots", "1"], 2, "--split train scores");
    place.expect_error(&["--set", "zeroshot.prompt=a {labels}"], 1, "`zeroshot.prompt` has no {text}");
    place.expect_error(&["--shots", "1", "--set", "zeroshot.prompt={labels} {text}"], 1, "has no {examples}");
    place.expect_error(&["--set", "data.label_descriptions={chess: x}"], 1, "there is no label `chess`");
    place.expect_error(&["--set", "model.problem_type=single_label_classification", "--calibrate"], 1, "--calibrate");
    place.add_base("encoder", "bert");
    place.expect_error(&["--set", "model.model_name=encoder"], 1, "without a language-model head");
    place.add_base("untied", "llama_untied");
    place.expect_error(&["--set", "model.model_name=untied"], 1, "`lm_head.weight`");
    fs::remove_file(place.path("untied/model.safetensors")).unwrap();
    place.expect_error(
        &["--set", "model.model_name=untied", "--set", "model.random_init=true"],
        1,
        "model.random_init",
    );
    let config = json_of(&place.path("base/config.json"));
    place.write_config("base", config.clone(), 150);
    place.expect_error(&[], 1, "and the model can take 150; lower data.max_length or --shots");
    place.write_config("base", config, 4096);
    fs::remove_file(place.path("base/chat_template.jinja")).unwrap();
    let output = place.run(&[]);
    assert!(output.status.success() && errors(&output).contains("has no chat template"), "{}", errors(&output));
    fs::write(place.path("base/chat_template.jinja"), "{% if %}").unwrap();
    place.expect_error(&[], 1, "its chat template cannot be used");
    assert_eq!(place.outputs().len(), 1, "a refusal leaves nothing");
}
