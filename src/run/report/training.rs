//! Curves of training: a line for one seed; thin lines and their mean for several.

use maud::{Markup, html};

use super::Report;
use super::axes::Axis;
use super::charts::{Chart, Extras, Series};
use crate::run::results::HistoryLine;

impl Report<'_> {
    /// Loss, F1 and learning rate over epochs.
    pub(super) fn curves(&self) -> Markup {
        let loss = [
            self.series("train", 0, |line| line.step().map(|step| step.loss)),
            self.series("validation", 1, |line| line.evaluation().map(|metrics| metrics.loss)),
        ]
        .concat();
        let f1 = [
            // Of one label a row micro-F1 is the accuracy.
            self.series(if self.is_single { "accuracy" } else { "micro-F1" }, 0, |line| {
                line.evaluation().map(|metrics| metrics.scores.f1_micro)
            }),
            self.series("macro-F1", 1, |line| line.evaluation().map(|metrics| metrics.scores.f1_macro)),
        ]
        .concat();
        // All seeds have the same schedule.
        let rate = self.series("learning rate", 0, |line| line.step().map(|step| step.learning_rate));
        let rate: Vec<Series> = rate.into_iter().last().into_iter().collect();
        let epochs = self.history.iter().flat_map(|(_, lines)| lines.iter().filter_map(HistoryLine::epoch));
        let x = Axis::around("epoch", epochs, true);
        let chart = |title: &str, y_name: &str, series: &[Series], from_zero: bool| {
            let ys = series.iter().flat_map(|line| line.points.iter().map(|point| point.1));
            let mark = self.best_epoch.map(|epoch| (epoch, "best epoch".to_owned()));
            let chart = Chart { title, x, y: Axis::around(y_name, ys, from_zero) };
            chart.lines(series, &Extras { mark, ..Extras::default() })
        };
        html! {
            @if self.history.len() > 1 || self.best_epoch.is_some() {
                p class="soft" {
                    @if self.history.len() > 1 {
                        "Thick lines are means over " (self.history.len()) " seeds, as far as all of them trained; thin \
                         lines are the seeds. "
                    }
                    @if let Some(epoch) = self.best_epoch {
                        "The dashed line is epoch " (format_args!("{epoch:.4}").to_string().trim_end_matches('0').trim_end_matches('.'))
                        ", the best one"
                        @if let (Some(seed), true) = (self.seed, self.history.len() > 1) { " of seed " (seed) }
                        ", whose weights are kept."
                    }
                }
            }
            div class="charts" {
                (chart("Loss", "loss", &loss, false))
                (chart("Scores on validation", "score", &f1, false))
                (chart("Learning rate", "learning rate", &rate, true))
            }
        }
    }

    /// A value of each seed over epochs, and last their mean.
    fn series(&self, name: &str, colour: usize, value: fn(&HistoryLine) -> Option<f64>) -> Vec<Series> {
        let of_seed = |lines: &Vec<HistoryLine>| -> Vec<(f64, f64)> {
            lines.iter().filter_map(|line| Some((line.epoch()?, value(line)?))).collect()
        };
        let mut lines: Vec<Series> = (self.history.iter())
            .map(|(_, lines)| Series::new(name, colour, of_seed(lines)))
            .filter(|line| !line.points.is_empty())
            .collect();
        if lines.len() > 1 {
            lines.iter_mut().for_each(|line| line.is_thin = true);
            lines.push(Series::new(name, colour, mean(&lines)));
        }
        lines
    }
}

/// The mean of lines where all have a point.
fn mean(lines: &[Series]) -> Vec<(f64, f64)> {
    let at = |line: &Series, x: f64| line.points.iter().find(|point| (point.0 - x).abs() < 1e-6).map(|point| point.1);
    let of_all = |&(x, _): &(f64, f64)| {
        let values: Option<Vec<f64>> = lines.iter().map(|line| at(line, x)).collect();
        values.map(|values| (x, values.iter().sum::<f64>() / values.len() as f64))
    };
    lines.first().map_or_else(Vec::new, |first| first.points.iter().filter_map(of_all).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_ends_where_a_seed_ends() {
        let lines = [
            Series::new("", 0, vec![(1.0, 0.25), (2.0, 0.5), (3.0, 0.75)]),
            Series::new("", 0, vec![(1.0, 0.75), (2.0, 1.0)]),
        ];
        assert_eq!(mean(&lines), [(1.0, 0.5), (2.0, 0.75)]);
        assert!(mean(&[]).is_empty());
    }
}
