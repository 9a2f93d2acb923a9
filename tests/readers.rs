//! Every reader of files that come from outside, on bytes: for the tests here and for `fuzz/`.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use llmcls::config::Config;
use llmcls::console::Console;
use llmcls::data::exports;
use llmcls::data::formats::{Quoting, Rows};
use llmcls::data::label_cell::LabelCell;
use llmcls::data::recognise::{Asked, Recognised};
use llmcls::data::table::{Columns, LabelList, find_labels, read_examples};
use llmcls::data::tokenize::TextEncoder;
use llmcls::hub::model_files::ModelFiles;
use llmcls::model::config::BackboneConfig;
use llmcls::model::weights::Checkpoint;
use llmcls::run::classifier_file::ClassifierFile;
use llmcls::run::{adapter, manifest, records};
use llmcls::training::checkpoint;

/// The kinds of files, each with a valid example.
pub(crate) const KINDS: [&str; 25] = [
    "config.yaml",
    "rows.csv",
    "rows.tsv",
    "rows.jsonl",
    "rows.json",
    "rows.parquet",
    "config.json",
    "tokenizer.json",
    "adapter_model.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "classifier.json",
    "state.json",
    "manifest.json",
    "export.json",
    "export.txt",
    "cell.txt",
    "recognised.csv",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "history.jsonl",
    "predictions.jsonl",
    "nested.jsonl",
];

/// The reader that the first byte of a fuzzer's input chooses, and what it reads.
pub(crate) fn chosen(input: &[u8]) -> Option<(&'static str, &[u8])> {
    let (&first, bytes) = input.split_first()?;
    Some((KINDS[usize::from(first) % KINDS.len()], bytes))
}

