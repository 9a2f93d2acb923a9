//! Disks that fill up, directories that vanish, tokens that must not leak, files that do not fit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt;

fn llmcls(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    command
}

fn train(root: &Path, more: &[&str]) -> Command {
    let mut command = llmcls(&["train", "--config", "configs/tiny.yaml", "--override_output_root"]);
    command.arg(root);
    for setting in
        ["data.max_train_samples=12", "data.max_val_samples=6", "data.max_test_samples=6", "train.max_steps=2"]
    {
        command.args(["--set", setting]);
    }
    command.args(more);
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run_of(root: &Path) -> PathBuf {
    run_if_any(root).expect("a run was started")
}

fn run_if_any(root: &Path) -> Option<PathBuf> {
    Some(fs::read_dir(root.join("tiny-llama/debtags")).ok()?.next()?.ok()?.path())
}

/// A real full disk, where this process may mount one; `resume.rs` has the rest by failpoints.
#[cfg(target_os = "linux")]
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
#[test]
fn a_disk_that_fills_up_leaves_a_run_that_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let mount = |options: &str| {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(root.path());
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !mount("size=2m") {
        println!("skipped: this process may not mount a tmpfs");
        return;
    }
    let failed = train(root.path(), &[]).output().unwrap();
    let grown = mount("remount,size=64m");
    let resumed = llmcls(&["train", "--resume", run_of(root.path()).to_str().unwrap()]).output().unwrap();
    let unmounted = Command::new("umount").arg(root.path()).status().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let text = errors(&failed);
    assert!(text.contains("cannot write") && text.contains("No space left") && text.contains("--resume"), "{text}");
    assert!(grown && resumed.status.success(), "{}", errors(&resumed));
    assert!(unmounted.success());
}

#[test]
fn an_output_that_cannot_be_written_or_vanishes_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let text = errors(&train(&file, &[]).output().unwrap());
    assert!(text.contains("file/tiny-llama/debtags: cannot create"), "{text}");

    let gone = root.path().join("gone");
    let more = ["--set", "train.max_steps=100000", "--set", "train.save_steps=1"];
    let mut child = train(&gone, &more).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !run_if_any(&gone).is_some_and(|run| run.join("seed_1/checkpoint-2/manifest.json").is_file()) {
        assert!(started.elapsed() < Duration::from_secs(60), "no checkpoint appears");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The run may write into the folder while it is being removed.
    while fs::remove_dir_all(&gone).is_err() {
        assert!(started.elapsed() < Duration::from_secs(120), "the folder cannot be removed");
        std::thread::sleep(Duration::from_millis(1));
    }
    let status = child.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("error: ") && text.contains("No such file"), "{text}");
}

