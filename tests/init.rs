//! `llmcls init` and `llmcls runs`: from one file of labelled texts to predictions.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

fn llmcls(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    for key in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        command.env_remove(key);
    }
    // Nobody listens there.
    command.env("HF_HOME", directory.join("hub")).env("HF_ENDPOINT", "http://127.0.0.1:9");
    command.current_dir(directory).args(["--threads", "1"]).args(arguments).output().unwrap()
}

/// Standard output and standard error of a command that succeeds.
fn run(directory: &Path, arguments: &[&str]) -> (String, String) {
    let output = llmcls(directory, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

fn refused(directory: &Path, arguments: &[&str], parts: &[&str]) {
    let output = llmcls(directory, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeds");
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} are not all in: {text}");
}

/// A directory with a base without weights, `base`.
fn workplace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-llama");
    fs::create_dir(directory.path().join("base")).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(tiny.join(name), directory.path().join("base").join(name)).unwrap();
    }
    directory
}

fn read(path: &Path) -> Vec<HashMap<String, String>> {
    csv::Reader::from_path(path).unwrap().deserialize().map(|row| row.unwrap()).collect()
}

const TAGS: [&str; 5] = ["billing;bug", "login", "", "feature request; billing", "bug"];

/// Rows of tickets; the last ten repeat the texts of the first ten.
fn tickets(rows: usize) -> String {
    let row = |number: usize| {
        let of = number % (rows - 10);
        format!("T-{number},about {of},the words of the ticket with the number {of},{}\n", TAGS[of % 5])
    };
    (0..rows).map(row).fold("ticket_id,subject,body,tags\n".to_owned(), |text, row| text + &row)
}

#[test]
fn three_commands_lead_from_a_table_to_predictions() {
    let directory = workplace();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("my tickets.csv"), tickets(100)).unwrap();
    let (out, warnings) = run(directory.path(), &["init", "my tickets.csv", "--model-name", "base"]);
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    for part in ["body", "ticket_id", "separated by `;`", "multi-label", "--text", "--labels", "--problem_type"] {
        assert!(out.contains(part), "{part} is not in: {out}");
    }
    let next = out.lines().last().unwrap();
    assert_eq!(next, "  llmcls train --config 'my tickets/config.yaml'");
    assert!(warnings.contains("10 rows repeat the text"), "{warnings}");
    assert_eq!(fs::read_to_string(at("my tickets.csv")).unwrap(), tickets(100));

    let splits = ["train", "validation", "test"].map(|split| read(&at(&format!("my tickets/{split}.csv"))));
    let sizes = splits.each_ref().map(Vec::len);
    assert!(
        sizes.iter().sum::<usize>() == 100 && (78..=82).contains(&sizes[0]) && sizes[1].abs_diff(10) <= 2,
        "{sizes:?}"
    );
    let texts = splits.each_ref().map(|rows| rows.iter().map(|row| row["body"].clone()).collect::<HashSet<_>>());
    assert!(texts[0].is_disjoint(&texts[1]) && texts[0].is_disjoint(&texts[2]) && texts[1].is_disjoint(&texts[2]));
    for row in splits.iter().flatten() {
        let number: usize = row["ticket_id"][2..].parse().unwrap();
        assert_eq!(row["tags"], TAGS[number % 90 % 5]);
    }
    // Each label is in each split.
    for label in ["billing", "login", "feature request", "bug"] {
        assert!(splits.iter().all(|rows| rows.iter().any(|row| row["tags"].contains(label))), "{label}");
    }

    let set = ["--set", "model.random_init=true", "--set", "train.max_steps=2"];
    run(directory.path(), &[&["train", "--config", "my tickets/config.yaml"], &set[..]].concat());
    fs::write(at("new.csv"), "ticket_id,body\nN-1,the words of a new ticket\n").unwrap();
    let (out, _) = run(directory.path(), &["predict", "--input_csv", "new.csv", "--output", "-"]);
    let prediction: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(prediction["labels"].as_array().unwrap().len(), 4);
    // Rows of the source's form can be scored as they are.
    run(directory.path(), &["eval", "--input_csv", "my tickets.csv", "--output_dir", "scores"]);
    refused(directory.path(), &["init", "my tickets.csv"], &["my tickets/train.csv", "exists", "--out_dir"]);
}

