//! Small charts as SVG. Colours come from the report's style sheet.

use maud::{Markup, html};

/// A line through points.
#[derive(Clone)]
pub(super) struct Series {
    pub(super) name: String,
    /// Its colour: lines of one kind share one, and an entry in the legend.
    pub(super) colour: usize,
    /// Points that answer the mouse.
    pub(super) is_labelled: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart with its axes.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x: Axis<'a>,
    pub(super) y: Axis<'a>,
}

pub(super) struct Axis<'a> {
    pub(super) name: &'a str,
    pub(super) from: f64,
    pub(super) to: f64,
}

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 244.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 40.0;
/// Colours that the style sheet has.
const COLOURS: usize = 6;

impl<'a> Axis<'a> {
    /// An axis that holds all numbers.
    pub(super) fn around(name: &'a str, numbers: impl Iterator<Item = f64>, from_zero: bool) -> Self {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        for number in numbers.filter(|number| number.is_finite()) {
            from = from.min(number);
            to = to.max(number);
        }
        if from_zero || from > to {
            from = 0.0;
        }
        if to <= from {
            to = from + 1.0;
        }
        Self { name, from, to }.rounded()
    }

    /// The same axis, which ends with a tick above the largest number, and begins with one below the smallest.
    fn rounded(self) -> Self {
        let step = self.step();
        let (from, to) = ((self.from / step).floor() * step, (self.to / step).ceil() * step);
        Self { from, to, ..self }
    }

    pub(super) fn unit(name: &'a str) -> Self {
        Self { name, from: 0.0, to: 1.0 }
    }

    /// A round number that fits about five times.
    fn step(&self) -> f64 {
        let rough = (self.to - self.from) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough);
        step.unwrap_or(power)
    }

    /// About five round numbers on it.
    fn ticks(&self) -> Vec<f64> {
        let step = self.step();
        let first = (self.from / step).ceil() as i64;
        (first..)
            .map(|index| (index as f64 * step * 1e12).round() / 1e12)
            .take_while(|tick| *tick <= self.to + 1e-9 * step)
            .collect()
    }
}

impl Chart<'_> {
    /// Lines, with a legend if they are of several kinds; `ideal` adds the diagonal, `mark` a line up from x.
    pub(super) fn lines(&self, series: &[Series], has_diagonal: bool, mark: Option<f64>) -> Markup {
        let (from, to) = (self.at(self.x.from, self.y.from), self.at(self.x.to, self.y.to));
        self.figure(html! {
            @if has_diagonal {
                path class="ideal" d=(format_args!("M{} {}L{} {}", from.0, from.1, to.0, to.1)) {}
            }
            @if let Some(mark) = mark {
                @let ((x, top), (_, floor)) = (self.at(mark, self.y.to), self.at(mark, self.y.from));
                path class="mark" d=(format_args!("M{x:.1} {top:.1}V{floor:.1}")) {}
            }
            @for line in series {
                (self.line(line, line.colour % COLOURS))
            }
            @if series.iter().any(|line| line.colour != series[0].colour) {
                (legend(series))
            }
        })
    }

    fn line(&self, line: &Series, colour: usize) -> Markup {
        let points: Vec<(f64, f64)> =
            line.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()).map(|&(x, y)| self.at(x, y)).collect();
        let text: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        html! {
            polyline class={ "line s" (colour) } points=(text.join(" ")) {}
            // One point makes no line.
            @if let [(x, y)] = points[..] {
                circle class={ "f" (colour) } cx=(tenths(x)) cy=(tenths(y)) r="3" {}
            }
            @if line.is_labelled {
                @for (&(x, y), (of_x, of_y)) in points.iter().zip(line.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite())) {
                    circle class={ "dot f" (colour) } cx=(tenths(x)) cy=(tenths(y)) r="3.5" {
                        title { (line.name) ": " (self.y.name) " " (format_args!("{of_y:.4}")) " at " (self.x.name) " " (short(*of_x)) }
                    }
                }
            }
        }
    }

    /// Bars between the edges of a histogram, and a mark at `mark`.
    pub(super) fn bars(&self, bars: &[(f64, f64, f64)], mark: Option<f64>) -> Markup {
        self.figure(html! {
            @for &(from, to, height) in bars {
                @let ((x, y), (right, floor)) = (self.at(from, height), self.at(to, 0.0));
                @let width = (right - x - 1.0).max(0.5);
                rect class="bar" x=(tenths(x)) y=(tenths(y)) width=(tenths(width)) height=(tenths(floor - y)) {
                    title { (short(from)) " to " (short(to)) ": " (short(height)) " " (self.y.name) }
                }
            }
            @if let Some(mark) = mark {
                @let ((x, top), (_, floor)) = (self.at(mark, self.y.to), self.at(mark, self.y.from));
                path class="mark" d=(format_args!("M{x:.1} {top:.1}V{floor:.1}")) {}
            }
        })
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |value: f64, axis: &Axis<'_>| ((value - axis.from) / (axis.to - axis.from)).clamp(0.0, 1.0);
        let x = LEFT + part(x, &self.x) * (WIDTH - LEFT - RIGHT);
        (x, HEIGHT - BOTTOM - part(y, &self.y) * (HEIGHT - TOP - BOTTOM))
    }

    /// Axes with their ticks and names.
    fn frame(&self) -> Markup {
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let (centre, middle) = ((LEFT + right) / 2.0, (TOP + floor) / 2.0);
        html! {
            @for tick in self.y.ticks() {
                @let (_, y) = self.at(self.x.from, tick);
                path class="axis" d=(format_args!("M{LEFT} {y:.1}H{right}")) {}
                text x=(LEFT - 6.0) y=(tenths(y + 4.0)) text-anchor="end" { (short(tick)) }
            }
            @for tick in self.x.ticks() {
                @let (x, _) = self.at(tick, self.y.from);
                path class="axis" d=(format_args!("M{x:.1} {floor}v4")) {}
                text x=(tenths(x)) y=(floor + 16.0) text-anchor="middle" { (short(tick)) }
            }
            text x=(centre) y=(HEIGHT - 6.0) text-anchor="middle" { (self.x.name) }
            text x="12" y=(middle) text-anchor="middle" transform={ "rotate(-90 12 " (middle) ")" } { (self.y.name) }
        }
    }

    fn figure(&self, inside: Markup) -> Markup {
        html! {
            figure {
                figcaption { (self.title) }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(self.title) {
                    (self.frame())
                    (inside)
                }
            }
        }
    }
}

