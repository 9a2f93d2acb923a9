//! Options of training; the numbers of torch 2.15 are made by `scripts/make_recipe_fixtures.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use candle_core::Tensor;
use llmcls::model::weights::Checkpoint;
use llmcls::ops::tape::Param;
use llmcls::training::optimizer::{AdamW, MomentStorage};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Fixtures {
    steps: Steps,
}

#[derive(Deserialize)]
struct Steps {
    start: Vec<Vec<f32>>,
    gradients: Vec<Vec<Vec<f32>>>,
    rates: [f64; 2],
    weight_decay: f64,
    end: Vec<Vec<f32>>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fixtures() -> Fixtures {
    serde_json::from_slice(&fs::read(root().join("tests/fixtures/recipes.json")).unwrap()).unwrap()
}

#[test]
fn a_head_of_its_own_rate_steps_as_a_group_of_torch_s() {
    let Steps { start, gradients, rates, weight_decay, end } = fixtures().steps;
    let params: Vec<_> = ["lora_A.weight", "score.weight"]
        .iter()
        .zip(&start)
        .map(|(name, values)| {
            Param::new(*name, Tensor::from_slice(values, values.len(), &candle_core::Device::Cpu).unwrap()).unwrap()
        })
        .collect();
    let mut optimizer = AdamW::new(&params, weight_decay, MomentStorage::Float32).unwrap().with_head(1);
    for (step, gradients) in gradients.iter().enumerate() {
        for (param, gradient) in params.iter().zip(gradients) {
            param.clear_gradient();
            param.add_to_gradient(gradient).unwrap();
        }
        optimizer.step_groups(rates.map(|rate| rate * (5 - step) as f64 / 5.0), 1.0).unwrap();
    }
    for (param, expected) in params.iter().zip(&end) {
        for (found, expected) in param.value().to_vec1::<f32>().unwrap().iter().zip(expected) {
            // Steps of up to 0.07 in f32, each rounded a few times.
            assert!((found - expected).abs() < 3e-6, "{}: {found}, {expected}", param.name());
        }
    }
}

fn train(root: &Path, more: &[&str]) -> Output {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["--threads", "1", "train", "--config", "configs/tiny.yaml", "--override_output_root"]).arg(root);
    for setting in [
        "data.max_train_samples=24",
        "data.max_val_samples=12",
        "data.max_test_samples=8",
        "data.max_length=24",
        "train.batch_size=6",
        "train.num_train_epochs=4",
        "train.learning_rate=0.01",
        "train.early_stopping_patience=null",
    ]
    .iter()
    .chain(more)
    {
        command.args(["--set", setting]);
    }
    command.output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run_of(root: &Path) -> PathBuf {
    fs::read_dir(root.join("tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path()
}

fn adapter(directory: &Path) -> Checkpoint {
    Checkpoint::open(&[directory.join("adapter_model.safetensors")]).unwrap()
}

#[test]
fn the_mean_of_the_last_epochs_is_what_is_saved_and_its_checkpoints_are_kept() {
    let place = tempfile::tempdir().unwrap();
    let output = train(place.path(), &["train.average_last=3", "train.save_total_limit=1"]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(errors(&output).contains("the mean of the last 3 epochs"), "{}", errors(&output));
    let seed = run_of(place.path()).join("seed_1");
    let parts: Vec<Checkpoint> = [8, 12, 16].map(|step| adapter(&seed.join(format!("checkpoint-{step}")))).into();
    let best = adapter(&seed.join("best"));
    let mut differs = false;
    for name in best.names() {
        let read = |from: &Checkpoint| from.floats(name, best.shape(name).unwrap()).unwrap();
        let parts: Vec<Vec<f32>> = parts.iter().map(read).collect();
        for (index, found) in read(&best).iter().enumerate() {
            let mean = parts.iter().map(|part| f64::from(part[index])).sum::<f64>() / 3.0;
            assert_eq!(*found, mean as f32, "{name}");
            differs |= parts.iter().all(|part| part[index] != *found);
        }
    }
    assert!(differs, "nothing was trained");
    // A killed run goes on to the same bytes.
    let other = place.path().join("killed");
    let mut command = Command::cargo_bin("llmcls").unwrap();
    let killed = {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("LLMCLS_FAILPOINT", "step:14:kill");
        command.args(["--threads", "1", "train", "--config"]).arg(run_of(place.path()).join("config.yaml"));
        command.arg("--override_output_root").arg(&other).output().unwrap()
    };
    assert!(!killed.status.success());
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["--threads", "1", "train", "--resume"]);
    let resumed = command.arg(run_of(&other)).output().unwrap();
    assert!(resumed.status.success(), "{}", errors(&resumed));
    let read = |root: &Path| fs::read(run_of(root).join("seed_1/best/adapter_model.safetensors")).unwrap();
    assert!(read(place.path()) == read(&other));
}

#[test]
fn options_change_what_is_learned_and_are_in_the_card() {
    let place = tempfile::tempdir().unwrap();
    let losses = |name: &str, more: &[&str]| -> (Vec<String>, String) {
        let root = place.path().join(name);
        let output = train(&root, &[&["train.max_steps=5", "train.logging_steps=1"], more].concat());
        assert!(output.status.success(), "{name}: {}", errors(&output));
        let seed = run_of(&root).join("seed_1");
        let history = fs::read_to_string(seed.join("history.jsonl")).unwrap();
        let loss = |line: &str| Some(serde_json::from_str::<Value>(line).ok()?.get("loss")?.to_string());
        (history.lines().filter_map(loss).collect(), fs::read_to_string(seed.join("best/README.md")).unwrap())
    };
    let (plain, _) = losses("plain", &[]);
    for (name, more, said) in [
        ("asymmetric", "train.loss=asymmetric", "| loss | asymmetric |"),
        ("balanced", "train.loss=distribution_balanced", "| loss | distribution_balanced |"),
        ("smoothed", "train.label_smoothing=0.1", "| loss | bce, label smoothing 0.1 |"),
    ] {
        let (found, card) = losses(name, &[more]);
        assert!(found.len() == 5 && found[0] != plain[0], "{name}: {found:?}");
        assert!(card.contains(said), "{card}");
    }
    let (found, card) = losses("head", &["train.head_learning_rate=0.1"]);
    assert!(found[0] == plain[0] && found[2] != plain[2], "{found:?}");
    assert!(card.contains("0.01, of the head 0.1"), "{card}");
    for (settings, part) in [
        (&["train.loss=distribution_balanced", "train.class_weights=balanced"][..], "weights of its own"),
        (&["train.label_smoothing=1"], "less than 1"),
        (&["train.asymmetric_margin=1.5"], "train.asymmetric_margin"),
        (&["train.loss=asymetric"], "one of bce focal asymmetric distribution_balanced"),
    ] {
        let output = train(&place.path().join("refused"), settings);
        assert!(!output.status.success() && errors(&output).contains(part), "{settings:?}: {}", errors(&output));
    }
}
