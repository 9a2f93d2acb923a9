//! Labels in every form that files have. `scripts/make_label_fixtures.py` wrote the files with pandas and
//! pyarrow, and the expected matrix with scikit-learn's `MultiLabelBinarizer`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;
use llmcls::data::table::{Columns, Examples, LabelList, find_labels, read_examples};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/labels").join(name)
}

fn expected() -> (Vec<String>, Vec<Vec<f32>>) {
    let text = fs::read_to_string(fixture("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let [labels, matrix] = ["labels", "matrix"].map(|key| expected[key].clone());
    (serde_json::from_value(labels).unwrap(), serde_json::from_value(matrix).unwrap())
}

fn listed(separator: Option<&str>) -> Columns {
    let list = LabelList { column: "tags".into(), separator: separator.map(str::to_owned), order: None };
    Columns { text: "text".into(), label_list: Some(list), ..Columns::default() }
}

fn matrix(read: &Examples) -> Vec<Vec<f32>> {
    read.examples.iter().map(|example| example.labels.clone()).collect()
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn llmcls(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    let output = command.current_dir(directory).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn lists_in_every_form_give_scikit_learns_matrix() {
    let (labels, rows) = expected();
    for name in [
        "comma.csv",
        "semicolon.csv",
        "bar.csv",
        "json.csv",
        "python.csv",
        "tuple.csv",
        "set.csv",
        "numpy.csv",
        "label_studio.csv",
        "cats.csv",
        "fasttext.csv",
        "doccano.jsonl",
        "list.parquet",
    ] {
        let found = find_labels(&fixture(name), &listed(None)).unwrap();
        let plain: Vec<String> = found.labels.iter().map(|label| label.replace('_', " ")).collect();
        assert_eq!(plain, labels, "{name}");
        assert!(found.doubts.is_empty(), "{name}: {:?}", found.doubts);
        for separator in [None, found.listing.separator.as_deref()] {
            let columns = Columns { labels: found.labels.clone(), ..listed(separator) };
            let read = read_examples(&fixture(name), &columns, None).unwrap();
            assert_eq!(matrix(&read), rows, "{name}");
            assert!(read.unknown.is_empty() && read.doubts.is_empty(), "{name}: {read:?}");
        }
    }
}

#[test]
fn multi_hot_lists_need_names_in_their_order() {
    let (labels, rows) = expected();
    for name in ["multi_hot.csv", "multi_hot_numpy.csv", "multi_hot_text.csv", "multi_hot.parquet"] {
        let error = format!("{:#}", find_labels(&fixture(name), &listed(None)).unwrap_err());
        assert!(error.contains("multi-hot lists of 4") && error.contains("data.label_columns"), "{name}: {error}");
        let named = Columns { labels: labels.clone(), ..listed(None) };
        assert_eq!(matrix(&read_examples(&fixture(name), &named, None).unwrap()), rows, "{name}");
        let few = Columns { labels: labels[1..].to_vec(), ..listed(None) };
        let error = format!("{:#}", read_examples(&fixture(name), &few, None).unwrap_err());
        assert!(error.contains("lists of 4") && error.contains("3 labels"), "{name}: {error}");
        // A classifier may hold its labels in another order than the file.
        let mut columns = Columns { labels: labels.iter().rev().cloned().collect(), ..listed(None) };
        columns.label_list.as_mut().unwrap().order = Some(labels.clone());
        let turned: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().rev().copied().collect()).collect();
        assert_eq!(matrix(&read_examples(&fixture(name), &columns, None).unwrap()), turned, "{name}");
    }
}

#[test]
fn columns_of_words_and_marks_are_named_and_read_when_listed() {
    let (labels, rows) = expected();
    let free = Columns { text: "text".into(), ..Columns::default() };
    let asked = Columns { labels: labels.clone(), ..free.clone() };
    for name in ["integers", "decimals", "booleans"] {
        let path = fixture(&format!("columns_{name}.csv"));
        assert_eq!(find_labels(&path, &free).unwrap().labels, labels, "{name}");
        assert_eq!(matrix(&read_examples(&path, &asked, None).unwrap()), rows, "{name}");
    }
    for name in ["words", "letters", "ones", "marks"] {
        let path = fixture(&format!("columns_{name}.csv"));
        let error = find_labels(&path, &free).unwrap_err().to_string();
        for part in labels.iter().map(String::as_str).chain(["data.label_columns"]) {
            assert!(error.contains(part), "{name}: {part} is not in: {error}");
        }
        assert_eq!(matrix(&read_examples(&path, &asked, None).unwrap()), rows, "{name}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |text: &str| write(directory.path(), "t.csv", text);
    let columns = Columns { text: "text".into(), labels: vec!["a".into(), "b".into()], ..Columns::default() };
    for (text, part) in [
        ("text,a,b\nx,1,0\ny,,1\nz,0,1\n", "t.csv:3: column `a` is empty here and says 0 or no"),
        ("text,a,b\nx,,1\ny,0,\nz,,0\n", "column `a` is empty here"),
        ("text,a,b\nx,,\ny,,\n", "column `a` is empty in every row"),
        ("text,a,b\nx,,1\ny,,0\n", "column `a` is empty in every row"),
        ("text,a,b\nx,2,1\n", "column `a` holds `2`, expected 0 or 1"),
        ("text,a,b\nx,-1,1\n", "column `a` holds `-1`"),
        ("text,a,b\nx,NaN,1\n", "column `a` holds `NaN`"),
    ] {
        match read_examples(&path(text), &columns, None) {
            Err(error) => assert!(format!("{error:#}").contains(part), "{part} is not in {error:#}"),
            Ok(read) => panic!("{text}: {read:?}"),
        }
    }
}

#[test]
fn files_without_rows_and_with_another_separator_are_named_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let free = Columns { text: "text".into(), ..Columns::default() };
    for (text, part) in [
        ("id,text,a,b\n", "has no rows"),
        ("id|text|a\n1|x|0\n", "if `|` separates the cells"),
        ("id;text, long;a\n1;x,y;0\n", "if `;` separates the cells"),
    ] {
        let error = format!("{:#}", find_labels(&write(directory.path(), "t.csv", text), &free).unwrap_err());
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    let path = write(directory.path(), "t.csv", "id|text|a\n1|x|0\n");
    let error = format!("{:#}", read_examples(&path, &free, None).unwrap_err());
    assert!(error.contains("no column `text`") && error.contains("if `|` separates"), "{error}");
    let wrapped = r#"{"records": [{"fields": {"text": "x"}, "responses": {"q": [{"value": ["a"]}]}}]}"#;
    let error = format!("{:#}", find_labels(&write(directory.path(), "t.json", wrapped), &free).unwrap_err());
    assert!(error.contains("llmcls prepare lists --input"), "{error}");
}

#[test]
fn a_column_that_is_half_0_and_1_is_not_left_out_without_a_word() {
    let directory = tempfile::tempdir().unwrap();
    let free = Columns { text: "text".into(), ..Columns::default() };
    for cells in [["1", "NaN", "0"], ["1", "2", "0"], ["1", "0.5", "1"], ["-1", "1", "1"]] {
        let rows: String = cells.iter().map(|cell| format!("x,{cell},1\n")).collect();
        let found = find_labels(&write(directory.path(), "t.csv", &format!("text,a,b\n{rows}")), &free).unwrap();
        assert_eq!(found.labels, ["b"]);
        assert!(found.doubts.iter().any(|doubt| doubt.contains("column `a` is not taken")), "{cells:?} {found:?}");
    }
}

#[test]
fn numbers_where_names_are_asked_for_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let columns = Columns { labels: ["p", "q", "r"].map(str::to_owned).to_vec(), ..listed(None) };
    for cells in [["[1, 0, 1]", "[0, 1]"], ["[1.0, 0.5, 1]", "[0, 1, 0]"], ["101", "010"]] {
        let path = write(directory.path(), "t.csv", &format!("text,tags\nx,\"{}\"\ny,\"{}\"\n", cells[0], cells[1]));
        let error = format!("{:#}", read_examples(&path, &columns, None).map(|read| read.unknown).unwrap_err());
        assert!(error.contains("labels are names: p, q, r"), "{error}");
    }
}

#[test]
fn what_probably_separates_labels_wrongly_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["billing", "bug", "login"];
    let rows = |sign: &str| -> String {
        let cell = |row: usize| {
            let chosen: Vec<&str> = (0..3).filter(|bit| (row + 1) >> bit & 1 == 1).map(|bit| names[bit]).collect();
            chosen.join(sign)
        };
        (0..35).map(|row| format!("x,\"{}\"\n", cell(row))).collect()
    };
    // Signs that are not taken for a separator by themselves.
    for sign in ["#", "<br>", " · ", " • ", "/", " / ", "\t", "\n", "::", " & ", "、", " "] {
        let path = write(directory.path(), "t.csv", &format!("text,tags\n{}", rows(sign)));
        let found = find_labels(&path, &listed(None)).unwrap();
        assert!(found.doubts.iter().any(|doubt| doubt.contains("data.label_separator")), "{sign:?}: {found:?}");
        let given = find_labels(&path, &listed(Some(sign))).unwrap();
        assert_eq!((given.labels, given.doubts), (names.map(str::to_owned).to_vec(), vec![]), "{sign:?}");
    }
    let path = write(directory.path(), "t.csv", "text,tags\nx,1 3 5\ny,1\nz,3\nx,5 3\n");
    let found = find_labels(&path, &listed(None)).unwrap();
    assert!(found.doubts.iter().any(|doubt| doubt.contains("` ` (a space)")), "{found:?}");
    // Words for no label.
    let path = write(directory.path(), "t.csv", "text,tags\nx,a\ny,nan\n");
    let found = find_labels(&path, &listed(None)).unwrap();
    assert!(found.doubts.iter().any(|doubt| doubt.contains("`nan` counts as a label")), "{found:?}");
    // A separator that was given and is the wrong one.
    let path = write(directory.path(), "t.csv", &format!("text,tags\n{}", rows("|")));
    let found = find_labels(&path, &listed(Some(","))).unwrap();
    assert!(found.doubts[0].contains("data.label_separator"), "{found:?}");
    // Broken lists.
    for cell in ["[billing, bug]", "\"{\"\"choices\"\": [\"\"a\"\"\"", "{billing,bug}"] {
        let path = write(directory.path(), "t.csv", &format!("text,tags\nx,\"{}\"\n", cell.trim_matches('"')));
        let error = format!("{:#}", find_labels(&path, &listed(None)).unwrap_err());
        assert!(error.contains("t.csv:2") && error.contains("data.label_separator"), "{error}");
    }
    // A column that is no list of labels.
    let rows: String = (0..40).map(|row| format!("x,sentence number {row} of many\n")).collect();
    let path = write(directory.path(), "t.csv", &format!("text,tags\n{rows}"));
    let found = find_labels(&path, &listed(None)).unwrap();
    assert!(found.doubts.iter().any(|doubt| doubt.contains("names 40 labels in 40 rows")), "{found:?}");
}

#[test]
fn signs_within_names_do_not_split_them_where_the_file_or_the_classifier_tells() {
    let directory = tempfile::tempdir().unwrap();
    let text = "text,tags\nx,\"Oil, gas|coal\"\ny,coal\nz,\"Oil, gas\"\n";
    let found = find_labels(&write(directory.path(), "t.csv", text), &listed(None)).unwrap();
    assert_eq!(found.labels, ["Oil, gas", "coal"]);
    let text = "text,tags\nx,\"Oil, gas\"\ny,\"{\"\"choices\"\": [\"\"Oil, gas\"\", \"\"coal\"\"]}\"\n";
    let found = find_labels(&write(directory.path(), "t.csv", text), &listed(None)).unwrap();
    assert_eq!(found.labels, ["Oil, gas", "coal"]);
    // Known labels tell which sign separates.
    let known = Columns { labels: vec!["Oil, gas".into(), "coal".into()], ..listed(None) };
    let path = write(directory.path(), "t.csv", "text,tags\nx,\"Oil, gas\"\ny,coal\n");
    let read = read_examples(&path, &known, None).unwrap();
    assert_eq!((matrix(&read), read.unknown.len()), (vec![vec![1.0, 0.0], vec![0.0, 1.0]], 0));
    let path = write(directory.path(), "t.csv", "text,tags\nx,\"Oil, gas;coal\"\ny,coal\n");
    let read = read_examples(&path, &known, None).unwrap();
    assert_eq!(matrix(&read), [[1.0, 1.0], [0.0, 1.0]]);
}

#[test]
fn exports_are_made_flat_by_prepare_and_refused_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let labels = |row: usize| if row.is_multiple_of(2) { vec!["feature request", "bug"] } else { vec!["bug"] };
    let studio: Vec<Value> = (0..20)
        .map(|row| {
            let result = json!([{"from_name": "topic", "type": "choices", "value": {"choices": labels(row)}}]);
            json!({"id": row, "data": {"text": format!("t {row}"), "n": row}, "annotations": [
                {"was_cancelled": true, "result": []}, {"was_cancelled": false, "result": result}]})
        })
        .chain([json!({"id": 99, "data": {"text": "none"}, "annotations": []})])
        .collect();
    let argilla: Vec<Value> = (0..20)
        .map(|row| {
            json!({"id": row.to_string(), "fields": {"text": format!("t {row}")}, "suggestions": {},
                "responses": {"topic": [{"value": labels(row), "user_id": "u", "status": "submitted"}]}})
        })
        .collect();
    let old: Vec<Value> = (0..20)
        .map(|row| {
            json!({"fields": {"text": format!("t {row}")}, "suggestions": [],
                "responses": [{"status": "discarded", "values": {"topic": {"value": ["no"]}}},
                    {"status": "submitted", "values": {"topic": {"value": labels(row)}}}]})
        })
        .collect();
    let lines: String = old.iter().map(|record| format!("{record}\n")).collect();
    let fasttext: String = (0..20)
        .map(|row| {
            let names: String = labels(row).iter().map(|l| format!("__label__{} ", l.replace(' ', "_"))).collect();
            format!("{names}t {row}\n")
        })
        .collect();
    for (name, text, doubt) in [
        ("studio.json", json!(studio).to_string(), "1 of 21 records have no annotation"),
        ("argilla.json", json!({"records": argilla}).to_string(), ""),
        ("argilla.jsonl", lines, ""),
        ("fasttext.txt", fasttext, ""),
    ] {
        write(here, name, &text);
        let (code, said) = llmcls(here, &["prepare", "lists", "--input", name, "--out_dir", "made", "--overwrite"]);
        assert!(code == Some(0) && said.contains(doubt), "{name}: {said}");
        let mut rows = 0;
        for split in ["train", "validation", "test"] {
            let mut reader = csv::Reader::from_path(here.join(format!("made/{split}.csv"))).unwrap();
            let header = reader.headers().unwrap().clone();
            let at = |wanted: &str| header.iter().position(|name| name.replace('_', " ") == wanted).unwrap();
            for row in reader.records().map(Result::unwrap) {
                let number: usize = row[at("text")].trim_start_matches("t ").parse().unwrap();
                let flags = [&row[at("bug")], &row[at("feature request")]];
                assert_eq!(flags, ["1", if number.is_multiple_of(2) { "1" } else { "0" }], "{name}: {row:?}");
                rows += 1;
            }
        }
        assert_eq!(rows, 20, "{name}");
        let columns = Columns { text: "text".into(), ..Columns::default() };
        let error = format!("{:#}", find_labels(&here.join(name), &columns).unwrap_err());
        assert!(name == "argilla.json" || error.contains("llmcls prepare lists"), "{name}: {error}");
    }
    assert_eq!(fs::read_dir(here.join("made")).unwrap().count(), 4, "a file was left");
}

#[test]
fn prepare_keeps_files_that_exist_and_names_of_labels() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let rows: String = (0..40).map(|row| format!("{row},x,feature request{}\n", ["", "|a\"b"][row % 2])).collect();
    fs::create_dir(here.join("d")).unwrap();
    let source = write(here, "d/train.csv", &format!("id,text,tags\n{}", rows.replace("a\"b", "ab")));
    let before = fs::read(&source).unwrap();
    let prepare = |more: &[&str]| {
        let arguments = ["prepare", "lists", "--labels_column", "tags", "--input", "d/train.csv", "--out_dir"];
        llmcls(here, &[&arguments[..], more].concat())
    };
    let (code, said) = prepare(&["d", "--overwrite"]);
    assert!(code == Some(1) && said.contains("the same file as the input"), "{said}");
    // A link to the input is the input.
    fs::create_dir(here.join("e")).unwrap();
    fs::hard_link(&source, here.join("e/test.csv")).unwrap();
    let (code, said) = prepare(&["e", "--overwrite"]);
    assert!(code == Some(1) && said.contains("the same file as the input"), "{said}");
    let (code, said) = prepare(&["e", "--test_size", "0"]);
    assert!(code == Some(0), "{said}");
    assert_eq!((fs::read(&source).unwrap(), fs::read(here.join("e/test.csv")).unwrap()), (before.clone(), before));
    let header = fs::read_to_string(here.join("e/train.csv")).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(header, "id,text,feature request,ab");
    let (code, said) = prepare(&["e", "--test_size", "0"]);
    assert!(code == Some(1) && said.contains("--overwrite"), "{said}");
    assert!(prepare(&["e", "--test_size", "0", "--overwrite"]).0 == Some(0));
    let hot = fixture("multi_hot.parquet");
    let hot = ["prepare", "lists", "--input", hot.to_str().unwrap(), "--out_dir", "hot", "--labels_column", "tags"];
    let (code, said) = llmcls(here, &hot);
    assert!(code == Some(1) && said.contains("multi-hot") && said.contains("--label_names"), "{said}");
    write(here, "names.txt", "billing\nfeature request\nit's late\nlogin\n");
    let (code, said) = llmcls(here, &[&hot[..], &["--label_names", "names.txt"]].concat());
    assert!(code == Some(0) && said.contains("4 labels"), "{said}");
    // The file of the names is an input, too.
    fs::rename(here.join("names.txt"), here.join("hot/labels_mapping.json")).unwrap();
    let (code, said) = llmcls(here, &[&hot[..], &["--overwrite", "--label_names", "hot/labels_mapping.json"]].concat());
    assert!(code == Some(1) && said.contains("the same file as the input"), "{said}");
}

#[test]
fn eval_and_predict_take_labels_in_another_form_without_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows: String = (0..24).map(|row| format!("{row},red {row},{},{}\n", row % 2, row / 2 % 2)).collect();
    write(here, "rows.csv", &format!("id,text,a,b\n{rows}"));
    let listed: String = (0..24)
        .map(|row| {
            let names: Vec<&str> =
                [("a", row % 2), ("b", row / 2 % 2)].iter().filter(|l| l.1 == 1).map(|l| l.0).collect();
            format!("red {row},{}\n", names.join("|"))
        })
        .collect();
    write(here, "listed.csv", &format!("text,tags\n{listed}"));
    write(here, "texts.csv", "body\nsomething red\n");
    let tiny = root.join("configs/tiny.yaml");
    let model = format!("model.model_name={}", root.join("data/tiny-llama").display());
    let mut train = vec!["train", "--config", tiny.to_str().unwrap(), "--override_output_root", "out", "--set", &model];
    for setting in [
        "data.train_csv=rows.csv",
        "data.val_csv=rows.csv",
        "data.test_csv=null",
        "train.max_steps=1",
        "data.id_column=id",
    ] {
        train.extend(["--set", setting]);
    }
    let (code, said) = llmcls(here, &train);
    assert_eq!(code, Some(0), "{said}");
    let eval = |more: &[&str]| {
        let arguments = ["eval", "--override_output_root", "out", "--output_dir", "scores"];
        let (code, said) = llmcls(here, &[&arguments[..], more].concat());
        let metrics = fs::read_to_string(here.join("scores/metrics.json")).unwrap_or_default();
        let metrics: Value = serde_json::from_str(&metrics).unwrap_or_default();
        (code, said, metrics["eval_f1_micro"].clone(), metrics["per_label"].clone())
    };
    let (code, said, _, own) = eval(&["--input_csv", "rows.csv"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said, _, other) = eval(&["--input_csv", "listed.csv", "--set", "data.labels_column=tags"]);
    assert!(code == Some(0) && said.contains("no column `id`") && said.contains("separated by `|`"), "{said}");
    assert_eq!(own, other);
    let set = ["--input_csv", "listed.csv", "--set", "data.labels_column=tags", "--set", "data.label_separator=|"];
    assert_eq!(eval(&set).0, Some(0));
    let (code, said, ..) = eval(&["--input_csv", "listed.csv"]);
    assert!(code == Some(1) && said.contains("data.labels_column"), "{said}");
    let (code, said, ..) = eval(&["--input_csv", "listed.csv", "--set", "train.learning_rate=1"]);
    assert!(code == Some(1) && said.contains("train.learning_rate") && said.contains("data.labels_column"), "{said}");
    let (code, said, ..) = eval(&["--input_csv", "rows.csv", "--set", "data.label_columns=[a, c]"]);
    assert!(code == Some(1) && said.contains("`c` is no label"), "{said}");
    let (code, said, ..) = eval(&["--input_csv", "rows.csv", "--set", "data.id_column=uid"]);
    assert!(code == Some(1) && said.contains("no column `uid`"), "{said}");
    let predict = ["predict", "--override_output_root", "out", "--input_csv", "texts.csv", "--output_jsonl", "-"];
    let (code, said) = llmcls(here, &[&predict[..], &["--set", "data.target_text_column=body"]].concat());
    assert!(code == Some(0) && said.contains("\"id\":\"0\""), "{said}");
}