/// One entry for each kind of lines, named as its first word.
fn legend(series: &[Series]) -> Markup {
    let mut kinds: Vec<&Series> = Vec::new();
    for line in series {
        if kinds.iter().all(|kind| kind.colour != line.colour) {
            kinds.push(line);
        }
    }
    let lines = kinds.into_iter().take(COLOURS).scan(LEFT + 6.0, |next, line| {
        let x = *next;
        let name = line.name.split(", seed").next().unwrap_or_default();
        *next += 24.0 + 6.2 * name.chars().count() as f64;
        Some((x, line.colour % COLOURS, name))
    });
    html! {
        @for (x, colour, name) in lines {
            rect class={ "f" (colour) } x=(format_args!("{x:.0}")) y="8" width="9" height="3" {}
            text x=(format_args!("{:.0}", x + 12.0)) y="13" { (name) }
        }
    }
}

/// A length in the chart: a tenth of a pixel is precise enough.
fn tenths(length: f64) -> String {
    format!("{length:.1}")
}

/// A tick's number, as short as it can be said.
fn short(number: f64) -> String {
    if number.abs() >= 1000.0 {
        return format!("{}k", (number / 100.0).round() / 10.0);
    }
    if number != 0.0 && number.abs() < 0.01 {
        return format!("{number:e}");
    }
    let text = format!("{number:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis { name: "", from: 0.13, to: 0.94 };
        let ticks: Vec<String> = axis.ticks().into_iter().map(short).collect();
        assert_eq!(ticks, ["0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(Axis { name: "", from: 0.0, to: 12_000.0 }.ticks().len(), 3);
        assert_eq!([short(2500.0), short(0.5), short(-0.0), short(0.0015)], ["2.5k", "0.5", "0", "1.5e-3"]);
    }

    #[test]
    fn names_are_escaped_and_numbers_that_are_none_left_out() {
        let chart = Chart { title: "<b>", x: Axis::unit("x"), y: Axis::unit("\"y\"") };
        let line = |name: &str| Series {
            name: name.to_owned(),
            colour: name.len(),
            is_labelled: true,
            points: vec![(0.0, f64::NAN), (0.5, 0.5), (1.0, 1.0)],
        };
        let svg = chart.lines(&[line("<i>"), line("b")], true, Some(0.5)).into_string();
        assert!(!svg.contains("<b>") && !svg.contains("<i>") && !svg.contains("NaN"), "{svg}");
        assert!(svg.contains("&lt;i&gt;") && svg.contains("&quot;y&quot;"));
    }
}
