//! Sweeps: a run for each combination, the better half goes on, and the end is the same whatever stopped it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use llmcls::kernels::device::Device;
use llmcls::model::batch::Batch;
use llmcls::model::classifier::{Classifier, ClassifierOptions, Problem};
use llmcls::model::config::BackboneConfig;
use llmcls::model::held::HeldWeights;
use llmcls::model::lora::{LoraOptions, Targets};
use llmcls::model::quantization::Quantization;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use llmcls::ops::loss::BceWeights;
use llmcls::ops::tape::Tape;
use serde_json::{Value, json};

const SETTINGS: [&str; 6] = [
    "data.max_train_samples=24",
    "data.max_val_samples=16",
    "data.max_test_samples=9",
    "data.max_length=16",
    "train.batch_size=6",
    "train.early_stopping_patience=null",
];

fn llmcls(root: &Path, arguments: &[&str], settings: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("XDG_CACHE_HOME", root.join("cache"));
    command.args(["--threads", "1"]).args(arguments);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

fn sweep(root: &Path, grid: &[&str], more: &[&str]) -> Command {
    let mut settings = SETTINGS.to_vec();
    settings.extend(["train.num_train_epochs=4", "exp.seeds=[1, 4]"]);
    settings.extend(more);
    let mut command = llmcls(root, &["sweep", "--config", "configs/tiny.yaml", "--override_output_root"], &[]);
    command.arg(root.join("out"));
    for setting in settings {
        command.args(["--set", setting]);
    }
    for entry in grid {
        command.args(["--grid", entry]);
    }
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn directory_of(root: &Path) -> PathBuf {
    let entries = fs::read_dir(root.join("out/tiny-llama/debtags")).unwrap().map(|entry| entry.unwrap().path());
    let mut sweeps: Vec<PathBuf> = entries.collect();
    assert_eq!(sweeps.len(), 1);
    sweeps.pop().unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What a sweep found; output_root differs from one to the next.
fn found(root: &Path) -> (String, Value) {
    let sweep = directory_of(root);
    let best = fs::read_to_string(sweep.join("best.yaml")).unwrap();
    let lines: Vec<&str> = best.lines().filter(|line| !line.contains("output_root")).collect();
    (lines.join("\n"), json_of(&sweep.join("summary.json")))
}

/// The last one diverges.
const GRID: [&str; 2] = ["train.learning_rate=[1e-5, 5e-3, 2e-2, 1e12]", "model.lora_r=[2, 4]"];

#[test]
fn the_better_half_goes_on_and_a_stopped_sweep_ends_the_same() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("whole");
    let output = sweep(&root, &GRID, &[]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let expected = found(&root);
    let summary = &expected.1;
    assert_eq!(summary["rungs"], json!([1, 2, null]));
    let cells = summary["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 8);
    assert_eq!(cells[3]["settings"], json!(["train.learning_rate=0.005", "model.lora_r=4"]));
    let reached = |count: usize| cells.iter().filter(|cell| cell["scores"].as_array().unwrap().len() == count).count();
    assert_eq!([reached(1), reached(2), reached(3)], [4, 2, 2]);
    for diverged in &cells[6..] {
        assert!(diverged["error"].as_str().unwrap().contains("diverged") && diverged["scores"] == json!([null]));
    }
    // The best of those that trained to the end, and better than what was dropped before.
    let best = summary["best"].as_u64().unwrap() as usize;
    let last = |cell: &Value| cell["scores"][2].as_f64();
    assert_eq!(cells.iter().filter_map(last).fold(0.0, f64::max), last(&cells[best]).unwrap());
    let first = |cell: &Value| cell["scores"][0].as_f64().unwrap_or(0.0);
    let dropped = cells.iter().filter(|cell| cell["scores"].as_array().unwrap().len() == 1).map(first);
    let kept = cells.iter().filter(|cell| cell["scores"].as_array().unwrap().len() > 1).map(first);
    assert!(dropped.fold(0.0, f64::max) <= kept.fold(1.0, f64::min));
    let report = fs::read_to_string(directory_of(&root).join("report.html")).unwrap();
    assert!(report.contains("log10 of train.learning_rate") && report.contains("(best)"));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("<- best") && table.contains("diverged") && table.contains("best.yaml"), "{table}");

    for (index, failpoint) in
        ["write:5:kill", "step:3:kill", "step:30:-INT", "step:60:kill", "step:75:kill", "rename:40:kill"]
            .iter()
            .enumerate()
    {
        let root = place.path().join(index.to_string());
        let stopped = sweep(&root, &GRID, &[]).env("LLMCLS_FAILPOINT", failpoint).output().unwrap();
        assert!(!stopped.status.success(), "{failpoint}");
        let sweep = directory_of(&root);
        if failpoint.ends_with("-INT") {
            let command = format!("llmcls sweep --resume {}", sweep.display());
            assert!(errors(&stopped).contains(&command), "{}", errors(&stopped));
        }
        let resumed = llmcls(&root, &["sweep", "--resume", sweep.to_str().unwrap()], &[]).output().unwrap();
        assert!(resumed.status.success(), "{failpoint}: {}", errors(&resumed));
        assert!(found(&root) == expected, "{failpoint}");
    }
}

#[test]
fn the_best_configuration_trains_to_the_same_bytes_as_its_cell() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let grid = ["train.learning_rate=[1e-3, 1e-2]"];
    let output = sweep(root, &grid, &["model.lora_layers=1"]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    // Base and rows are read once for both cells, which share what the frozen layers give.
    assert_eq!(errors(&output).matches("labels: 12 columns").count(), 1, "{}", errors(&output));
    assert!(errors(&output).contains("is in the cache"), "{}", errors(&output));
    let sweep = directory_of(root);
    let best = json_of(&sweep.join("summary.json"))["best"].as_u64().unwrap();
    let again = llmcls(root, &["train", sweep.join("best.yaml").to_str().unwrap(), "--override_output_root"], &[])
        .arg(root.join("again"))
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", errors(&again));
    let runs = fs::read_dir(root.join("again/tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path();
    for seed in ["seed_1", "seed_4"] {
        let adapter = |run: &Path| fs::read(run.join(seed).join("best/adapter_model.safetensors")).unwrap();
        assert!(adapter(&runs) == adapter(&sweep.join(format!("cell_{:03}", best + 1))));
    }
    let finished = llmcls(root, &["sweep", "--resume", sweep.to_str().unwrap()], &[]).output().unwrap();
    assert!(errors(&finished).contains("this sweep is finished"), "{}", errors(&finished));
    let no_run = llmcls(root, &["train", "--resume", sweep.to_str().unwrap()], &[]).output().unwrap();
    assert!(errors(&no_run).contains("llmcls sweep --resume"), "{}", errors(&no_run));
    // A sweep stands for its best run.
    let predict = |run: &Path| {
        let output =
            llmcls(root, &["predict", "--text", "a shell", "--run", run.to_str().unwrap()], &[]).output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
        output.stdout
    };
    assert!(predict(&sweep) == predict(&sweep.join(format!("cell_{:03}", best + 1))));
}

#[test]
fn a_grid_that_is_not_valid_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    for (grid, part) in [
        (&["train.learning_rat=[1]"][..], "learning_rate"),
        (&["train.learning_rate=[1e-4, -1]"], "train.learning_rate"),
        (&["train.learning_rate=1e-4"], "expected KEY=[VALUE"),
        (&["train.metric_for_best_model=[loss, f1_micro]"], "one metric must choose"),
        (&[], "--grid is missing"),
    ] {
        let output = sweep(place.path(), grid, &[]).output().unwrap();
        assert!(!output.status.success() && errors(&output).contains(part), "{grid:?}: {}", errors(&output));
        assert!(!place.path().join("out").exists() || fs::read_dir(place.path().join("out")).unwrap().count() == 0);
    }
}

#[test]
fn a_range_test_suggests_a_rate_between_those_that_learn_nothing_and_those_that_diverge() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("out").display().to_string();
    let mut arguments = vec!["train", "configs/tiny.yaml", "--find_lr", "--override_output_root", &root, "--json"];
    for setting in SETTINGS {
        arguments.extend(["--set", setting]);
    }
    let found = llmcls(place.path(), &arguments, &[]).output().unwrap();
    assert!(found.status.success(), "{}", errors(&found));
    let printed: Value = serde_json::from_slice(&found.stdout).unwrap();
    let suggested = printed["suggested"].as_f64().unwrap();
    assert!((1e-4..0.1).contains(&suggested), "{printed}");
    let directory = directory_of(place.path());
    let test = json_of(&directory.join("rates.json"));
    let points = test["points"].as_array().unwrap();
    let of = |point: &Value, key: &str| point[key].as_f64().unwrap();
    let lowest = points[11..].iter().min_by(|a, b| of(a, "smoothed").total_cmp(&of(b, "smoothed"))).unwrap();
    assert_eq!(of(lowest, "learning_rate"), of(&test, "lowest_at"));
    assert!(of(lowest, "smoothed") < of(&points[10], "smoothed"), "it learned nothing");
    assert!(fs::read_to_string(directory.join("report.html")).unwrap().contains("Suggested learning rate"));
    assert!(!directory.join("seed_1").exists());
    // A sweep tries rates around it.
    let place = tempfile::tempdir().unwrap();
    let output =
        sweep(place.path(), &[], &["train.num_train_epochs=1", "exp.seeds=[1]"]).arg("--find_lr").output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let plan = json_of(&directory_of(place.path()).join("sweep.json"));
    let middle = plan["cells"][2]["settings"][0].as_str().unwrap();
    assert!(
        plan["cells"].as_array().unwrap().len() == 5 && middle == format!("train.learning_rate={suggested}"),
        "{plan}"
    );
    let twice = sweep(place.path(), &["train.learning_rate=[1e-3]"], &[]).arg("--find_lr").output().unwrap();
    assert!(errors(&twice).contains("leave its --grid out"), "{}", errors(&twice));
}

/// Random weights above all: they follow from the order in which they are made.
#[test]
fn classifiers_on_held_weights_compute_as_on_their_own() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert");
    let config = BackboneConfig::from_file(&directory.join("config.json")).unwrap();
    let logits = |weights: &Weights, held: Option<&HeldWeights>, is_4bit: bool, targets: &[&str]| -> Vec<f32> {
        let targets = Targets::Names(targets.iter().map(|&name| name.to_owned()).collect());
        let options = ClassifierOptions {
            labels: 3,
            base_rows: None,
            problem: Problem::MultiLabel,
            storage: BaseStorage { precision: Precision::Float32, is_4bit },
            lora: LoraOptions { targets, rank: 2, alpha: 3.0, ..LoraOptions::none() },
            weights: BceWeights::default(),
            recompute: false,
            quantization: Quantization::Off,
            device: Device::cpu(),
        };
        let classifier = Classifier::on(&config, (weights, held), &options).unwrap();
        classifier.initialize(5).unwrap();
        let tokens: [&[u32]; 2] = [&[3, 8, 1, 12], &[7, 2]];
        let batch = Batch::new(tokens.map(|tokens| (tokens, &[1.0, 0.0, 0.0][..]))).unwrap();
        classifier.logits(&Tape::off(), &batch).unwrap().tensor().flatten_all().unwrap().to_vec1().unwrap()
    };
    let sources: [fn(&Path) -> Weights; 2] = [
        |_| Weights::random(4, 0.2),
        |directory| Weights::Checkpoint(Checkpoint::open(&[directory.join("model.safetensors")]).unwrap()),
    ];
    for source in sources {
        for is_4bit in [false, true] {
            let (weights, held) = (source(&directory), HeldWeights::default());
            let first = logits(&weights, Some(&held), is_4bit, &["query"]);
            let second = logits(&weights, Some(&held), is_4bit, &["query", "value", "output.dense"]);
            assert_eq!(first, logits(&source(&directory), None, is_4bit, &["query"]));
            assert_eq!(second, logits(&source(&directory), None, is_4bit, &["query", "value", "output.dense"]));
            // The random head of the second starts behind other adapters.
            assert_ne!(first, second);
        }
    }
}
