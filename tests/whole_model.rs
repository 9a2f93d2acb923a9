//! Every weight of an encoder trained, against transformers 4.57.6 and torch 2.15; the numbers are made by
//! `scripts/make_whole_fixtures.py`.

use std::path::{Path, PathBuf};

use llmcls::kernels::device::Device;
use llmcls::model::batch::Batch;
use llmcls::model::classifier::{Classifier, ClassifierOptions, Problem};
use llmcls::model::config::BackboneConfig;
use llmcls::model::lora::LoraOptions;
use llmcls::model::quantization::Quantization;
use llmcls::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use llmcls::ops::loss::BceWeights;
use llmcls::ops::tape::{DropoutKey, Tape};
use llmcls::run::whole_model;
use llmcls::training::optimizer::{AdamW, MomentStorage, clip_factor, gradient_norm};
use serde::Deserialize;

const NAMES: [&str; 6] = ["bert", "roberta", "xlm_roberta", "distilbert", "modernbert", "nomic_bert"];

#[derive(Deserialize)]
struct BatchFile {
    token_ids: Vec<Vec<u32>>,
    labels: Vec<Vec<f32>>,
    problem_type: String,
}

struct Fixture {
    classifier: Classifier,
    config: PathBuf,
    problem: Problem,
    batch: Batch,
    labels: usize,
    expected: Checkpoint,
}

fn build(directory: &Path, labels: usize, problem: Problem, lora: LoraOptions, recompute: bool) -> Classifier {
    let config = BackboneConfig::from_file(&directory.join("config.json")).unwrap();
    let weights = Weights::Checkpoint(Checkpoint::open(&[directory.join("model.safetensors")]).unwrap());
    let options = ClassifierOptions {
        labels,
        base_rows: (!lora.trains_base).then(|| (0..labels).collect()),
        problem,
        quantization: Quantization::Off,
        storage: BaseStorage { precision: Precision::Float32, is_4bit: false },
        lora,
        weights: BceWeights::default(),
        recompute,
        device: Device::cpu(),
    };
    Classifier::new(&config, &weights, &options).unwrap()
}

fn open(name: &str, recompute: bool) -> Fixture {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let directory = fixtures.join(name);
    let mut rows: BatchFile =
        serde_json::from_str(&std::fs::read_to_string(directory.join("batch.json")).unwrap()).unwrap();
    let problem = if rows.problem_type.starts_with("single") { Problem::SingleLabel } else { Problem::MultiLabel };
    let config = BackboneConfig::from_file(&directory.join("config.json")).unwrap();
    rows.token_ids.push(vec![5, config.padding_token.unwrap(), 7, 9, 6]);
    rows.labels.push(rows.labels[0].clone());
    let labels = rows.labels[0].len();
    let classifier = build(&directory, labels, problem, LoraOptions::every_weight(), recompute);
    classifier.initialize(3).unwrap();
    let expected = Checkpoint::open(&[fixtures.join(format!("whole/{name}.safetensors"))]).unwrap();
    let start: Vec<Vec<f32>> = classifier
        .params()
        .iter()
        .map(|param| match expected.shape(&format!("start.{}", param.name())) {
            Some(shape) => expected.floats(&format!("start.{}", param.name()), shape).unwrap(),
            None => param.value().flatten_all().unwrap().to_vec1().unwrap(),
        })
        .collect();
    classifier.set(&start).unwrap();
    let batch = Batch::new(rows.token_ids.iter().zip(&rows.labels).map(|(tokens, labels)| (&**tokens, &**labels)));
    Fixture { classifier, config: directory.join("config.json"), problem, batch: batch.unwrap(), labels, expected }
}

impl Fixture {
    fn forward_backward(&self, tape: Tape) -> (Vec<f32>, f32) {
        for param in self.classifier.params() {
            param.clear_gradient();
        }
        let logits = self.classifier.logits(&tape, &self.batch).unwrap();
        let loss = self.classifier.loss(&tape, &logits, &self.batch.labels).unwrap();
        let numbers = logits.tensor().flatten_all().unwrap().to_vec1().unwrap();
        let value = loss.tensor().to_scalar().unwrap();
        let one = candle_core::Tensor::new(1f32, &candle_core::Device::Cpu).unwrap();
        tape.backward(&loss, one).unwrap();
        (numbers, value)
    }

