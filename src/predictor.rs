//! A trained classifier, ready to predict: one type behind `predict`, `eval` and whatever serves predictions.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::cluster::Group;
use crate::config::model::{ComputeType, ModelConfig};
use crate::console::Console;
use crate::crew::Crew;
use crate::data::table::{Example, typed_text};
use crate::data::tokenize::{Encoded, TextEncoder};
use crate::embedded;
use crate::evaluation::{Evaluation, Sample, evaluate};
use crate::exit::quoted;
use crate::experiment::base_head;
use crate::experiment::base_model::BaseModel;
use crate::experiment::dataset::{self, Rows};
use crate::experiment::why;
use crate::kernels::device::Device;
use crate::metrics::Decision;
use crate::model::attributions::Attribution;
use crate::model::classifier::{Classifier, ClassifierOptions, Problem};
use crate::model::lora::LoraOptions;
use crate::model::quantization::{Maxima, Quantization};
use crate::model::shared_base::SharedBase;
use crate::ops::loss::BceWeights;
use crate::run::adapter;
use crate::run::classifier_file::ClassifierFile;
use crate::run::int8_file::Int8File;
use crate::run::records::Why;
use crate::run::trained::Trained;

/// Number type of products with frozen weights, for one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// f32
    #[value(name = "float32")]
    Float32,
    /// Both factors rounded to bf16, with sums in f32
    #[value(name = "bfloat16")]
    Bfloat16,
    /// Both factors rounded to int8, outliers to bf16; for a classifier of which `eval` has measured what it costs
    #[value(name = "int8")]
    Int8,
}

impl Precision {
    /// Overrules what a classifier's `model` section says, before its base is opened.
    ///
    /// # Errors
    /// On a GPU, which computes in the type of its activations.
    pub fn overrule(self, model: &mut ModelConfig, device: &Device) -> Result<()> {
        ensure!(
            !device.is_gpu(),
            "--precision is for the CPU; on a GPU products are computed in model.torch_dtype: leave it out, or add \
             --device cpu"
        );
        match self {
            Self::Float32 => model.compute = ComputeType::Float32,
            Self::Bfloat16 => model.compute = ComputeType::Bfloat16,
            // What is left in other numbers, the head among it, is computed as in training.
            Self::Int8 => {}
        }
        Ok(())
    }

    /// In configurations' words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }
}

/// Points of micro-F1 that int8 may cost unless the user accepts more.
const ACCEPTED_LOSS: f64 = 0.5;

/// How far the inputs of a trained classifier's modules reach, for predicting in int8.
///
/// # Errors
/// If nobody has measured what int8 costs it, or it costs more than half a point and that is not accepted.
pub fn int8_maxima(trained: &Trained, description: Option<&ClassifierFile>, accepts_loss: bool) -> Result<Maxima> {
    let way_out = || {
        match embedded::contains(&trained.adapter) {
        true => "bundle the run once more after `llmcls eval --split validation --precision int8`, or use --precision bfloat16"
            .to_owned(),
        false => format!(
            "run `llmcls eval --run {} --split validation --precision int8`, or use --precision bfloat16",
            quoted(&trained.home.display().to_string())
        ),
    }
    };
    let file = Int8File::load(&trained.adapter)?.with_context(|| {
        format!("--precision int8: what it costs this classifier has not been measured; {}", way_out())
    })?;
    ensure!(
        description.is_none_or(|now| now.thresholds == file.thresholds) || accepts_loss,
        "--precision int8: what it costs was measured with other thresholds than the classifier has now; {}",
        way_out()
    );
    ensure!(
        file.cost() <= ACCEPTED_LOSS || accepts_loss,
        "--precision int8 costs {:.1} points of micro-F1 on {} validation rows ({:.4} instead of {:.4}); use --precision \
         bfloat16, or add --accept_loss",
        file.cost(),
        file.rows,
        file.int8.f1_micro,
        file.reference.f1_micro
    );
    Ok(file.maxima)
}