#[test]
fn a_base_for_sentences_is_pooled_as_it_was_trained() {
    let directory = workplace();
    let at = |name: &str| directory.path().join(name);
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(bert).unwrap()).unwrap();
    let tiny: Value = serde_json::from_slice(&fs::read(at("base/config.json")).unwrap()).unwrap();
    config["vocab_size"] = tiny["vocab_size"].clone();
    fs::write(at("base/config.json"), config.to_string()).unwrap();
    fs::write(at("tickets.csv"), tickets(60)).unwrap();
    let init = |out: &str| {
        run(directory.path(), &["init", "tickets.csv", "--model_name", "base", "--out_dir", out]);
        fs::read_to_string(at(out).join("config.yaml")).unwrap()
    };
    assert!(!init("plain").contains("pooling"));
    fs::create_dir(at("base/1_Pooling")).unwrap();
    fs::write(
        at("base/1_Pooling/config.json"),
        r#"{"word_embedding_dimension": 32, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}"#,
    )
    .unwrap();
    let config = init("sentences");
    assert!(config.contains("\n  pooling: mean #") && config.contains("\n  head_learning_rate: 0.005 #"), "{config}");
    let hint = "hint: base was trained for sentences with pooling mean";
    for (directory_of, is_hinted) in [("plain", true), ("sentences", false)] {
        let config = format!("{directory_of}/config.yaml");
        let (_, messages) = run(
            directory.path(),
            &["train", "--config", &config, "--set", "model.random_init=true", "--set", "train.max_steps=1"],
        );
        assert_eq!(messages.contains(hint), is_hinted, "{messages}");
    }
}

