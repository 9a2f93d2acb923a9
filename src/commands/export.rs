//! `llmcls export`: a classifier as a complete model that transformers reads, and llmcls without its base.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::loaded::Loaded;
use super::probes;
use crate::atomic_file;
use crate::cli::{ExportArgs, StoredType};
use crate::console::{Console, bytes};
use crate::experiment::base_model::BaseModel;
use crate::kernels::device::Device;
use crate::model::families::python::PythonNeeds;
use crate::model::weights::Precision;
use crate::predictor::Predictor;
use crate::run::classifier_file::ClassifierFile;
use crate::run::merged_card::{self, MergeFacts};
use crate::run::model_directory::{CompleteModel, described};
use crate::run::trained::Trained;
use crate::run::{manifest, model_card};

/// Exports.
///
/// # Errors
/// If the classifier cannot be used, the directory is there already, or it does not predict what the classifier does.
pub fn run(args: &ExportArgs, console: Console) -> Result<()> {
    ensure!(
        !args.out.exists(),
        "--out {}: is there already; name a new directory, or remove this one",
        args.out.display()
    );
    // Merging is memory's work, and f32 on the CPU is what the numbers are compared in.
    let loaded = Loaded::open(&args.run, &Device::cpu(), console)?;
    let export = Export { loaded: &loaded, dtype: args.dtype.map(Precision::from), shard_bytes: args.max_shard_size.0 };
    export.write(&args.out, console)
}

impl From<StoredType> for Precision {
    fn from(stored: StoredType) -> Self {
        match stored {
            StoredType::Float32 => Self::Float32,
            StoredType::Bfloat16 => Self::Bfloat16,
            StoredType::Float16 => Self::Float16,
        }
    }
}

/// A classifier that is to be written as a complete model.
pub(super) struct Export<'a> {
    pub(super) loaded: &'a Loaded,
    /// None: as the base is held, and in f32 where that is in 4 bits.
    pub(super) dtype: Option<Precision>,
    pub(super) shard_bytes: u64,
}

impl Export<'_> {
    /// Writes the directory whole or not at all, and compares its predictions with the classifier's before it gets its
    /// name.
    pub(super) fn write(&self, out: &Path, console: Console) -> Result<()> {
        let form = self.loaded.predictor.file.form;
        ensure!(
            form.is_usual(),
            "this classifier was trained with {form}, and transformers would compute the exported model without that, so it \
             would predict something else; use llmcls itself: `predict`, `serve`, `bundle`"
        );
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.map_or(Ok(()), fs::create_dir_all).with_context(|| format!("{}: cannot create", out.display()))?;
        let (predictor, base) = (&self.loaded.predictor, &self.loaded.base);
        let dtype = self.dtype.unwrap_or(match base.storage.is_4bit {
            true => Precision::Float32,
            false => base.storage.precision,
        });
        let file = described(&predictor.file, dtype);
        let model = CompleteModel {
            tensors: predictor.classifier.merged(&base.weights, base.storage),
            dtype,
            shard_bytes: self.shard_bytes,
            base_config: &base.files.config,
            config: &base.config,
            file: &file,
            encoder: &predictor.encoder,
        };
        let mut facts = MergeFacts {
            dtype,
            was_4bit: base.storage.is_4bit,
            python: PythonNeeds::of(&base.files.config)?,
            padding: None,
            difference: 0.0,
        };
        atomic_file::write_directory(out, |inside| {
            self.copy_tokenizer(inside)?;
            facts.padding = model.write(inside)?;
            facts.difference = self.difference(inside, &file)?;
            self.check(&facts, console)?;
            let card = fs::read_to_string(predictor.trained.adapter.join(model_card::NAME)).ok();
            let card = merged_card::merged_card(card.as_deref(), &predictor.file, &facts);
            atomic_file::write_bytes(&inside.join(model_card::NAME), card.as_bytes())?;
            manifest::write(inside)
        })?;
        if facts.python.eager_attention {
            console.say(
                "in transformers 4, load it with attn_implementation=\"eager\": its usual attention leaves out this model's \
                 soft cap",
            );
        }
        if facts.python.version_5 {
            console.say("Python needs transformers 5 to read it: version 4 has no code for this family");
        }
        if facts.python.making_of_class.is_some() {
            console.say(
                "not every version of transformers has a classifier of this family; the card has the lines that make one",
            );
        }
        let size: u64 = fs::read_dir(out)?.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
        console.say(format!("wrote {} ({}, {})", out.display(), bytes(size), dtype.name()));
        if facts.padding.is_none() {
            console.warn(
                "the tokenizer has no token to pad with: Python can read one text at a time, and no batches; llmcls needs \
                 no padding",
            );
        }
        Ok(())
    }

    /// A run's tokenizer files stand for themselves; others are written as llmcls reads them.
    fn copy_tokenizer(&self, inside: &Path) -> Result<()> {
        let predictor = &self.loaded.predictor;
        let of_run = &predictor.trained.adapter;
        if !ClassifierFile::is_in(of_run) || !of_run.join("tokenizer.json").is_file() {
            return predictor.encoder.save(inside);
        }
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            let from = of_run.join(name);
            if from.is_file() {
                let contents = fs::read(&from).with_context(|| format!("{}: cannot read", from.display()))?;
                atomic_file::write_bytes(&inside.join(name), &contents)?;
            }
        }
        Ok(())
    }

    /// The largest difference of a probability between what was written and the classifier, on texts made of labels.
    fn difference(&self, inside: &Path, file: &ClassifierFile) -> Result<f32> {
        let own = &self.loaded.predictor;
        let mut model = file.model_config()?;
        model.model_name = inside.display().to_string();
        let quiet = Console::new(true);
        let base = BaseModel::open(&model, &Device::cpu(), quiet)?;
        let trained = Trained { adapter: inside.to_owned(), home: inside.to_owned(), config: None };
        let written = Predictor::open(trained, file.clone(), true, &base).context("what was written cannot be read")?;
        probes::largest_difference(own, &written)
    }

    /// In f32 nothing but the order of sums differs; other types round.
    fn check(&self, facts: &MergeFacts, console: Console) -> Result<()> {
        const IN_FLOAT32: f32 = 1e-4;
        const WORTH_A_WARNING: f32 = 0.01;
        let difference = facts.difference;
        let is_exact = facts.dtype == Precision::Float32 && self.loaded.predictor.file.compute == "float32";
        ensure!(
            !is_exact || difference <= IN_FLOAT32,
            "the merged model predicts something else than the classifier: a probability differs by {difference:e}; this \
             is a bug in llmcls, please report it"
        );
        if facts.was_4bit {
            console.say(
                "the base was held in 4 bits: its weights were merged as the numbers that these stand for, not as the \
                 original ones",
            );
        }
        let said = format!("largest difference of a probability to the classifier's own: {difference:.1e}");
        match difference > WORTH_A_WARNING {
            true => console.warn(format!("{said}; --dtype float32 stores the weights without rounding")),
            false => console.say(said),
        }
        Ok(())
    }
}
