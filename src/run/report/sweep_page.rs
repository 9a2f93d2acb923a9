//! The page of a sweep: a table of the combinations, and the metric over each number that was tried.

use maud::{Markup, html};

use super::axes::Axis;
use super::charts::{Chart, Extras, Series};
use super::page::Page;
use crate::run::results::OverSeeds;

/// Contents of the page.
pub struct SweepPage<'a> {
    /// The sweep's directory.
    pub name: String,
    /// Chooses the best.
    pub metric: &'a str,
    /// True if less is better.
    pub lower_is_better: bool,
    /// Epochs after which the better half went on; the last is the end.
    pub rungs: &'a [Option<usize>],
    /// In the order of the grid.
    pub rows: Vec<SweepRow<'a>>,
}

/// One combination.
pub struct SweepRow<'a> {
    /// `key=value`
    pub settings: &'a [String],
    /// Its run's directory.
    pub run: &'a str,
    /// At each rung that it reached; none: it diverged.
    pub scores: &'a [Option<f64>],
    /// On the test split.
    pub test: Option<OverSeeds>,
    /// Why it ended early.
    pub error: Option<&'a str>,
    pub is_best: bool,
}

impl SweepPage<'_> {
    /// The page as one file without network access and script.
    #[must_use]
    pub fn to_html(&self) -> String {
        let charts: Vec<Markup> =
            (0..self.rows.first().map_or(0, |row| row.settings.len())).filter_map(|key| self.chart(key)).collect();
        let body = html! {
            p class="soft" {
                (self.metric) " on the validation split: each run's best epoch so far, the mean over its seeds. \
                The test split was scored for the best combination alone."
            }
            @if !charts.is_empty() { div class="charts" { @for chart in &charts { (chart) } } }
            (self.table())
        };
        Page { title: &self.name, script: None, marks_row_texts: false, body }.to_html()
    }

    /// For a key with several numbers: the scores after the first rung, where all combinations can be compared.
    fn chart(&self, key: usize) -> Option<Markup> {
        let name = self.rows.first()?.settings.get(key)?.split_once('=')?.0;
        let mut points = Vec::new();
        for row in &self.rows {
            let x: f64 = row.settings.get(key)?.split_once('=')?.1.parse().ok()?;
            points.extend(row.scores.first().copied().flatten().map(|score| (x, score)));
        }
        let (low, high) =
            points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
        if low >= high {
            return None;
        }
        // Rates are tried by factors.
        let is_by_factors = low > 0.0 && high / low >= 8.0;
        if is_by_factors {
            points.iter_mut().for_each(|(x, _)| *x = x.log10());
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let (mut best, mut mean) = (Vec::new(), Vec::new());
        for group in points.chunk_by(|a, b| a.0 == b.0) {
            let scores = group.iter().map(|(_, score)| *score);
            let of_best =
                if self.lower_is_better { scores.clone().reduce(f64::min) } else { scores.clone().reduce(f64::max) };
            best.push((group[0].0, of_best?));
            mean.push((group[0].0, scores.sum::<f64>() / group.len() as f64));
        }
        let has_several = points.len() > mean.len();
        let mut series = vec![Series::new("best", 0, best)];
        series.extend(has_several.then(|| Series::new("mean", 1, mean)));
        let axis = if is_by_factors { format!("log10 of {name}") } else { name.to_owned() };
        let at = self.rungs.first().copied().flatten();
        let title = at.map_or("At the end".to_owned(), |epochs| format!("After epoch {epochs}"));
        let chart = Chart {
            title: &title,
            x: Axis::around(&axis, points.iter().map(|point| point.0), false),
            y: Axis::around(self.metric, points.iter().map(|point| point.1), false),
        };
        Some(chart.lines(&series, &Extras::default()))
    }

    fn table(&self) -> Markup {
        let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.4}"));
        let score = |row: &SweepRow<'_>, rung: usize| match row.scores.get(rung) {
            Some(None) => "diverged".to_owned(),
            score => number(score.copied().flatten()),
        };
        html! {
            h2 { "Combinations" }
            div class="scroll" {
                table {
                    thead {
                        tr {
                            th { "combination" }
                            @for rung in self.rungs {
                                th { (rung.map_or("end".to_owned(), |epochs| format!("epoch {epochs}"))) }
                            }
                            th { "test" }
                            th { "run" }
                        }
                    }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                td {
                                    @if row.is_best { b { (row.settings.join(", ")) } " (best)" }
                                    @else { (row.settings.join(", ")) }
                                    @if let Some(error) = row.error { br; span class="soft" { (error) } }
                                }
                                @for rung in 0..self.rungs.len() { td { (score(row, rung)) } }
                                td { (number(row.test.map(|test| test.mean))) }
                                td { (row.run) }
                            }
                        }
                    }
                }
            }
        }
    }
}