#[test]
fn runs_are_listed_newest_first_with_their_state() {
    let directory = workplace();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("tickets.csv"), tickets(60)).unwrap();
    run(directory.path(), &["init", "tickets.csv", "--model_name", "base"]);
    let set = ["--set", "model.random_init=true", "--set", "train.max_steps=1"];
    run(directory.path(), &[&["train", "--config", "tickets/config.yaml"], &set[..]].concat());
    let runs = at("outputs/base/tickets");
    let finished = fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    // What a run has before it ends.
    for (name, error) in [("run_20990101-000000", None), ("run_20990102-000000", Some("the disk is full"))] {
        fs::create_dir(runs.join(name)).unwrap();
        fs::copy(finished.join("config.yaml"), runs.join(name).join("config.yaml")).unwrap();
        error.iter().for_each(|error| fs::write(runs.join(name).join("error.txt"), error).unwrap());
    }
    let (out, _) = run(directory.path(), &["runs", "--json"]);
    let listed: Value = serde_json::from_str(&out).unwrap();
    let states: Vec<&str> = listed.as_array().unwrap().iter().map(|run| run["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["failed", "resumable", "finished"]);
    assert_eq!((&listed[0]["error"], &listed[1]["date"]), (&"the disk is full".into(), &"2099-01-01T00:00:00Z".into()));
    let last = &listed[2];
    assert_eq!((&last["model"], &last["dataset"], &last["seeds"]), (&"base".into(), &"tickets".into(), &[1].into()));
    assert!(last["rows"]["train"].as_u64().unwrap() > 40 && last["best"]["f1_micro"].is_number(), "{last}");
    assert_eq!(last["best"]["split"], "test");
    let (out, _) = run(directory.path(), &["runs"]);
    assert!(out.contains("finished") && out.contains("outputs/base/tickets/run_20990102-000000"), "{out}");
    assert_eq!(run(directory.path(), &["runs", "--override_output_root", "nowhere"]).0, "no run under nowhere\n");
}

#[test]
fn labels_in_every_form_are_recognised() {
    let directory = workplace();
    let at = |name: &str| directory.path().join(name);
    let config = |name: &str| fs::read_to_string(at(name).join("config.yaml")).unwrap();
    let text = |number: usize| format!("the words of the text with the number {number}");
    let rows = |row: &dyn Fn(usize) -> String| (0..40).map(|number| row(number) + "\n").collect::<String>();
    let lists = ["[\"a\", \"b, c\"]", "[\"a\"]", "[]", "[\"d\"]"];
    fs::write(at("lists.jsonl"), rows(&|n| format!(r#"{{"text": "{}", "labels": {}}}"#, text(n), lists[n % 4])))
        .unwrap();
    run(directory.path(), &["init", "lists.jsonl", "--model_name", "base"]);
    assert!(config("lists").contains("labels_column: labels") && config("lists").contains("multi_label"));
    assert!(read(&at("lists/train.csv")).iter().any(|row| row["labels"] == r#"["a","b, c"]"#));

    let class = |n: usize| ["praise", "complaint", "question"][n % 3];
    fs::write(at("classes.csv"), "text,category\n".to_owned() + &rows(&|n| format!("{},{}", text(n), class(n))))
        .unwrap();
    run(directory.path(), &["init", "classes.csv", "--model_name", "base"]);
    assert!(config("classes").contains("problem_type: single_label_classification"), "{}", config("classes"));
    let multi = ["init", "classes.csv", "--model_name", "base", "--problem_type", "multi", "--out_dir", "multi"];
    run(directory.path(), &multi);
    assert!(config("multi").contains("problem_type: multi_label_classification"));

    let yes = |is: bool| if is { "yes" } else { "no" };
    let flags = rows(&|n| format!("{},{},{}", text(n), yes(n % 2 == 0), yes(n % 5 == 0)));
    fs::write(at("flags.csv"), "text,urgent,on\n".to_owned() + &flags).unwrap();
    run(directory.path(), &["init", "flags.csv", "--model_name", "base"]);
    assert!(config("flags").contains("label_columns: [urgent, \"on\"]"), "{}", config("flags"));
    assert!(read(&at("flags/test.csv")).iter().all(|row| row["urgent"] == "0" || row["urgent"] == "1"));

    for name in ["lists", "classes", "flags"] {
        let set = ["--set", "model.random_init=true", "--set", "train.max_steps=1"];
        let file = format!("{name}/config.yaml");
        run(directory.path(), &[&["train", "--config", &file], &set[..]].concat());
    }
}

#[test]
fn ready_splits_stay_whole_and_what_overlaps_is_said() {
    let directory = workplace();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("tickets.csv"), tickets(80)).unwrap();
    let ready = "ticket_id,subject,body,tags\n".to_owned()
        + &(0..7).map(|n| format!("V-{n},s,validation words {n},login\n")).collect::<String>()
        + "V-9,s,the words of the ticket with the number 3,bug\n";
    fs::write(at("val.csv"), &ready).unwrap();
    let arguments = ["init", "tickets.csv", "--model_name", "base", "--val", "val.csv", "--out-dir", "made"];
    let (_, warnings) = run(directory.path(), &arguments);
    assert!(warnings.contains("1 texts of val.csv are also in tickets.csv"), "{warnings}");
    assert_eq!(read(&at("made/validation.csv")).len(), 8);
    let sizes = ["train", "test"].map(|split| read(&at(&format!("made/{split}.csv"))).len());
    assert!(sizes[0] + sizes[1] == 80 && sizes[1].abs_diff(8) <= 2, "{sizes:?}");
    let both =
        ["init", "tickets.csv", "--model_name", "base", "--val", "val.csv", "--test", "val.csv", "--out_dir", "b"];
    run(directory.path(), &both);
    assert_eq!(["train", "test"].map(|split| read(&at(&format!("b/{split}.csv"))).len()), [80, 8]);
}

#[test]
fn without_the_hub_init_says_how_to_give_a_directory() {
    let directory = workplace();
    fs::write(directory.path().join("tickets.csv"), tickets(60)).unwrap();
    let (out, warnings) = run(directory.path(), &["init", "tickets.csv"]);
    assert!(warnings.contains("--model_name DIR") && warnings.contains("--set model.model_name=DIR"), "{warnings}");
    assert!(out.contains("HuggingFaceTB/SmolLM2-135M-Instruct") && out.contains("about"), "{out}");
    let config = fs::read_to_string(directory.path().join("tickets/config.yaml")).unwrap();
    assert!(config.contains("model_name: HuggingFaceTB/SmolLM2-135M-Instruct"), "{config}");
    // The configuration works with a directory.
    let set = ["model.model_name=base", "model.random_init=true", "train.max_steps=1"];
    let mut arguments = vec!["train", "--config", "tickets/config.yaml"];
    arguments.extend(set.iter().flat_map(|setting| ["--set", setting]));
    run(directory.path(), &arguments);
}

#[test]
fn what_cannot_be_split_or_understood_is_refused() {
    let directory = workplace();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("few.csv", "text,tags\nsome words,a\nother words,b\n");
    refused(directory.path(), &["init", "few.csv", "--model_name", "base"], &["few.csv", "2 labelled rows"]);
    write("plain.csv", &("text\n".to_owned() + &(0..30).map(|n| format!("words {n}\n")).collect::<String>()));
    refused(directory.path(), &["init", "plain.csv", "--model_name", "base"], &["--labels"]);
    write("tickets.csv", &tickets(60));
    refused(directory.path(), &["init", "tickets.csv", "--text", "nope"], &["no column `nope`", "body"]);
    refused(directory.path(), &["init", "tickets.csv", "--labels", "tags,subject"], &["tags", "0 and 1"]);
    refused(directory.path(), &["init", "-"], &["name a file"]);
    assert!(!directory.path().join("tickets/config.yaml").exists());
}

/// An export of Label Studio with rows `from..to`.
fn label_studio(from: usize, to: usize) -> String {
    let row = |number: usize| {
        let label = ["billing", "login"][number % 2];
        format!(
            r#"{{"id": {number}, "data": {{"text": "the words of ticket {number}"}}, "annotations": [{{"result":
            [{{"type": "choices", "value": {{"choices": ["{label}"]}}, "from_name": "t", "to_name": "x"}}]}}]}}"#
        )
    };
    format!("[{}]", (from..to).map(row).collect::<Vec<_>>().join(", "))
}