    fn gradients(&self) -> Vec<Vec<f32>> {
        self.classifier.params().iter().map(|p| p.gradient().flatten_all().unwrap().to_vec1().unwrap()).collect()
    }
}

fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= tolerance * (1.0 + largest), "{name}[{index}]: {found}, expected {expected}");
    }
}

/// Sums of up to 80 products in f32, in another order.
#[test]
fn every_gradient_of_an_encoder_that_is_trained_in_full_is_that_of_transformers() {
    for name in NAMES {
        let fixture = open(name, false);
        let (logits, _) = fixture.forward_backward(Tape::recording(None));
        let shape = [fixture.batch.len(), fixture.labels];
        assert_close(name, &logits, &fixture.expected.floats("logits", &shape).unwrap(), 1e-5);
        let norm = gradient_norm(fixture.classifier.params()).unwrap() as f32;
        assert_close(name, &[norm], &fixture.expected.floats("norm", &[1]).unwrap(), 1e-5);
        let expected = fixture.expected.names().filter(|name| name.starts_with("gradient.")).count();
        assert_eq!(fixture.classifier.params().len(), expected, "{name}: trained parameters");
        assert_eq!(fixture.classifier.base().parameters, 0, "{name}: frozen weights");
        for (param, gradient) in fixture.classifier.params().iter().zip(fixture.gradients()) {
            let key = format!("gradient.{}", param.name());
            let expected = fixture.expected.floats(&key, param.value().dims()).unwrap();
            assert_close(&format!("{name}: {key}"), &gradient, &expected, 2e-5);
            assert!(param.has_gradient(), "{name}: {key} has not arrived");
        }
    }
}

/// Adam divides by the root of the second moment, which magnifies rounding where gradients are near zero.
#[test]
fn the_losses_of_five_steps_are_those_of_torch() {
    for name in NAMES {
        let fixture = open(name, false);
        let params = fixture.classifier.params();
        let mut optimizer = AdamW::new(params, 0.1, MomentStorage::Float32).unwrap();
        let mut losses = Vec::new();
        for step in 0..5 {
            losses.push(fixture.forward_backward(Tape::recording(None)).1);
            let norm = gradient_norm(params).unwrap();
            optimizer.step(0.003 * f64::from(5 - step) / 5.0, clip_factor(norm, 1.0)).unwrap();
        }
        assert_close(name, &losses, &fixture.expected.floats("losses", &[5]).unwrap(), 1e-4);
        assert!(losses[4] < losses[0], "{name}: {losses:?}");
    }
}

#[test]
fn recomputed_layers_give_the_same_gradients_to_the_last_bit() {
    for name in NAMES {
        let key = DropoutKey { seed: 5, micro_batch: 3 };
        let [plain, again] = [false, true].map(|recompute| {
            let fixture = open(name, recompute);
            let output = fixture.forward_backward(Tape::recording(Some(key)));
            (output, fixture.gradients())
        });
        assert_eq!(plain, again, "{name}");
    }
}

/// `predict` holds the saved weights frozen: its numbers are those of training to the last bit.
#[test]
fn a_saved_model_predicts_the_same_bits_as_the_trained_one() {
    for name in NAMES {
        let fixture = open(name, false);
        let trained = fixture.forward_backward(Tape::recording(None)).0;
        let directory = tempfile::tempdir().unwrap();
        whole_model::save(directory.path(), &fixture.classifier).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&fixture.config).unwrap()).unwrap();
        let labels = (0..fixture.labels).map(|label| (label.to_string(), serde_json::json!(format!("label {label}"))));
        config["id2label"] = serde_json::Value::Object(labels.collect());
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let frozen = build(directory.path(), fixture.labels, fixture.problem, LoraOptions::none(), false);
        frozen.set_to_base().unwrap();
        assert!(frozen.base().parameters > 0, "{name}: nothing is frozen");
        let found = frozen.logits(&Tape::off(), &fixture.batch).unwrap();
        assert_eq!(found.tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap(), trained, "{name}");
        // And training goes on from it.
        fixture.classifier.initialize(4).unwrap();
        whole_model::load(directory.path(), &fixture.classifier).unwrap();
        assert_eq!(fixture.forward_backward(Tape::recording(None)).0, trained, "{name}");
    }
}

