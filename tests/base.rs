//! Bases that move, change, or are not what a run was trained on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

/// Commands in a directory of their own, with a small Llama in `base/`, and rows.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let old = fixtures.join("run_of_version_1");
        fs::create_dir(place.path("base")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixtures.join("llama_tied").join(file), place.path("base").join(file)).unwrap();
        }
        fs::copy(old.join("tokenizer.json"), place.path("base/tokenizer.json")).unwrap();
        fs::copy(old.join("rows.csv"), place.path("rows.csv")).unwrap();
        fs::copy(old.join("run/config.yaml"), place.path("config.yaml")).unwrap();
        copy_directory(&old.join("run"), &place.path("old"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.current_dir(self.directory.path()).env("HF_HUB_OFFLINE", "1").args(["--threads", "1"]).args(arguments);
        command.env("XDG_CACHE_HOME", self.path("cache")).output().unwrap()
    }

    /// Trains one seed, and names its run.
    fn train(&self, more: &[&str]) -> String {
        let mut arguments = vec!["train", "--config", "config.yaml", "--set", "exp.seeds=[1]"];
        arguments.extend(more);
        expect_success(&self.run(&arguments));
        let runs = fs::read_dir(self.path("out/base/programs")).unwrap();
        runs.map(|entry| entry.unwrap().path().display().to_string()).max().unwrap()
    }

    /// Trains and is killed in step 5 of the one seed.
    fn killed(&self, more: &[&str]) -> String {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.current_dir(self.directory.path()).env("LLMCLS_FAILPOINT", "step:5:kill").args(["--threads", "1"]);
        command.args(["train", "--config", "config.yaml", "--set", "exp.seeds=[1]"]).args(more);
        assert!(!command.output().unwrap().status.success());
        let run = fs::read_dir(self.path("out/base/programs")).unwrap().next().unwrap().unwrap().path();
        assert!(run.join("seed_1/checkpoint-3").is_dir() && run.join("inputs.json").is_file());
        run.display().to_string()
    }

    fn predict(&self, run: &str, more: &[&str]) -> Output {
        let mut arguments = vec!["predict", "--run", run, "--input_csv", "rows.csv", "--output_jsonl", "-"];
        arguments.extend(more);
        self.run(&arguments)
    }

    /// Puts an edited file in the place of the old one, which may be mapped.
    fn edit(&self, name: &str, edit: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let bytes = edit(fs::read(self.path(name)).unwrap());
        fs::remove_file(self.path(name)).unwrap();
        fs::write(self.path(name), bytes).unwrap();
    }

    fn edit_text(&self, name: &str, from: &str, to: &str) {
        self.edit(name, |bytes| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{text}");
            text.replace(from, to).into_bytes()
        });
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() { copy_directory(&path, &copy) } else { fs::copy(&path, copy).map(drop).unwrap() }
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect_success(output: &Output) {
    assert!(output.status.success(), "{}", errors(output));
}

fn expect_error(output: &Output, parts: &[&str]) {
    let text = errors(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// Changes the last byte but one of the file: of a tensor's end, where a sample of its beginning does not look.
fn flip_last_bytes(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - 2;
    bytes[at] ^= 0x10;
    bytes
}

#[test]
fn a_base_that_changed_is_refused_and_what_changed_is_named() {
    let place = Place::new();
    let run = place.train(&["--set", "train.max_steps=1"]);
    let expected = place.predict(&run, &[]);
    expect_success(&expected);
    let config = fs::read_to_string(place.path("base/config.json")).unwrap();
    let value: Value = serde_json::from_str(&config).unwrap();
    place.edit("base/config.json", |_| format!("\n{value}\n").into_bytes());
    assert_eq!(place.predict(&run, &[]).stdout, expected.stdout, "white space makes another base");

    place.edit_text("base/config.json", "\"rms_norm_eps\":", "\"rms_norm_eps\":1e-3,\"before\":");
    expect_error(&place.predict(&run, &[]), &["another base", "the configuration (config.json) of `base` differ"]);
    place.edit("base/config.json", |_| config.into_bytes());
    place.edit("base/model.safetensors", flip_last_bytes);
    expect_error(
        &place.predict(&run, &[]),
        &["another base", "the weights (model.norm.weight) of `base` differ", "model.model_name"],
    );
    expect_error(&place.run(&["eval", "--run", &run, "--input_csv", "rows.csv"]), &["the weights (model.norm.weight)"]);
    place.edit("base/model.safetensors", flip_last_bytes);
    // A run has a tokenizer of its own.
    place.edit_text("base/tokenizer.json", "chess", "chest");
    assert_eq!(place.predict(&run, &[]).stdout, expected.stdout);
}

#[test]
fn set_says_where_a_base_lies_now() {
    let place = Place::new();
    let run = place.train(&["--set", "train.max_steps=1"]);
    let expected = place.predict(&run, &[]);
    fs::rename(place.path("base"), place.path("moved")).unwrap();
    let missing = place.predict(&run, &[]);
    expect_error(&missing, &["there is no directory `base` here", "--set model.model_name=DIR"]);
    let moved = ["--config", "config.yaml", "--set", "model.model_name=moved"];
    assert_eq!(place.predict(&run, &moved).stdout, expected.stdout);
    place.edit("moved/model.safetensors", flip_last_bytes);
    expect_error(&place.predict(&run, &moved), &["the weights (model.norm.weight) of `moved` differ"]);
}

#[test]
fn a_run_goes_on_only_with_what_it_was_started_with() {
    let place = Place::new();
    let run = place.killed(&[]);
    let resume = |more: &[&str]| place.run(&[&["train", "--resume", &run], more].concat());
    place.edit_text("base/tokenizer.json", "chess", "chest");
    expect_error(&resume(&[]), &["base model.tokenizer: was"]);
    place.edit_text("base/tokenizer.json", "chest", "chess");
    place.edit("base/model.safetensors", flip_last_bytes);
    expect_error(&resume(&[]), &["base model.weights: was", "base model.tensors.model.norm.weight: was"]);
    place.edit("base/model.safetensors", flip_last_bytes);
    place.edit_text("rows.csv", "chess", "chest");
    expect_error(&resume(&[]), &["sha256 of data.train_csv", "sha256 of data.val_csv"]);
    place.edit_text("rows.csv", "chest", "chess");
    let inputs = Path::new(&run).join("inputs.json").strip_prefix(place.directory.path()).unwrap().to_owned();
    place.edit_text(inputs.to_str().unwrap(), "\"device\": \"cpu\"", "\"device\": \"cuda\"");
    expect_error(&resume(&[]), &["device: was \"cuda\", is \"cpu\""]);
    place.edit_text(inputs.to_str().unwrap(), "\"device\": \"cuda\"", "\"device\": \"cpu\"");

    // All of it elsewhere, and otherwise the same.
    fs::rename(place.path("base"), place.path("moved")).unwrap();
    fs::rename(place.path("rows.csv"), place.path("same.csv")).unwrap();
    let settings = ["model.model_name=moved", "data.train_csv=same.csv", "data.val_csv=same.csv"];
    let changes: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    expect_success(&resume(&changes));
    let config = fs::read_to_string(Path::new(&run).join("config.yaml")).unwrap();
    assert!(config.contains("\"moved\"") && config.contains("\"same.csv\""), "{config}");
}

#[test]
fn a_run_goes_on_only_with_the_adapter_that_it_began_from() {
    let place = Place::new();
    let first = place.train(&["--set", "train.max_steps=1"]);
    copy_directory(&Path::new(&first).join("seed_1/best"), &place.path("adapter"));
    fs::remove_dir_all(place.path("out")).unwrap();
    // Without its manifest the directory is one that peft saved: nothing but the run knows its bytes.
    fs::remove_file(place.path("adapter/manifest.json")).unwrap();
    let run = place.killed(&["--set", "model.init_adapter=adapter"]);
    place.edit("adapter/adapter_model.safetensors", flip_last_bytes);
    let resume = ["train", "--resume", &run];
    expect_error(&place.run(&resume), &["init adapter.adapter_model.safetensors: was"]);
    place.edit("adapter/adapter_model.safetensors", flip_last_bytes);
    expect_success(&place.run(&resume));
}

#[test]
fn runs_of_the_first_format_are_checked_by_their_sample_with_a_warning() {
    let place = Place::new();
    let predicted = place.predict("old/seed_1", &[]);
    expect_success(&predicted);
    assert!(errors(&predicted).contains("recorded only a sample of its base"), "{}", errors(&predicted));
    let resume = ["train", "--resume", "old"];
    let config = fs::read(place.path("base/config.json")).unwrap();
    place.edit_text("base/config.json", "\"rms_norm_eps\":", "\"rms_norm_eps\": 1e-3, \"before\":");
    expect_error(&place.predict("old/seed_1", &[]), &["another base", "configuration or weights"]);
    expect_error(&place.run(&resume), &["base model: was"]);
    place.edit("base/config.json", |_| config);
    let resumed = place.run(&resume);
    expect_success(&resumed);
    assert!(errors(&resumed).contains("recorded only a sample of its base"), "{}", errors(&resumed));
    let file = |seed: u32| -> Value {
        serde_json::from_slice(&fs::read(place.path(&format!("old/seed_{seed}/best/classifier.json"))).unwrap())
            .unwrap()
    };
    assert_eq!((&file(1)["format_version"], &file(2)["format_version"]), (&1.into(), &2.into()));
    assert!(file(2)["base"]["fingerprint"]["weights"].is_string());
}

#[test]
fn random_weights_do_not_take_the_place_of_those_that_are_there() {
    let place = Place::new();
    let check = ["check", "--config", "config.yaml", "--set", "model.random_init=true"];
    expect_error(&place.run(&check), &["model.random_init is true", "`base` has weights (model.safetensors)"]);
    let train = ["train", "--config", "config.yaml", "--set", "model.random_init=true"];
    expect_error(&place.run(&train), &["model.random_init is true"]);
    assert!(!place.path("out").exists());

    fs::remove_file(place.path("base/model.safetensors")).unwrap();
    let run = place.train(&["--set", "train.max_steps=1", "--set", "model.random_init=true"]);
    let read = |name: &str| fs::read_to_string(Path::new(&run).join(name)).unwrap();
    assert!(read("seed_1/best/README.md").contains("`base (random weights)`"));
    let report = read("report.html");
    assert!(report.split("</h1>").next().unwrap().contains("base (random weights)"), "not in the report's head");
    let checked = place.run(&check);
    assert!(errors(&checked).contains("base (random weights): "), "{}", errors(&checked));
    // A run from before weights were there: it can still be used.
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fs::copy(fixtures.join("llama_tied/model.safetensors"), place.path("base/model.safetensors")).unwrap();
    expect_success(&place.predict(&run, &[]));
}

#[test]
fn a_revision_is_recorded_where_python_reads_it() {
    let place = Place::new();
    let commit = "1".repeat(40);
    let repository = place.path("hub/models--org--base");
    let snapshot = repository.join("snapshots").join(&commit);
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    fs::rename(place.path("base"), &snapshot).unwrap();
    fs::write(repository.join("refs/v1"), &commit).unwrap();
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(place.directory.path()).env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", place.path("hub"));
    command.args(["train", "--config", "config.yaml", "--set", "exp.seeds=[1]", "--set", "train.max_steps=1"]);
    expect_success(&command.args(["--set", "model.model_name=org/base@v1"]).output().unwrap());
    let model = fs::read_dir(place.path("out")).unwrap().next().unwrap().unwrap().path();
    let run = fs::read_dir(model.join("programs")).unwrap().next().unwrap().unwrap().path();
    let json = |name: &str| -> Value { serde_json::from_slice(&fs::read(run.join(name)).unwrap()).unwrap() };
    for adapter in ["seed_1/best/adapter_config.json", "seed_1/checkpoint-1/adapter_config.json"] {
        let adapter = json(adapter);
        assert_eq!((&adapter["revision"], &adapter["base_model_name_or_path"]), (&"v1".into(), &"org/base".into()));
    }
    let base = &json("seed_1/best/classifier.json")["base"];
    assert_eq!((&base["revision"], &base["commit"]), (&"v1".into(), &commit.as_str().into()));
    let card = fs::read_to_string(run.join("seed_1/best/README.md")).unwrap();
    assert!(card.contains(r#"from_pretrained("org/base", revision="v1", "#), "{card}");
}
