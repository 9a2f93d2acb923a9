//! The base of an experiment: its files, its weights, and what tells whether they have changed.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;

use crate::cluster::Group;
use crate::config::Config;
use crate::config::model::{ComputeType, Form, ModelConfig, TargetModules, TorchDtype, Trains};
use crate::console::Console;
use crate::data::long_text::Limit;
use crate::data::table::abridged;
use crate::data::tokenize::TextEncoder;
use crate::embedded;
use crate::hub::model_files::{ModelFiles, TOKENIZER_FILES};
use crate::kernels::Compute;
use crate::kernels::device::Device;
use crate::model::classifier::{Classifier, ClassifierOptions};
use crate::model::config::{BackboneConfig, Dropouts};
use crate::model::fingerprint::{self, Fingerprint};
use crate::model::held::HeldWeights;
use crate::model::lora::{LayerFilter, LoraOptions, Targets};
use crate::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use crate::run::classifier_file::{Base, RecordedFingerprint};
use crate::training::estimate::{self, StepShape};
use crate::training::optimizer::AdamW;
use crate::training::trainer::moment_storage;

/// In what products with frozen weights are computed, where it is the CPU that computes.
fn compute_on_cpu(model: &ModelConfig) -> Compute {
    match model.compute {
        ComputeType::Float32 => Compute::Float32,
        ComputeType::Bfloat16 => Compute::Bfloat16,
        ComputeType::Auto if model.torch_dtype == TorchDtype::Bfloat16 && Compute::Bfloat16.is_fast() => {
            Compute::Bfloat16
        }
        ComputeType::Auto => Compute::Float32,
    }
}

/// Puts in place of `auto` what it stands for on this CPU, or on rank 0's: results depend on it, so runs record it.
pub fn settle_compute(model: &mut ModelConfig, group: &Group) -> Result<()> {
    // Machines differ; the products of bf16 have the same bits on all of them.
    let is_bfloat16 = group.from_leader(|| Ok(compute_on_cpu(model) == Compute::Bfloat16))?;
    model.compute = if is_bfloat16 { ComputeType::Bfloat16 } else { ComputeType::Float32 };
    Ok(())
}

/// The base's files and how they are to be read.
pub struct BaseModel {
    /// The model's files.
    pub files: ModelFiles,
    /// `config.json`, as the `model` section has it computed.
    pub config: BackboneConfig,
    /// What of that differs from the model's family.
    pub form: Form,
    pub weights: Weights,
    /// Storage of the weights.
    pub storage: BaseStorage,
    /// The device that computes.
    pub device: Device,
    fingerprint: OnceCell<Fingerprint>,
    /// Frozen matrices that the classifiers share which are built on it one after the other.
    held: Option<HeldWeights>,
}

impl BaseModel {
    /// Finds and opens the base of a configuration's `model` section.
    pub fn open(model: &ModelConfig, device: &Device, console: Console) -> Result<Self> {
        let token = model.hf_token.as_ref().map(|token| token.secret());
        let files = ModelFiles::find(&model.model_name, token, !model.random_init, console)?;
        let (config, form) = configured(&files, model)?;
        let weights = if model.random_init {
            Weights::random(model.init_seed, config.initializer_range)
        } else {
            Weights::Checkpoint(Checkpoint::open(&files.weights)?)
        };
        let storage = BaseStorage {
            precision: match model.torch_dtype {
                TorchDtype::Float32 => Precision::Float32,
                TorchDtype::Bfloat16 => Precision::Bfloat16,
                TorchDtype::Float16 => Precision::Float16,
            },
            is_4bit: model.use_4bit,
        };
        let device = device.computing_in(compute_on_cpu(model));
        if !device.is_gpu() && !device.compute().is_fast() {
            console.say(if device.compute().is_native() {
                "model.compute: on this CPU bfloat16 is slower than float32, unless it goes through AMX: LLMCLS_AMX=1 (its \
                 numbers differ in the last bits)"
            } else {
                "model.compute: this CPU has no instructions for bfloat16 (AVX512_BF16): the same numbers take longer \
                 than float32 would"
            });
        }
        let device = match model.torch_dtype {
            TorchDtype::Float32 => device.with_dtype(DType::F32),
            TorchDtype::Bfloat16 => device.with_dtype(DType::BF16),
            TorchDtype::Float16 => {
                ensure!(!device.is_gpu(), "model.torch_dtype float16 is for the CPU; on a GPU use bfloat16 or float32");
                device.clone()
            }
        };
        Ok(Self { files, config, form, weights, storage, device, fingerprint: OnceCell::new(), held: None })
    }

