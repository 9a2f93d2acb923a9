//! Tuned thresholds, and what each label reaches with its own.

use crate::console::{Console, counted};
use crate::metrics::Predictions;
use crate::run::results::TunedThresholds;
use crate::thresholds::{FULL_SUPPORT, Objective, Reached, Scope, reached, tune};

/// Thresholds, and what they reach on the rows that they were found on.
pub struct Tuned {
    objective: Objective,
    labels: Vec<Reached>,
}

impl Tuned {
    /// Finds thresholds on predictions whose targets are known.
    pub fn find(predictions: &Predictions, labels: &[String], scope: Scope, objective: Objective) -> Self {
        let thresholds = tune(predictions, labels.len(), scope, objective);
        Self { objective, labels: reached(predictions, labels, &thresholds, scope) }
    }

    /// One threshold a label.
    pub fn thresholds(&self) -> Vec<f32> {
        self.labels.iter().map(|label| label.threshold).collect()
    }

    /// For `metrics.json` and `result.json`.
    pub fn record(&self) -> TunedThresholds {
        TunedThresholds { objective: self.objective.to_string(), labels: self.labels.clone() }
    }

    /// For the terminal; `rows` names those that the thresholds were found on.
    pub fn table(&self, rows: &str) -> String {
        let width = self.labels.iter().map(|row| row.label.chars().count()).max().unwrap_or(0).max(5);
        let shown = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{share:.3}"));
        let mut out = format!("{:width$}  threshold  precision  recall  positives  on {rows}\n", "label");
        for row in &self.labels {
            out.push_str(&format!(
                "{:width$}  {:9.4}  {:>9}  {:>6}  {:9}{}\n",
                row.label,
                row.threshold,
                shown(row.precision),
                shown(row.recall),
                row.positives,
                if row.is_drawn_to_global { "  drawn to the global threshold" } else { "" }
            ));
        }
        out
    }

    /// Warns of labels that miss what was asked for on the very rows that the thresholds were found on.
    pub fn warn(&self, console: Console) {
        /// The most labels that a warning names.
        const SHOWN: usize = 20;
        let missed: Vec<&Reached> = self.labels.iter().filter(|label| self.objective.is_missed(label)).collect();
        if missed.is_empty() {
            return;
        }
        let shown = missed.iter().take(SHOWN).map(|row| {
            let share = |share: Option<f64>| share.map_or_else(|| "none".to_owned(), |share| format!("{share:.3}"));
            match row.predicted {
                0 => format!("{} (never predicted)", row.label),
                _ => format!("{} (precision {}, recall {})", row.label, share(row.precision), share(row.recall)),
            }
        });
        let rest = missed.len().saturating_sub(SHOWN);
        console.warn(format!(
            "{} is missed on validation by {} of {}: {}{}",
            self.objective,
            missed.len(),
            counted(self.labels.len(), "label"),
            shown.collect::<Vec<_>>().join(", "),
            if rest > 0 { format!(" and {rest} more") } else { String::new() }
        ));
        if missed.iter().any(|row| row.is_drawn_to_global) {
            console.warn(format!(
                "a label with fewer than {FULL_SUPPORT} positive rows is drawn to the global threshold, which may miss the \
                 objective where its own would not: more validation rows help"
            ));
        }
    }
}