#[test]
fn two_exports_keep_their_own_rows() {
    let directory = workplace();
    fs::write(directory.path().join("rows.json"), label_studio(0, 40)).unwrap();
    fs::write(directory.path().join("val.json"), label_studio(100, 112)).unwrap();
    run(directory.path(), &["init", "rows.json", "--val", "val.json", "--model_name", "base", "--out_dir", "out"]);
    let numbers = |split: &str| -> Vec<usize> {
        let rows = read(&directory.path().join("out").join(split));
        rows.iter().map(|row| row["text"].rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    assert_eq!(numbers("validation.csv"), (100..112).collect::<Vec<_>>());
    let others = [numbers("train.csv"), numbers("test.csv")].concat();
    assert!(others.len() == 40 && others.iter().all(|&number| number < 40), "{others:?}");
    let left = fs::read_dir(directory.path().join("out")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with('.')), "a temporary is left");
}

#[test]
fn a_share_of_the_training_rows_validates_with_equal_texts_on_one_side() {
    let directory = workplace();
    fs::write(directory.path().join("tickets.csv"), tickets(60)).unwrap();
    let config = "data: {dataset_name: t, train_csv: tickets.csv, val_fraction: 0.2, id_column: ticket_id, \
                  target_text_column: body, labels_column: tags, max_length: 32}\n\
                  model: {model_name: base, random_init: true, use_4bit: false, torch_dtype: float32}\n\
                  train: {max_steps: 1, gradient_accumulation_steps: 1}\nexp: {seeds: [1]}\n";
    fs::write(directory.path().join("c.yaml"), config).unwrap();
    run(directory.path(), &["train", "--config", "c.yaml"]);
    let runs = fs::read_dir(directory.path().join("outputs/base/t")).unwrap();
    let seed = runs.map(|entry| entry.unwrap().path()).next().unwrap().join("seed_1");
    let ids = |path: &Path| -> Vec<usize> {
        let lines = fs::read_to_string(path).unwrap();
        let id =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap()[2..].parse().unwrap();
        lines.lines().map(id).collect()
    };
    let validation = ids(&seed.join("predictions_validation.jsonl"));
    assert!((10..=14).contains(&validation.len()), "{validation:?}");
    // Ticket 50 + n has the text of ticket n.
    assert!((0..10).all(|n| validation.contains(&n) == validation.contains(&(50 + n))), "{validation:?}");
    // The columns that --set names for other rows do not move the division.
    let options = ["--split", "validation", "--set", "data.text_fields=[subject]", "--tune_thresholds", "global"];
    run(directory.path(), &[&["eval"], &options[..]].concat());
    assert_eq!(ids(&seed.join("eval_validation/predictions.jsonl")), validation);
}

/// Rows with two columns of flags, of which one has an odd cell.
fn flags(odd: &str) -> String {
    let row = |number: usize| {
        let bug = if number == 3 { odd.to_owned() } else { (number % 3 % 2).to_string() };
        format!("{number},the words of the ticket with the number {number},{},{bug}\n", number % 2)
    };
    (0..60).map(row).fold("id,text,login,bug\n".to_owned(), |text, row| text + &row)
}

#[test]
fn a_column_that_is_nearly_a_label_is_named_with_the_cell_that_is_not() {
    let directory = workplace();
    for (odd, says) in [("", "fill the empty cells (the first is flags.csv:5)"), ("2", "flags.csv:5 holds `2`")] {
        fs::write(directory.path().join("flags.csv"), flags(odd)).unwrap();
        let arguments = ["init", "flags.csv", "--model_name", "base", "--out_dir", odd_name(odd)];
        let (_, said) = run(directory.path(), &arguments);
        assert!(said.contains("`bug` is not taken as a label") && said.contains(says), "{said}");
        let asked = [&arguments[..4], &["--labels", "login,bug"]].concat();
        refused(directory.path(), &asked, &["`bug` cannot be read as 0 and 1", says]);
    }
    // Decimal commas, and a label of every row.
    let row =
        |number: usize| format!("{number};the words of the ticket with the number {number};{},0;0,00\n", number % 2);
    let table = (0..60).map(row).fold("id;text;login;bug\n".to_owned(), |text, row| text + &row);
    fs::write(directory.path().join("commas.csv"), table).unwrap();
    let (out, _) = run(directory.path(), &["init", "commas.csv", "--model_name", "base"]);
    assert!(out.contains("2 columns of 0 and 1"), "{out}");
    let table = flags("0").lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned() + ",1\n").collect::<String>();
    fs::write(directory.path().join("all.csv"), table.replacen("login,1", "login,always", 1)).unwrap();
    let (_, said) = run(directory.path(), &["init", "all.csv", "--model_name", "base"]);
    assert!(said.contains("every row has these labels (rows in all): always (60)"), "{said}");
}

