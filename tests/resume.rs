//! Runs that die and go on: killed for real, at each step and at each write.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["--quiet", "--threads", "1"]).args(arguments);
    command
}

/// Two seeds of two epochs of four steps, one of them with its moments in 8 bits, checkpoints every
/// three steps and at each epoch's end.
fn train(root: &Path, more: &[&str], failpoint: Option<&str>) -> Output {
    let mut command = command(&["train", "--config", "configs/tiny.yaml", "--override_output_root"]);
    command.arg(root);
    for setting in [
        "data.max_train_samples=20",
        "data.max_val_samples=12",
        "data.max_test_samples=9",
        "data.max_length=24",
        "model.use_4bit=true",
        "train.num_train_epochs=2",
        "train.batch_size=3",
        "train.gradient_accumulation_steps=2",
        "train.save_steps=3",
        "train.save_total_limit=2",
        "train.logging_steps=2",
        "exp.seeds=[1, 4]",
    ] {
        command.args(["--set", setting]);
    }
    if let Some(failpoint) = failpoint {
        command.env("LLMCLS_FAILPOINT", failpoint);
    }
    command.args(more).output().unwrap()
}

fn resume(run: &Path) -> Output {
    command(&["train", "--resume", run.to_str().unwrap()]).output().unwrap()
}

fn run_of(root: &Path) -> PathBuf {
    let mut runs: Vec<_> =
        fs::read_dir(root.join("tiny-llama/debtags")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(runs.len(), 1);
    runs.pop().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file of a run but the environment; records without what is measured or is a path.
pub(super) fn contents(run: &Path) -> BTreeMap<String, Vec<u8>> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, _| {
                    !(key.contains("runtime")
                        || key.contains("per_second")
                        || key.contains("bytes")
                        || ["elapsed", "output_root"].contains(&key.as_str()))
                });
                map.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    fn walk(directory: &Path, root: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                walk(&path, root, out);
                continue;
            }
            // A model card tells the time that training took.
            if name.ends_with("README.md") {
                continue;
            }
            // The environment is of the machine, checksums are of files with times in them.
            if name == "environment.json" || name == "config.yaml" || name.ends_with("manifest.json") {
                continue;
            }
            // Made of history.jsonl, times included.
            if name.ends_with("history.csv") {
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            if name == "report.html" {
                // What follows is machine, time, memory and paths.
                let text = String::from_utf8(bytes).unwrap();
                bytes = text.split_once("<h2>Run details</h2>").unwrap().0.into();
            }
            if name.ends_with(".json") || name.ends_with(".jsonl") {
                let lines = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
                let stripped: Vec<String> = lines
                    .map(|value| {
                        let mut value = value.unwrap();
                        strip(&mut value);
                        value.to_string()
                    })
                    .collect();
                bytes = stripped.join("\n").into_bytes();
            }
            out.insert(name, bytes);
        }
    }
    let mut out = BTreeMap::new();
    walk(run, run, &mut out);
    out
}

pub(super) fn assert_same(run: &Path, expected: &BTreeMap<String, Vec<u8>>, case: &str) {
    let found = contents(run);
    let names = |contents: &BTreeMap<String, Vec<u8>>| contents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "{case}");
    for (name, bytes) in &found {
        assert!(bytes == &expected[name], "{case}: {name} differs");
    }
}

fn uninterrupted(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let output = train(root, &[], None);
    assert!(output.status.success(), "{}", errors(&output));
    contents(&run_of(root))
}

#[test]
fn killed_at_any_step_a_run_goes_on_to_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let expected = uninterrupted(root.path());
    assert!(expected.contains_key("seed_4/best/adapter_model.safetensors"));
    for step in 1..=16 {
        let root = tempfile::tempdir().unwrap();
        let killed = train(root.path(), &[], Some(&format!("step:{step}:kill")));
        assert!(!killed.status.success());
        let run = run_of(root.path());
        if step == 7 {
            // From the checkpoint of step 6, not from the start: two steps of this seed are left, and
            // eight of the other.
            let last = command(&["train", "--resume", run.to_str().unwrap()])
                .env("LLMCLS_FAILPOINT", "step:10:kill")
                .output()
                .unwrap();
            assert!(!last.status.success(), "more than nine steps were left");
            assert!(run.join("seed_4/checkpoint-6").is_dir() && !run.join("seed_4/checkpoint-8").exists());
        }
        let resumed = resume(&run);
        assert!(resumed.status.success(), "step {step}: {}", errors(&resumed));
        assert_same(&run, &expected, &format!("step {step}"));
    }
}

