//! A model and examples give predictions and a mean loss.

use std::fmt;

use anyhow::Result;

use crate::cluster::Group;
use crate::data::tokenize::Encoded;
use crate::kernels::buffer::elements;
use crate::metrics::{Decision, Predictions};
use crate::model::batch::Batch;
use crate::model::classifier::{Classifier, Problem};
use crate::model::frozen_rows::FrozenRows;
use crate::ops::tape::{Tape, Value};

/// An example as the model sees it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// At least one token.
    pub tokens: Encoded,
    /// 0 or 1 for each label.
    pub labels: Vec<f32>,
    /// The frozen layers' output, if that was computed before.
    pub frozen: Option<FrozenRows>,
}

impl Sample {
    /// Lays samples end to end, with the frozen layers' outputs if all have them.
    ///
    /// # Errors
    /// If the labels do not make a `(B, L)` tensor.
    pub fn batch<'a>(samples: impl Iterator<Item = &'a Self> + Clone, classifier: &Classifier) -> Result<Batch> {
        let examples = samples.clone();
        let examples = examples.map(|sample| (&*sample.tokens.token_ids, &*sample.tokens.windows, &*sample.labels));
        let mut batch = Batch::windowed(examples)?;
        batch.frozen = FrozenRows::stack(samples.map(|sample| sample.frozen.as_ref()), classifier.width())?;
        Ok(batch)
    }
}

/// The result of an evaluation.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// In the order of the samples.
    pub predictions: Predictions,
    /// Mean over the samples; not a number if they have no labels.
    pub loss: f64,
}

/// A loss, gradient or logit that is NaN or infinite: nothing after it means anything.
#[derive(Debug)]
pub struct NotFinite {
    /// Names the value that is not finite, and its likely cause.
    pub message: String,
    /// Index of the evaluated sample whose logit it is, if it is one's.
    pub sample: Option<usize>,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NotFinite {}

impl NotFinite {
    fn logit(value: f32, label: usize, sample: usize) -> Self {
        let message = format!(
            "the model's output for label {} is {value}, not a finite number: a weight of the base or of the adapter is \
             too large, or the text overflows model.torch_dtype",
            label + 1
        );
        Self { message, sample: Some(sample) }
    }

    /// The error with `name(sample)` in front of it, if it is of one sample's logit.
    pub fn named(error: anyhow::Error, name: impl FnOnce(usize) -> String) -> anyhow::Error {
        match error.downcast_ref::<Self>().and_then(|error| error.sample) {
            Some(sample) => error.context(name(sample)),
            None => error,
        }
    }
}

/// Evaluates `samples` in batches of `batch_size`, sorted by length so that a batch's matrices are
/// of a similar size. Logits do not depend on the batch, so the order changes nothing.
/// The ranks of `group` share the batches, and all of them get the whole evaluation.
/// `on_batch` hears how many samples were done.
///
/// # Errors
/// If the model fails on a batch, or with [`NotFinite`] if it gives a sample a logit that is not finite.
pub fn evaluate(
    classifier: &Classifier,
    samples: &[Sample],
    decision: &Decision,
    batch_size: usize,
    group: &Group,
    mut on_batch: impl FnMut(usize),
) -> Result<Evaluation> {
    let order = longest_first(samples);
    let batches: Vec<&[usize]> = order.chunks(batch_size).collect();
    // In turn, since neighbours are of a length.
    let mut own = Vec::new();
    for round in batches.chunks(group.size()) {
        if let Some(indices) = round.get(group.rank()) {
            own.extend(batch_numbers(classifier, samples, indices)?);
        }
        on_batch(round.iter().map(|batch| batch.len()).sum());
    }
    let all = group.gather_bytes(bytemuck::cast_slice(&own).to_vec());
    let all: Vec<Vec<f32>> = all.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect();
    collected(classifier, samples, decision, (&batches, &all))
}

/// The numbers of samples, the longest first.
pub(crate) fn longest_first(samples: &[Sample]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(samples[index].tokens.token_ids.len()));
    order
}

/// The evaluation of what was computed for batches, which took turns among the parts of `all`.
pub(crate) fn collected(
    classifier: &Classifier,
    samples: &[Sample],
    decision: &Decision,
    (batches, all): (&[&[usize]], &[Vec<f32>]),
) -> Result<Evaluation> {
    let mut unread: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
    let mut probabilities = vec![Vec::new(); samples.len()];
    let mut loss = 0.0;
    for (batch, indices) in batches.iter().enumerate() {
        let numbers = &mut unread[batch % all.len()];
        let (own, rest) = numbers.split_at(1 + indices.len() * classifier.labels());
        *numbers = rest;
        loss += f64::from(own[0]) * indices.len() as f64;
        for (&index, logits) in indices.iter().zip(own[1..].chunks_exact(classifier.labels())) {
            probabilities[index] = to_probabilities(classifier, logits, index)?;
        }
    }
    let decide = |row: &Vec<f32>| decide(row, classifier.problem(), decision);
    let has_labels = samples.first().is_some_and(|sample| !sample.labels.is_empty());
    Ok(Evaluation {
        predictions: Predictions {
            predicted: probabilities.iter().map(decide).collect(),
            probabilities,
            targets: samples.iter().map(|sample| sample.labels.iter().map(|&label| label > 0.5).collect()).collect(),
        },
        loss: if has_labels { loss / samples.len() as f64 } else { f64::NAN },
    })
}

