//! Outputs that are inputs, links, devices or pipes; readers that go away; logs that cannot be written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt;

const ROWS: &str = "id,text,red,id2\n=1+1,red apple,1,0\n-7,green stone,0,1\n@x,red stone,1,1\n3,green apple,0,0\n";

fn llmcls(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["--threads", "1"]).args(arguments);
    command
}

fn train(root: &Path, rows: &Path, more: &[&str]) -> Command {
    let mut command = llmcls(&["train", "--config", "configs/tiny.yaml", "--override_output_root"]);
    command.arg(root.join("out"));
    for key in ["train_csv", "val_csv", "test_csv"] {
        command.args(["--set", &format!("data.{key}={}", rows.display())]);
    }
    for setting in ["data.id_column=id", "data.target_text_column=text", "data.text_fields=null", "train.max_steps=1"] {
        command.args(["--set", setting]);
    }
    command.args(more);
    command
}

/// A trained run, and rows for it, in a directory of their own.
fn trained(rows: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("rows.csv");
    fs::write(&path, rows).unwrap();
    let output = train(root.path(), &path, &[]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let run = runs(root.path()).pop().unwrap();
    (root, run, path)
}

fn runs(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("out/tiny-llama/debtags")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn predict(run: &Path, rows: &Path, output: &Path) -> Command {
    let mut command = llmcls(&["predict", "--run"]);
    command.arg(run).arg("--input_csv").arg(rows).arg("--output").arg(output);
    command
}

#[cfg(unix)]
#[test]
fn an_output_that_is_an_input_is_refused_and_the_input_stays() {
    let (root, run, rows) = trained(ROWS);
    let path = |name: &str| root.path().join(name);
    std::os::unix::fs::symlink(&rows, path("soft.csv")).unwrap();
    fs::hard_link(&rows, path("hard.csv")).unwrap();
    for output in [rows.clone(), path("soft.csv"), path("hard.csv")] {
        let refused = predict(&run, &rows, &output).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{}", output.display());
        assert!(errors(&refused).contains("same file as the input"), "{}", errors(&refused));
    }
    // Rows from standard input, which is a file; and predictions to standard output, which is one.
    let refused = predict(&run, Path::new("-"), &rows).stdin(fs::File::open(&rows).unwrap()).output().unwrap();
    assert!(errors(&refused).contains("standard input"), "{}", errors(&refused));
    let refused = predict(&run, Path::new("/dev/stdin"), &rows).stdin(fs::File::open(&rows).unwrap()).output().unwrap();
    assert!(errors(&refused).contains("same file as the input"), "{}", errors(&refused));
    let appended = fs::File::options().append(true).open(&rows).unwrap();
    let refused = predict(&run, &rows, Path::new("-")).stdout(appended).output().unwrap();
    assert!(errors(&refused).contains("standard output"), "{}", errors(&refused));

    // Records of the run that predicts.
    let seed = fs::read_dir(&run).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    for record in ["history.jsonl", "history.csv", "predictions_validation.jsonl"] {
        let refused = predict(&run, &rows, &seed.join(record)).output().unwrap();
        assert!(errors(&refused).contains("same file as the input"), "{record}: {}", errors(&refused));
    }

    // What eval writes has fixed names: rows of one of them, and a file of the run under one of them.
    fs::create_dir(path("scores")).unwrap();
    fs::hard_link(&rows, path("scores/metrics.json")).unwrap();
    let best = run.join("seed_1/best");
    let seed = fs::read_dir(&run).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    let eval = |directory: &Path| {
        llmcls(&["eval", "--run"]).arg(&run).arg("--input_csv").arg(&rows).arg("--output_dir").arg(directory).output()
    };
    let refused = eval(&path("scores")).unwrap();
    assert!(errors(&refused).contains("same file as the input"), "{}", errors(&refused));
    for own in [&run, &seed, &best] {
        let refused = eval(own).unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(errors(&refused).contains("name another one"), "{}", errors(&refused));
    }
    assert_eq!(fs::read_to_string(&rows).unwrap(), ROWS);
}

#[cfg(unix)]
#[test]
fn links_fifos_and_devices_are_written_to_and_unknown_endings_refused() {
    let (root, run, rows) = trained(ROWS);
    let path = |name: &str| root.path().join(name);
    fs::write(path("target.jsonl"), "old").unwrap();
    std::os::unix::fs::symlink("target.jsonl", path("link.jsonl")).unwrap();
    assert!(predict(&run, &rows, &path("link.jsonl")).status().unwrap().success());
    assert!(path("link.jsonl").is_symlink());
    let expected = fs::read(path("target.jsonl")).unwrap();
    assert_eq!(expected.iter().filter(|&&byte| byte == b'\n').count(), 4);

    assert!(Command::new("mkfifo").arg(path("pipe.any")).status().unwrap().success());
    let reader = Command::new("cat").arg(path("pipe.any")).stdout(Stdio::piped()).spawn().unwrap();
    assert!(predict(&run, &rows, &path("pipe.any")).status().unwrap().success());
    assert_eq!(reader.wait_with_output().unwrap().stdout, expected);
    assert!(predict(&run, &rows, Path::new("/dev/null")).status().unwrap().success());
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let through = predict(&run, &rows, Path::new("/dev/stdout")).output().unwrap();
    assert_eq!(through.stdout, expected);

    for name in ["a.json", "a.csv.gz"] {
        // Before any work: there is no such run.
        let refused = predict(Path::new("nowhere"), &rows, &path(name)).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        assert!(errors(&refused).contains(name) && !path(name).exists(), "{}", errors(&refused));
    }
}

#[test]
fn a_table_of_predictions_has_unique_columns_and_no_formula() {
    let rows = ROWS.replace("id,text,red,id2", "key,text,id,predicted");
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("rows.csv");
    fs::write(&path, rows).unwrap();
    let output = train(root.path(), &path, &["--set", "data.id_column=key"]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    for (name, separator) in [("p.csv", ','), ("p.tsv", '\t')] {
        let file = root.path().join(name);
        let output = predict(&runs(root.path())[0], &path, &file).output().unwrap();
        assert!(errors(&output).contains("label_id"), "{}", errors(&output));
        let text = fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split(separator).collect::<Vec<_>>(), ["id", "predicted", "label_id", "label_predicted"]);
        let ids: Vec<&str> = lines[1..].iter().map(|line| line.split(separator).next().unwrap()).collect();
        assert_eq!(ids, ["'=1+1", "-7", "'@x", "3"]);
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_ends_nothing_and_a_full_disk_is_an_error() {
    let (root, run, rows) = trained(ROWS);
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let scores = root.path().join("scores");
    let eval = || {
        let mut command = llmcls(&["eval", "--run"]);
        command.arg(&run).arg("--input_csv").arg(&rows).arg("--output_dir").arg(&scores);
        command
    };
    let output = eval().arg("--quiet").stdout(closed()).output().unwrap();
    assert_eq!((output.status.code(), errors(&output)), (Some(0), String::new()));
    for file in ["metrics.json", "predictions.jsonl", "errors.jsonl", "report.html"] {
        assert!(scores.join(file).is_file(), "{file}");
    }
    for more in [&["predict", "--output_jsonl", "-", "--input_csv", "data/debtags/test.csv", "--quiet"][..], &["check"]]
    {
        let mut command = match more[0] {
            "check" => {
                let mut command = llmcls(&["check", "--quiet", "--config", "configs/tiny.yaml"]);
                for split in ["train", "val", "test"] {
                    command.args(["--set", &format!("data.max_{split}_samples=4")]);
                }
                command
            }
            _ => llmcls(&["predict", "--output_jsonl", "-", "--quiet"]),
        };
        if more[0] == "predict" {
            command.arg("--run").arg(&run).arg("--input_csv").arg(&rows);
        }
        let output = command.stdout(closed()).output().unwrap();
        assert_eq!((output.status.code(), errors(&output).contains("error")), (Some(0), false), "{more:?}");
    }
    for help in [&["--help"][..], &["train", "--help"], &["--version"], &["config-schema"]] {
        let output = llmcls(help).stdout(closed()).output().unwrap();
        assert_eq!((output.status.code(), errors(&output)), (Some(0), String::new()), "{help:?}");
    }
    if cfg!(target_os = "linux") {
        let full = || fs::File::options().write(true).open("/dev/full").unwrap();
        let output = eval().stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(errors(&output).contains("cannot write to standard output"), "{}", errors(&output));
        for log in [Stdio::from(full()), Stdio::from(closed())] {
            let status = train(root.path(), &rows, &[]).stderr(log).status().unwrap();
            assert_eq!(status.code(), Some(0));
        }
        for run in runs(root.path()) {
            assert!(run.join("summary.json").is_file());
        }
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["train"][..],
        &["check"],
        &["bench"],
        &["check", "--config", "configs/tiny.yaml", "--device", "gpu"],
        &["check", "--config", "configs/tiny.yaml", "--device", "cuda:x"],
        &["check", "--config", "configs/tiny.yaml", "--set", "train.learning_rate"],
        &["eval", "--run", "x", "--batch_size", "0"],
        &["eval", "--run", "x", "--batch_size", "99999999999"],
        &["predict", "--run", "x", "--input_csv", "y", "--top_k", "0"],
    ] {
        let output = Command::cargo_bin("llmcls").unwrap().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", errors(&output));
    }
    for threads in ["0", "5000", "many"] {
        let output = Command::cargo_bin("llmcls").unwrap().args(["train", "--threads", threads]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{threads}");
        assert!(errors(&output).contains("--threads"), "{}", errors(&output));
    }
}

#[test]
fn a_token_is_in_no_message_however_its_key_is_spelled() {
    const TOKEN: &str = "S3cretT0ken";
    for arguments in [
        &["--set", "model.hf_token:S3cretT0ken"][..],
        &["--set", "model.hf_token S3cretT0ken"],
        &["--set", "model={hf_token: S3cretT0ken"],
        &["--set", "model={hf_token: S3cretT0ken, hf_tokn: S3cretT0ken}"],
        &["--set", "model.HF_TOKEN=S3cretT0ken"],
        &["--set", "model.hf_token=", "S3cretT0ken"],
        &["--set", "model.hf_token", "=", "S3cretT0ken"],
        &["--set", "model.hf_token=S3cretT0ken", "--set", "model.model_name=S3cretT0ken/none"],
    ] {
        let output = llmcls(&["check", "--config", "configs/tiny.yaml", "--set", "model.random_init=false"])
            .env("HF_HUB_OFFLINE", "1")
            .args(arguments)
            .output()
            .unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}");
        let text = errors(&output);
        assert!(!text.is_empty() && !text.contains(TOKEN), "{arguments:?}: {text}");
    }
}

#[test]
fn sizes_that_overflow_or_hang_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let epochs = root.path().join("epochs.yaml");
    let check = |setting: &str| {
        let mut command = llmcls(&["check", "--config", "configs/tiny.yaml", "--set", setting]);
        if epochs.is_file() {
            command.arg("--config").arg(&epochs);
        }
        for split in ["train", "val", "test"] {
            command.args(["--set", &format!("data.max_{split}_samples=8")]);
        }
        command.output().unwrap()
    };
    for key in [
        "train.batch_size",
        "train.eval_batch_size",
        "train.gradient_accumulation_steps",
        "train.num_train_epochs",
        "train.max_steps",
        "train.save_steps",
        "train.logging_steps",
        "train.save_total_limit",
        "train.warmup_steps",
        "train.early_stopping_patience",
        "data.max_length",
        "model.lora_r",
        "model.lora_alpha",
    ] {
        for value in ["9223372036854775807", "9000000000000000000", "99999999999999999999", "4294967296"] {
            let output = check(&format!("{key}={value}"));
            assert_eq!(output.status.code(), Some(1), "{key}={value}");
            assert!(errors(&output).contains(key), "{key}={value}: {}", errors(&output));
        }
    }
    // Each number is one that is taken, and together they are too many.
    fs::write(&epochs, "train: {num_train_epochs: 2147483647, batch_size: 3, gradient_accumulation_steps: 1}\n")
        .unwrap();
    let output = check("train.max_steps=null");
    assert!(errors(&output).contains("train.num_train_epochs is too large"), "{}", errors(&output));
}

/// Ctrl-C before the first step leaves nothing, and says so at once.
#[cfg(unix)]
#[test]
fn ctrl_c_while_rows_are_read_leaves_no_run() {
    let root = tempfile::tempdir().unwrap();
    let rows = root.path().join("rows.csv");
    // The rows come through a FIFO that nobody finishes writing to: reading them takes as long as it likes.
    assert!(Command::new("mkfifo").arg(&rows).status().unwrap().success());
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let child = train(root.path(), &rows, &[]).stderr(Stdio::piped()).spawn().unwrap();
        let mut writer = fs::File::options().write(true).open(&rows).unwrap();
        std::io::Write::write_all(&mut writer, b"id,text,a,b\n1,x,0,1\n").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let sent = Instant::now();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
        assert_eq!(output.status.code(), Some(code), "{}", errors(&output));
        assert!(errors(&output).contains("stopped: "), "{}", errors(&output));
        assert!(runs(root.path()).is_empty());
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_training_answers_at_once_and_the_command_to_go_on_works() {
    let (root, _, rows) = trained(ROWS);
    let more = ["--set", "train.max_steps=100000", "--set", "train.save_total_limit=1", "--set", "exp.run_name=a b"];
    let mut child = train(&root.path().join("second dir"), &rows, &more).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    let has_step = || {
        let run = runs(&root.path().join("second dir")).pop();
        run.is_some_and(|run| fs::read_dir(run.join("seed_1")).is_ok_and(|mut e| e.any(|e| e.unwrap().path().is_dir())))
    };
    while !has_step() {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("stopping after this step; Ctrl-C again stops now"), "{text}");
    let command = text.lines().last().unwrap().trim();
    let run = runs(&root.path().join("second dir")).pop().unwrap();
    assert_eq!(command, format!("llmcls train --resume '{}'", run.display()));
    // What eval says of it.
    let output = llmcls(&["eval", "--run"]).arg(&run).output().unwrap();
    assert!(errors(&output).contains("not finished") && errors(&output).contains(command), "{}", errors(&output));
}

#[test]
fn a_number_that_is_not_finite_names_its_cause_and_no_way_that_meets_it_again() {
    let (root, _, rows) = trained(ROWS);
    let more = ["--set", "train.max_steps=9", "--set", "train.learning_rate=1e30", "--set", "train.max_grad_norm=0"];
    let output = train(&root.path().join("b"), &rows, &more).output().unwrap();
    let text = errors(&output);
    let error = &text[text.find("error:").unwrap()..];
    assert_eq!(output.status.code(), Some(1));
    for part in ["train.learning_rate is 1", "train.max_grad_norm=1", "not finished"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    for part in ["--resume", "memory"] {
        assert!(!error.contains(part), "{error}");
    }
}

#[test]
fn the_shards_of_a_file_are_the_output_of_the_whole() {
    let (root, run, rows) = trained(ROWS);
    let predict = |output: &Path, more: &[&str]| {
        let mut command = llmcls(&["predict", rows.to_str().unwrap(), "--run", run.to_str().unwrap(), "-o"]);
        let output = command.arg(output).args(more).output().unwrap();
        (output.status.code(), errors(&output))
    };
    for ending in ["csv", "jsonl"] {
        let whole = root.path().join(format!("whole.{ending}"));
        assert_eq!(predict(&whole, &[]).0, Some(0));
        // Four rows: shards of one or two.
        let mut together = Vec::new();
        for shard in ["1/3", "2/3", "3/3"] {
            let part = root.path().join(format!("part_{}.{ending}", &shard[..1]));
            assert_eq!(predict(&part, &["--shard", shard]).0, Some(0));
            together.extend(fs::read(&part).unwrap());
        }
        assert_eq!(String::from_utf8(together).unwrap(), fs::read_to_string(&whole).unwrap());
    }
    for shard in ["0/3", "4/3", "1", "a/b"] {
        let (status, message) = predict(&root.path().join("none.csv"), &["--shard", shard]);
        assert!(status == Some(2) && message.contains("expected I/N"), "{message}");
    }
    let without_output = llmcls(&["predict", rows.to_str().unwrap(), "--run", run.to_str().unwrap(), "--shard", "1/2"]);
    let output = { without_output }.output().unwrap();
    assert!(output.status.code() == Some(2) && errors(&output).contains("--shard needs -o"), "{}", errors(&output));
}

#[cfg(not(feature = "mpi"))]
#[test]
fn one_of_several_processes_is_refused_without_mpi_where_it_would_do_the_whole_job() {
    let output = llmcls(&["train", "--config", "configs/tiny.yaml"]).env("OMPI_COMM_WORLD_SIZE", "4").output().unwrap();
    assert!(!output.status.success() && errors(&output).contains("--features mpi"), "{}", errors(&output));
}
