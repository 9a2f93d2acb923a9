//! `report.html` and what lies beside it, made of hostile rows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)>";

fn llmcls(arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A run on rows whose texts, ids and labels would run scripts if they were not escaped.
fn train(root: &Path, more: &[&str]) -> PathBuf {
    let rows = root.join("rows.csv");
    let mut text = format!("id,text,plain,\"{HOSTILE}\",\"a&b \"\"c\"\"\"\n");
    for number in 0..24 {
        text.push_str(&format!(
            "\"{number} {HOSTILE}\",\"word {number} {HOSTILE}\",{},{},1\n",
            number % 2,
            number % 3 / 2
        ));
    }
    fs::write(&rows, text).unwrap();
    let out = root.join("out");
    let rows = rows.to_str().unwrap();
    let mut arguments = vec!["train", "--config", "configs/tiny.yaml", "--override_output_root", out.to_str().unwrap()];
    let settings = ["train_csv", "val_csv", "test_csv"].map(|key| format!("data.{key}={rows}"));
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    arguments.extend(["--set", "data.id_column=id", "--set", "train.max_steps=4"]);
    arguments.extend(more);
    llmcls(&arguments);
    fs::read_dir(out.join("tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path()
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Only the report's own script, and no address that a browser would load.
fn expect_safe(html: &str) {
    assert_eq!(html.matches("<script").count(), 1);
    assert!(!html.contains("<img") && html.contains("&lt;img src=x"));
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("url("));
    assert!(html.contains("default-src 'none'") && html.contains("script-src 'sha256-"));
    // The script asks whether a cell `isNaN`.
    assert!(!html.replace("isNaN", "").contains("NaN"), "a chart or a table has a number that is none");
}

#[test]
fn a_report_escapes_what_comes_from_the_data() {
    let root = tempfile::tempdir().unwrap();
    let run = train(root.path(), &["--set", "exp.seeds=[1, 2]"]);
    let html = read(run.join("report.html"));
    expect_safe(&html);
    for part in [
        "<polyline class=\"thin s0\"",
        "<polyline class=\"line s0\"",
        "class=\"bar\" data-v=",
        "Reliability",
        "the best of 2 on validation",
        "2 seeds: ",
        "95%:",
        "Configuration",
        "class=\"rowtext\">word ",
        "in force: 0.500",
        "best epoch",
        "Micro-average over all labels",
        "TF-IDF and logistic regression",
        "Labels that the classifier contradicts with confidence",
        "SHA-256 ",
    ] {
        assert!(html.contains(part), "{part} is not in the report");
    }
    assert!(html.split_once("<h2>Run details</h2>").unwrap().1.contains(" UTC</td>"), "no date");
    let out = root.path().join("eval");
    let other = run.join("seed_2");
    let arguments = ["eval", "--output_dir", out.to_str().unwrap(), "--run", run.to_str().unwrap(), "--no_text"];
    let output = llmcls(&[&arguments[..], &["--compare", other.to_str().unwrap()]].concat());
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("95% interval") && printed.contains("seed_2: f1_micro"), "{printed}");
    let html = read(out.join("report.html"));
    expect_safe(&html);
    assert!(html.contains("<td>this run</td>") && html.contains("only this right") && !html.contains("word 1"));

    let labels = ["plain", HOSTILE, "a&b \"c\""];
    let lines = read(out.join("errors.jsonl"));
    for line in lines.lines() {
        let mistake: Value = serde_json::from_str(line).unwrap();
        assert!(labels.contains(&mistake["label"].as_str().unwrap()) && mistake["text"].is_null());
        let probability = mistake["probability"].as_f64().unwrap();
        assert_eq!(mistake["error"] == "false_positive", probability > 0.5);
        let has = |key: &str| mistake[key].as_array().unwrap().contains(&mistake["label"]);
        assert_eq!([has("predicted"), has("targets")], [probability > 0.5, probability <= 0.5]);
    }
    let metrics: Value = serde_json::from_str(&read(out.join("metrics.json"))).unwrap();
    let [low, high] = [0, 1].map(|end| metrics["eval_f1_micro_ci95"][end].as_f64().unwrap());
    let value = metrics["eval_f1_micro"].as_f64().unwrap();
    assert!(low <= value && value <= high && high <= 1.0, "{low} {value} {high}");
    assert!(metrics["compared"][0]["difference_ci95"]["f1_micro"][1].is_number());
    assert_eq!(metrics["labels_together"]["together"][0]["labels"][1], "a&b \"c\"");
}

#[test]
fn the_words_of_errors_have_shades_and_their_weights_are_in_the_file() {
    let root = tempfile::tempdir().unwrap();
    let run = train(root.path(), &[]);
    let out = root.path().join("eval");
    llmcls(&["eval", "--explain", "--run", run.to_str().unwrap(), "--output_dir", out.to_str().unwrap()]);
    let html = read(out.join("report.html"));
    expect_safe(&html);
    assert!(html.contains("<mark class=\"for4\">") || html.contains("<mark class=\"against4\">"));
    let lines = read(out.join("errors.jsonl"));
    let explained: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let why = explained.iter().find_map(|mistake| Some((mistake, mistake.get("why")?))).expect("an error is explained");
    assert_eq!(why.0["label"], why.1["label"]);
    let number = |value: &Value| value.as_f64().unwrap();
    let words = why.1["words"].as_array().unwrap();
    let sum = words.iter().map(|word| number(&word["weight"])).sum::<f64>() + number(&why.1["rest"]);
    let total = number(&why.1["logit"]) - number(&why.1["baseline"]);
    assert!((sum - total).abs() <= (0.02 * total.abs()).max(0.02), "{sum}, expected {total}");
}

#[test]
fn one_label_a_row_has_a_confusion_matrix_and_no_thresholds() {
    let root = tempfile::tempdir().unwrap();
    let rows = root.path().join("rows.csv");
    let text: String = (0..24).map(|row| format!("{row},word {row},{}\n", ["x", "y", "<z>"][row % 3])).collect();
    fs::write(&rows, format!("id,text,kind\n{text}")).unwrap();
    let out = root.path().join("out");
    let mut arguments = vec!["train", "--config", "configs/tiny.yaml", "--override_output_root", out.to_str().unwrap()];
    let settings = ["train_csv", "val_csv", "test_csv"].map(|key| format!("data.{key}={}", rows.display()));
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    for setting in ["data.id_column=id", "data.labels_column=kind", "train.max_steps=4"] {
        arguments.extend(["--set", setting]);
    }
    arguments.extend(["--set", "model.problem_type=single_label_classification"]);
    llmcls(&arguments);
    let run = fs::read_dir(out.join("tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path();
    let html = read(run.join("report.html"));
    assert!(html.contains("<h2>Confusion matrix</h2>") && html.contains("title=\"&lt;z&gt;, predicted x: "));
    assert!(!html.contains("<h2>Thresholds</h2>") && !html.contains("threshold ") && !html.contains("micro-F1</span>"));
}
