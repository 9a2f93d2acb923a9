//! Predicting in int8: only after its cost was measured, and with the same bytes in every batch and on every CPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::{Value, json};

use crate::serve::Server;

fn llmcls(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    command
}

fn train(root: &Path) -> PathBuf {
    let mut command = llmcls(&["--quiet", "train", "--config", "configs/tiny.yaml", "--override_output_root"]);
    command.arg(root);
    for setting in [
        "data.max_train_samples=60",
        "data.max_val_samples=40",
        "data.max_test_samples=20",
        "train.num_train_epochs=2",
        "exp.seeds=[3]",
        "model.compute=float32",
    ] {
        command.args(["--set", setting]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_dir(root.join("tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path()
}

fn predict(run: &Path, arguments: &[&str], is_narrow: bool) -> Output {
    let mut command = llmcls(&["predict", "--input_csv", "data/debtags/test.csv", "--output", "-", "--run"]);
    if is_narrow {
        command.env("LLMCLS_CPU", "x86-64-v3");
    }
    command.arg(run).args(arguments).output().unwrap()
}

/// The first texts that `predict` reads.
fn texts(count: usize) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/debtags/test.csv");
    let mut reader = csv::Reader::from_path(path).unwrap();
    let column = reader.headers().unwrap().iter().position(|name| name == "text").unwrap();
    reader.records().take(count).map(|row| row.unwrap()[column].to_owned()).collect()
}

fn probabilities(output: &Output) -> Vec<f64> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    let rows = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.flat_map(|row| row["probs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn int8_is_for_classifiers_of_which_its_cost_was_measured() {
    let root = tempfile::tempdir().unwrap();
    let run = train(root.path());
    let refused = predict(&run, &["--precision", "int8"], false);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--split validation --precision int8"), "{said}");

    let measured =
        llmcls(&["eval", "--split", "validation", "--precision", "int8", "--run"]).arg(&run).output().unwrap();
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let home = run.join("seed_3");
    assert!(home.join("eval_validation_int8/metrics.json").is_file());
    let path = home.join("best/int8.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(file["rows"], 40);
    assert_eq!(file["reference"]["compute"], "float32");
    let maxima = file["maxima"].as_object().unwrap();
    assert!(maxima.len() > 10, "an entry for each linear module");
    for (module, reach) in maxima {
        assert!(reach.as_array().unwrap().iter().any(|x| x.as_f64().unwrap() > 0.0), "{module} was not observed");
    }
    // Modules with one input have seen the same.
    let of = |module: &str| {
        maxima
            .iter()
            .filter(|(name, _)| name.contains("layers.0.") && name.ends_with(module))
            .map(|(_, reach)| reach)
            .collect::<Vec<_>>()
    };
    assert!(of("q_proj") == of("v_proj") && of("gate_proj") == of("up_proj") && of("q_proj") != of("up_proj"));

    let int8 = predict(&run, &["--precision", "int8", "--accept_loss"], false);
    let as_trained = probabilities(&predict(&run, &["--precision", "float32"], false));
    let in_int8 = probabilities(&int8);
    assert_eq!(in_int8.len(), as_trained.len());
    let worst = in_int8.iter().zip(&as_trained).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst > 0.0 && worst < 0.05, "probabilities differ by {worst}");
    for (batch_size, is_narrow) in [("1", false), ("7", true), ("64", true)] {
        let again = predict(&run, &["--precision", "int8", "--accept_loss", "--batch_size", batch_size], is_narrow);
        assert!(again.stdout == int8.stdout, "batches of {batch_size}, narrow: {is_narrow}");
    }

    // The server prints the same.
    let path_of_run = run.to_str().unwrap();
    let server = Server::start(&["--run", path_of_run, "--precision", "int8", "--accept_loss"]);
    let served = server.post("/v1/predict", &json!({"texts": texts(200)})).json();
    let rows = served["results"].as_array().unwrap().iter().flat_map(|row| row["probs"].as_array().unwrap());
    let rows: Vec<f64> = rows.map(|p| p.as_f64().unwrap()).collect();
    assert!(rows.len() >= 200 && rows == in_int8[..rows.len()]);
    assert_eq!(server.get("/info").json()["models"][0]["compute"], "int8");

    // Thresholds that came later, and never together.
    let eval = |more: &[&str]| llmcls(&["--quiet", "eval", "--run"]).arg(&run).args(more).output().unwrap();
    let both = eval(&["--split", "validation", "--precision", "int8", "--tune_thresholds", "global"]);
    assert_eq!(both.status.code(), Some(2));
    assert!(eval(&["--tune_thresholds", "global"]).status.success());
    let refused = predict(&run, &["--precision", "int8"], false);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("with other thresholds"), "{said}");
    assert!(eval(&["--split", "validation", "--precision", "int8"]).status.success());
    file = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();

    // A cost above half a point is for users who accept it.
    file["reference"]["f1_micro"] = Value::from(file["int8"]["f1_micro"].as_f64().unwrap() + 0.012);
    fs::write(&path, file.to_string()).unwrap();
    let refused = predict(&run, &["--precision", "int8"], false);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("1.2 points") && said.contains("--accept_loss"), "{said}");
    assert!(predict(&run, &["--precision", "int8", "--accept_loss"], false).status.success());
}