/// A trained classifier, ready to predict.
pub struct Predictor {
    /// The directory that it was read from.
    pub trained: Trained,
    pub classifier: Classifier,
    pub encoder: Arc<TextEncoder>,
    base_files: Vec<PathBuf>,
    /// Tokens in the model's vocabulary.
    vocab_size: usize,
    /// Labels, thresholds, columns.
    pub file: ClassifierFile,
    /// How threads of their own open the same, if that is worth while.
    copying: Option<Box<Copying>>,
    /// The threads, once there was enough to do.
    crew: OnceCell<Option<Crew>>,
}

/// What opens a classifier once more.
#[derive(Clone)]
struct Copying {
    model: ModelConfig,
    trained: Trained,
    file: ClassifierFile,
    maxima: Option<Maxima>,
    copies: usize,
}

impl Predictor {
    /// Builds the model on its base, and reads adapter, head and tokenizer.
    pub fn open(trained: Trained, file: ClassifierFile, is_of_a_run: bool, base: &BaseModel) -> Result<Self> {
        Self::open_as(trained, file, is_of_a_run, base, Quantization::Off)
    }

    /// As [`Predictor::open`], with linear modules built in another way.
    pub fn open_as(
        trained: Trained,
        file: ClassifierFile,
        is_of_a_run: bool,
        base: &BaseModel,
        quantization: Quantization,
    ) -> Result<Self> {
        let classifier = classifier_on(base, &trained, &file, quantization)?;
        Self::with_classifier(trained, file, is_of_a_run, base, classifier)
    }

    fn with_classifier(
        trained: Trained,
        file: ClassifierFile,
        is_of_a_run: bool,
        base: &BaseModel,
        classifier: Classifier,
    ) -> Result<Self> {
        let encoder = base.encoder_of(&trained.adapter, is_of_a_run, file.limit())?;
        let encoder = Arc::new(encoder);
        let (base_files, vocab_size) = (base.files.paths(), base.config.vocab_size);
        let (copying, crew) = (None, OnceCell::new());
        Ok(Self { trained, classifier, encoder, base_files, vocab_size, file, copying, crew })
    }

    /// Lets threads of their own compute batches side by side where there are many samples, if the model is small and
    /// the CPU computes. `model` is what `base` was opened by.
    #[must_use]
    pub fn with_crew(self, model: &ModelConfig, base: &BaseModel, maxima: Option<&Maxima>) -> Self {
        let copies = base.copies_for_predicting();
        if copies == 1 {
            return self;
        }
        let copying = Copying {
            model: model.clone(),
            trained: self.trained.clone(),
            file: self.file.clone(),
            maxima: maxima.cloned(),
            copies,
        };
        Self { copying: Some(Box::new(copying)), ..self }
    }

    /// The threads, if they are worth starting for this many samples.
    fn crew(&self, samples: usize) -> Option<&Crew> {
        /// Samples for each thread that its start is worth.
        const LEAST: usize = 32;
        let copying = self.copying.as_ref()?;
        if self.crew.get().is_none() && samples < LEAST * copying.copies {
            return None;
        }
        // Where there is no room for copies, the classifier at hand predicts the same.
        let start = || {
            let copying = copying.clone();
            Crew::start(copying.copies, move || copying.open()).ok()
        };
        self.crew.get_or_init(start).as_ref()
    }

