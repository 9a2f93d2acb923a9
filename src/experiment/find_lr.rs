//! The learning-rate range test (Smith, 2017): one pass in which the rate rises from step to step, until the loss does.

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::prepared::Experiment;
use crate::evaluation::{NotFinite, Sample};
use crate::interrupt;
use crate::ops::tape::DropoutKey;
use crate::training::optimizer::{AdamW, clip_factor, gradient_norm};
use crate::training::trainer::{forward_backward, window_scale};

/// The rates that are tried, from the first to the last step.
const LOWEST: f64 = 1e-6;
const HIGHEST: f64 = 1.0;
/// One pass, but no fewer steps and no more than these.
const FEWEST_STEPS: usize = 100;
const MOST_STEPS: usize = 500;
/// Weight of the past in the smoothed loss.
const SMOOTHING: f64 = 0.95;
/// The test ends once the smoothed loss is so many times the lowest one.
const DIVERGED: f64 = 4.0;
/// Steps before which a low loss is chance.
const WARM_UP: usize = 10;

/// What a range test found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RangeTest {
    pub points: Vec<RatePoint>,
    /// The rate at which the smoothed loss is lowest.
    pub lowest_at: f64,
    /// A tenth of it: the usual choice.
    pub suggested: f64,
    /// Whether the loss rose so much that higher rates were not tried.
    pub has_diverged: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RatePoint {
    pub learning_rate: f64,
    pub loss: f64,
    pub smoothed: f64,
}

impl Experiment<'_> {
    /// Runs the test with the first seed. The classifier is of no use afterwards.
    ///
    /// # Errors
    /// If the model fails, the loss is not finite from the start, or the user wants to stop.
    pub fn find_learning_rate(&self) -> Result<RangeTest> {
        let train = &self.config.train;
        let seed = self.config.exp.seeds[0];
        let options = self.options(seed);
        self.classifier.initialize(seed)?;
        if let Some(adapter) = &self.init_adapter {
            adapter.apply(&self.classifier)?;
        }
        let per_epoch = train.steps_per_epoch(self.train.samples.len());
        let steps = per_epoch.clamp(FEWEST_STEPS, MOST_STEPS);
        let of_head = train.head_learning_rate.map_or(1.0, |of_head| of_head / train.learning_rate);
        ensure!(of_head.is_finite(), "--find_lr: train.learning_rate is 0, so the head's rate has no ratio to it");
        let params = self.classifier.params();
        let optimizer = AdamW::new(params, train.weight_decay, options.moments)?;
        let mut optimizer = optimizer.with_head(self.classifier.first_of_head());
        let mut curve = Curve::default();
        let mut bar = self.console.progress("learning rates".to_owned(), steps, "steps");
        let mut micro_batch = 0;
        for step in 0..steps {
            interrupt::check()?;
            let order = options.order(&self.train.samples, step / per_epoch);
            let batches: Vec<&[usize]> = order.chunks(train.batch_size).collect();
            let window = batches.chunks(train.gradient_accumulation_steps).nth(step % per_epoch).unwrap_or(&[]);
            params.iter().for_each(|param| param.clear_gradient());
            let mut loss = 0.0;
            for rows in window {
                let batch = Sample::batch(rows.iter().map(|&row| &self.train.samples[row]), &self.classifier)?;
                match forward_backward(&self.classifier, &batch, DropoutKey { seed, micro_batch }) {
                    Ok(value) => loss += value / window.len() as f64,
                    Err(error) if error.is::<NotFinite>() && step > 0 => loss = f64::INFINITY,
                    Err(error) => return Err(error),
                }
                micro_batch += 1;
            }
            let rate = LOWEST * (HIGHEST / LOWEST).powf(step as f64 / (steps - 1) as f64);
            let scale = window_scale(train.accumulation_reduction, window.len());
            let norm = scale * gradient_norm(params)?;
            if !curve.push(rate, loss) || !norm.is_finite() {
                break;
            }
            optimizer.step_groups([rate, rate * of_head], scale * clip_factor(norm, train.max_grad_norm))?;
            bar.advance(1, || format!("rate {rate:.1e} loss {loss:.4}"));
        }
        bar.finish();
        let has_diverged = curve.points.len() < steps;
        curve.finish(has_diverged)
    }
}

/// The losses so far.
#[derive(Default)]
struct Curve {
    points: Vec<RatePoint>,
    sum: f64,
    lowest: Option<RatePoint>,
}

impl Curve {
    /// Adds a step; false if the loss has risen so much that the test ends.
    fn push(&mut self, learning_rate: f64, loss: f64) -> bool {
        if !loss.is_finite() {
            return false;
        }
        self.sum = SMOOTHING * self.sum + (1.0 - SMOOTHING) * loss;
        let smoothed = self.sum / (1.0 - SMOOTHING.powi(self.points.len() as i32 + 1));
        let point = RatePoint { learning_rate, loss, smoothed };
        self.points.push(point);
        if self.points.len() > WARM_UP && self.lowest.is_none_or(|lowest| smoothed < lowest.smoothed) {
            self.lowest = Some(point);
        }
        self.lowest.is_none_or(|lowest| smoothed <= DIVERGED * lowest.smoothed)
    }

    fn finish(self, has_diverged: bool) -> Result<RangeTest> {
        let Some(lowest) = self.lowest else {
            bail!("--find_lr: the loss was not a finite number after {} steps", self.points.len());
        };
        let lowest_at = lowest.learning_rate;
        Ok(RangeTest { points: self.points, lowest_at, suggested: rounded(lowest_at / 10.0), has_diverged })
    }
}

/// Two digits are more than such a test can tell.
fn rounded(rate: f64) -> f64 {
    format!("{rate:.1e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_rate_with_the_lowest_loss_is_suggested_and_a_rise_ends_the_test() {
        let mut curve = Curve::default();
        let mut steps = 0;
        for step in 0..200 {
            let rate = 1e-6 * 1e6f64.powf(f64::from(step) / 199.0);
            // Falls from 1e-4 on, lowest at about 1e-2, then rises steeply.
            let loss = 1.0 - 0.2 * ((rate / 1e-4).ln().clamp(0.0, 4.6)) + (rate / 2e-2).powi(3);
            steps += 1;
            if !curve.push(rate, loss) {
                break;
            }
        }
        assert!(steps < 200, "the rise did not end it");
        let found = curve.finish(true).unwrap();
        assert!((5e-3..3e-2).contains(&found.lowest_at), "{}", found.lowest_at);
        assert!((found.suggested / found.lowest_at - 0.1).abs() < 0.01);
        assert!(Curve::default().finish(true).is_err());
        assert_eq!(rounded(0.001_234_5), 0.0012);
    }
}
