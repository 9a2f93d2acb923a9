//! The page of a learning-rate range test: the loss over the rate.

use maud::{Markup, html};

use super::axes::Axis;
use super::charts::{Chart, Extras, Series};
use super::page::Page;

/// Contents of the page.
pub struct RatePage<'a> {
    pub title: &'a str,
    /// Rate, loss and smoothed loss of each step.
    pub points: &'a [(f64, f64, f64)],
    pub suggested: f64,
    /// The rate at which the smoothed loss is lowest.
    pub lowest_at: f64,
}

impl RatePage<'_> {
    /// The page as one file without network access and script.
    #[must_use]
    pub fn to_html(&self) -> String {
        let body = html! {
            p {
                "Suggested learning rate: " b { (self.suggested) } ". The smoothed training loss is lowest at "
                (format_args!("{:.1e}", self.lowest_at)) "; the suggestion is a tenth of that."
            }
            div class="charts" { (self.chart()) }
        };
        Page { title: self.title, script: None, marks_row_texts: false, body }.to_html()
    }

    fn chart(&self) -> Markup {
        let line = |of: fn(&(f64, f64, f64)) -> f64| -> Vec<(f64, f64)> {
            self.points.iter().map(|point| (point.0.log10(), of(point))).collect()
        };
        let series = [Series::new("smoothed", 0, line(|point| point.2)), Series::new("loss", 1, line(|point| point.1))];
        let lowest = self.points.iter().map(|point| point.2).fold(f64::INFINITY, f64::min);
        let first = self.points.first().map_or(1.0, |point| point.2);
        // The rise at the end would flatten all before it.
        let fall = (first - lowest).max(0.05 * lowest.abs()).max(1e-6);
        let ends = [(lowest - fall).max(0.0), first.max(lowest) + fall];
        let y = Axis::around("training loss", ends.into_iter(), false);
        let x = Axis::around("log10 of train.learning_rate", self.points.iter().map(|point| point.0.log10()), false);
        Chart { title: "Loss over the learning rate", x, y }.lines(&series, &Extras::default())
    }
}
