//! The scores at the top of a report, over seeds too, and those of simple classifiers beside them.

use maud::{Markup, html};

use super::{Report, counted, difference};
use crate::metrics::Scores;
use crate::metrics::bootstrap::Interval;
use crate::run::results::{BaselineScores, OverSeeds, SeedResult, Yardstick};

/// A score that has a tile, and a column in tables of seeds.
struct Score {
    name: &'static str,
    of: fn(&Scores) -> f64,
    interval: Option<Interval>,
}

impl Report<'_> {
    /// The scores of a problem: of one label a row micro-F1 is the accuracy.
    fn chosen_scores(&self) -> Vec<Score> {
        let Self { intervals, .. } = self;
        let score = |name, of: fn(&Scores) -> f64, interval: Interval| Score {
            name,
            of,
            interval: (!interval[0].is_nan()).then_some(interval),
        };
        let none = [f64::NAN; 2];
        let micro = |name| score(name, |scores| scores.f1_micro, intervals.f1_micro);
        let macro_ = score("macro-F1", |scores| scores.f1_macro, intervals.f1_macro);
        let accuracy = |name| score(name, |scores| scores.accuracy, intervals.accuracy);
        let precision = |name| score(name, |scores| scores.average_precision_macro, none);
        let auc = |name| score(name, |scores| scores.roc_auc_macro, none);
        // Of one label there is nothing to average.
        if self.labels.len() == 1 {
            return vec![micro("F1"), accuracy("accuracy"), precision("average precision"), auc("ROC AUC")];
        }
        let first = if self.is_single {
            vec![accuracy("accuracy"), macro_]
        } else {
            vec![micro("micro-F1"), macro_, accuracy("exact match")]
        };
        first.into_iter().chain([precision("average precision, macro"), auc("ROC AUC, macro")]).collect()
    }

    pub(super) fn headline(&self) -> Markup {
        let rows = counted(self.predictions.targets.len(), "row");
        html! {
            p class="soft" {
                "Scores on " (self.split) ": " (rows) ", " (counted(self.labels.len(), "label")) ". "
                @if let Some(seed) = self.seed {
                    @if self.seeds.len() > 1 {
                        "The scores are those of seed " (seed) ", the best of " (self.seeds.len()) " on validation; below them are \
                         mean and deviation over the seeds."
                    } @else { "Seed " (seed) "." }
                }
                " Intervals of 95% by bootstrap over rows."
            }
            div class="cards" {
                @for score in self.chosen_scores().into_iter().filter(|score| !(score.of)(self.scores).is_nan()) {
                    @let own = (score.of)(self.scores);
                    div class="card" {
                        b { @if own.is_nan() { "–" } @else { (format_args!("{own:.3}")) } }
                        span { (score.name) }
                        @if let Some([low, high]) = score.interval { span { (format_args!("95%: {low:.3}–{high:.3}")) } }
                        @if self.seeds.len() > 1 {
                            span { (self.seeds.len()) " seeds: " (over_seeds(&self.of_seeds(score.of), 3)) }
                        }
                    }
                }
                @if !self.loss.is_nan() { div class="card" {
                    b { @if self.loss.is_nan() { "–" } @else { (format_args!("{:.3}", self.loss)) } }
                    span { "loss" }
                } }
            }
        }
    }

    /// The name of the split that all seeds have been scored on.
    fn seeds_are_tested(&self) -> bool {
        self.seeds.iter().all(|seed| seed.test.is_some())
    }

    fn of_seeds(&self, of: fn(&Scores) -> f64) -> Vec<f64> {
        let is_tested = self.seeds_are_tested();
        let result = |seed: &SeedResult| {
            let result = if is_tested { seed.reported() } else { &seed.validation };
            of(&result.metrics.scores)
        };
        self.seeds.iter().map(result).collect()
    }

    pub(super) fn over_seeds(&self) -> Markup {
        let chosen = self.chosen_scores();
        let columns: Vec<Vec<f64>> = chosen.iter().map(|score| self.of_seeds(score.of)).collect();
        html! {
            p class="soft" {
                "Scores on " @if self.seeds_are_tested() { "test" } @else { "validation" }
                ". The deviation (n − 1) says how much the seed alone changes."
            }
            div class="scroll" {
                table {
                    thead { tr { th { "seed" } @for score in &chosen { th { (score.name) } } th { "best epoch" } } }
                    tbody {
                        @for (row, seed) in self.seeds.iter().enumerate() {
                            tr class=[(Some(seed.seed) == self.seed).then_some("own")] {
                                td { (seed.seed) @if Some(seed.seed) == self.seed { " (this report)" } }
                                @for column in &columns { td { (format_args!("{:.4}", column[row])) } }
                                td { (format_args!("{:.3}", seed.best_epoch)) }
                            }
                        }
                        tr {
                            td { "mean ± deviation" }
                            @for column in &columns { td { (over_seeds(column, 4)) } }
                            td {}
                        }
                    }
                }
            }
        }
    }

    /// What simple classifiers reach, and what the model adds to them.
    pub(super) fn baselines(&self, baseline: &Yardstick) -> Markup {
        let always = match baseline.most_frequent_labels.as_slice() {
            [label] => format!("always {label}"),
            labels => format!("always the {} most frequent labels", labels.len()),
        };
        html! {
            p class="soft" { "Simple classifiers, trained on the same rows and scored on " (baseline.split) "." }
            @if let Some(added) = &baseline.difference {
                p {
                    "Compared with TF-IDF and logistic regression, this classifier's "
                    @if self.is_single { "accuracy" } @else { "micro-F1" } " differs by "
                    b { (difference(added.f1_micro, added.f1_micro_ci95)) } ", its macro-F1 by "
                    b { (difference(added.f1_macro, added.f1_macro_ci95)) }
                    " (95% intervals over rows that are drawn together)."
                }
            }
            div class="scroll" {
                table {
                    thead {
                        tr {
                            th { "classifier" }
                            @if !self.is_single { th { "micro-F1" } }
                            th { "macro-F1" }
                            th { @if self.is_single { "accuracy" } @else { "exact match" } }
                        }
                    }
                    tbody {
                        @if let Some(model) = &baseline.model { (self.scores_row("this classifier", model, true)) }
                        (self.scores_row("TF-IDF and logistic regression", &baseline.linear, false))
                        (self.scores_row(&always, &baseline.most_frequent, false))
                    }
                }
            }
        }
    }

    fn scores_row(&self, name: &str, scores: &BaselineScores, is_own: bool) -> Markup {
        let number = |value: f64| format!("{value:.4}");
        html! {
            tr class=[is_own.then_some("own")] {
                td { (name) }
                // Of one label a row micro-F1 is the accuracy.
                @if !self.is_single { td { (number(scores.f1_micro)) } }
                td { (number(scores.f1_macro)) }
                td { (number(scores.accuracy)) }
            }
        }
    }
}

/// Mean and deviation.
fn over_seeds(values: &[f64], digits: usize) -> String {
    let OverSeeds { mean, sd } = OverSeeds::new(values);
    match (mean.is_nan(), sd) {
        (true, _) => "–".to_owned(),
        (_, Some(sd)) => format!("{mean:.digits$} ± {sd:.digits$}"),
        (_, None) => format!("{mean:.digits$}"),
    }
}