/// Reads `bytes` as a file of `kind`. Errors are fine, panics are not.
pub(crate) fn read(kind: &str, bytes: &[u8], directory: &Path) -> Result<(), anyhow::Error> {
    let path = directory.join(kind);
    fs::write(&path, bytes)?;
    match kind {
        "config.yaml" => Config::of_run(&path).map(drop),
        "rows.csv" => {
            let labels = vec!["interface_daemon".to_owned()];
            let columns = Columns { id: Some("uid".into()), text: "text".into(), labels, ..Columns::default() };
            read_examples(&path, &columns, None)?;
            find_labels(&path, &columns).map(drop)
        }
        // Without quoting, and every cell whatever its column.
        "rows.tsv" => {
            let mut rows = Rows::open(&path, Quoting::None)?;
            while rows.advance()? {
                for column in 0..rows.columns().len() {
                    rows.text(column)?;
                }
            }
            Ok(())
        }
        // Every cell of typed rows, and as a list of labels.
        "nested.jsonl" => {
            let mut rows = Rows::open(&path, Quoting::Standard)?;
            while rows.advance()? {
                for column in 0..rows.columns().len() {
                    let cell = rows.cell(column)?;
                    let _ = (cell.to_text(), LabelCell::of_cell(cell));
                }
            }
            Ok(())
        }
        "rows.jsonl" | "rows.json" | "rows.parquet" => {
            let list = LabelList { column: "target_ind".into(), ..LabelList::default() };
            let (text_fields, labels) = (Some(vec!["title".into(), "content".into()]), vec!["1".to_owned()]);
            let columns =
                Columns { id: Some("uid".into()), text_fields, labels, label_list: Some(list), ..Columns::default() };
            read_examples(&path, &columns, None)?;
            find_labels(&path, &columns).map(drop)
        }
        "config.json" => BackboneConfig::from_file(&path).map(drop),
        "tokenizer.json" => TextEncoder::open(&path, 16, None)?.encode(vec!["a text"]).map(drop),
        "tokenizer_config.json" | "special_tokens_map.json" | "added_tokens.json" | "vocab.txt" => {
            ensure!(!bytes.is_empty(), "{kind}: is empty");
            let config = directory.join("config.json");
            let mut files = vec![path];
            // A vocabulary stands for a tokenizer.json that is not there.
            if kind == "vocab.txt" {
                fs::write(&config, r#"{"model_type": "bert"}"#)?;
            } else {
                fs::write(&config, r#"{"model_type": "llama"}"#)?;
                fs::write(directory.join("tokenizer.json"), example("tokenizer.json"))?;
                files.push(directory.join("tokenizer.json"));
            }
            let encode = || TextEncoder::of_model(&files, &config, 16, None)?.encode(vec!["a text, İ 日本"]);
            encode().map(drop).with_context(|| kind.to_owned())
        }
        "history.jsonl" => {
            ensure!(!records::read_history(&path)?.is_empty(), "history.jsonl: is empty");
            Ok(())
        }
        "predictions.jsonl" => {
            let predictions = records::read_predictions(&path, &["a".to_owned(), "b".to_owned()])?;
            ensure!(!predictions.probabilities.is_empty(), "predictions.jsonl: is empty");
            Ok(())
        }
        "adapter_model.safetensors" => {
            let checkpoint = Checkpoint::open(&[path])?;
            let names: Vec<&str> = checkpoint.names().collect();
            for name in names {
                // The shapes that a reader asks for never come from the file.
                checkpoint.floats(name, &[3, 48])?;
            }
            Ok(())
        }
        "model.safetensors.index.json" => {
            for name in ["config.json", "tokenizer.json", "a.safetensors"] {
                fs::write(directory.join(name), "{}")?;
            }
            let found = ModelFiles::find(directory.to_str().expect("a plain path"), None, true, Console::new(true))?;
            // Whatever the index says, only files of this directory are read.
            for path in found.weights {
                assert_eq!(path.parent(), Some(directory));
            }
            Ok(())
        }
        "adapter_config.json" => adapter::read_config(directory).map(drop),
        "classifier.json" => ClassifierFile::load(directory).map(drop),
        "state.json" => checkpoint::inputs(directory).map(drop),
        "manifest.json" => manifest::verify(directory),
        "export.json" | "export.txt" => {
            let tool = exports::recognise(&path).with_context(|| format!("{}: no export", path.display()))?;
            exports::flatten(&path, tool, None, &mut io::sink()).map(drop)
        }
        // One cell of a column that lists labels, as JSON or as Python and R print lists.
        "cell.txt" => {
            let text = String::from_utf8(bytes.to_vec()).context("cell.txt")?;
            match LabelCell::of_text(&text).context("cell.txt")? {
                LabelCell::Items(_) | LabelCell::Text(_) => Ok(()),
                other => bail!("cell.txt: no labels: {other:?}"),
            }
        }
        "recognised.csv" => Recognised::of_file(&path, &Asked::default()).map(drop),
        _ => unreachable!("a kind of file"),
    }
}

/// A valid file of each kind, or one that is valid but for what stands beside it.
pub(crate) fn example(kind: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if root.ends_with("fuzz") { root.parent().expect("fuzz/ lies in the project") } else { root };
    match kind {
        "config.yaml" => fs::read(root.join("configs/tiny.yaml")).expect("it is there"),
        "rows.csv" => {
            let text = fs::read_to_string(root.join("data/debtags/test.csv")).expect("it is there");
            text.lines().take(5).collect::<Vec<_>>().join("\n").into_bytes()
        }
        "rows.tsv" => b"id\ttext\r\n1\t\"open\r\n2\t5\" disk\r\n".into(),
        "rows.json" => br#"[{"uid": 123456789012345678901234, "title": "a", "content": null, "target_ind": [1, 2]},
            {"uid": "b", "title": NaN, "score": -Infinity, "content": "\u00e9 {[", "target_ind": "['1']"}]"#
            .into(),
        "rows.jsonl" => fs::read(root.join("tests/fixtures/amazoncat/train-00001.jsonl")).expect("it is there"),
        "rows.parquet" => fs::read(root.join("tests/fixtures/amazoncat/test-00000.parquet")).expect("it is there"),
        "config.json" | "tokenizer.json" => fs::read(root.join("data/tiny-llama").join(kind)).expect("it is there"),
        "adapter_model.safetensors" | "adapter_config.json" => {
            fs::read(root.join("tests/fixtures/llama_tied/adapter").join(kind)).expect("it is there")
        }
        "model.safetensors.index.json" => {
            br#"{"metadata": {"total_size": 1}, "weight_map": {"x": "a.safetensors"}}"#.into()
        }
        "classifier.json" => br#"{"format_version": 1, "labels": ["a", "b"], "thresholds": [0.5, 0.25],
            "problem_type": "multi_label_classification", "text_fields": null, "target_text_column": "text",
            "id_column": "uid", "max_length": 64, "base": {"name": "m", "revision": null, "fingerprint": "0"},
            "random_init": false, "init_seed": 0, "torch_dtype": "float32", "use_4bit": true}"#
            .into(),
        "state.json" => {
            br#"{"format_version": 1, "inputs": {"config": {}}, "optimizer_steps": 3, "progress": {"step": 3,
            "evaluations": 1, "micro_batch": 6, "examples": 18, "tokens": 400, "loss_sum": 4.2, "logged": {"loss": 0.5,
            "micro_batches": 2}, "history_lines": 2, "elapsed": 1.5, "is_finished": false, "stopping": {"patience": 2,
            "lower_is_better": false, "best": 0.5, "without_improvement": 0}, "best": {"step": 2, "epoch": 1.0}}}"#
                .into()
        }
        "export.json" => br#"[{"id": 1, "data": {"text": "a"}, "annotations": [{"was_cancelled": false, "result":
            [{"from_name": "q", "value": {"choices": ["x", "y"]}}]}]},
            {"id": 2, "fields": {"text": "b"}, "responses": {"q": [{"value": ["x"], "status": "submitted"}]}}]"#
            .into(),
        "export.txt" => b"__label__a __label__b a text\n__label__c\n\nanother text\n".into(),
        "cell.txt" => br#"['a', "it's", 'B\xfccher', None, True, 1.5, np.str_('x'), u'y']"#.into(),
        "recognised.csv" => {
            b"id,text,labels\n1,the first of all texts,\"a,b\"\n2,a second one that is longer,a\n3,a third one here,b\n"
                .into()
        }
        "tokenizer_config.json" => br#"{"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": true,
            "add_eos_token": true, "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false},
            "truncation_side": "left", "model_max_length": 1000000000000000019884624838656, "clean_up_tokenization_spaces":
            false, "added_tokens_decoder": {"1": {"content": "<s>", "special": true}}}"#
            .into(),
        "special_tokens_map.json" => br#"{"eos_token": "</s>", "additional_special_tokens": ["<x>"]}"#.into(),
        "added_tokens.json" => br#"{"<x>": 4096}"#.into(),
        "vocab.txt" => b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ntext\n##s\n,\n".into(),
        "history.jsonl" => br#"{"loss": 0.5, "grad_norm": 1.0, "learning_rate": 0.001, "epoch": 0.5, "step": 1}"#.into(),
        "predictions.jsonl" => br#"{"id": "1", "probs": [0.5, 0.25], "labels": ["a", "b"], "predicted": ["a"],
            "targets": ["b"]}"#
            .iter()
            .copied()
            .filter(|&byte| byte != b'\n')
            .collect(),
        "nested.jsonl" => br#"{"a": [1, 2.5, [true, {"b": null}]], "c": 123456789012345678901234, "d": "\u00e9 \ud83d\ude00"}
            {"a": {"choices": ["x"]}, "d": null, "e": -0.0}"#
            .into(),
        "manifest.json" => br#"{"a": {"bytes": 3, "sha256": "00"}}"#.into(),
        _ => unreachable!("a kind of file"),
    }
}
