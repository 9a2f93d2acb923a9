//! `llmcls predict` as people and programs use it: texts, a prompt, a stream, files of every form, a job that was killed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use assert_cmd::cargo::CommandCargoExt;
use llmcls::data::formats::{Cell, Quoting, Rows};
use serde_json::Value;

fn llmcls(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(directory).args(["--threads", "1"]).args(arguments);
    command
}

fn succeeds(output: Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// A directory with a trained classifier under `outputs`.
fn trained() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let at = |name: &str| root.join(name).display().to_string();
    let mut arguments = vec!["--quiet".to_owned(), "train".into(), "--config".into(), at("configs/tiny.yaml")];
    for setting in [
        format!("model.model_name={}", at("data/tiny-llama")),
        format!("data.train_csv={}", at("data/debtags/train.csv")),
        format!("data.val_csv={}", at("data/debtags/validation.csv")),
        "data.test_csv=null".into(),
        "data.max_train_samples=24".into(),
        "data.max_val_samples=16".into(),
        "train.max_steps=3".into(),
    ] {
        arguments.extend(["--set".to_owned(), setting]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    succeeds(llmcls(directory.path(), &arguments).output().unwrap());
    directory
}

fn line(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(line).collect()
}

/// 3,000 rows: three windows.
fn many_rows(directory: &Path) -> PathBuf {
    let path = directory.join("many.csv");
    let row = |row: usize| format!("r{row},a program number {row} that does something\n");
    fs::write(&path, (0..3000).map(row).fold("uid,text\n".to_owned(), |text, row| text + &row)).unwrap();
    path
}

#[test]
fn texts_of_the_command_line_are_answered_on_standard_output_without_a_file() {
    let directory = trained();
    let texts = ["predict", "--text", "plays chess", "--text", "-v is a flag", "--top_k", "2"];
    let (out, _) = succeeds(llmcls(directory.path(), &texts).output().unwrap());
    let rows = lines(&out);
    assert_eq!(rows.iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>(), ["0", "1"]);
    assert!(rows.iter().all(|row| row["predicted"].as_array().unwrap().len() == 2), "{out}");
    assert!(!directory.path().join("preds.jsonl").exists());
    // The same texts in a file give the same numbers.
    fs::write(directory.path().join("t.csv"), "uid,text\na,plays chess\nb,-v is a flag\n").unwrap();
    let (file, _) = succeeds(llmcls(directory.path(), &["predict", "t.csv", "-o", "-"]).output().unwrap());
    assert_eq!(
        lines(&file).iter().map(|row| row["probs"].clone()).collect::<Vec<_>>(),
        rows.iter().map(|row| row["probs"].clone()).collect::<Vec<_>>()
    );
}

/// Each line is answered before the next is sent, whatever ends it: otherwise this waits forever.
#[test]
fn a_stream_is_answered_line_by_line() {
    let directory = trained();
    let mut child = llmcls(directory.path(), &["--quiet", "predict", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let (sender, answers) = mpsc::channel();
    let reader = std::thread::spawn(move || output.lines().for_each(|line| drop(sender.send(line.unwrap()))));
    write!(input, "uid,text\r\n").unwrap();
    for (id, text) in [
        ("a", "a,plays chess\r\n"),
        ("b", "b,\"two\nlines, quoted\"\r\n"),
        ("c", "c,a blank line follows\n\n"),
        ("d", "d,half of the next row follows\ne,the"),
        ("e", " last\n"),
    ] {
        write!(input, "{text}").unwrap();
        input.flush().unwrap();
        let answer = answers.recv_timeout(Duration::from_secs(120)).expect("an answer before the next row");
        assert_eq!(line(&answer)["id"], id);
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    reader.join().unwrap();
    assert!(answers.try_recv().is_err());
}

/// The columns of a stream of JSON are the keys of all rows that come without a pause.
#[test]
fn a_short_stream_of_json_keeps_keys_that_its_first_row_lacks() {
    let directory = trained();
    let rows = "{\"text\": \"plays chess\"}\n{\"uid\": \"b\", \"text\": \"mixes audio\"}\n";
    for _ in 0..5 {
        let mut command = llmcls(directory.path(), &["--quiet", "predict", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(rows.as_bytes()).unwrap();
        let (out, _) = succeeds(child.wait_with_output().unwrap());
        assert_eq!(lines(&out).iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>(), ["", "b"]);
    }
}

#[test]
fn rows_before_a_broken_one_are_answered_and_texts_that_are_not_read_whole_are_counted() {
    let directory = trained();
    let mut command = llmcls(directory.path(), &["predict", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let rows = "{\"uid\": \"a\", \"text\": \"plays chess\"}\nno object\n";
    child.stdin.take().unwrap().write_all(rows.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert_eq!(line(&String::from_utf8(output.stdout).unwrap())["id"], "a");

    let long = "many words ".repeat(200);
    fs::write(directory.path().join("odd.csv"), format!("uid,text\na,\nb,{long}\nc,{long}\n")).unwrap();
    let (_, said) = succeeds(llmcls(directory.path(), &["predict", "odd.csv"]).output().unwrap());
    assert!(said.contains("odd.csv: empty texts: 1 of 3") && said.contains("2 of 3 texts (66.7%) are cut"), "{said}");

    // What cannot be read is found before the work.
    fs::write(directory.path().join("late.csv"), b"uid,text\na,x\nb,\xe4\n").unwrap();
    let output = llmcls(directory.path(), &["predict", "late.csv", "-o", "late.jsonl"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("late.csv:3") && !said.contains("cannot write"), "{said}");
    fs::write(directory.path().join("other.csv"), "uid,review\na,x\n").unwrap();
    let output = llmcls(directory.path(), &["predict", "other.csv"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("--set data.target_text_column=NAME"));
}

/// `script` gives the program a terminal.
#[test]
#[cfg(target_os = "linux")]
fn on_a_terminal_predict_asks_for_texts() {
    let directory = trained();
    let program = llmcls(directory.path(), &[]).get_program().to_owned();
    let mut child = Command::new("script")
        .current_dir(directory.path())
        .args(["--quiet", "--return", "--echo", "never", "--command"])
        .arg(format!("'{}' --threads 1 predict 2>/dev/null", program.display()))
        .arg("/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`script` of util-linux is installed");
    let mut input = child.stdin.take().unwrap();
    // A blank line asks again; the last byte is Ctrl-D.
    input.write_all(b"\nplays chess\nmixes audio\n\x04").unwrap();
    input.flush().unwrap();
    let (out, _) = succeeds(child.wait_with_output().unwrap());
    drop(input);
    let rows: Vec<Value> = out.lines().filter(|line| line.trim_start().starts_with('{')).map(line).collect();
    assert_eq!(rows.iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>(), ["0", "1"], "{out}");
}

#[test]
fn predictions_in_every_form_are_the_same_numbers() {
    let directory = trained();
    let at = |name: &str| directory.path().join(name);
    // A name with an empty list of labels, and one with a sign that CSV must quote.
    fs::write(at("in.csv"), "uid,text\n\"a,1\",plays chess\nb,mixes audio\nc,x\n").unwrap();
    for name in ["out.jsonl", "out.csv", "out.tsv", "out.parquet"] {
        let arguments = ["predict", "in.csv", "-o", name, "--threshold", "0.5"];
        succeeds(llmcls(directory.path(), &arguments).output().unwrap());
    }
    let expected = lines(&fs::read_to_string(at("out.jsonl")).unwrap());
    let labels: Vec<&str> = expected[0]["labels"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    for name in ["out.csv", "out.tsv", "out.parquet"] {
        let mut rows = Rows::open(&at(name), Quoting::Standard).unwrap();
        assert_eq!(rows.columns()[..2], ["id", "predicted"], "{name}");
        assert_eq!(rows.columns()[2..], labels, "{name}");
        for expected in &expected {
            assert!(rows.advance().unwrap(), "{name}");
            let text = |column: usize| rows.cell(column).unwrap().to_text().unwrap().into_owned();
            assert_eq!(text(0), expected["id"].as_str().unwrap(), "{name}");
            let predicted: Vec<String> = match rows.cell(1).unwrap() {
                Cell::List(items) => items.iter().map(|item| item.cell().to_text().unwrap().into_owned()).collect(),
                cell => serde_json::from_str(&cell.to_text().unwrap()).unwrap(),
            };
            assert_eq!(Value::from(predicted), expected["predicted"], "{name}");
            for (label, expected) in expected["probs"].as_array().unwrap().iter().enumerate() {
                let (found, expected): (f32, f64) = (text(2 + label).parse().unwrap(), expected.as_f64().unwrap());
                assert_eq!(found, expected as f32, "{name}");
            }
        }
        assert!(!rows.advance().unwrap(), "{name}");
    }
    for (arguments, part) in [
        (&["predict", "in.csv", "-o", "x.json"][..], ".parquet"),
        (&["predict", "in.csv", "-o", "x.parquet", "--resume"], "--resume"),
        (&["predict", "in.csv", "-o", "x.csv", "--explain"], "--explain"),
    ] {
        let output = llmcls(directory.path(), arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_killed_job_goes_on_and_its_output_is_that_of_one_that_was_not() {
    let directory = trained();
    let at = |name: &str| directory.path().join(name);
    many_rows(directory.path());
    succeeds(llmcls(directory.path(), &["predict", "many.csv", "-o", "whole.jsonl"]).output().unwrap());
    let arguments = ["predict", "many.csv", "-o", "part.jsonl"];
    // Until the first window is on disk.
    let mut child = llmcls(directory.path(), &arguments).stderr(Stdio::null()).spawn().unwrap();
    let has_begun = || {
        let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).any(|name| name.contains("part.jsonl"))
    };
    for _ in 0..6000 {
        if has_begun() || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let resume = ["predict", "many.csv", "-o", "part.jsonl", "--resume"];
    succeeds(llmcls(directory.path(), &resume).output().unwrap());
    assert!(fs::read(at("part.jsonl")).unwrap() == fs::read(at("whole.jsonl")).unwrap(), "the outputs differ");
    let stream = llmcls(directory.path(), &["predict", "-", "--resume"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(stream.status.code(), Some(2));
}

/// The weights of the words and of special tokens sum to the logit less that of no text in particular.
#[test]
fn the_words_that_weighed_add_up_to_the_logit() {
    let directory = trained();
    let arguments = ["predict", "--explain", "--text", "plays chess against you", "--threshold", "0.99"];
    let (out, _) = succeeds(llmcls(directory.path(), &arguments).output().unwrap());
    let row = line(&out);
    let why = row["why"].as_array().unwrap();
    // Nothing is predicted: the most likely label is explained.
    assert_eq!(why.len(), 1, "{out}");
    let probabilities = row["probs"].as_array().unwrap();
    let best = (0..probabilities.len())
        .max_by(|&a, &b| probabilities[a].as_f64().unwrap().total_cmp(&probabilities[b].as_f64().unwrap()));
    assert_eq!(why[0]["label"], row["labels"][best.unwrap()]);
    let words = why[0]["words"].as_array().unwrap();
    assert_eq!(
        words.iter().map(|word| word["word"].as_str().unwrap()).collect::<Vec<_>>(),
        ["plays", "chess", "against", "you"]
    );
    let number = |value: &Value| value.as_f64().unwrap();
    let sum: f64 = words.iter().map(|word| number(&word["weight"])).sum::<f64>() + number(&why[0]["rest"]);
    let total = number(&why[0]["logit"]) - number(&why[0]["baseline"]);
    assert!((sum - total).abs() <= (0.02 * total.abs()).max(0.02), "{sum}, expected {total}");
    let probability = number(&probabilities[best.unwrap()]);
    assert!((1.0 / (1.0 + (-number(&why[0]["logit"])).exp()) - probability).abs() < 1e-5, "{out}");
}