/// `llmcls` on a small BERT without weights.
mod runs {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use assert_cmd::cargo::CommandCargoExt;
    use serde_json::{Value, json};

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    fn base() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let tokenizer = fs::read_to_string(root().join("data/tiny-llama/tokenizer.json")).unwrap();
        let tiny: Value =
            serde_json::from_slice(&fs::read(root().join("data/tiny-llama/config.json")).unwrap()).unwrap();
        let config = json!({
            "model_type": "bert", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": tiny["vocab_size"], "max_position_embeddings": 64, "pad_token_id": 0,
            "bos_token_id": 0, "eos_token_id": 1,
        });
        fs::create_dir(directory.path().join("base")).unwrap();
        fs::write(directory.path().join("base/config.json"), config.to_string()).unwrap();
        fs::write(directory.path().join("base/tokenizer.json"), tokenizer).unwrap();
        directory
    }

    fn train(directory: &Path, out: &str, more: &[&str], failpoint: Option<&str>) -> Output {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.current_dir(directory).args(["--threads", "1", "train", "--config"]);
        command.arg(root().join("configs/data/debtags.yaml")).args(["--override_output_root", out]);
        for split in ["train", "val", "test"] {
            let file = if split == "val" { "validation" } else { split };
            command
                .arg("--set")
                .arg(format!("data.{split}_csv={}", root().join(format!("data/debtags/{file}.csv")).display()));
            command.args(["--set", &format!("data.max_{split}_samples={}", if split == "train" { 20 } else { 9 })]);
        }
        for setting in [
            "data.max_length=24",
            "model.model_name=base",
            "model.random_init=true",
            "model.train=all",
            "train.num_train_epochs=2",
            "train.batch_size=3",
            "train.gradient_accumulation_steps=2",
            "train.save_steps=3",
            "train.save_total_limit=2",
            "train.learning_rate=0.01",
            "exp.seeds=[1, 4]",
        ] {
            command.args(["--set", setting]);
        }
        if let Some(failpoint) = failpoint {
            command.env("LLMCLS_FAILPOINT", failpoint);
        }
        command.args(more).output().unwrap()
    }

    fn run_of(out: &Path) -> PathBuf {
        fs::read_dir(out.join("base/debtags")).unwrap().next().unwrap().unwrap().path()
    }

    fn errors(output: &Output) -> String {
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    #[test]
    fn a_killed_training_of_every_weight_goes_on_bit_for_bit_and_needs_no_base_afterwards() {
        let directory = base();
        let at = |name: &str| directory.path().join(name);
        let whole = train(directory.path(), "whole", &[], None);
        assert!(whole.status.success(), "{}", errors(&whole));
        assert!(errors(&whole).contains("0 frozen weights"), "{}", errors(&whole));
        for step in [2, 5] {
            let out = format!("killed_{step}");
            let killed = train(directory.path(), &out, &[], Some(&format!("step:{step}:kill")));
            assert!(!killed.status.success());
            let run = run_of(&at(&out));
            let mut resume = Command::cargo_bin("llmcls").unwrap();
            resume.current_dir(directory.path()).args(["--threads", "1", "train", "--resume"]).arg(&run);
            let resumed = resume.output().unwrap();
            assert!(resumed.status.success(), "step {step}: {}", errors(&resumed));
            for file in
                ["seed_1/best/model.safetensors", "seed_4/best/model.safetensors", "seed_4/predictions_test.jsonl"]
            {
                let read = |run: &Path| fs::read(run.join(file)).unwrap();
                assert!(read(&run) == read(&run_of(&at("whole"))), "step {step}: {file} differs");
            }
        }
        let run = run_of(&at("whole"));
        let best = run.join("seed_1/best");
        let config: Value = serde_json::from_slice(&fs::read(best.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
        assert_eq!(config["id2label"].as_object().unwrap().len(), 12);
        assert!(!best.join("adapter_config.json").exists());
        let card = fs::read_to_string(best.join("README.md")).unwrap();
        assert!(card.contains("library_name: transformers") && !card.contains("peft"), "{card}");
        fs::remove_dir_all(at("base")).unwrap();
        let llmcls = |arguments: &[&str]| {
            let mut command = Command::cargo_bin("llmcls").unwrap();
            command.current_dir(directory.path()).args(["--threads", "1"]).args(arguments).output().unwrap()
        };
        let seed = run.join("seed_4").display().to_string();
        let evaluated = llmcls(&["eval", "--run", &seed, "--output_dir", "scores"]);
        assert!(evaluated.status.success(), "{}", errors(&evaluated));
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&at("scores/predictions.jsonl")), read(&run.join("seed_4/predictions_test.jsonl")));
        let refused = llmcls(&["predict", "--run", &seed, "--text", "x", "--set", "model.model_name=base"]);
        assert!(errors(&refused).contains("needs no base"), "{}", errors(&refused));
    }

    #[test]
    fn a_model_that_pools_another_way_is_read_back_by_llmcls_and_by_nothing_else() {
        let directory = base();
        let trained = train(directory.path(), "mean", &["--set", "model.pooling=mean", "--set", "exp.seeds=[1]"], None);
        assert!(trained.status.success(), "{}", errors(&trained));
        let run = run_of(&directory.path().join("mean"));
        let best = run.join("seed_1/best");
        let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(best.join(name)).unwrap()).unwrap() };
        // transformers knows no such model, and says so.
        assert_eq!(read("config.json")["model_type"], "llmcls_bert");
        let described = read("classifier.json");
        assert_eq!((&described["pooling"], &described["format_version"]), (&json!("mean"), &json!(3)));
        let names = fs::read(best.join("model.safetensors")).unwrap();
        assert!(!String::from_utf8_lossy(&names[..4000.min(names.len())]).contains("pooler"));
        let card = fs::read_to_string(best.join("README.md")).unwrap();
        assert!(card.contains("Only llmcls computes this classifier as it was trained (pooling mean)"), "{card}");
        assert!(!card.contains("library_name") && !card.contains("from transformers"), "{card}");
        let llmcls = |arguments: &[&str]| {
            let mut command = Command::cargo_bin("llmcls").unwrap();
            command.current_dir(directory.path()).args(["--threads", "1"]).args(arguments).output().unwrap()
        };
        let run = run.display().to_string();
        let evaluated = llmcls(&["eval", "--run", &run, "--output_dir", "scores"]);
        assert!(evaluated.status.success(), "{}", errors(&evaluated));
        let predictions = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(
            predictions(&directory.path().join("scores/predictions.jsonl")),
            predictions(&best.join("../predictions_test.jsonl"))
        );
        let exported = llmcls(&["export", "--run", &run, "--out", "complete"]);
        assert!(errors(&exported).contains("trained with pooling mean"), "{}", errors(&exported));
        assert!(!directory.path().join("complete").exists());
    }

    #[test]
    fn what_does_not_go_with_every_weight_is_refused_by_its_key() {
        let directory = base();
        let tiny = format!("model.model_name={}", root().join("data/tiny-llama").display());
        for (setting, parts) in [
            ("model.use_4bit=true", ["model.use_4bit", "model.train: all"]),
            ("model.torch_dtype=bfloat16", ["model.torch_dtype", "float32"]),
            ("model.compute=bfloat16", ["model.compute", "f32"]),
            ("model.lora_r=4", ["model.lora_r", "adapters"]),
            ("model.lora_target_modules=all-linear", ["model.lora_target_modules", "adapters"]),
            ("model.init_adapter=x", ["model.init_adapter", "adapters"]),
            (&tiny, ["decoder", "model.train=lora"]),
        ] {
            let output = train(directory.path(), "out", &["--set", setting], None);
            assert_eq!(output.status.code(), Some(1), "{setting}");
            assert!(parts.iter().all(|part| errors(&output).contains(part)), "{setting}: {}", errors(&output));
        }
        assert!(!directory.path().join("out").exists());
    }
}
