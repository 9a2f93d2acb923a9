//! `llmcls bench`: times training or inference steps of a configuration's model.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::configuration;
use crate::cli::{BenchArgs, BenchMode};
use crate::config::Config;
use crate::console::{Console, print};
use crate::exit::Usage;
use crate::experiment::base_model::{BaseModel, trained_part};
use crate::experiment::init_adapter::InitAdapter;
use crate::kernels::cpu::flops;
use crate::kernels::cpu::memory;
use crate::kernels::device::Device;
use crate::model::batch::Batch;
use crate::model::classifier::{Classifier, ClassifierOptions, Problem};
use crate::model::lora::LoraOptions;
use crate::model::quantization::Quantization;
use crate::ops::loss::BceWeights;
use crate::ops::tape::{DropoutKey, Tape};
use crate::training::estimate::MemoryEstimate;
use crate::training::optimizer::{AdamW, clip_factor, gradient_norm};
use crate::training::trainer::{forward_backward, moment_storage};

/// Times steps and prints one JSON object.
pub fn run(args: &BenchArgs, device: &Device, console: Console) -> Result<()> {
    let started = Instant::now();
    let config = configuration::load(&args.config)?.ok_or_else(|| Usage("bench needs --config FILE".to_owned()))?;
    let base = BaseModel::open(&config.model, device, console)?;
    let lora = trained_part(&config.model, &base)?;
    let classifier = base.classifier(&ClassifierOptions {
        labels: args.labels,
        base_rows: None,
        problem: Problem::from(config.model.problem_type),
        storage: base.storage,
        lora: lora.clone(),
        weights: BceWeights::default(),
        recompute: config.train.gradient_checkpointing,
        quantization: Quantization::Off,
        device: match args.mode {
            BenchMode::Infer => base.device_for_predicting(),
            BenchMode::Train => base.device.clone(),
        },
    })?;
    classifier.initialize(config.exp.seeds[0])?;
    let model = &config.model;
    if !lora.trains_base
        && let Some(adapter) = InitAdapter::open_for_timing(model, &base, args.labels, &lora, &classifier, console)?
    {
        adapter.apply(&classifier)?;
    }
    let batches = batches(args, base.config.vocab_size)?;
    if args.mode == BenchMode::Train {
        pack_weights((&config, &lora), &base, &classifier, &batches);
    }
    let load_seconds = started.elapsed().as_secs_f64();
    let load_peak = memory::peak_bytes();
    console.say(format!("{} loaded in {load_seconds:.1} s", base.files.name));

    let mut timer = Timer { config: &config, classifier: &classifier, optimizer: None, step: 0 };
    for step in 0..args.warmup {
        timer.run(args.mode, &batches[step % batches.len()])?;
    }
    base.device.wait()?;
    let first_step_seconds = started.elapsed().as_secs_f64();
    let (mut seconds, mut losses, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    let counted = flops::multiply_adds();
    for step in 0..args.steps {
        let batch = &batches[step % batches.len()];
        let begin = Instant::now();
        losses.push(timer.run(args.mode, batch)?);
        base.device.wait()?;
        seconds.push(begin.elapsed().as_secs_f64());
        tokens.push(batch.token_ids.len());
    }
    let flops_done = 2.0 * (flops::multiply_adds() - counted) as f64;
    let (total_seconds, total_tokens) = (seconds.iter().sum::<f64>(), tokens.iter().sum::<usize>());
    let peak = memory::peak_bytes();
    let gpu = base.device.description();
    let rate = base.device.measure_rate()?;
    let compute = if gpu.is_some() { "gpu" } else { base.device.compute().name() };
    let base = classifier.base();
    let result = json!({
        "mode": args.mode.name(),
        "seconds": seconds,
        "tokens": tokens,
        "losses": losses,
        "tokens_per_second": total_tokens as f64 / total_seconds,
        "load_seconds": load_seconds,
        "first_step_seconds": (args.warmup > 0).then_some(first_step_seconds),
        "flops_per_step": flops_done / args.steps as f64,
        "gflops": flops_done / total_seconds / 1e9,
        "gemm_gflops": rate / 1e9,
        "share_of_floor": flops_done / rate / total_seconds,
        "base_parameters": base.parameters,
        "base_bytes": base.bytes,
        "embedding_bytes": base.embedding_bytes,
        "adapter_bytes": 4 * classifier.trained_parameters(),
        "optimizer_bytes": timer.optimizer.as_ref().map(AdamW::bytes),
        "load_peak_bytes": load_peak,
        "peak_bytes": peak,
        "gpu": gpu.as_ref().map(|gpu| &gpu.name),
        "gpu_peak_bytes": gpu.as_ref().map(|gpu| gpu.peak_bytes),
        "compute": compute,
        "threads": rayon::current_num_threads(),
    });
    print(&format!("{result}\n"))
}

/// Packs the weights once, where a training on such batches does.
fn pack_weights((config, lora): (&Config, &LoraOptions), base: &BaseModel, classifier: &Classifier, batches: &[Batch]) {
    let tokens = batches.iter().map(|batch| batch.token_ids.len());
    let shape = base.step_shape(config, lora, classifier, tokens.clone().max().unwrap_or(0));
    let available = base.device.memory().map(|limits| limits.available);
    let mean_tokens = tokens.sum::<usize>() / batches.len();
    if MemoryEstimate::new(&shape).with_copies(&shape, mean_tokens, available).packed > 0 {
        classifier.pack_weights();
    }
}

struct Timer<'a> {
    config: &'a Config,
    classifier: &'a Classifier,
    optimizer: Option<AdamW>,
    step: u32,
}