    /// Describes a training step of at most `tokens` tokens, to estimate its memory.
    pub fn step_shape<'a>(
        &'a self,
        config: &Config,
        lora: &LoraOptions,
        classifier: &Classifier,
        tokens: usize,
    ) -> StepShape<'a> {
        let train = &config.train;
        let moments = moment_storage(config.model.use_4bit, train);
        StepShape {
            config: &self.config,
            storage: self.storage,
            frozen_layers: classifier.frozen_layers(),
            trained: classifier.trained_parameters(),
            accumulation: train.gradient_accumulation_steps,
            trains_base: lora.trains_base,
            optimizer_bytes: AdamW::bytes_for(classifier.params(), moments),
            recompute: train.gradient_checkpointing,
            tokens,
            device: &self.device,
        }
    }

    /// Keeps frozen matrices from the next classifier on, for those that follow on this base.
    pub fn keep_weights(&mut self) {
        self.held.get_or_insert_with(HeldWeights::default);
    }

    /// Sets what another `model` section says of how the same weights are computed with.
    ///
    /// # Errors
    /// If the base cannot be computed so.
    pub fn configure(&mut self, model: &ModelConfig) -> Result<()> {
        (self.config, self.form) = configured(&self.files, model)?;
        Ok(())
    }

    /// Refuses `model.random_init` over a base that has weights: they would not be used.
    ///
    /// # Errors
    /// If it has weights, or the Hub cannot be asked.
    pub fn refuse_unused_weights(model: &ModelConfig, console: Console) -> Result<()> {
        if !model.random_init {
            return Ok(());
        }
        let (name, token) = (&model.model_name, model.hf_token.as_ref().map(|token| token.secret()));
        if let Some(file) = ModelFiles::find_weights(name, token, console)? {
            bail!(
                "model.random_init is true, but `{name}` has weights ({file}), which would not be used: set \
                 model.random_init=false to train on them; for random weights, name a directory with the configuration and \
                 the tokenizer alone"
            );
        }
        Ok(())
    }

    /// The device, with the weights packed once where memory allows: the same results, in less time for few
    /// tokens.
    #[must_use]
    pub fn device_for_predicting(&self) -> Device {
        // Whoever quantizes wants them small.
        let packed = estimate::packed_bytes(&self.config, &self.device);
        let has_room = self.device.memory().is_none_or(|limits| packed <= limits.available / 2);
        self.device.packing_weights(has_room && !self.storage.is_4bit)
    }

    /// On how many threads a classifier each predicts faster than one classifier on all of them: on every thread where
    /// the model is small and memory allows, else on one.
    #[must_use]
    pub fn copies_for_predicting(&self) -> usize {
        /// Bytes of a small model.
        const SMALL: u64 = 64 << 20;
        let (packed, threads) = (estimate::packed_bytes(&self.config, &self.device), rayon::current_num_threads());
        // Where the file has another type than the weights, each copy also has all of them.
        let bytes = packed + estimate::base_bytes(&self.config, self.storage, &self.device);
        let has_room = self.device.memory().is_none_or(|limits| threads as u64 * bytes <= limits.available / 4);
        if self.device.is_gpu() || packed > SMALL || !has_room { 1 } else { threads }
    }

    /// Builds a classifier on this base.
    ///
    /// # Errors
    /// If a weight is missing or of another shape, or no module is a LoRA target.
    pub fn classifier(&self, options: &ClassifierOptions) -> Result<Classifier> {
        Classifier::on(&self.config, (&self.weights, self.held.as_ref()), options)
            .with_context(|| format!("{}: cannot build the model", self.files.name))
    }

    /// The base's tokenizer.
    pub fn encoder(&self, limit: Limit) -> Result<TextEncoder> {
        self.encoder_from(&self.files.tokenizer, limit)
    }

    /// Loads an encoder as [`BaseModel::encoder`] does, from the tokenizer files of another directory.
    pub fn encoder_from(&self, files: &[PathBuf], limit: Limit) -> Result<TextEncoder> {
        self.check_max_length(limit.tokens)?;
        TextEncoder::of_model(files, &self.files.config, limit, self.config.empty_token).with_context(|| {
            let directory = files.first().and_then(|path| path.parent());
            format!("{}: cannot use the tokenizer", directory.unwrap_or(Path::new(&self.files.name)).display())
        })
    }

    /// The tokenizer in the directory of an adapter: that of a run as it was saved, that of another as Python reads
    /// it, the base's if there is none.
    pub fn encoder_of(&self, adapter: &Path, is_of_a_run: bool, limit: Limit) -> Result<TextEncoder> {
        let files: Vec<PathBuf> = TOKENIZER_FILES.iter().map(|name| adapter.join(name)).collect();
        match embedded::is_file(&files[0]) {
            false => self.encoder(limit),
            true if is_of_a_run => {
                self.check_max_length(limit.tokens)?;
                TextEncoder::open(&files[0], limit, self.config.empty_token)
            }
            true => {
                let files: Vec<PathBuf> = files.into_iter().filter(|path| embedded::is_file(path)).collect();
                self.encoder_from(&files, limit)
            }
        }
    }

    fn check_max_length(&self, max_length: usize) -> Result<()> {
        if let Some(longest) = self.config.max_tokens {
            ensure!(
                max_length <= longest,
                "data.max_length is {max_length}, and `{}` can take {longest} tokens; set data.max_length={longest} or less",
                self.files.name
            );
        }
        Ok(())
    }

    /// The fingerprint of its files.
    pub fn fingerprint(&self, console: Console) -> Result<&Fingerprint> {
        if let Some(fingerprint) = self.fingerprint.get() {
            return Ok(fingerprint);
        }
        let fingerprint = Fingerprint::new(&self.files.config, &self.weights, &self.files.tokenizer, console)?;
        Ok(self.fingerprint.get_or_init(|| fingerprint))
    }

    /// The fingerprint that older versions took.
    pub fn sampled_fingerprint(&self) -> Result<String> {
        fingerprint::sampled(&self.files.config, &self.weights)
    }

    /// The base's part of `classifier.json`.
    pub fn record(&self, console: Console) -> Result<Base> {
        Ok(Base {
            name: self.files.name.clone(),
            revision: self.files.revision.clone(),
            commit: self.files.commit.clone(),
            fingerprint: RecordedFingerprint::Whole(self.fingerprint(console)?.clone()),
        })
    }

    /// Refuses a base that is not the one that a classifier was trained on. Its tokenizer counts only where the
    /// classifier has none of its own.
    pub fn ensure_is(&self, trained: &Base, needs_tokenizer: bool, console: Console) -> Result<()> {
        let name = &self.files.name;
        let changed = match &trained.fingerprint {
            RecordedFingerprint::Whole(then) => {
                let now = self.fingerprint(console)?;
                let mut changed = now.differences(then);
                changed.retain(|part| needs_tokenizer || *part != "tokenizer");
                let tensors = now.changed_tensors(then);
                let weights = format!("weights ({})", abridged(&tensors));
                for part in changed.iter_mut().filter(|part| **part == "weights" && !tensors.is_empty()) {
                    *part = &weights;
                }
                changed.join(" and ")
            }
            RecordedFingerprint::Sampled(then) => {
                console.warn(format!(
                    "an older llmcls trained this classifier and recorded only a sample of its base, `{name}`: a change \
                     of the base elsewhere would not be seen"
                ));
                if self.sampled_fingerprint()? == *then { String::new() } else { "configuration or weights".to_owned() }
            }
        };
        if changed.is_empty() {
            return Ok(());
        }
        let way_out = match &trained.commit {
            Some(_) => format!("--set model.model_name={}", trained.exact_name()),
            None => "--set model.model_name=DIR, with the directory where the right one lies".to_owned(),
        };
        bail!("trained on another base: the {changed} of `{name}` differ from the base's of then; use {way_out}")
    }
}

