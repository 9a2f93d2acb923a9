//! An evaluation with its scores: what training does after each pass, and `llmcls eval`.

use std::time::Instant;

use anyhow::Result;

use crate::cluster::Group;
use crate::console::Console;
use crate::evaluation::{Evaluation, Sample, evaluate};
use crate::metrics::{Decision, Scores};
use crate::model::classifier::Classifier;
use crate::run::results::EvalMetrics;

/// An evaluation and its scores.
pub struct Scored {
    pub evaluation: Evaluation,
    pub scores: Scores,
    /// The same with loss and times, as files have them.
    pub metrics: EvalMetrics,
}

impl Scored {
    /// Predicts labels anew from the same probabilities.
    pub fn decide(&mut self, decision: &Decision, labels: &[String]) {
        self.evaluation.predictions = self.evaluation.predictions.decided(decision);
        self.scores = Scores::new(&self.evaluation.predictions, labels);
        self.metrics.scores.clone_from(&self.scores);
    }
}

/// Evaluates samples and scores them; the ranks of `group` share the work.
pub fn score(
    classifier: &Classifier,
    samples: &[Sample],
    labels: &[String],
    decision: &Decision,
    batch_size: usize,
    group: &Group,
    console: Console,
) -> Result<Scored> {
    let started = Instant::now();
    let mut bar = console.progress("evaluating", samples.len(), "examples");
    let evaluation = evaluate(classifier, samples, decision, batch_size, group, |count| {
        bar.advance(count, String::new);
    })?;
    bar.finish();
    let scores = Scores::new(&evaluation.predictions, labels);
    let seconds = started.elapsed().as_secs_f64();
    let metrics = EvalMetrics::new(&evaluation, &scores, seconds, samples.len().div_ceil(batch_size));
    Ok(Scored { evaluation, scores, metrics })
}
