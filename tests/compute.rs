//! Results do not depend on the batch, the threads or the width of the CPU's vectors, and a run records the number
//! type of its products.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

/// The program on a CPU of AVX2, if `is_narrow`: a newer one takes it as a limit, an older one is that already.
fn llmcls(arguments: &[&str], is_narrow: bool) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("--quiet").args(arguments);
    if is_narrow {
        command.env("LLMCLS_CPU", "x86-64-v3");
    }
    command
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Trains a few steps and returns the run.
fn train(root: &Path, compute: &str, threads: &str, is_narrow: bool) -> PathBuf {
    train_with(root, &[&format!("model.compute={compute}")], threads, is_narrow)
}

fn train_with(root: &Path, more: &[&str], threads: &str, is_narrow: bool) -> PathBuf {
    let mut command = llmcls(&["train", "--config", "configs/tiny.yaml", "--threads", threads], is_narrow);
    command.arg("--override_output_root").arg(root);
    for setting in [
        "data.max_train_samples=40",
        "data.max_val_samples=12",
        "data.max_test_samples=9",
        "train.num_train_epochs=1",
        "train.batch_size=7",
        "exp.seeds=[3]",
    ] {
        command.args(["--set", setting]);
    }
    more.iter().for_each(|setting| _ = command.args(["--set", setting]));
    succeed(&mut command);
    let runs: Vec<_> = fs::read_dir(root.join("tiny-llama/debtags")).unwrap().collect();
    assert_eq!(runs.len(), 1);
    runs.into_iter().next().unwrap().unwrap().path()
}

fn predict(run: &Path, batch_size: &str, threads: &str, is_narrow: bool) -> Vec<u8> {
    let mut command = llmcls(
        &["predict", "--input_csv", "data/debtags/test.csv", "--output", "-", "--threads", threads, "--run"],
        is_narrow,
    );
    succeed(command.arg(run).args(["--batch_size", batch_size])).stdout
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn bytes_do_not_depend_on_batch_threads_nor_vectors() {
    for compute in ["float32", "bfloat16"] {
        let root = tempfile::tempdir().unwrap();
        let run = train(&root.path().join("0"), compute, "2", false);
        let trained = |run: &Path| fs::read(run.join("seed_3/best/adapter_model.safetensors")).unwrap();
        for (name, threads, is_narrow) in [("1", "1", false), ("2", "2", true)] {
            let other = train(&root.path().join(name), compute, threads, is_narrow);
            assert!(trained(&run) == trained(&other), "{compute}, {threads} threads, narrow: {is_narrow}");
        }
        let probabilities = predict(&run, "1", "1", false);
        assert!(probabilities.len() > 1000);
        for (batch_size, threads, is_narrow) in
            [("2", "2", false), ("16", "1", true), ("16", "2", false), ("64", "2", true)]
        {
            let again = predict(&run, batch_size, threads, is_narrow);
            assert!(probabilities == again, "{compute}, batches of {batch_size}, narrow: {is_narrow}");
        }
    }
}

#[test]
fn copies_of_the_weights_for_short_batches_are_counted_and_change_no_number() {
    let packed_bytes = |more: &[&str]| {
        let mut command = llmcls(&["check", "--config", "configs/tiny.yaml", "--json"], false);
        for setting in ["train.batch_size=2", "model.compute=float32"].iter().chain(more) {
            command.args(["--set", setting]);
        }
        let output: Value = serde_json::from_slice(&succeed(&mut command).stdout).unwrap();
        let memory = |part: &str| output["memory"][part].as_u64().unwrap();
        let parts = ["base_bytes", "packed_bytes", "trained_bytes", "optimizer_bytes", "activations_bytes"];
        // The rest is the program itself.
        assert!(memory("total_bytes") > parts.map(memory).iter().sum());
        memory("packed_bytes")
    };
    let config = json(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny-llama/config.json")));
    let of = |key: &str| config[key].as_u64().unwrap();
    let (d, keys) = (of("hidden_size"), of("hidden_size") / of("num_attention_heads") * of("num_key_value_heads"));
    let layer = 2 * d * d + 2 * d * keys + 3 * d * of("intermediate_size");
    assert_eq!(packed_bytes(&[]), 2 * 4 * layer * of("num_hidden_layers"));
    assert_eq!(packed_bytes(&["model.lora_layers=1"]), 2 * 4 * layer);
    for setting in ["train.batch_size=40", "model.use_4bit=true", "train.gradient_checkpointing=true"] {
        assert_eq!(packed_bytes(&[setting]), 0, "{setting}");
    }

    let root = tempfile::tempdir().unwrap();
    let trained = |recompute: &str| {
        let more = ["train.batch_size=2", &format!("train.gradient_checkpointing={recompute}")];
        let run = train_with(&root.path().join(recompute), &more, "2", false);
        fs::read(run.join("seed_3/best/adapter_model.safetensors")).unwrap()
    };
    assert!(trained("true") == trained("false"));
}

#[test]
fn a_run_records_in_what_it_was_computed_and_goes_on_in_it() {
    let root = tempfile::tempdir().unwrap();
    let compute = |run: &Path| -> [String; 3] {
        let config = fs::read_to_string(run.join("config.yaml")).unwrap();
        let line = config.lines().find_map(|line| line.trim().strip_prefix("compute:")).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        [
            line.trim().trim_matches('"').to_owned(),
            text(&json(&run.join("seed_3/best/classifier.json"))["compute"]),
            text(&json(&run.join("environment.json"))["compute"]),
        ]
    };
    // A CPU without an instruction for it takes float32 by itself, and bfloat16 where it is asked for.
    let narrow = train(&root.path().join("auto"), "auto", "2", true);
    assert_eq!(compute(&narrow), ["float32"; 3]);
    assert_eq!(json(&narrow.join("environment.json"))["instructions"], "AVX2");
    let run = train(&root.path().join("bf16"), "bfloat16", "2", true);
    assert_eq!(compute(&run), ["bfloat16"; 3]);
    let predicting = |run: &Path| {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("LLMCLS_CPU", "x86-64-v3");
        command.args(["predict", "--input_csv", "data/debtags/test.csv", "--output", "-", "--run"]).arg(run);
        let output = succeed(&mut command);
        (output.stdout, String::from_utf8(output.stderr).unwrap())
    };
    let (in_bfloat16, note) = predicting(&run);
    assert!(note.contains("AVX512_BF16"), "{note}");
    let (in_float32, note) = predicting(&narrow);
    assert!(!note.contains("AVX512_BF16"), "{note}");
    assert!(in_bfloat16 != in_float32);

    // A classifier from before the key was computed in f32.
    let file = narrow.join("seed_3/best/classifier.json");
    let mut older = json(&file);
    older.as_object_mut().unwrap().remove("compute");
    fs::write(&file, older.to_string()).unwrap();
    assert!(predicting(&narrow).0 == in_float32);
}
