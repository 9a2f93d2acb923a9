//! Records of a training: `history.jsonl`, and TensorBoard's events.

use std::path::Path;

use anyhow::Result;

use super::checkpoint::Progress;
use super::scored::Scored;
use crate::kernels::cpu::memory;
use crate::metrics::METRICS;
use crate::metrics::curves::over_thresholds;
use crate::run::records::History;
use crate::run::results::{EvalMetrics, HistoryLine, StepRecord};
use crate::run::tensorboard::{EventWriter, Hyperparameter};

/// Where numbers go as training proceeds: nowhere on a rank that does not write.
#[derive(Default)]
pub(super) struct Log {
    pub(super) history: Option<History>,
    pub(super) events: Option<EventWriter>,
}

impl Log {
    pub(super) fn step(&mut self, record: StepRecord, progress: &Progress) -> Result<()> {
        let Some(history) = &mut self.history else { return Ok(()) };
        history.push(&HistoryLine::Step(record))?;
        let Some(events) = &mut self.events else { return Ok(()) };
        let scalars = [
            ("train/loss", record.loss),
            ("train/grad_norm", record.grad_norm),
            ("train/learning_rate", record.learning_rate),
            ("train/examples_per_second", progress.examples as f64 / progress.elapsed.max(1e-9)),
            ("train/peak_memory_bytes", memory::peak_bytes().map_or(f64::NAN, |bytes| bytes as f64)),
        ];
        events.scalars(progress.step, scalars)
    }

    /// Starts an event file with the table's row of this training.
    pub(super) fn start_events(&mut self, directory: &Path, chosen: &[(&str, Hyperparameter)]) -> Result<()> {
        let mut events = EventWriter::create(directory)?;
        events.hyperparameters(chosen)?;
        self.events = Some(events);
        Ok(())
    }

    /// A line, and events: all metrics, F1 of each label, and curves of the labels with the most rows.
    pub(super) fn evaluation(
        &mut self,
        metrics: &EvalMetrics,
        scored: &Scored,
        labels: &[String],
        step: usize,
    ) -> Result<()> {
        /// Labels with a curve: the events of many would outgrow all else.
        const CURVES: usize = 50;
        const POINTS: usize = 127;
        let Some(history) = &mut self.history else { return Ok(()) };
        history.push(&HistoryLine::Evaluation(Box::new(metrics.clone())))?;
        let Some(events) = &mut self.events else { return Ok(()) };
        let mut scalars: Vec<(String, f64)> =
            METRICS.iter().map(|metric| (format!("eval/{}", metric.name), metrics.get(metric))).collect();
        scalars.extend([
            ("eval/runtime".to_owned(), metrics.runtime),
            ("eval/samples_per_second".to_owned(), metrics.samples_per_second),
            ("eval/steps_per_second".to_owned(), metrics.steps_per_second),
        ]);
        let per_label = &scored.scores.per_label;
        scalars.extend(per_label.iter().map(|label| (format!("eval_f1_of/{}", label.label), label.f1)));
        events.scalars(step, scalars.iter().map(|(tag, number)| (tag.as_str(), *number)))?;
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_by_key(|&label| std::cmp::Reverse(per_label[label].support));
        for &label in order.iter().take(CURVES) {
            let curve = over_thresholds(&scored.evaluation.predictions, label, POINTS);
            events.pr_curve(step, &format!("pr_curve/{}", labels[label]), &curve)?;
        }
        Ok(())
    }
}
