//! Frozen layers computed once give the same bytes as computed each time, whatever happens to the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use candle_core::Tensor;
use llmcls::data::tokenize::Encoded;
use llmcls::evaluation::Sample;
use llmcls::kernels::device::Device;
use llmcls::model::classifier::{Classifier, ClassifierOptions, Problem};
use llmcls::model::config::{BackboneConfig, Dropouts};
use llmcls::model::frozen_rows::FrozenRows;
use llmcls::model::lora::{LayerFilter, LoraOptions, Targets};
use llmcls::model::quantization::Quantization;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use llmcls::ops::loss::BceWeights;
use llmcls::ops::tape::{DropoutKey, Tape};
use serde_json::Value;

const FAMILIES: [&str; 17] = [
    "llama_tied",
    "llama_4bit",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "phi3",
    "bert",
    "roberta",
    "xlm_roberta",
    "distilbert",
    "modernbert",
    "modernbert_mean",
    "eurobert",
    "eurobert_mean",
    "nomic_bert",
    "nomic_bert_fused",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn build(name: &str, recompute: bool, lora: impl Fn(&BackboneConfig) -> LoraOptions) -> Classifier {
    let directory = fixture(name);
    let mut config = BackboneConfig::from_file(&directory.join("config.json")).unwrap();
    config.dropouts = Dropouts::default();
    let weights = Weights::Checkpoint(Checkpoint::open(&[directory.join("model.safetensors")]).unwrap());
    let options = ClassifierOptions {
        labels: 3,
        base_rows: None,
        problem: Problem::MultiLabel,
        quantization: Quantization::Off,
        storage: BaseStorage { precision: Precision::Float32, is_4bit: name == "llama_4bit" },
        lora: lora(&config),
        weights: BceWeights::default(),
        recompute,
        device: Device::cpu(),
    };
    let classifier = Classifier::new(&config, &weights, &options).unwrap();
    classifier.initialize(5).unwrap();
    classifier
}

fn samples(name: &str) -> Vec<Sample> {
    let text = fs::read_to_string(fixture(name).join("batch.json")).unwrap();
    let batch: Value = serde_json::from_str(&text).unwrap();
    let tokens: Vec<Vec<u32>> = serde_json::from_value(batch["token_ids"].clone()).unwrap();
    let sample = |(row, token_ids): (usize, Vec<u32>)| Sample {
        tokens: Encoded::whole(token_ids),
        labels: (0..3).map(|label| f32::from(u8::from((row + label) % 2 == 0))).collect(),
        frozen: None,
    };
    tokens.into_iter().enumerate().map(sample).collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The logits' bits, then those of each parameter's gradient. B starts as zero, so it is stepped once.
fn step(classifier: &Classifier, samples: &[Sample]) -> Vec<Vec<u32>> {
    let batch = Sample::batch(samples.iter(), classifier).unwrap();
    let mut found = Vec::new();
    for micro_batch in 0..2 {
        classifier.params().iter().for_each(|param| param.clear_gradient());
        let tape = Tape::recording(Some(DropoutKey { seed: 2, micro_batch }));
        let logits = classifier.logits(&tape, &batch).unwrap();
        let loss = classifier.training_loss(&tape, &logits, &batch.labels).unwrap();
        found.push(bits(logits.tensor()));
        tape.backward(&loss, Tensor::new(1f32, &candle_core::Device::Cpu).unwrap()).unwrap();
        for param in classifier.params() {
            assert!(param.has_gradient(), "{}", param.name());
            found.push(bits(param.gradient()));
        }
        let stepped: Vec<Vec<f32>> = classifier
            .params()
            .iter()
            .map(|param| {
                let value = (param.value() - (param.gradient() * 0.5).unwrap()).unwrap();
                value.flatten_all().unwrap().to_vec1().unwrap()
            })
            .collect();
        classifier.set(&stepped).unwrap();
    }
    classifier.initialize(5).unwrap();
    found
}

#[test]
fn frozen_layers_computed_once_give_the_same_bits_in_every_family() {
    for name in FAMILIES {
        let last = |config: &BackboneConfig| {
            let filter = LayerFilter::new(vec![config.num_hidden_layers - 1], &[]).unwrap();
            LoraOptions { layers: Some(filter), ..LoraOptions::new(2, 3.0, 0.1, Targets::AllLinear) }
        };
        let probe = |_: &BackboneConfig| LoraOptions::new(2, 3.0, 0.1, Targets::Names(Vec::new()));
        let of = |is_probe: bool, recompute| match is_probe {
            true => build(name, recompute, probe),
            false => build(name, recompute, last),
        };
        for is_probe in [false, true] {
            let classifier = of(is_probe, false);
            assert_eq!(classifier.is_probe(), is_probe);
            assert_eq!(classifier.frozen_layers(), classifier.layer_count() - usize::from(!is_probe), "{name}");
            let mut samples = samples(name);
            assert!(!classifier.drops_in_frozen());
            let expected = step(&classifier, &samples);
            for index in 0..samples.len() {
                // Alone, where the batch has all.
                let alone = Sample::batch(samples[index..=index].iter(), &classifier).unwrap();
                let rows = classifier.frozen_output(&alone).unwrap();
                // The head of this one takes every token.
                let keeps_tokens = !is_probe || name == "eurobert";
                assert_eq!(classifier.keeps_tokens(), keeps_tokens);
                let count = if keeps_tokens { samples[index].tokens.token_ids.len() } else { 1 };
                assert_eq!(rows.dims(), [count, classifier.width()]);
                samples[index].frozen = Some(FrozenRows::owned(rows.flatten_all().unwrap().to_vec1().unwrap()));
            }
            assert!(step(&classifier, &samples) == expected, "{name}, probe: {is_probe}");
            let recomputing = of(is_probe, true);
            assert!(step(&recomputing, &samples) == expected, "{name}, probe: {is_probe}, recomputed");
        }
    }
}

fn llmcls(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("XDG_CACHE_HOME", cache);
    command.args(["--threads", "1"]).args(arguments);
    command
}

/// Two epochs of two seeds with an adapter in the last of two layers.
fn train(cache: &Path, root: &Path, more: &[&str]) -> Command {
    let mut command = llmcls(cache, &["train", "--config", "configs/tiny.yaml", "--override_output_root"]);
    command.arg(root);
    for setting in [
        "data.max_train_samples=26",
        "data.max_val_samples=12",
        "data.max_test_samples=9",
        "data.max_length=24",
        "model.lora_layers=1",
        "train.num_train_epochs=2",
        "train.batch_size=4",
        "train.save_steps=3",
        "exp.seeds=[1, 4]",
    ] {
        command.args(["--set", setting]);
    }
    for setting in more {
        command.args(["--set", setting]);
    }
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run_of(root: &Path) -> PathBuf {
    let mut runs: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    while !runs[0].join("config.yaml").is_file() {
        runs = fs::read_dir(&runs[0]).unwrap().map(|entry| entry.unwrap().path()).collect();
    }
    assert_eq!(runs.len(), 1);
    runs.pop().unwrap()
}

/// What a run has learned, and predicts.
fn results(root: &Path) -> Vec<Vec<u8>> {
    let run = run_of(root);
    let of_seed = |seed: &str| {
        ["best/adapter_model.safetensors", "predictions_validation.jsonl", "predictions_test.jsonl"]
            .map(|file| fs::read(run.join(seed).join(file)).unwrap())
    };
    ["seed_1", "seed_4"].into_iter().flat_map(of_seed).collect()
}

fn chunks(cache: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in fs::read_dir(cache.join("llmcls/activations")).into_iter().flatten() {
        for file in fs::read_dir(directory.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            assert!(!path.to_string_lossy().contains(".tmp-"), "{}", path.display());
            found.extend(Some(path).filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")));
        }
    }
    found.sort();
    found
}

/// A directory for the cache, one for runs, and the results of a training that computes everything each time.
fn expected(more: &[&str]) -> (tempfile::TempDir, Vec<Vec<u8>>) {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = vec!["train.cache_limit=0"];
    settings.extend(more);
    let output = train(&directory.path().join("unused"), &directory.path().join("plain"), &settings).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    assert!(!directory.path().join("unused/llmcls/activations").exists());
    let results = results(&directory.path().join("plain"));
    (directory, results)
}

#[test]
fn a_training_with_the_cache_gives_the_bytes_of_one_without() {
    for more in
        [&[][..], &["model.compute=bfloat16", "model.torch_dtype=bfloat16"], &["train.gradient_checkpointing=true"]]
    {
        let (directory, expected) = expected(more);
        let (cache, root) = (directory.path().join("cache"), directory.path());
        for (name, note) in [("first", "is computed once"), ("second", "all 47 texts is in the cache")] {
            let output = train(&cache, &root.join(name), more).output().unwrap();
            assert!(output.status.success(), "{}", errors(&output));
            assert!(errors(&output).contains(note), "{}", errors(&output));
            assert!(results(&root.join(name)) == expected, "{name} {more:?}");
        }
        assert_eq!(chunks(&cache).len(), 3);
    }
}

#[test]
fn killed_while_it_fills_the_cache_or_later_a_run_goes_on_to_the_same_bytes() {
    let (directory, expected) = expected(&[]);
    for (index, failpoint) in
        ["write:4:kill", "rename:5:kill", "rename:6:kill", "step:5:kill", "step:9:-INT"].into_iter().enumerate()
    {
        let (cache, root) = (directory.path().join(format!("cache{index}")), directory.path().join(format!("{index}")));
        let killed = train(&cache, &root, &[]).env("LLMCLS_FAILPOINT", failpoint).output().unwrap();
        assert!(!killed.status.success(), "{failpoint}");
        let mut command = llmcls(&cache, &["train", "--resume"]);
        command.arg(run_of(&root));
        // The cache may be switched off in the middle, and changes nothing.
        let is_last = failpoint.starts_with("step:9");
        if is_last {
            command.args(["--set", "train.cache_limit=0"]);
        }
        let resumed = command.output().unwrap();
        assert!(resumed.status.success(), "{failpoint}: {}", errors(&resumed));
        assert_eq!(errors(&resumed).contains("frozen layers"), !is_last, "{}", errors(&resumed));
        assert!(results(&root) == expected, "{failpoint}");
        assert_eq!(chunks(&cache).len(), 3, "{failpoint}");
    }
}

#[test]
fn a_full_disk_keeps_the_rest_in_memory() {
    let (directory, expected) = expected(&[]);
    let mut tried = 0;
    for count in 3..=7 {
        let (cache, root) = (directory.path().join(format!("cache{count}")), directory.path().join(format!("{count}")));
        let mut command = train(&cache, &root, &[]);
        let output = command.env("LLMCLS_FAILPOINT", format!("write:{count}:full")).output().unwrap();
        if !errors(&output).contains("is kept in memory") {
            continue;
        }
        tried += 1;
        assert!(output.status.success(), "{}", errors(&output));
        assert!(results(&root) == expected, "{count}");
        assert!(chunks(&cache).len() < 3);
    }
    assert_eq!(tried, 3, "one for each chunk");
}

#[test]
fn a_damaged_or_outdated_chunk_is_computed_again() {
    let (directory, expected) = expected(&[]);
    let (cache, root) = (directory.path().join("cache"), directory.path());
    assert!(train(&cache, &root.join("first"), &[]).output().unwrap().status.success());
    let files = chunks(&cache);
    let whole: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    for (case, damage) in [("cut", 0), ("flipped", 1), ("empty", 2), ("other numbers", 3)] {
        for (path, whole) in files.iter().zip(&whole) {
            let mut bytes = whole.clone();
            match damage {
                0 => bytes.truncate(whole.len() - 1000),
                1 => bytes[whole.len() - 1000] ^= 1,
                2 => bytes.clear(),
                // A chunk that is whole, and of another computation.
                _ => bytes = other_numbers(whole),
            }
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let output = train(&cache, &root.join(case), &[]).output().unwrap();
        let text = errors(&output);
        assert!(output.status.success(), "{case}: {text}");
        let note = if damage == 3 { "has other numbers" } else { "computed again" };
        assert!(text.contains(note), "{case}: {text}");
        assert!(results(&root.join(case)) == expected, "{case}");
        assert!(files.iter().zip(&whole).all(|(path, whole)| &fs::read(path).unwrap() == whole), "{case}");
    }
}

/// The chunk with each number a little larger, and the checksums of that.
fn other_numbers(chunk: &[u8]) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView};
    let tensors = safetensors::SafeTensors::deserialize(chunk).unwrap();
    let (rows, checksums) = (tensors.tensor("rows").unwrap(), tensors.tensor("checksums").unwrap());
    let larger = |bytes: &[u8]| (f32::from_le_bytes(bytes.try_into().unwrap()) + 1e-3).to_le_bytes();
    let numbers: Vec<u8> = rows.data().chunks_exact(4).flat_map(larger).collect();
    // The lengths of the texts are found by the checksums of the old ones.
    let width = 4 * rows.shape()[1];
    let (mut start, mut sums) = (0, Vec::new());
    for sum in checksums.data().chunks_exact(4) {
        let mut end = start + width;
        while crc32c::crc32c(&rows.data()[start..end]).to_le_bytes() != sum {
            end += width;
        }
        sums.extend(crc32c::crc32c(&numbers[start..end]).to_le_bytes());
        start = end;
    }
    let views = [
        ("rows", TensorView::new(Dtype::F32, rows.shape().to_vec(), &numbers).unwrap()),
        ("checksums", TensorView::new(Dtype::U32, checksums.shape().to_vec(), &sums).unwrap()),
    ];
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn runs_at_once_share_a_cache() {
    let (directory, expected) = expected(&[]);
    let (cache, root) = (directory.path().join("cache"), directory.path());
    let started: Vec<_> = (0..3)
        .map(|index| {
            let mut command = train(&cache, &root.join(format!("{index}")), &[]);
            command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for (index, mut child) in started.into_iter().enumerate() {
        assert!(child.wait().unwrap().success());
        assert!(results(&root.join(format!("{index}"))) == expected);
    }
    assert_eq!(chunks(&cache).len(), 3);
}

#[test]
fn the_limit_refuses_what_is_too_large_and_makes_room_for_what_is_not() {
    let (directory, expected) = expected(&[]);
    let (cache, root) = (directory.path().join("cache"), directory.path());
    let output = train(&cache, &root.join("small"), &["train.cache_limit=100KB"]).output().unwrap();
    assert!(errors(&output).contains("train.cache_limit is 97.7 KiB"), "{}", errors(&output));
    assert!(results(&root.join("small")) == expected && chunks(&cache).is_empty());

    assert!(train(&cache, &root.join("first"), &[]).output().unwrap().status.success());
    let first = chunks(&cache);
    let size: u64 = first.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    // Other texts, for which the first ones make room.
    let limit = format!("train.cache_limit={}", size + 200);
    let output = train(&cache, &root.join("others"), &["data.max_length=23", &limit]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let others = chunks(&cache);
    assert!(others.len() == 3 && first.iter().all(|path| !path.exists()));

    let listed = llmcls(&cache, &["cache", "--json"]).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["frozen_layers"], &listed[0]["layers"]), (&Value::from(1), &Value::from(2)));
    let cleared = llmcls(&cache, &["cache", "--clear"]).output().unwrap();
    assert!(cleared.status.success() && chunks(&cache).is_empty());
}

/// A BERT with dropout and the tokenizer of data/tiny-llama.
fn encoder(directory: &Path) -> PathBuf {
    encoder_of(directory, "bert", r#""type_vocab_size": 2"#)
}

/// A family's encoder, with keys of its own in the configuration.
fn encoder_of(directory: &Path, family: &str, own: &str) -> PathBuf {
    let base = directory.join(format!("tiny-{family}"));
    fs::create_dir_all(&base).unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-llama/tokenizer.json");
    fs::copy(tokenizer, base.join("tokenizer.json")).unwrap();
    let config = r#""hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
        "vocab_size": 8192, "max_position_embeddings": 64, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "pad_token_id": 0"#;
    fs::write(base.join("config.json"), format!(r#"{{"model_type": "{family}", {config}, {own}}}"#)).unwrap();
    base
}

#[test]
fn dropout_below_the_first_adapter_refuses_the_cache_by_the_key_that_switches_it_off() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, root) = (directory.path().join("cache"), directory.path());
    let base = format!("model.model_name={}", encoder(root).display());
    let plain = [&*base, "exp.seeds=[1, 4]", "model.lora_target_modules=all-linear"];
    let with = |more: &[&'static str]| plain.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>();

    let asked = train(&cache, &root.join("asked"), &with(&["train.cache_limit=1GB"])).output().unwrap();
    assert_eq!(asked.status.code(), Some(1));
    assert!(errors(&asked).contains("model.base_dropout=0"), "{}", errors(&asked));
    let unasked = train(&cache, &root.join("unasked"), &plain).output().unwrap();
    assert!(unasked.status.success() && errors(&unasked).contains("model.base_dropout=0"), "{}", errors(&unasked));
    assert!(chunks(&cache).is_empty());

    let off = train(&cache, &root.join("off"), &with(&["model.base_dropout=0"])).output().unwrap();
    assert!(off.status.success() && chunks(&cache).len() == 3, "{}", errors(&off));
    let uncached = with(&["model.base_dropout=0", "train.cache_limit=0"]);
    assert!(train(&cache, &root.join("uncached"), &uncached).output().unwrap().status.success());
    assert!(results(&root.join("off")) == results(&root.join("uncached")));
    assert!(results(&root.join("off")) != results(&root.join("unasked")));
}

/// Distances reach over a text, and a batch has longer and shorter ones.
#[test]
fn encoders_that_attend_over_distances_keep_the_bytes_too() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, root) = (directory.path().join("cache"), directory.path());
    let disentangled = r#""relative_attention": true, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4,
        "max_relative_positions": -1, "position_biased_input": false, "norm_rel_ebd": "layer_norm", "share_att_key": true,
        "type_vocab_size": 0"#;
    for (family, own) in [("mpnet", r#""relative_attention_num_buckets": 32"#), ("deberta-v2", disentangled)] {
        let base = format!("model.model_name={}", encoder_of(root, family, own).display());
        let settings = [&*base, "model.lora_target_modules=all-linear", "model.base_dropout=0"];
        let [cached, plain] = ["cached", "plain"].map(|name| root.join(format!("{family}-{name}")));
        let output = train(&cache, &cached, &settings).output().unwrap();
        assert!(errors(&output).contains("output of the 2 frozen layers is computed once"), "{}", errors(&output));
        let mut uncached = settings.to_vec();
        uncached.push("train.cache_limit=0");
        assert!(train(&cache, &plain, &uncached).output().unwrap().status.success());
        assert!(results(&cached) == results(&plain), "{family}");
    }
}

#[test]
fn layers_that_are_not_there_or_chosen_twice_are_refused_by_key() {
    let directory = tempfile::tempdir().unwrap();
    for (settings, message) in [
        (&["model.lora_layers=3"][..], "model.lora_layers is 3, and the base has 2 layers"),
        (&["model.lora_layers=[0, 2]"], "model.lora_layers names layer 2, and the base has 2 layers, 0 to 1"),
        (&["model.lora_layers=0"], "`model.lora_layers` is `0`"),
        (&["model.lora_layers=[]"], "`model.lora_layers`"),
        (&["model.lora_target_modules=.*q_proj"], "model.lora_layers chooses layers of modules that are named"),
        (&["model.lora_target_modules=[]"], "model.lora_layers is set, and model.lora_target_modules is []"),
        (&["model.base_dropout=0.1"], "`model.base_dropout` must be 0"),
        (&["train.cache_limit=many"], "`train.cache_limit` is `many`, expected a number of bytes"),
    ] {
        let output = train(directory.path(), &directory.path().join("out"), settings).output().unwrap();
        assert!(!output.status.success() && errors(&output).contains(message), "{settings:?}: {}", errors(&output));
        assert!(!directory.path().join("out").exists());
    }
}

/// As peft 0.21.2 has it for `layers_to_transform`: beside names, never beside `all-linear`.
#[test]
fn the_adapter_names_its_layers_as_peft_does() {
    let directory = tempfile::tempdir().unwrap();
    for (targets, expected) in [
        ("[q_proj, mlp.up_proj]", serde_json::json!(["q_proj", "mlp.up_proj"])),
        (
            "all-linear",
            serde_json::json!(["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        ),
    ] {
        let root = directory.path().join(targets);
        let setting = format!("model.lora_target_modules={targets}");
        let output = train(directory.path(), &root, &[&setting, "exp.seeds=[1]"]).output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
        let config = fs::read(run_of(&root).join("seed_1/best/adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["target_modules"], expected);
        assert_eq!(config["layers_to_transform"], serde_json::json!([1]));
    }
}

/// Settings of a training of the head alone.
const PROBE: [&str; 4] =
    ["model.lora_target_modules=[]", "model.lora_layers=null", "train.learning_rate=0.05", "train.num_train_epochs=6"];

#[test]
fn a_probe_trains_the_head_alone_on_outputs_computed_once() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, root) = (directory.path().join("cache"), directory.path());
    let output = train(&cache, &root.join("probe"), &PROBE).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    assert!(errors(&output).contains("output of the 2 frozen layers is computed once"), "{}", errors(&output));
    let mut uncached = PROBE.to_vec();
    uncached.push("train.cache_limit=0");
    assert!(train(&cache, &root.join("uncached"), &uncached).output().unwrap().status.success());
    let results = results(&root.join("probe"));
    assert!(results == self::results(&root.join("uncached")));

    let best = run_of(&root.join("probe")).join("seed_1/best");
    let tensors = Checkpoint::open(&[best.join("adapter_model.safetensors")]).unwrap();
    assert_eq!(tensors.names().collect::<Vec<_>>(), ["base_model.model.score.weight"]);
    let card = fs::read_to_string(best.join("README.md")).unwrap();
    assert!(card.contains("trained alone on the unchanged outputs of its base"), "{card}");
    // It learned something: the head's rows are not what they started as, and predictions are the run's own.
    let arguments = ["predict", "data/debtags/test.csv", "-o", "-", "--run"];
    let predicted = llmcls(&cache, &arguments).arg(&best).output().unwrap();
    assert!(predicted.status.success(), "{}", errors(&predicted));
    let own = String::from_utf8(results[2].clone()).unwrap();
    let probabilities = |line: &str| serde_json::from_str::<Value>(line).unwrap()["probs"].clone();
    let own: Vec<Value> = own.lines().map(probabilities).collect();
    let predicted = String::from_utf8(predicted.stdout).unwrap();
    assert_eq!(predicted.lines().take(own.len()).map(probabilities).collect::<Vec<_>>(), own);
}

#[test]
fn check_tells_what_the_cache_will_take_and_writes_none() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let mut command = train(&cache, &directory.path().join("out"), &["data.max_test_samples=1"]);
    let output = command.arg("--dry_run").output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    // 26, 12 and 1 texts of 24 tokens at most, 256 numbers of 4 bytes a token.
    let line = text.lines().find(|line| line.starts_with("cache: ")).unwrap();
    assert!(line.contains("of at most 9.3 GiB for the output of the 1 frozen layers"), "{line}");
    let size: f64 = line.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(line.contains("KiB of") && size <= 39.0 * 24.0 && size > 39.0 * 12.0, "{line}");
    assert!(!cache.join("llmcls/activations").exists() && !directory.path().join("out").exists());
}