#[test]
fn a_token_is_in_no_file_and_no_message() {
    const TOKEN: &str = "hf_s3cretT0ken";
    let root = tempfile::tempdir().unwrap();
    let yaml = root.path().join("token.yaml");
    fs::write(&yaml, format!("model: {{hf_token: {TOKEN}}}\n")).unwrap();
    let set = format!("model.hf_token={TOKEN}");
    let with_yaml = ["--config", yaml.to_str().unwrap()];
    let with_set = ["--set", set.as_str()];
    let joined = format!("--set={set}");
    for (name, more, environment) in
        [("yaml", &with_yaml[..], ""), ("set", &with_set, ""), ("joined", &[joined.as_str()], ""), ("env", &[], TOKEN)]
    {
        let out = root.path().join(name);
        let output = train(&out, more).env("HF_TOKEN", environment).output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
        assert!(!errors(&output).contains(TOKEN));
        let found = Command::new("grep").args(["-rl", TOKEN]).arg(&out).output().unwrap();
        assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    }
    for wrong in [
        format!("model.hf_token=[{TOKEN}"),
        format!("model.hf_token={{a: {TOKEN}}}"),
        format!("model.hf_tokn={TOKEN}"),
        format!("model.hf_token={TOKEN}\u{1}"),
    ] {
        let output = train(root.path(), &["--set", &wrong, "--set", "model.lora_r=-1"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!errors(&output).contains(TOKEN), "{}", errors(&output));
    }
}

/// Adapters, labels and bases that do not belong together.
#[test]
fn parts_that_do_not_fit_are_refused_and_never_made_up() {
    let root = tempfile::tempdir().unwrap();
    let output = train(root.path(), &[]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let best = run_of(root.path()).join("seed_1/best");
    let copy = |name: &str| {
        let to = root.path().join(name);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(&best).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("manifest.json") {
                fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
        to
    };
    let predict = |run: &Path| {
        let output = llmcls(&["predict", "--input_csv", "data/debtags/test.csv", "--output_jsonl"])
            .arg(root.path().join("p.jsonl"))
            .arg("--run")
            .arg(run)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
        assert!(!root.path().join("p.jsonl").exists());
        errors(&output)
    };
    let edit = |run: &Path, file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(run.join(file)).unwrap();
        assert!(text.contains(from), "{from} is not in {file}");
        fs::write(run.join(file), text.replacen(from, to, 1)).unwrap();
    };
    let rename = |run: &Path, from: &str, to: &str| {
        let path = run.join("adapter_model.safetensors");
        let bytes = fs::read(&path).unwrap();
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        fs::write(&path, [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()).unwrap();
    };

    let headless = copy("headless");
    rename(&headless, "base_model.model.score.weight", "base_model.model.other.weight");
    let text = predict(&headless);
    assert!(text.contains("no classification head: no tensor `score.weight`"), "{text}");

    let other_base = copy("other_base");
    edit(&other_base, "classifier.json", "\"init_seed\": 0", "\"init_seed\": 1");
    let text = predict(&other_base);
    assert!(text.contains("trained on another base"), "{text}");

    let fewer_labels = copy("fewer_labels");
    edit(&fewer_labels, "classifier.json", "\"interface_daemon\",", "");
    assert!(predict(&fewer_labels).contains("thresholds for"));

    let not_finite = copy("not_finite");
    let path = not_finite.join("adapter_model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let text = predict(&not_finite);
    assert!(text.contains("finite"), "{text}");

    let other_rank = copy("other_rank");
    edit(&other_rank, "adapter_config.json", "\"r\": 16", "\"r\": 8");
    assert!(predict(&other_rank).contains("has shape"));

    // A vocabulary that is smaller than the tokenizer's.
    let small = root.path().join("small");
    fs::create_dir(&small).unwrap();
    fs::copy("data/tiny-llama/tokenizer.json", small.join("tokenizer.json")).unwrap();
    let config = fs::read_to_string("data/tiny-llama/config.json").unwrap();
    fs::write(small.join("config.json"), config.replace("\"vocab_size\": 4096", "\"vocab_size\": 100")).unwrap();
    let setting = format!("model.model_name={}", small.display());
    let output = train(&root.path().join("o"), &["--set", &setting]).output().unwrap();
    assert!(errors(&output).contains("outside the model's vocabulary of 100"), "{}", errors(&output));
}

/// A training that fits beside its base is not refused because the base counts twice, as free and as needed memory.
#[cfg(feature = "cuda")]
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
#[test]
fn the_check_of_a_gpus_memory_counts_the_base_once() {
    if std::env::var_os("EMULATED_CUDA").is_none() {
        println!("skipped: this is not the emulation");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-llama");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(tiny.join("config.json")).unwrap()).unwrap();
    // About 58 MiB of linear layers in f32, beside which a step takes little.
    for (key, value) in [("hidden_size", 512), ("intermediate_size", 2048), ("num_hidden_layers", 4)] {
        config[key] = value.into();
    }
    let base = root.path().join("base");
    fs::create_dir(&base).unwrap();
    fs::copy(tiny.join("tokenizer.json"), base.join("tokenizer.json")).unwrap();
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let check = |mebibytes: u64| {
        let mut command = llmcls(&["check", "--config", "configs/tiny.yaml", "--device", "cuda"]);
        command.env("EMULATED_CUDA_MEMORY", (mebibytes << 20).to_string());
        command.args(["--set", &format!("model.model_name={}", base.display())]);
        for setting in [
            "data.max_train_samples=4",
            "data.max_val_samples=2",
            "data.max_test_samples=2",
            "data.max_length=4",
            "train.batch_size=1",
            "model.lora_r=1",
        ] {
            command.args(["--set", setting]);
        }
        command.output().unwrap()
    };
    let fits = check(128);
    assert!(fits.status.success(), "{}", errors(&fits));
    let text = errors(&check(64));
    assert!(text.contains("training is estimated to take") && text.contains("free of"), "{text}");
}

/// Another process takes the GPU's memory while this one trains: only the emulation can be told to.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the emulated GPU: scripts/test_cuda_on_cpu"]
fn an_emulated_gpu_without_memory_in_a_step_names_the_batch_and_the_checkpoint_stands() {
    const MEMORY: u64 = 1 << 30;
    assert!(std::env::var_os("EMULATED_CUDA").is_some(), "this is not the emulation");
    let root = tempfile::tempdir().unwrap();
    let rows = |name: &str, long: &str| {
        let path = root.path().join(name);
        let text = format!("uid,text,a,b\n1,one,1,0\n2,two,0,1\n3,one,1,0\n4,{long},0,1\n");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (short, long) = (rows("short.csv", "two"), rows("long.csv", &"word ".repeat(200)));
    let train = |name: &str, rows: &str, taken: u64| {
        let out = root.path().join(name);
        let mut command = llmcls(&["train", "--config", "configs/tiny.yaml", "--device", "cuda"]);
        command.env("EMULATED_CUDA_MEMORY", MEMORY.to_string()).env("EMULATED_CUDA_TAKEN", taken.to_string());
        command.arg("--override_output_root").arg(&out).args(["--set", &format!("data.train_csv={rows}")]);
        for setting in ["val_csv", "test_csv"] {
            command.args(["--set", &format!("data.{setting}={short}")]);
        }
        for setting in ["batch_size=1", "shuffle=false", "save_steps=1", "max_steps=4"] {
            command.args(["--set", &format!("train.{setting}")]);
        }
        (command.output().unwrap(), out)
    };
    let (output, out) = train("short", &short, 0);
    assert!(output.status.success(), "{}", errors(&output));
    let environment = fs::read_to_string(run_of(&out).join("environment.json")).unwrap();
    let environment: serde_json::Value = serde_json::from_str(&environment).unwrap();
    let peak = environment["gpu"]["peak_memory_bytes"].as_u64().unwrap();

    let (output, out) = train("long", &long, MEMORY - peak - peak / 10);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["step 4 of seed 1, a batch of 1 rows and 128 tokens", "out of memory", "train.batch_size", "--resume"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let run = run_of(&out);
    assert!(run.join("seed_1/checkpoint-3/manifest.json").is_file());
    let resume = ["train", "--resume", run.to_str().unwrap(), "--device", "cuda"];
    let resumed = llmcls(&resume).env("EMULATED_CUDA_MEMORY", MEMORY.to_string()).output().unwrap();
    assert!(resumed.status.success() && errors(&resumed).contains("checkpoint-3"), "{}", errors(&resumed));
}