/// The writes of a run are its configuration, history, checkpoints, `best/`, records: all are tried.
#[test]
fn killed_or_full_at_any_write_a_run_goes_on_to_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let expected = uninterrupted(root.path());
    let mut tried = 0;
    for (site, every) in [("write", 5), ("rename", 9)] {
        for how in ["kill", "full"] {
            // The first writes are those of the configuration, before there is a run to go on with.
            for count in (if how == "kill" { 4 } else { 5 }..).step_by(every) {
                let root = tempfile::tempdir().unwrap();
                let failpoint = format!("{site}:{count}:{how}");
                let failed = train(root.path(), &[], Some(&failpoint));
                if failed.status.success() {
                    break;
                }
                if how == "full" {
                    let text = errors(&failed);
                    assert!(text.contains("cannot write") && text.contains("--resume"), "{failpoint}: {text}");
                }
                let run = run_of(root.path());
                let resumed = resume(&run);
                assert!(resumed.status.success(), "{failpoint}: {}", errors(&resumed));
                assert_same(&run, &expected, &failpoint);
                tried += 1;
            }
        }
    }
    assert!(tried > 30, "{tried}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_a_checkpoint_and_says_how_to_go_on() {
    let whole = tempfile::tempdir().unwrap();
    let expected = uninterrupted(whole.path());
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let root = tempfile::tempdir().unwrap();
        let stopped = train(root.path(), &[], Some(&format!("step:2:{signal}")));
        assert_eq!(stopped.status.code(), Some(code), "{}", errors(&stopped));
        let run = run_of(root.path());
        assert!(errors(&stopped).contains(&format!("llmcls train --resume {}", run.display())), "{}", errors(&stopped));
        assert!(run.join("seed_1/checkpoint-2/manifest.json").is_file());
        let resumed = resume(&run);
        assert!(resumed.status.success(), "{}", errors(&resumed));
        // The extra checkpoint is one of those that the limit removes.
        assert_same(&run, &expected, signal);
    }
}

#[test]
fn what_decides_the_result_may_not_change_while_a_run_is_stopped() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("train.csv");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/debtags/train.csv"), &data).unwrap();
    let setting = format!("data.train_csv={}", data.display());
    train(root.path(), &["--set", &setting], Some("step:5:kill"));
    let run = run_of(root.path());
    let directory = run.to_str().unwrap();
    let refused = |more: &[&str]| {
        let output = command(&["train", "--resume", directory]).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        errors(&output)
    };
    let text = refused(&["--set", "train.learning_rate=0.5"]);
    assert!(text.contains("train.learning_rate: was 0.002, is 0.5"), "{text}");

    let rows = fs::read_to_string(&data).unwrap();
    fs::write(&data, rows.replacen("Debian", "Debbie", 1)).unwrap();
    assert!(refused(&[]).contains("sha256 of data.train_csv"));
    fs::write(&data, rows).unwrap();

    // The same rows in another place are the same.
    let moved = root.path().join("moved.csv");
    fs::rename(&data, &moved).unwrap();
    assert!(refused(&[]).contains("train.csv"));
    let setting = format!("data.train_csv={}", moved.display());
    let changes = ["--set", "train.save_total_limit=5", "--set", &setting];
    let allowed = command(&["train", "--resume", directory]).args(changes).output().unwrap();
    assert!(allowed.status.success(), "{}", errors(&allowed));
    assert!(refused(&[]).contains("this run is finished"));
    assert!(fs::read_to_string(run.join("config.yaml")).unwrap().contains("moved.csv"));
}

/// Damage that a bad disk or an interrupted copy leaves in the newest checkpoint.
#[test]
fn a_damaged_newest_checkpoint_falls_back_to_the_newest_that_verifies() {
    let whole = tempfile::tempdir().unwrap();
    assert!(train(whole.path(), &[], None).status.success());
    let expected = contents(&run_of(whole.path()));
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("cut short", |path| {
            let file = fs::File::options().write(true).open(path.join("adapter_model.safetensors")).unwrap();
            file.set_len(5000).unwrap();
        }),
        ("no manifest", |path| fs::remove_file(path.join("manifest.json")).unwrap()),
        ("no state", |path| fs::remove_file(path.join("state.json")).unwrap()),
        ("another number", |path| {
            let path = path.join("optimizer.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&path, bytes).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let root = tempfile::tempdir().unwrap();
        // In the second epoch: checkpoint-4 is of the first one's end, and the best there is.
        let stopped = train(root.path(), &["--set", "train.save_total_limit=4"], Some("step:7:-INT"));
        assert_eq!(stopped.status.code(), Some(130), "{}", errors(&stopped));
        let run = run_of(root.path());
        damage(&run.join("seed_1/checkpoint-7"));
        let resumed = resume(&run);
        let text = errors(&resumed);
        assert!(resumed.status.success(), "{name}: {text}");
        assert!(text.contains("checkpoint-7 cannot be resumed from"), "{name}: {text}");
        let found = contents(&run);
        for file in ["seed_1/best/adapter_model.safetensors", "seed_4/best/adapter_model.safetensors", "summary.json"] {
            assert!(found[file] == expected[file], "{name}: {file}");
        }
    }

    let root = tempfile::tempdir().unwrap();
    train(root.path(), &[], Some("step:7:-INT"));
    let run = run_of(root.path());
    for entry in fs::read_dir(run.join("seed_1")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::write(path.join("adapter_model.safetensors"), "").unwrap();
        }
    }
    let text = errors(&resume(&run));
    assert!(text.contains("every checkpoint is damaged") && text.contains("seed_1"), "{text}");
}