impl Timer<'_> {
    /// One step; returns its loss.
    fn run(&mut self, mode: BenchMode, batch: &Batch) -> Result<f64> {
        let classifier = self.classifier;
        if mode == BenchMode::Infer {
            let tape = Tape::off();
            let logits = classifier.logits(&tape, batch)?;
            return Ok(f64::from(classifier.loss(&tape, &logits, &batch.labels)?.tensor().to_scalar::<f32>()?));
        }
        let train = &self.config.train;
        if self.optimizer.is_none() {
            let storage = moment_storage(self.config.model.use_4bit, train);
            self.optimizer = Some(AdamW::new(classifier.params(), train.weight_decay, storage)?);
        }
        let optimizer = self.optimizer.as_mut().expect("it was just made");
        for param in classifier.params() {
            param.clear_gradient();
        }
        let key = DropoutKey { seed: self.config.exp.seeds[0], micro_batch: self.step };
        let loss = forward_backward(classifier, batch, key)?;
        optimizer.step(train.learning_rate, clip_factor(gradient_norm(classifier.params())?, train.max_grad_norm))?;
        self.step += 1;
        Ok(loss)
    }
}

/// The batches of a file, or one of the asked shape; labels follow a fixed pattern.
fn batches(args: &BenchArgs, vocabulary: usize) -> Result<Vec<Batch>> {
    let tokens: Vec<Vec<Vec<u32>>> = match &args.batches {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
            serde_json::from_str(&text)
                .with_context(|| format!("{}: not a list of batches of lists of token ids", path.display()))?
        }
        None => {
            let token = |row: usize, at: usize| ((row * 7919 + at * 104_729) % vocabulary) as u32;
            let row = |row| (0..args.length).map(|at| token(row, at)).collect();
            vec![(0..args.batch_size).map(row).collect()]
        }
    };
    ensure!(
        !tokens.is_empty() && tokens.iter().all(|batch| !batch.is_empty() && batch.iter().all(|row| !row.is_empty())),
        "a batch without tokens"
    );
    let label = |row: usize, label: usize| f32::from(u8::from((7 * row + 3 * label).is_multiple_of(5)));
    let batch = |batch: &Vec<Vec<u32>>| {
        let labels: Vec<Vec<f32>> =
            (0..batch.len()).map(|row| (0..args.labels).map(|column| label(row, column)).collect()).collect();
        Batch::new(batch.iter().zip(&labels).map(|(tokens, labels)| (&**tokens, &**labels)))
    };
    tokens.iter().map(|tokens| Ok(batch(tokens)?)).collect()
}