    /// The files that it was read from: no output may replace them.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        [self.trained.files(), self.base_files.clone()].concat()
    }

    /// Tokenizes rows of `source`, which follow `before` others.
    ///
    /// # Errors
    /// If the tokenizer fails or gives a token that the model does not have, or the user wants to stop.
    pub fn encode(&self, examples: &[Example], source: &str, before: usize) -> Result<Vec<Sample>> {
        dataset::encode(&self.encoder, self.vocab_size, &Rows { examples, source, before })
    }

    /// Reads texts for the classifier, on any thread.
    #[must_use]
    pub fn reader(&self) -> TextReader {
        TextReader {
            encoder: Arc::clone(&self.encoder),
            vocab_size: self.vocab_size,
            joins_fields: self.file.text_fields.is_some(),
        }
    }

    /// Probabilities and predicted labels of samples, in their order. `on_batch` hears how many are done.
    /// The ranks of `group` share the work.
    ///
    /// # Errors
    /// If the model fails, or with [`crate::evaluation::NotFinite`] for a sample whose output is not finite.
    pub fn evaluate(
        &self,
        samples: &[Sample],
        decision: &Decision,
        batch_size: usize,
        group: &Group,
        on_batch: impl FnMut(usize),
    ) -> Result<Evaluation> {
        let crew = if group.size() == 1 { self.crew(samples.len()) } else { None };
        match crew {
            Some(crew) => crew.evaluate(&self.classifier, samples, decision, batch_size, on_batch),
            None => evaluate(&self.classifier, samples, decision, batch_size, group, on_batch),
        }
    }

    /// The decision by the classifier's own thresholds.
    #[must_use]
    pub fn decision(&self) -> Decision {
        Decision::above(&self.file.thresholds)
    }
}

impl Copying {
    fn open(&self) -> Result<Classifier> {
        // What there is to say was said when the first was opened.
        let base = BaseModel::open(&self.model, &Device::cpu(), Console::new(true))?;
        classifier_on(&base, &self.trained, &self.file, Quantization::of(self.maxima.as_ref()))
    }
}

/// Where a program that carries a classifier has its directory, and its base's.
pub const CLASSIFIER: &str = "classifier";
/// See [`CLASSIFIER`].
pub const BASE: &str = "base";

/// Says in a `model` section where a classifier's base lies: in its own directory if it is a complete model, in the
/// program that carries both, in `given`, or where it was in training.
///
/// # Errors
/// If `given` names a base for a complete model.
pub fn place_base(trained: &Trained, model: &mut ModelConfig, given: Option<&str>) -> Result<()> {
    let own = if trained.is_complete() {
        ensure!(
            given.is_none(),
            "--set model.model_name: {} is a complete model, which needs no base",
            trained.adapter.display()
        );
        model.random_init = false;
        Some(trained.adapter.clone())
    } else {
        embedded::root().filter(|_| embedded::contains(&trained.adapter)).map(|root| root.join(BASE))
    };
    if let Some(name) = own.map(|own| own.display().to_string()).or(given.map(str::to_owned)) {
        model.model_name = name;
    }
    Ok(())
}

/// The adapters of a classifier; none of a complete model.
fn lora_of(trained: &Trained) -> Result<LoraOptions> {
    if trained.is_complete() { Ok(LoraOptions::none()) } else { Ok(adapter::read_config(&trained.adapter)?.0) }
}

/// A classifier on a base, with what its files hold.
fn classifier_on(
    base: &BaseModel,
    trained: &Trained,
    file: &ClassifierFile,
    quantization: Quantization,
) -> Result<Classifier> {
    let options = options(trained, file, base, base.device_for_predicting())?;
    let classifier = base.classifier(&ClassifierOptions { quantization: quantization.clone(), ..options })?;
    load(&classifier, trained, file, &quantization)?;
    Ok(classifier)
}

/// Sets adapters, head and all that predicting depends on to what a classifier's files hold.
fn load(classifier: &Classifier, trained: &Trained, file: &ClassifierFile, quantization: &Quantization) -> Result<()> {
    match trained.is_complete() {
        false => adapter::load(&trained.adapter, classifier)?,
        true => classifier
            .set_to_base()
            .with_context(|| format!("{}: has no classification head for its labels", trained.adapter.display()))?,
    }
    if let Quantization::Int8(maxima) = quantization {
        classifier.quantize(maxima)?;
    }
    classifier.set_temperature(file.temperature);
    classifier.set_window_pooling(file.window_pooling());
    Ok(())
}

/// Turns texts into the tokens of a classifier, as `predict --text` does, on any thread.
#[derive(Clone)]
pub struct TextReader {
    encoder: Arc<TextEncoder>,
    vocab_size: usize,
    joins_fields: bool,
}