/// The architecture of a base as a `model` section has it computed.
fn configured(files: &ModelFiles, model: &ModelConfig) -> Result<(BackboneConfig, Form)> {
    let mut config = BackboneConfig::from_file(&files.config)?;
    if model.base_dropout.is_some() {
        config.dropouts = Dropouts::default();
    }
    let form = config.set_form(model.form()).with_context(|| files.name.clone())?;
    Ok((config, form))
}

/// Encoders of more parameters are not trained in full: their weights, gradients and moments take 16 bytes each.
const MOST_TRAINED: usize = 400_000_000;

/// The weights that a configuration's `model` section trains on a base.
///
/// # Errors
/// If it asks for all weights of a base or on a device where they are not trained, or the pattern of target modules
/// does not parse.
pub fn trained_part(model: &ModelConfig, base: &BaseModel) -> Result<LoraOptions> {
    if model.train == Trains::Lora {
        return lora_options(model, &base.config);
    }
    let name = &base.files.name;
    let parameters = base.config.linear_weights() + base.config.embedding_weights();
    ensure!(
        base.config.is_encoder(),
        "model.train is all, and `{name}` is a decoder: every weight is trained of encoders alone, such as BERT; use \
         model.train=lora"
    );
    ensure!(
        base.config.has_plain_layers(),
        "model.train is all, and `{name}` is of a family of which adapters alone are trained; use model.train=lora"
    );
    ensure!(
        parameters <= MOST_TRAINED,
        "model.train is all, and `{name}` has {} million parameters: every weight is trained of encoders of up to {} \
         million; use model.train=lora",
        parameters / 1_000_000,
        MOST_TRAINED / 1_000_000
    );
    ensure!(!base.device.is_gpu(), "model.train is all, which is computed on the CPU alone; add --device cpu");
    Ok(LoraOptions::every_weight())
}