/// A batch's mean loss, 0 without labels, and its logits, row by row.
pub(crate) fn batch_numbers(classifier: &Classifier, samples: &[Sample], indices: &[usize]) -> Result<Vec<f32>> {
    let batch = Sample::batch(indices.iter().map(|&index| &samples[index]), classifier)?;
    let tape = Tape::off();
    let logits = classifier.logits(&tape, &batch)?;
    let mean = match batch.labels.elem_count() {
        0 => 0.0,
        _ => classifier.loss(&tape, &logits, &batch.labels)?.tensor().to_scalar::<f32>()?,
    };
    let mut numbers = vec![mean];
    numbers.extend_from_slice(&elements(logits.tensor())?);
    Ok(numbers)
}

/// The samples of one classifier in a batch of several.
pub struct Part<'a> {
    /// One of those that share a base.
    pub classifier: &'a Classifier,
    /// Its samples' tokens.
    pub texts: Vec<&'a Encoded>,
}

/// The output of a classifier for one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// One a label, before sigmoid or softmax.
    pub logits: Vec<f32>,
    /// One a label.
    pub probabilities: Vec<f32>,
}

/// Scores the samples of classifiers that share a base, in one batch. Probabilities are those that [`evaluate`] gives.
///
/// # Errors
/// If the model fails. A sample whose logits are not finite has an error of its own.
pub fn evaluate_mixed(parts: &[Part<'_>]) -> Result<Vec<Vec<Result<Scored, NotFinite>>>> {
    let texts = parts.iter().flat_map(|part| &part.texts);
    let batch = Batch::windowed(texts.map(|text| (&*text.token_ids, &*text.windows, &[][..])))?;
    let sequences = |part: &Part<'_>| part.texts.iter().map(|text| text.window_count()).sum();
    let rows: Vec<(&Classifier, usize)> = parts.iter().map(|part| (part.classifier, sequences(part))).collect();
    let logits = Classifier::logits_of_several(&rows, &batch)?;
    let of_part = |(part, logits): (&Part<'_>, Value)| {
        let (classifier, texts) = (part.classifier, &part.texts);
        let starts = |texts: &[&Encoded]| {
            let ends = texts.iter().scan(0, |end, text| {
                *end += text.window_count();
                Some(*end)
            });
            [0].into_iter().chain(ends).collect::<Vec<usize>>()
        };
        let starts = batch.windows.is_some().then(|| starts(texts));
        let logits = classifier.pool_windows(&Tape::off(), logits, starts.as_deref())?;
        let logits = elements(logits.tensor())?;
        let labels = logits.len() / texts.len().max(1);
        let rows = logits.chunks_exact(labels.max(1)).enumerate();
        let scored = |(row, logits): (usize, &[f32])| {
            let probabilities = to_probabilities(classifier, logits, row)?;
            Ok(Scored { logits: logits.to_vec(), probabilities })
        };
        Ok(rows.map(scored).collect())
    };
    parts.iter().zip(logits).map(of_part).collect()
}

/// The labels that a row's probabilities predict. Where each row has exactly one label, thresholds do not apply.
#[must_use]
pub fn decide(probabilities: &[f32], problem: Problem, decision: &Decision) -> Vec<bool> {
    match (problem, decision) {
        (Problem::MultiLabel, _) | (Problem::SingleLabel, Decision::Top(_)) => decision.decide(probabilities),
        (Problem::SingleLabel, _) => Decision::Top(1).decide(probabilities),
    }
}

fn to_probabilities(classifier: &Classifier, logits: &[f32], sample: usize) -> Result<Vec<f32>, NotFinite> {
    if let Some(label) = logits.iter().position(|logit| !logit.is_finite()) {
        return Err(NotFinite::logit(logits[label], label, sample));
    }
    // A division by 1 changes no bit.
    let logits: Vec<f32> = logits.iter().map(|logit| logit / classifier.temperature()).collect();
    Ok(probabilities(&logits, classifier.problem()))
}

/// The probabilities of a row's labels.
#[must_use]
pub fn probabilities(logits: &[f32], problem: Problem) -> Vec<f32> {
    match problem {
        Problem::MultiLabel => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Problem::SingleLabel => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|x| (x - max).exp()).sum();
            logits.iter().map(|x| (x - max).exp() / sum).collect()
        }
    }
}