impl TextReader {
    /// The tokens of a text, computed on this thread.
    ///
    /// # Errors
    /// If the tokenizer fails or gives a token that the model does not have.
    pub fn read(&self, text: &str) -> Result<Encoded> {
        let text = typed_text(text, self.joins_fields);
        let encoded = [self.encoder.encode_one(&text)?];
        self.encoder.check_vocabulary(&encoded, self.vocab_size, "the text", 0, |_| "0")?;
        let [encoded] = encoded;
        Ok(encoded)
    }

    /// Which words of a text weighed, from what its tokens did.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn why(&self, text: &str, labels: &[String], attributions: &[Attribution]) -> Result<Vec<Why>> {
        let text = typed_text(text, self.joins_fields);
        Ok(why::of_words(&text, &self.encoder.spans(&text)?, labels, attributions))
    }
}

/// Options for building a trained classifier.
fn options(trained: &Trained, file: &ClassifierFile, base: &BaseModel, device: Device) -> Result<ClassifierOptions> {
    Ok(ClassifierOptions {
        labels: file.labels.len(),
        base_rows: base_head::rows((&base.config, &base.weights), &file.labels, None),
        problem: Problem::from(file.model_config()?.problem_type),
        storage: base.storage,
        lora: lora_of(trained)?,
        weights: BceWeights::default(),
        recompute: false,
        device,
        quantization: Quantization::Off,
    })
}

/// A base in memory that predictors share: each adds its adapters and its head.
pub struct PredictingBase {
    base: BaseModel,
    layers: SharedBase,
    device: Device,
    quantization: Quantization,
}

impl PredictingBase {
    /// Loads the layers of a base; in int8 they are for one classifier alone.
    ///
    /// # Errors
    /// If a weight is missing or of another shape.
    pub fn new(base: BaseModel, quantization: Quantization) -> Result<Self> {
        let device = base.device_for_predicting();
        let layers = SharedBase::new(&base.config, &base.weights, (base.storage, quantization.clone()), &device)
            .with_context(|| format!("{}: cannot build the model", base.files.name))?;
        Ok(Self { base, layers, device, quantization })
    }

    /// The base's files.
    #[must_use]
    pub fn base(&self) -> &BaseModel {
        &self.base
    }

    /// Bytes of its frozen weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers.bytes()
    }

    /// Where it computes.
    #[must_use]
    pub fn device_name(&self) -> String {
        self.device.description().map_or_else(|| "cpu".to_owned(), |gpu| gpu.name)
    }

    /// A classifier on this base, whose predictions are those of [`Predictor::open`] to the bit.
    ///
    /// # Errors
    /// As [`Predictor::open`].
    pub fn predictor(&self, trained: Trained, file: ClassifierFile, is_of_a_run: bool) -> Result<Predictor> {
        let options = options(&trained, &file, &self.base, self.device.clone())?;
        let classifier = self
            .layers
            .classifier(&self.base.config, &self.base.weights, &options)
            .with_context(|| format!("{}: cannot build the model", self.base.files.name))?;
        load(&classifier, &trained, &file, &self.quantization)?;
        let mut predictor = Predictor::with_classifier(trained, file, is_of_a_run, &self.base, classifier)?;
        if let Some(encoder) = Arc::get_mut(&mut predictor.encoder) {
            encoder.keep_nothing();
        }
        Ok(predictor)
    }
}

/// Checks that a base is the one that a classifier was trained on.
pub fn ensure_base(trained: &Trained, file: &ClassifierFile, base: &BaseModel, console: Console) -> Result<()> {
    if trained.is_complete() || embedded::contains(&trained.adapter) {
        return Ok(());
    }
    // A tokenizer of its own is used in place of the base's.
    let needs_tokenizer = !trained.adapter.join("tokenizer.json").is_file();
    base.ensure_is(&file.base, needs_tokenizer, console).with_context(|| format!("{}", trained.adapter.display()))
}
