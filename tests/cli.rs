//! The built program on a few rows of the shipped data.

use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn llmcls(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("llmcls").unwrap().current_dir(root()).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn train(out: &Path, more: &[&str]) -> PathBuf {
    let out = out.to_str().unwrap();
    let mut arguments = vec!["train", "--config", "configs/tiny.yaml", "--override-output-root", out];
    for setting in ["data.max_train_samples=24", "data.max_val_samples=16", "data.max_test_samples=16"] {
        arguments.extend(["--set", setting]);
    }
    arguments.extend(["--set", "train.max_steps=4", "--set", "train.batch_size=6"]);
    arguments.extend(more);
    let (code, _, errors) = llmcls(&arguments);
    assert_eq!(code, 0, "{errors}");
    let runs = Path::new(out).join("tiny-llama/debtags");
    std::fs::read_dir(runs).unwrap().map(|entry| entry.unwrap().path()).max().unwrap()
}

#[test]
fn train_eval_predict_work_together_and_a_seed_gives_the_same_bytes() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let seeds = ["--set", "exp.seeds=[1, 3]", "--set", "model.hf_token=s3cret"];
    let run = train(first.path(), &seeds);
    let again = train(second.path(), &seeds);
    for seed in ["seed_1", "seed_3"] {
        let read = |run: &Path| std::fs::read(run.join(seed).join("best/adapter_model.safetensors")).unwrap();
        assert_eq!(read(&run), read(&again), "{seed}");
    }
    for entry in ["config.yaml", "environment.json", "summary.json", "seed_1/best/classifier.json"] {
        let text = std::fs::read_to_string(run.join(entry)).unwrap();
        assert!(!text.contains("s3cret"), "{entry} holds the token");
    }

    let (code, table, errors) = llmcls(&["eval", "--run", run.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    assert!(table.contains("micro avg") && table.contains("use_gameplaying"), "{table}");

    let out = first.path().to_str().unwrap();
    let arguments =
        ["predict", "--override_output_root", out, "--input_csv", "data/debtags/test.csv", "--output_jsonl", "-"];
    let (code, lines, errors) = llmcls(&arguments);
    assert_eq!(code, 0, "{errors}");
    let rows: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 500);
    assert_eq!(rows[0]["probs"].as_array().unwrap().len(), 12);

    // What training wrote for the first rows of test is what predict says of them.
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(run.join("summary.json")).unwrap()).unwrap();
    let best = run.join(format!("seed_{}", summary["best_seed"])).join("predictions_test.jsonl");
    let own = std::fs::read_to_string(best).unwrap();
    for (own, row) in own.lines().zip(&rows) {
        let own: serde_json::Value = serde_json::from_str(own).unwrap();
        assert_eq!((&own["id"], &own["predicted"]), (&row["id"], &row["predicted"]));
    }
}

#[test]
fn wrong_usage_exits_with_2_and_failures_with_1_and_a_way_out() {
    assert_eq!(llmcls(&["fly"]).0, 2);
    for (arguments, parts) in [
        (&["train", "--config", "no.yaml"][..], &["no.yaml", "cannot read"][..]),
        (&["train", "--config", "configs/tiny.yaml", "--set", "train.lr=1"], &["train.lr", "--set"]),
        (&["train", "--config", "configs/tiny.yaml", "--device", "cuda"], &["CPU only"]),
        (&["predict", "--run", "nowhere", "--input_csv", "x.csv"], &["nowhere", "no such run"]),
        (&["predict", "--override_output_root", "none", "--input_csv", "x.csv"], &["no finished run"]),
        (&["train", "--config", "configs/default.yaml"], &["amazoncat-13k", "train_top10.csv"]),
    ] {
        let (code, _, errors) = llmcls(arguments);
        assert_eq!(code, 1, "{arguments:?}");
        for part in parts {
            assert!(errors.contains(part), "{part} is not in {errors}");
        }
    }
}

