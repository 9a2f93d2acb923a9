//! Stops when a metric has not improved for a while, as transformers' callback does.

use serde::{Deserialize, Serialize};

/// Counts evaluations without improvement. Only strictly better counts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EarlyStopping {
    patience: Option<usize>,
    lower_is_better: bool,
    best: Option<f64>,
    without_improvement: usize,
}

/// The consequence of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The best so far: strictly better than all before.
    pub is_best: bool,
    /// Training should stop.
    pub should_stop: bool,
}

impl EarlyStopping {
    /// `patience` evaluations without improvement stop training; `None`: never.
    #[must_use]
    pub fn new(patience: Option<usize>, lower_is_better: bool) -> Self {
        Self { patience, lower_is_better, best: None, without_improvement: 0 }
    }

    /// Takes note of an evaluation.
    pub fn observe(&mut self, metric: f64) -> Verdict {
        let is_best = match self.best {
            None => true,
            Some(best) if self.lower_is_better => metric < best,
            Some(best) => metric > best,
        };
        if is_best {
            self.best = Some(metric);
            self.without_improvement = 0;
        } else {
            self.without_improvement += 1;
        }
        Verdict { is_best, should_stop: self.patience.is_some_and(|patience| self.without_improvement >= patience) }
    }

    /// The best metric so far.
    #[must_use]
    pub fn best(&self) -> Option<f64> {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_is_no_improvement_and_keeps_the_earlier_epoch() {
        let mut stopping = EarlyStopping::new(Some(2), false);
        let verdicts = [0.5, 0.6, 0.6, 0.55].map(|metric| stopping.observe(metric));
        assert_eq!(verdicts.map(|v| v.is_best), [true, true, false, false]);
        assert_eq!(verdicts.map(|v| v.should_stop), [false, false, false, true]);
    }

    #[test]
    fn lower_is_better_for_a_loss_and_no_patience_never_stops() {
        let mut stopping = EarlyStopping::new(None, true);
        let verdicts = [0.5, 0.6, 0.4, 0.9, 0.9].map(|metric| stopping.observe(metric));
        assert_eq!(verdicts.map(|v| v.is_best), [true, false, true, false, false]);
        assert!(verdicts.iter().all(|v| !v.should_stop));
    }
}