fn odd_name(odd: &str) -> &str {
    if odd.is_empty() { "blank" } else { "two" }
}

/// `init` writes a configuration where no training began: nothing there is to be resumed.
#[test]
fn the_directory_of_init_is_no_run() {
    let directory = workplace();
    fs::write(directory.path().join("flags.csv"), flags("0")).unwrap();
    run(directory.path(), &["init", "flags.csv", "--model_name", "base"]);
    let config = fs::read(directory.path().join("flags/config.yaml")).unwrap();
    let way_out = "`llmcls train --config flags/config.yaml`";
    refused(directory.path(), &["predict", "--run", "flags", "--text", "a"], &["not a run", way_out]);
    refused(directory.path(), &["train", "--resume", "flags"], &["not a run", way_out]);
    assert!(fs::read(directory.path().join("flags/config.yaml")).unwrap() == config);
    // A label that no row has.
    let mistyped =
        ["train", "flags/config.yaml", "--set", "model.random_init=true", "--set", "data.label_columns=[id]"];
    let output = llmcls(directory.path(), &mistyped);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn rows_where_a_configuration_is_expected_point_to_init() {
    let place = tempfile::tempdir().unwrap();
    for (rows, command) in [("rows.csv", "llmcls init rows.csv"), ("my rows.JSONL", "llmcls init 'my rows.JSONL'")] {
        for subcommand in ["train", "check", "sweep"] {
            refused(place.path(), &[subcommand, "--config", rows], &["holds rows, not a configuration", command]);
        }
    }
}
