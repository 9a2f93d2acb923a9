//! Texts of more than `data.max_length` tokens, read at their ends or in windows: trained, predicted and explained alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use llmcls::config::data::WindowPooling;
use llmcls::model::batch::Batch;
use llmcls::ops::tape::Tape;
use serde_json::Value;

use super::attributions::fixture;

/// A run on texts of up to 60 words, of which the last says the label; 24 tokens are read at once.
fn train(root: &Path, name: &str, more: &[&str]) -> (PathBuf, Output) {
    let rows = root.join("rows.csv");
    let text: String = (0..24)
        .map(|row| {
            let filler = "some words that say nothing ".repeat(row % 4 * 4);
            let [chess, image] = [row % 2, row / 2 % 2];
            let last = ["a program", "plays chess", "shows images", "plays chess and shows images"][chess + 2 * image];
            format!("{row},{filler}{last},{chess},{image}\n")
        })
        .collect();
    fs::write(&rows, format!("id,text,chess,image\n{text}")).unwrap();
    let out = root.join(name);
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("XDG_CACHE_HOME", root.join("cache"));
    command.args(["train", "--config", "configs/tiny.yaml", "--override_output_root"]).arg(&out);
    for key in ["train_csv", "val_csv", "test_csv"] {
        command.args(["--set", &format!("data.{key}={}", rows.display())]);
    }
    for setting in ["data.id_column=id", "data.max_length=24", "train.max_steps=6", "train.batch_size=5"] {
        command.args(["--set", setting]);
    }
    command.args(more.iter().flat_map(|setting| ["--set", setting]));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = fs::read_dir(out.join("tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path();
    (run, output)
}

fn predicted(run: &Path, rows: &Path, more: &[&str]) -> Vec<Value> {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["predict", "--run"]).arg(run).arg(rows).args(["-o", "-"]);
    let output = command.args(more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lines(&String::from_utf8(output.stdout).unwrap())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn predictions_are_those_of_training_and_the_words_of_all_windows_weigh() {
    let root = tempfile::tempdir().unwrap();
    let rows = root.path().join("rows.csv");
    let mut seen = Vec::new();
    for (name, settings) in [
        ("cut", &["data.long_text=cut"][..]),
        ("ends", &["data.long_text=head_tail"]),
        ("mean", &["data.long_text=windows"]),
        ("max", &["data.long_text=windows", "data.window_pooling=max", "data.max_windows=2"]),
    ] {
        let (run, output) = train(root.path(), name, settings);
        let trained = lines(&fs::read_to_string(run.join("seed_1/predictions_test.jsonl")).unwrap());
        let found = predicted(&run, &rows, &["--explain"]);
        assert_eq!(trained.len(), found.len());
        for (row, (trained, found)) in trained.iter().zip(&found).enumerate() {
            assert_eq!(trained["probs"], found["probs"], "{name}, row {row}");
        }
        let file = fs::read_to_string(run.join("seed_1/best/classifier.json")).unwrap();
        let file: Value = serde_json::from_str(&file).unwrap();
        assert_eq!(file["format_version"], if name == "cut" { 2 } else { 3 });
        // Row 11 has 60 words of filler: which of its words are read?
        let why = &found[11]["why"][0];
        let text = fs::read_to_string(&rows).unwrap();
        let text = text.lines().nth(12).unwrap().split(',').nth(1).unwrap();
        let ends: Vec<u64> =
            why["words"].as_array().unwrap().iter().map(|word| word["end"].as_u64().unwrap()).collect();
        let reaches_the_end = ends.last() == Some(&(text.len() as u64));
        assert_eq!(reaches_the_end, name == "ends" || name == "mean", "{name}: {ends:?} of {}", text.len());
        let number = |value: &Value| value.as_f64().unwrap();
        let weights = why["words"].as_array().unwrap().iter().map(|word| number(&word["weight"]));
        let sum = weights.sum::<f64>() + number(&why["rest"]);
        let total = number(&why["logit"]) - number(&why["baseline"]);
        assert!((sum - total).abs() <= (0.02 * total.abs()).max(0.02), "{name}: {sum}, expected {total}");
        let said = String::from_utf8_lossy(&output.stderr);
        let words = ["are cut at data.max_length", "lose their middle", "behind 8 windows", "are cut behind 2 windows"];
        let warned = words.map(|words| said.contains(words));
        let names = ["cut", "ends", "mean", "max"];
        // All of a text is read in 8 windows.
        assert_eq!(warned, names.map(|other| other == name && name != "mean"), "{name}: {said}");
        seen.push(found[11]["probs"].clone());
    }
    for other in 1..seen.len() {
        assert!(seen[..other].iter().all(|earlier| *earlier != seen[other]), "{seen:?}");
    }
}

#[test]
fn windows_and_the_cache_of_frozen_layers_give_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    for targets in ["model.lora_layers=1", "model.lora_target_modules=[]"] {
        let with = |name: &str, cache: &str| {
            let settings = ["data.long_text=windows", targets, cache];
            let (run, _) = train(root.path(), &format!("{name}{}", targets.len()), &settings);
            fs::read(run.join("seed_1/best/adapter_model.safetensors")).unwrap()
        };
        let cached = with("cached", "train.cache_limit=1GB");
        assert!(cached == with("again", "train.cache_limit=1GB"), "{targets}");
        assert!(cached == with("uncached", "train.cache_limit=0"), "{targets}");
    }
}

/// The logits of two windows, each computed as a text of its own, and their gradients through the loss.
#[test]
fn a_text_has_the_mean_or_the_largest_of_the_logits_of_its_windows() {
    for name in ["bert", "qwen2"] {
        let (classifier, batch) = fixture(name);
        let labels = batch["labels"][0].as_array().unwrap().len();
        let texts: Vec<Vec<u32>> = serde_json::from_value(batch["token_ids"].clone()).unwrap();
        let (a, b) = (&texts[0], &texts[1]);
        let logits = |batch: &Batch| -> Vec<Vec<f32>> {
            classifier.logits(&Tape::off(), batch).unwrap().tensor().to_vec2().unwrap()
        };
        let alone = logits(&Batch::new([(&**a, &[][..]), (b, &[])]).unwrap());
        let joined = [a.as_slice(), b].concat();
        let lengths = [a.len(), b.len()];
        let both = Batch::windowed([(&*joined, &lengths[..], &[][..]), (b, &[], &[])]).unwrap();
        for pooling in [WindowPooling::Mean, WindowPooling::Max] {
            classifier.set_window_pooling(pooling);
            let found = logits(&both);
            assert_eq!(found[1], alone[1], "{name}");
            for label in 0..labels {
                let (x, y) = (alone[0][label], alone[1][label]);
                let expected = if pooling == WindowPooling::Mean { 0.5 * (x + y) } else { x.max(y) };
                assert!((found[0][label] - expected).abs() < 1e-6, "{name}: {} for {x}, {y}", found[0][label]);
            }
        }
    }
}
