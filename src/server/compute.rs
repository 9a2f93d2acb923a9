//! The thread that holds a base and the classifiers on it, and computes. A model stays on its thread; requests reach
//! it by a [`Queue`] alone.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use super::metrics::Metrics;
use super::queue::{Done, Failure, Job, ModelId, Next, Queue, Room, Taken};
use super::settings::OpenDevice;
use crate::config::model::ModelConfig;
use crate::console::Console;
use crate::data::tokenize::Encoded;
use crate::device::{self, own_threads};
use crate::evaluation::{NotFinite, Part, Scored, evaluate_mixed};
use crate::experiment::base_model::BaseModel;
use crate::model::attributions::Explainer;
use crate::model::classifier::Problem;
use crate::model::quantization::{Maxima, Quantization};
use crate::predictor::{self, Precision, PredictingBase, Predictor, TextReader};
use crate::run::classifier_file::ClassifierFile;
use crate::run::trained::Trained;

/// A classifier to load.
pub(super) struct Load {
    pub(super) id: ModelId,
    pub(super) trained: Trained,
    pub(super) file: ClassifierFile,
    pub(super) is_of_a_run: bool,
}

/// Facts about a classifier that requests need.
pub(super) struct Loaded {
    pub(super) reader: TextReader,
    pub(super) problem: Problem,
    pub(super) adapter_bytes: usize,
    pub(super) base_bytes: usize,
    pub(super) device: String,
}

/// Orders to the thread between batches.
pub(super) enum Order {
    Load(Box<Load>, mpsc::SyncSender<Result<Loaded>>),
    Drop(ModelId),
}

/// State of the thread.
pub(super) struct Workshop {
    pub(super) queue: Arc<Queue<Order>>,
    pub(super) room: Arc<Room>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) open_device: OpenDevice,
    pub(super) precision: Option<Precision>,
    /// If products are computed in int8.
    pub(super) maxima: Option<Maxima>,
    pub(super) console: Console,
}

/// Starts a thread and loads the base.
///
/// # Errors
/// If the base cannot be used.
pub(super) fn start(workshop: Workshop, model: ModelConfig) -> Result<thread::JoinHandle<()>> {
    let (ready, is_ready) = mpsc::sync_channel(1);
    let body = move || match workshop.open(&model).and_then(|base| Ok((base, own_threads()?))) {
        Ok((base, _threads)) => {
            let _ = ready.send(Ok(()));
            Worker { base, predictors: HashMap::new(), retired: Vec::new(), workshop }.work();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    };
    let thread = thread::Builder::new().name("compute".to_owned()).stack_size(device::STACK_BYTES).spawn(body)?;
    is_ready.recv().context("the thread that loads the base has died")??;
    Ok(thread)
}

impl Workshop {
    fn open(&self, model: &ModelConfig) -> Result<PredictingBase> {
        let device = (self.open_device)()?;
        let mut model = model.clone();
        if let Some(precision) = self.precision {
            precision.overrule(&mut model, &device)?;
        }
        let base = BaseModel::open(&model, &device, self.console)
            .context("the base cannot be used; --set model.model_name=DIR says where it lies now")?;
        PredictingBase::new(base, Quantization::of(self.maxima.as_ref()))
    }
}

struct Worker {
    base: PredictingBase,
    predictors: HashMap<ModelId, Predictor>,
    /// Dropped, but jobs for them wait.
    retired: Vec<ModelId>,
    workshop: Workshop,
}

impl Worker {
    fn work(mut self) {
        let queue = Arc::clone(&self.workshop.queue);
        loop {
            match queue.next() {
                Next::Order(Order::Load(load, reply)) => {
                    let loaded = caught(|| self.load(*load));
                    let _ = reply.send(loaded);
                }
                Next::Order(Order::Drop(id)) => self.retired.push(id),
                Next::Batch(taken) => self.compute(taken),
                Next::End => return,
            }
            let predictors = &mut self.predictors;
            self.retired.retain(|&id| {
                let stays = queue.has_jobs_of(id);
                if !stays {
                    predictors.remove(&id);
                }
                stays
            });
            self.workshop.metrics.abandoned.inc_by(queue.take_abandoned());
        }
    }

    fn load(&mut self, load: Load) -> Result<Loaded> {
        let Load { id, trained, file, is_of_a_run } = load;
        predictor::ensure_base(&trained, &file, self.base.base(), self.workshop.console)?;
        let predictor = self.base.predictor(trained, file, is_of_a_run)?;
        let loaded = Loaded {
            reader: predictor.reader(),
            problem: predictor.classifier.problem(),
            adapter_bytes: 4 * predictor.classifier.trained_parameters(),
            base_bytes: self.base.bytes(),
            device: self.base.device_name(),
        };
        warm_up(&predictor, &loaded.reader)?;
        self.predictors.insert(id, predictor);
        Ok(loaded)
    }

    fn compute(&self, mut taken: Vec<Taken>) {
        // Rows of one classifier lie together.
        taken.sort_by_key(|taken| taken.job.model);
        let (mut known, gone): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|taken| self.predictors.contains_key(&taken.job.model));
        for Taken { job, .. } in gone {
            let _ = job.reply.send(Err(Failure::Gone));
        }
        if known.is_empty() {
            return;
        }
        let begin = Instant::now();
        let scored = caught(|| {
            let scored = self.score(&known)?;
            known.iter_mut().zip(&scored).try_for_each(|(taken, rows)| self.explain(taken, rows))?;
            Ok(scored)
        });
        let took = begin.elapsed();
        let tokens: usize = known.iter().flat_map(texts_of).map(|text| text.token_ids.len()).sum();
        let texts: usize = known.iter().map(|taken| taken.count).sum();
        self.workshop.room.measured(tokens, took);
        self.workshop.metrics.batch(texts, tokens, took);
        let unfinished = match scored {
            Ok(scored) => deliver(known, scored, begin),
            Err(error) => {
                let message = format!("{error:#}");
                known.into_iter().for_each(|taken| refuse(taken.job, &message));
                Vec::new()
            }
        };
        self.workshop.queue.put_back(unfinished);
    }

    /// The results of each job's texts.
    fn score(&self, taken: &[Taken]) -> Result<Vec<Vec<Result<Scored, NotFinite>>>> {
        let mut parts: Vec<Part<'_>> = Vec::new();
        let mut of_part = Vec::new();
        for group in taken.chunk_by(|a, b| a.job.model == b.job.model) {
            let model = group[0].job.model;
            let predictor = self.predictors.get(&model).context("the model was dropped")?;
            let texts = group.iter().flat_map(texts_of).collect();
            parts.push(Part { classifier: &predictor.classifier, texts });
            of_part.push(group.iter().map(|taken| taken.count));
        }
        let mut scored = Vec::with_capacity(taken.len());
        for (rows, counts) in evaluate_mixed(&parts)?.into_iter().zip(of_part) {
            let mut rows = rows.into_iter();
            scored.extend(counts.map(|count| rows.by_ref().take(count).collect::<Vec<_>>()));
        }
        ensure!(scored.iter().zip(taken).all(|(rows, taken)| rows.len() == taken.count), "rows are missing");
        Ok(scored)
    }

    /// The weights of tokens for the chosen labels of a job's texts in this batch.
    fn explain(&self, taken: &mut Taken, rows: &[Result<Scored, NotFinite>]) -> Result<()> {
        let Some(chooser) = taken.job.explains.clone() else { return Ok(()) };
        let predictor = self.predictors.get(&taken.job.model).context("the model was dropped")?;
        let explainer = Explainer::new(&predictor.classifier)?;
        for (text, row) in texts_of(taken).to_vec().iter().zip(rows) {
            // A row that is not finite ends its job.
            let Ok(row) = row else { return Ok(()) };
            let labels = chooser(&row.probabilities);
            taken.job.explained.push(explainer.attributions(text, &labels)?);
        }
        Ok(())
    }
}