/// The adapters of a configuration's `model` section. Without `lora_target_modules` they are in the modules that the
/// family's models usually get them in.
fn lora_options(model: &ModelConfig, base: &BackboneConfig) -> Result<LoraOptions> {
    let targets = match &model.lora_target_modules {
        Some(TargetModules::Names(names)) => Targets::Names(names.clone()),
        Some(TargetModules::Pattern(pattern)) => Targets::from_pattern(pattern).context("model.lora_target_modules")?,
        None if base.default_targets.is_empty() => Targets::AllLinear,
        None => Targets::names(base.default_targets),
    };
    let layers = match &model.lora_layers {
        None => None,
        Some(layers) => {
            ensure!(
                !matches!(targets, Targets::Pattern(_)),
                "model.lora_layers chooses layers of modules that are named; a regular expression in \
                 model.lora_target_modules matches whole names, so name the layers in it"
            );
            Some(LayerFilter::new(layers.of(base.num_hidden_layers)?, &[])?)
        }
    };
    let lora = LoraOptions::new(model.lora_r, model.lora_alpha, model.lora_dropout, targets);
    ensure!(
        layers.is_none() || !lora.is_probe(),
        "model.lora_layers is set, and model.lora_target_modules is [], which adapts no layer: drop one of them"
    );
    Ok(LoraOptions { use_rslora: model.use_rslora, layers, ..lora })
}
