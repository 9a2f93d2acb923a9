//! The learning rate over time, by transformers' formulas.

/// The shape of the rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// To 0 in a straight line.
    Linear,
    /// To 0 along half a cosine.
    Cosine,
    /// Not at all.
    Constant,
}

/// A learning rate for each optimizer step.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The largest rate.
    pub learning_rate: f64,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: usize,
    /// All steps, T.
    pub total_steps: usize,
    /// Shape after the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    #[must_use]
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * step as f64 / self.warmup_steps as f64;
        }
        let decaying = (self.total_steps.saturating_sub(self.warmup_steps)).max(1) as f64;
        let progress = (step - self.warmup_steps) as f64 / decaying;
        self.learning_rate
            * match self.decay {
                Decay::Linear => (1.0 - progress).max(0.0),
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                Decay::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: Decay, warmup_steps: usize, total_steps: usize) -> Vec<f64> {
        let schedule = Schedule { learning_rate: 2.0, warmup_steps, total_steps, decay };
        (0..total_steps).map(|step| schedule.rate(step)).collect()
    }

    #[test]
    fn linear_without_warmup_starts_at_the_top_and_never_reaches_zero() {
        assert_eq!(rates(Decay::Linear, 0, 4), [2.0, 1.5, 1.0, 0.5]);
        assert_eq!(rates(Decay::Linear, 2, 4), [0.0, 1.0, 2.0, 1.0]);
    }

    #[test]
    fn cosine_and_constant_follow_their_formulas() {
        let cosine = rates(Decay::Cosine, 0, 4);
        assert_eq!(cosine[0], 2.0);
        assert!((cosine[2] - 1.0).abs() < 1e-12);
        assert_eq!(rates(Decay::Constant, 2, 4), [0.0, 1.0, 2.0, 2.0]);
    }
}
