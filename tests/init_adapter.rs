//! `model.init_adapter` on the command line: what fits is used, what does not is found before a run is made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;

fn llmcls(subcommand: &str, root: &Path, settings: &[&str]) -> Output {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["--threads", "1", subcommand]);
    command.args(["--config", "configs/tiny.yaml", "--override_output_root"]).arg(root);
    let small =
        ["data.max_train_samples=24", "data.max_val_samples=12", "data.max_test_samples=8", "data.max_length=24"];
    for setting in small.iter().chain(&["train.max_steps=1", "train.learning_rate=1e-12"]).chain(settings) {
        command.args(["--set", setting]);
    }
    command.output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn runs(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("tiny-llama/debtags")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_with_both_values_before_a_run_is_made() {
    let first = tempfile::tempdir().unwrap();
    let output =
        llmcls("train", first.path(), &["data.label_columns=[interface_commandline, use_editing, field_science]"]);
    assert!(output.status.success(), "{}", errors(&output));
    let run = runs(first.path()).pop().unwrap();
    let set = format!("model.init_adapter={}", run.display());
    let second = tempfile::tempdir().unwrap();
    for (settings, expected) in [
        (vec!["model.lora_r=8"], ["r is 16", "model.lora_r is 8"]),
        (vec!["model.lora_alpha=16"], ["lora_alpha is 32", "model.lora_alpha is 16"]),
        (vec!["model.use_rslora=true"], ["`use_rslora` is false", "model.use_rslora is true"]),
        (vec!["model.lora_target_modules=[q_proj]"], ["model.lora_target_modules", "k_proj"]),
        (vec!["model.pooling=mean"], ["its usual form", "pooling mean"]),
        (vec!["model.init_seed=3"], ["another base", "model.model_name is `data/tiny-llama`"]),
        (
            vec!["data.label_columns=[use_converting, use_monitoring]"],
            [
                "none of its labels (interface_commandline, use_editing, field_science)",
                "use_converting, use_monitoring",
            ],
        ),
        (vec!["model.init_adapter=no/such/adapter"], ["model.init_adapter: no/such/adapter", "no such directory"]),
    ] {
        let labels = settings.iter().any(|setting| setting.starts_with("data.label_columns"));
        let mut all = vec![set.as_str()];
        if !labels {
            all.push("data.label_columns=[interface_commandline, use_editing, field_science]");
        }
        all.extend(&settings);
        for subcommand in ["check", "train"] {
            let output = llmcls(subcommand, second.path(), &all);
            let said = errors(&output);
            assert!(!output.status.success(), "{subcommand} {settings:?}");
            assert!(expected.iter().all(|words| said.contains(words)), "{subcommand} {settings:?}: {said}");
        }
    }
    assert!(runs(second.path()).is_empty());
}

#[test]
fn labels_are_matched_by_name_and_a_seeds_directory_will_do() {
    let first = tempfile::tempdir().unwrap();
    let output =
        llmcls("train", first.path(), &["data.label_columns=[interface_commandline, use_editing, field_science]"]);
    assert!(output.status.success(), "{}", errors(&output));
    let seed = runs(first.path()).pop().unwrap().join("seed_1");
    let set = format!("model.init_adapter={}", seed.display());
    let second = tempfile::tempdir().unwrap();
    let output = llmcls(
        "train",
        second.path(),
        // Another seed: with the same one a fresh row would be the old run's first numbers.
        &[&set, "exp.seeds=[5]", "data.label_columns=[field_science, use_converting, interface_commandline]"],
    );
    let said = errors(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("start fresh: use_converting") && said.contains("dropped: use_editing"), "{said}");
    let head = |best: &Path| {
        let file = best.join("adapter_model.safetensors");
        let tensors = llmcls::model::weights::Checkpoint::open(&[file]).unwrap();
        let width = tensors.shape("base_model.model.score.weight").unwrap()[1];
        let numbers = tensors.floats("base_model.model.score.weight", &[3, width]).unwrap();
        numbers.chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let old = head(&seed.join("best"));
    let new = head(&runs(second.path()).pop().unwrap().join("seed_5/best"));
    // One step of a rate of 1e-12 between.
    let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference(&new[0], &old[2]) < 1e-8 && difference(&new[2], &old[0]) < 1e-8);
    assert!(old.iter().all(|row| difference(&new[1], row) > 1e-3));
}

#[test]
fn an_adapter_for_labels_of_another_kind_is_refused() {
    let first = tempfile::tempdir().unwrap();
    let labels = "data.label_columns=[interface_commandline, use_editing, field_science]";
    let output = llmcls("train", first.path(), &[labels]);
    assert!(output.status.success(), "{}", errors(&output));
    let best = runs(first.path()).pop().unwrap().join("seed_1/best");
    // Copied out of its run, the directory needs no manifest.
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&best).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let best = copy.path();
    fs::remove_file(best.join("manifest.json")).unwrap();
    let file = best.join("classifier.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("multi_label_classification", "single_label_classification")).unwrap();
    let set = format!("model.init_adapter={}", best.display());
    let said = errors(&llmcls("check", first.path(), &[&set, labels]));
    assert!(said.contains("problem_type is \"single_label_classification\" there"), "{said}");
    assert!(said.contains("model.problem_type is \"multi_label_classification\""), "{said}");
}

#[test]
fn bench_takes_a_run_as_its_adapter_whatever_its_labels() {
    let first = tempfile::tempdir().unwrap();
    let output =
        llmcls("train", first.path(), &["data.label_columns=[interface_commandline, use_editing, field_science]"]);
    assert!(output.status.success(), "{}", errors(&output));
    let set = format!("model.init_adapter={}", runs(first.path()).pop().unwrap().display());
    let bench = |setting: &str| {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args([
            "--threads",
            "1",
            "bench",
            "--config",
            "configs/tiny.yaml",
        ]);
        command
            .args(["--steps", "1", "--warmup", "0", "--length", "8", "--labels", "5", "--set", &set, "--set", setting]);
        command.output().unwrap()
    };
    let output = bench("model.lora_r=16");
    assert!(output.status.success(), "{}", errors(&output));
    let output = bench("model.lora_r=8");
    assert!(!output.status.success() && errors(&output).contains("model.lora_r is 8"), "{}", errors(&output));
}
