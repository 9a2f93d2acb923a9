//! `exp.folds`: every training row is predicted by a model that has not seen it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

fn llmcls(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("XDG_CACHE_HOME", root.join("cache"));
    command.args(["--threads", "1"]).args(arguments);
    command
}

fn train(root: &Path, more: &[&str]) -> Command {
    let mut command = llmcls(root, &["train", "--config", "configs/tiny.yaml", "--override_output_root"]);
    command.arg(root.join("out"));
    for setting in [
        "data.max_train_samples=40",
        "data.max_val_samples=16",
        "data.max_test_samples=12",
        "data.max_length=24",
        "train.batch_size=5",
        "train.num_train_epochs=2",
        "train.learning_rate=0.01",
        "train.tune_thresholds=per_label",
        "exp.folds=3",
    ]
    .iter()
    .chain(more)
    {
        command.args(["--set", setting]);
    }
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run_of(root: &Path) -> PathBuf {
    fs::read_dir(root.join("out/tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path()
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_training_row_is_predicted_once_by_a_model_that_has_not_seen_it() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("whole");
    let output = train(&root, &[]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let said = errors(&output);
    assert!(said.contains("on out-of-fold rows") && said.contains("3 folds, on held-out rows: f1_micro"), "{said}");
    assert!(said.contains("From half of the rows to all of them, micro-F1 changes by"), "{said}");
    let run = run_of(&root);
    let predictions = lines(&run.join("predictions_folds.jsonl"));
    // In the order of the file, with its labels.
    let data = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/debtags/train.csv")).unwrap();
    let ids: Vec<&str> = data.lines().skip(1).take(40).map(|line| line.split(',').next().unwrap()).collect();
    let found: Vec<&str> = predictions.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(found, ids);
    // Each row's probabilities are those that its fold's model gives it, as its own directory has them.
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    for line in &predictions {
        *sizes.entry(line["fold"].as_u64().unwrap()).or_default() += 1;
    }
    assert_eq!(sizes.values().sum::<usize>(), 40);
    assert!(sizes.len() == 3 && sizes.values().all(|&size| (12..=15).contains(&size)), "{sizes:?}");
    for (fold, size) in &sizes {
        let own = lines(&run.join(format!("folds/{fold}/predictions_test.jsonl")));
        assert_eq!(own.len(), *size);
        for (own, line) in own.iter().zip(predictions.iter().filter(|line| line["fold"] == *fold)) {
            assert_eq!((&own["id"], &own["probs"]), (&line["id"], &line["probs"]));
        }
        // Its model predicts them from disk, too: nothing of the run's own model is in them.
        let directory = run.join(format!("folds/{fold}/best"));
        assert!(directory.join("adapter_model.safetensors").is_file());
        assert!(!run.join(format!("folds/{fold}/half/best")).exists());
    }
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    let folds = &summary["folds"];
    assert_eq!((&folds["folds"], &folds["seed"]), (&3.into(), &1.into()));
    let shares: Vec<f64> =
        folds["learning_curve"].as_array().unwrap().iter().map(|point| point["share"].as_f64().unwrap()).collect();
    assert_eq!(shares, [0.25, 0.5, 1.0]);
    let rows: Vec<f64> =
        folds["learning_curve"].as_array().unwrap().iter().map(|point| point["rows"].as_f64().unwrap()).collect();
    assert!((rows[2] - 80.0 / 3.0).abs() < 1e-9 && rows[1] < 16.0 && rows[0] < 9.0, "{rows:?}");
    // The thresholds are what tuning on these predictions gives: each label's best F1 is reached with its own.
    let thresholds: Vec<f64> = serde_json::from_value(summary["seeds"][0]["thresholds"].clone()).unwrap();
    for (label, threshold) in thresholds.iter().enumerate() {
        let name = summary["labels"][label].as_str().unwrap();
        for line in &predictions {
            let is_above = line["probs"][label].as_f64().unwrap() as f32 > *threshold as f32;
            let is_predicted = line["predicted"].as_array().unwrap().iter().any(|predicted| predicted == name);
            assert_eq!(is_above, is_predicted, "{name}");
        }
    }
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("Would more rows help?") && report.contains("F1 over training rows"));

    for failpoint in ["step:7:kill", "step:40:kill", "rename:12:kill"] {
        let root = place.path().join(failpoint.replace(':', "_"));
        let killed = train(&root, &[]).env("LLMCLS_FAILPOINT", failpoint).output().unwrap();
        assert!(!killed.status.success(), "{failpoint}");
        let resumed = llmcls(&root, &["train", "--resume", run_of(&root).to_str().unwrap()]).output().unwrap();
        assert!(resumed.status.success(), "{failpoint}: {}", errors(&resumed));
        for file in ["predictions_folds.jsonl", "seed_1/best/adapter_model.safetensors", "seed_1/best/classifier.json"]
        {
            assert!(
                fs::read(run_of(&root).join(file)).unwrap() == fs::read(run.join(file)).unwrap(),
                "{failpoint}: {file}"
            );
        }
    }
}

#[test]
fn folds_leave_the_runs_own_training_as_it_is_and_are_refused_where_they_make_no_sense() {
    let place = tempfile::tempdir().unwrap();
    let adapter = |name: &str, more: &[&str]| {
        let root = place.path().join(name);
        let output = train(&root, more).output().unwrap();
        assert!(output.status.success(), "{name}: {}", errors(&output));
        fs::read(run_of(&root).join("seed_1/best/adapter_model.safetensors")).unwrap()
    };
    let balanced = "train.class_weights=balanced";
    assert!(adapter("with", &[balanced]) == adapter("without", &[balanced, "exp.folds=null"]));
    let root = place.path().join("refused");
    for (settings, part) in [(&["exp.folds=1"][..], "exp.folds"), (&["exp.folds=100"], "use fewer folds")] {
        let output = train(&root, settings).output().unwrap();
        assert!(!output.status.success() && errors(&output).contains(part), "{settings:?}: {}", errors(&output));
    }
    let arguments =
        ["sweep", "configs/tiny.yaml", "--set", "exp.folds=3", "--grid", "train.learning_rate=[1e-3, 1e-2]"];
    let output = llmcls(&root, &arguments).output().unwrap();
    assert!(errors(&output).contains("train best.yaml with folds"), "{}", errors(&output));
    let arguments = ["check", "configs/tiny.yaml", "--set", "exp.folds=3", "--set", "data.max_train_samples=40"];
    let output = llmcls(&root, &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("and 3 folds with their learning curve"), "{said}");
}