/// Snapshots of the Hub's cache, laid out as `huggingface_hub` does, without a network.
#[test]
fn a_hub_name_in_the_local_cache_is_used_and_a_missing_one_says_where_it_was_looked_for() {
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--org--tiny");
    let snapshot = model.join("snapshots/0123abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::write(model.join("refs/main"), "0123abc").unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(root().join("data/tiny-llama").join(file), snapshot.join(file)).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let run = |name: &str| {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.current_dir(root()).env("HF_HUB_CACHE", cache.path()).env("HF_HUB_OFFLINE", "1");
        command.args(["train", "--config", "configs/tiny.yaml", "--override_output_root"]).arg(out.path());
        for setting in ["max_train_samples=8", "max_val_samples=4", "max_test_samples=4"] {
            command.args(["--set", &format!("data.{setting}")]);
        }
        command.args(["--set", "train.max_steps=1", "--set", &format!("model.model_name={name}")]).output().unwrap()
    };
    let found = run("org/tiny");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let missing = String::from_utf8(run("org/other").stderr).unwrap();
    assert!(missing.contains("org/other") && missing.contains("config.json"), "{missing}");
}

#[test]
fn thresholds_are_tuned_stored_and_overridden() {
    let out = tempfile::tempdir().unwrap();
    let run = train(out.path(), &["--set", "train.tune_thresholds=per_label"]);
    let directory = run.to_str().unwrap();
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(run.join(name)).unwrap()).unwrap()
    };
    let stored = || json("seed_1/best/classifier.json")["thresholds"].as_array().unwrap().clone();
    let per_label = stored();
    assert!(per_label.iter().any(|threshold| threshold != &per_label[0]), "{per_label:?}");
    let summary = json("summary.json");
    let test = &summary["seeds"][0]["test"];
    assert!(test["with_threshold_0.5"]["f1_micro"].is_number() && test["eval_f1_micro"].is_number());

    let arguments = ["eval", "--run", directory, "--tune_thresholds", "global", "--objective", "recall>=0.9"];
    let (code, table, errors) = llmcls(&arguments);
    assert_eq!(code, 0, "{errors}");
    assert!(table.contains("with threshold 0.5"), "{table}");
    let global = stored();
    assert!(global.iter().all(|threshold| threshold == &global[0]) && global != per_label, "{global:?}");

    let predict = |more: &[&str]| {
        let mut arguments =
            vec!["predict", "--run", directory, "--input_csv", "data/debtags/test.csv", "--output_jsonl", "-"];
        arguments.extend(more);
        let (code, lines, errors) = llmcls(&arguments);
        let counts: Vec<usize> = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["predicted"].as_array().unwrap().len())
            .collect();
        (code, counts, errors)
    };
    assert!(predict(&["--top_k", "2"]).1.iter().all(|&count| count == 2));
    assert!(predict(&["--threshold", "0"]).1.iter().all(|&count| count == 12));
    assert!(predict(&["--threshold", "0", "--threshold", "use_editing=1"]).1.iter().all(|&count| count == 11));
    assert!(predict(&["--threshold", "1"]).1.iter().all(|&count| count == 0));
    assert!(predict(&["--threshold", "1", "--always_one"]).1.iter().all(|&count| count == 1));
    let (code, _, errors) = predict(&["--threshold", "nolabel=0.5"]);
    assert!(code == 2 && errors.contains("no such label") && errors.contains("use_editing"), "{errors}");
}

/// Every configuration that ships, and every data set with every model.
#[test]
fn all_configurations_load() {
    use llmcls::config::Config;
    let files = |directory: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(root().join("configs").join(directory)).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
            .collect()
    };
    for file in files("").into_iter().chain(files("bench")) {
        Config::load(&[file], &[]).unwrap();
    }
    let (data, models) = (files("data"), files("model"));
    assert!(data.len() >= 2 && models.len() >= 5);
    for data in &data {
        for model in &models {
            Config::load(&[data.clone(), model.clone()], &[]).unwrap();
        }
    }
}