fn texts_of(taken: &Taken) -> &[Encoded] {
    let first = taken.job.rows.len();
    &taken.job.texts[first..first + taken.count]
}

/// Answers the jobs that are whole; returns the others.
fn deliver(taken: Vec<Taken>, scored: Vec<Vec<Result<Scored, NotFinite>>>, begin: Instant) -> Vec<Job> {
    let mut unfinished = Vec::new();
    'jobs: for (Taken { mut job, .. }, rows) in taken.into_iter().zip(scored) {
        let waited = *job.waited.get_or_insert(begin.saturating_duration_since(job.since));
        for row in rows {
            match row {
                Ok(row) => job.rows.push(row),
                Err(error) => {
                    let message = format!("text {}: {error}", job.rows.len() + 1);
                    refuse(job, &message);
                    continue 'jobs;
                }
            }
        }
        if job.rows.len() < job.texts.len() {
            unfinished.push(job);
            continue;
        }
        let Job { rows, explained, reply, place, .. } = job;
        // The place is free before the client can hear of it and ask again.
        drop(place);
        let _ = reply.send(Ok(Done { rows, explained, waited }));
    }
    unfinished
}

fn refuse(job: Job, message: &str) {
    drop(job.place);
    let _ = job.reply.send(Err(Failure::Failed(message.to_owned())));
}

/// Computes a short text and one of the greatest length: pages, tables and buffers are there before the first
/// request.
fn warm_up(predictor: &Predictor, reader: &TextReader) -> Result<()> {
    let short = reader.read("warm up")?.token_ids;
    let long: Vec<u32> = short.iter().copied().cycle().take(predictor.file.max_length).collect();
    for token_ids in [short, long] {
        evaluate_mixed(&[Part { classifier: &predictor.classifier, texts: vec![&Encoded::whole(token_ids)] }])?;
    }
    Ok(())
}

/// A panic is an error of the batch, not the end of the thread.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err(anyhow!("a panic; this is a bug in llmcls, please report it")))
}
