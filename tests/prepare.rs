//! `llmcls prepare`, on a small data set in AmazonCat-13K's form made by `scripts/make_amazoncat_fixture.py`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/amazoncat")
}

fn llmcls(arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap()
}

fn prepare(arguments: &[&str]) {
    let output = llmcls(&[&["prepare"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn read(path: &Path) -> Vec<HashMap<String, String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.deserialize().map(|row| row.unwrap()).collect()
}

fn columns(path: &Path) -> Vec<String> {
    csv::Reader::from_path(path).unwrap().headers().unwrap().iter().map(str::to_owned).collect()
}

#[test]
fn amazoncat_becomes_the_files_that_the_default_configuration_reads() {
    let out = tempfile::tempdir().unwrap();
    let (directory, input) = (out.path().to_str().unwrap(), fixture());
    let (input, names) = (input.to_str().unwrap(), input.join("label_names.txt"));
    let names = names.to_str().unwrap();
    let arguments = ["amazoncat", "--input_dir", input, "--top_k", "3", "--out_dir", directory];
    prepare(&[&arguments[..], &["--label_names", names]].concat());
    let files = ["train", "validation", "test"].map(|split| out.path().join(format!("{split}_top3.csv")));
    // Labels keep their names.
    let mut found = columns(&files[0])[3..].to_vec();
    assert_eq!(columns(&files[0])[..3], ["uid", "title", "content"]);
    found.sort_unstable();
    assert_eq!(found, ["books", "home & garden", "home / garden"]);
    let rows = files.each_ref().map(|path| read(path));
    // Every row has one of the labels, and none is in two files.
    let mut seen = HashMap::new();
    for row in rows.iter().flatten() {
        assert!(found.iter().any(|label| row[label] == "1"), "{row:?}");
        assert!(seen.insert(row["uid"].clone(), row.clone()).is_none());
    }
    assert!(rows[1].len() > 5 && rows[1].len() <= 15 && rows[2].len() > 20, "{}", rows[1].len());

    let mapping: Value =
        serde_json::from_str(&fs::read_to_string(out.path().join("top3_labels_mapping.json")).unwrap()).unwrap();
    let labels = mapping["labels"].as_array().unwrap();
    let number: HashMap<&str, &str> =
        labels.iter().map(|label| (label["column"].as_str().unwrap(), label["label"].as_str().unwrap())).collect();
    assert_eq!(number["books"], "0");
    // Flags are those of the source: compare with its part in JSON.
    for line in fs::read_to_string(fixture().join("train-00001.jsonl")).unwrap().lines() {
        let source: Value = serde_json::from_str(line).unwrap();
        let Some(row) = seen.get(source["uid"].as_str().unwrap()) else { continue };
        assert_eq!(row["content"], source["content"].as_str().unwrap());
        let found: Vec<u64> = serde_json::from_value(source["target_ind"].clone()).unwrap();
        let has = |label: &str| found.contains(&label.parse().unwrap());
        for (column, label) in &number {
            assert_eq!(row[*column] == "1", has(label), "{line}: {column}");
        }
    }
    // And training rows were counted without those of the validation split.
    let count = |label: &str| rows[0].iter().filter(|row| row[label] == "1").count();
    let counted = labels.iter().map(|label| label["count"].as_u64().unwrap() as usize).collect::<Vec<_>>();
    assert_eq!(labels.iter().map(|label| count(label["column"].as_str().unwrap())).collect::<Vec<_>>(), counted);

    // The same seed gives the same bytes, another seed another split.
    let again = tempfile::tempdir().unwrap();
    let bytes = |directory: &Path| fs::read(directory.join("validation_top3.csv")).unwrap();
    let arguments = ["amazoncat", "--input_dir", input, "--top_k", "3", "--label_names", names, "--out_dir"];
    prepare(&[&arguments[..], &[again.path().to_str().unwrap()]].concat());
    assert_eq!(bytes(again.path()), bytes(out.path()));
    prepare(&[&arguments[..], &[again.path().to_str().unwrap(), "--seed", "43", "--overwrite"]].concat());
    assert_ne!(bytes(again.path()), bytes(out.path()));
}

#[test]
fn amazoncat_can_keep_all_rows_and_join_their_texts() {
    let out = tempfile::tempdir().unwrap();
    let (directory, input) = (out.path().to_str().unwrap(), fixture());
    let more = ["--keep_all_rows", "--no_title_content", "--prefix", "is_", "--derive_topk_from", "all"];
    let arguments = ["amazoncat", "--input_dir", input.to_str().unwrap(), "--val_size", "0.2", "--out_dir", directory];
    prepare(&[&arguments[..], &more].concat());
    let rows = ["train", "validation", "test"].map(|split| read(&out.path().join(format!("{split}_top10.csv"))));
    assert_eq!(rows.each_ref().map(Vec::len), [120, 30, 40]);
    let columns = columns(&out.path().join("train_top10.csv"));
    assert_eq!(columns[..2], ["uid", "text"]);
    assert!(columns[2..].iter().all(|column| column.starts_with("is_")), "{columns:?}");
    // As training joins title and content.
    assert!(rows.iter().flatten().any(|row| row["text"] == "Thing 17."));
}

#[test]
fn listed_labels_become_columns_and_splits_that_train() {
    let out = tempfile::tempdir().unwrap();
    let input = out.path().join("rows.csv");
    let mut text = "id,text,tags\n".to_owned();
    for number in 0..60 {
        let tags = ["red; big", "red", "", "big;square"][number % 4];
        text.push_str(&format!("{number},thing {number},{tags}\n"));
    }
    fs::write(&input, text).unwrap();
    let made = out.path().join("made");
    let arguments = ["lists", "--labels_column", "tags", "--label_separator", ";", "--test_size", "0.2", "--input"];
    prepare(&[&arguments[..], &[input.to_str().unwrap(), "--out_dir", made.to_str().unwrap()]].concat());
    let rows = ["train", "validation", "test"].map(|split| read(&made.join(format!("{split}.csv"))));
    assert_eq!(rows.each_ref().map(Vec::len), [42, 6, 12]);
    assert_eq!(columns(&made.join("train.csv"))[..2], ["id", "text"]);
    for row in rows.iter().flatten() {
        let number: usize = row["id"].parse().unwrap();
        let flags = ["red", "big", "square"].map(|label| row[label] == "1");
        assert_eq!(flags, [[true, true, false], [true, false, false], [false; 3], [false, true, true]][number % 4]);
    }
    // The same rows train as they are, and evaluate and predict.
    let set = |key: &str, path: &Path| format!("data.{key}={}", path.display());
    let settings = [
        "data.labels_column=tags".to_owned(),
        "data.label_separator=;".to_owned(),
        "data.id_column=id".to_owned(),
        set("train_csv", &input),
        set("val_csv", &input),
        set("test_csv", &input),
        "train.max_steps=2".to_owned(),
    ];
    let root = out.path().join("out");
    let mut arguments =
        vec!["train", "--config", "configs/tiny.yaml", "--override_output_root", root.to_str().unwrap()];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let output = llmcls(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && errors.contains("labels: 3 that `tags` names, separated by `;`: big, red, square"),
        "{errors}"
    );
    let rows = out.path().join("new.jsonl");
    fs::write(&rows, "{\"id\": \"x,1\", \"text\": \"a thing\"}\n").unwrap();
    let predictions = out.path().join("p.csv");
    let [rows, to] = [&rows, &predictions].map(|path| path.to_str().unwrap());
    let arguments = ["predict", "--override_output_root", root.to_str().unwrap(), "--input_csv", rows, "--output", to];
    let output = llmcls(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(columns(&predictions), ["id", "predicted", "big", "red", "square"]);
    let predicted = &read(&predictions)[0];
    assert_eq!(predicted["id"], "x,1");
    assert!(predicted["red"].parse::<f32>().unwrap() > 0.0 && predicted["predicted"].starts_with('['));
}

#[test]
fn what_cannot_be_prepared_says_why() {
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().to_str().unwrap();
    let input = fixture().join("train-00001.jsonl");
    let input = input.to_str().unwrap();
    for (arguments, part) in [
        (&["amazoncat", "--input_dir", directory][..], "no file of training rows"),
        (&["lists", "--input", input, "--labels_column", "tags", "--out_dir", directory], "no column `tags`"),
        (
            &["lists", "--input", input, "--labels_column", "target_ind", "--out_dir", directory, "--val_size", "0.95"],
            "leave no row",
        ),
        (&["lists", "--input", "nothing.csv", "--labels_column", "x", "--out_dir", directory], "cannot open"),
    ] {
        let output = llmcls(&[&["prepare"], arguments].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0, "a file was left");
}
