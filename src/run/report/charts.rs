//! Small charts as SVG. Colours come from the report's style sheet; its script shows values under the pointer and on focus.

use maud::{Markup, html};

use super::axes::{Axis, short};

/// A line through points.
#[derive(Clone)]
pub(super) struct Series {
    /// For the legend: lines of one kind share a name and a colour.
    pub(super) name: String,
    pub(super) colour: usize,
    /// One of several lines whose mean is the line that is read.
    pub(super) is_thin: bool,
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    pub(super) fn new(name: &str, colour: usize, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), colour, is_thin: false, points }
    }

    fn finite(&self) -> impl Iterator<Item = (f64, f64)> {
        self.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
    }
}

/// A point with words of its own, and a vertical range around it.
pub(super) struct Spot {
    pub(super) at: (f64, f64),
    pub(super) range: Option<(f64, f64)>,
    pub(super) text: String,
}

/// A bar, and the words that are shown for it.
pub(super) struct Bar {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) height: f64,
    pub(super) text: String,
}

/// What a chart shows beside its lines.
#[derive(Default)]
pub(super) struct Extras {
    pub(super) has_diagonal: bool,
    /// A vertical line, and its name.
    pub(super) mark: Option<(f64, String)>,
    pub(super) spots: Vec<Spot>,
    /// What the points of a line are spread over, and by how much, where neither axis says it.
    pub(super) steps: Option<(&'static str, f64)>,
}

/// A chart with its axes.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x: Axis<'a>,
    pub(super) y: Axis<'a>,
}

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 236.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 38.0;
/// Colours that the style sheet has.
const COLOURS: usize = 6;

impl Chart<'_> {
    /// Lines, and what else there is.
    pub(super) fn lines(&self, series: &[Series], extras: &Extras) -> Markup {
        let (from, to) = (self.at(self.x.from, self.y.from), self.at(self.x.to, self.y.to));
        let is_function = extras.steps.is_none();
        self.figure(
            legend(series, extras),
            (is_function, extras.steps),
            html! {
                @if extras.has_diagonal {
                    path class="ideal" d=(format_args!("M{} {}L{} {}", from.0, from.1, to.0, to.1)) {}
                }
                @if let Some((mark, _)) = &extras.mark { (self.mark(*mark)) }
                @for line in series { (self.line(line)) }
                @for spot in &extras.spots { (self.spot(spot)) }
            },
        )
    }

    /// Bars, and a mark with a name.
    pub(super) fn bars(&self, bars: &[Bar], mark: Option<(f64, String)>) -> Markup {
        let extras = Extras { mark, ..Extras::default() };
        self.figure(
            legend(&[], &extras),
            (true, None),
            html! {
                @for bar in bars.iter().filter(|bar| bar.height > 0.0) {
                    @let ((x, y), (right, _)) = (self.at(bar.from, bar.height), self.at(bar.to, bar.height));
                    @let (width, height) = ((right - x - 1.0).max(0.5), HEIGHT - BOTTOM - y);
                    rect class="bar" data-v=(bar.text) x=(pixels(x)) y=(pixels(y)) width=(pixels(width))
                        height=(pixels(height)) {}
                }
                @if let Some((mark, _)) = &extras.mark { (self.mark(*mark)) }
            },
        )
    }

    fn line(&self, line: &Series) -> Markup {
        let colour = line.colour % COLOURS;
        let points: Vec<(f64, f64)> = line.finite().map(|(x, y)| self.at(x, y)).collect();
        let text: Vec<String> = points.iter().map(|&(x, y)| format!("{},{}", pixels(x), pixels(y))).collect();
        let weight = if line.is_thin { "thin" } else { "line" };
        html! {
            polyline class={ (weight) " s" (colour) } data-k=(colour) points=(text.join(" ")) {}
            // One point makes no line.
            @if let ([(x, y)], Some((_, value))) = (&points[..], line.finite().next()) {
                circle class={ "f" (colour) } cx=(pixels(*x)) cy=(pixels(*y)) r="3" {}
                @if !line.is_thin {
                    // On the side that has room.
                    @let (place, anchor) = if *x > WIDTH / 2.0 { (x - 7.0, "end") } else { (x + 7.0, "start") };
                    text x=(pixels(place)) y=(pixels(y + 4.0)) text-anchor=(anchor) { (three(value)) }
                }
            }
        }
    }

    fn spot(&self, spot: &Spot) -> Markup {
        let (x, y) = self.at(spot.at.0, spot.at.1);
        html! {
            @if let Some((low, high)) = spot.range {
                @let ((_, bottom), (_, top)) = (self.at(spot.at.0, low), self.at(spot.at.0, high));
                path class="range" d=(format!("M{} {}V{}", pixels(x), pixels(top), pixels(bottom))) {}
            }
            circle class="spot" data-v=(spot.text) cx=(pixels(x)) cy=(pixels(y)) r="4" {}
        }
    }

    fn mark(&self, at: f64) -> Markup {
        let ((x, top), (_, floor)) = (self.at(at, self.y.to), self.at(at, self.y.from));
        html! { path class="mark" d=(format!("M{} {}V{}", pixels(x), pixels(top), pixels(floor))) {} }
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let x = LEFT + self.x.part(x) * (WIDTH - LEFT - RIGHT);
        (x, HEIGHT - BOTTOM - self.y.part(y) * (HEIGHT - TOP - BOTTOM))
    }

    /// Axes with their ticks and names.
    fn frame(&self) -> Markup {
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        html! {
            @for tick in self.y.ticks() {
                @let (_, y) = self.at(self.x.from, tick);
                path class="axis" d=(format!("M{LEFT} {}H{right}", pixels(y))) {}
                text x=(LEFT - 6.0) y=(pixels(y + 4.0)) text-anchor="end" { (short(tick)) }
            }
            path class="axis" d=(format!("M{LEFT} {floor}H{right}")) {}
            @for tick in self.x.ticks() {
                @let (x, _) = self.at(tick, self.y.from);
                path class="axis" d=(format!("M{} {floor}v4", pixels(x))) {}
                text x=(pixels(x)) y=(floor + 16.0) text-anchor="middle" { (short(tick)) }
            }
            text class="name" x=((LEFT + right) / 2.0) y=(HEIGHT - 5.0) text-anchor="middle" { (self.x.name) }
            text class="name" x="0" y="10" { (self.y.name) }
        }
    }

    /// The figure, with what the script needs to turn places into values: the axes' ends and their places.
    fn figure(&self, legend: Markup, (is_function, steps): (bool, Option<(&str, f64)>), inside: Markup) -> Markup {
        let ends = format!("{} {} {} {}", self.x.from, self.x.to, self.y.from, self.y.to);
        let places = format!("{LEFT} {} {} {TOP}", WIDTH - RIGHT, HEIGHT - BOTTOM);
        html! {
            figure class="chart" data-ends=(ends) data-places=(places) data-x=(self.x.name) data-y=(self.y.name)
                data-steps=[steps.map(|steps| steps.0)] data-step=[steps.map(|steps| steps.1)]
                data-function[is_function] {
                figcaption { (self.title) }
                (legend)
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" tabindex="0" aria-label=(self.title) {
                    (self.frame())
                    (inside)
                }
            }
        }
    }
}

/// An entry for each kind of line, with room for the values at the pointer.
fn legend(series: &[Series], extras: &Extras) -> Markup {
    let mut kinds: Vec<&Series> = Vec::new();
    for line in series {
        if kinds.iter().all(|kind| kind.colour != line.colour) {
            kinds.push(line);
        }
    }
    html! {
        p class="legend" aria-live="polite" {
            @for kind in &kinds {
                @let colour = kind.colour % COLOURS;
                span class={ "key k" (colour) } data-k=(colour) hidden[kinds.len() == 1] { i {} (kind.name) " " b {} }
            }
            @if let Some((_, name)) = &extras.mark { span class="key km" { i {} (name) } }
            output {}
        }
    }
}

/// A place in the chart. The script reads values back from it: two digits keep three of the value.
fn pixels(length: f64) -> String {
    let text = format!("{length:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A value beside a point.
fn three(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.2e}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_numbers_that_are_none_left_out() {
        let chart = Chart { title: "<b>", x: Axis::unit("x"), y: Axis::unit("\"y\"") };
        let line = |name: &str, colour| Series::new(name, colour, vec![(0.0, f64::NAN), (0.5, 0.5), (1.0, 1.0)]);
        let spot = Spot { at: (0.5, 0.5), range: Some((0.4, 0.6)), text: "<u>".to_owned() };
        let extras = Extras { mark: Some((0.5, "<s>".to_owned())), spots: vec![spot], ..Extras::default() };
        let svg = chart.lines(&[line("<i>", 0), line("b", 1)], &extras).into_string();
        for tag in ["<b>", "<i>", "<u>", "<s>", "NaN"] {
            assert!(!svg.replace("<b></b>", "").replace("<i></i>", "").contains(tag), "{tag}: {svg}");
        }
        assert!(svg.contains("&lt;i&gt;") && svg.contains("&quot;y&quot;") && svg.contains("data-v=\"&lt;u&gt;\""));
    }

    #[test]
    fn lines_of_one_kind_share_an_entry_of_the_legend() {
        let chart = Chart { title: "", x: Axis::unit("x"), y: Axis::unit("y") };
        let line = |colour, is_thin| Series { is_thin, ..Series::new("kind", colour, vec![(0.0, 0.1), (1.0, 0.2)]) };
        let all = [line(0, true), line(0, true), line(0, false), line(1, true), line(1, false)];
        let svg = chart.lines(&all, &Extras::default()).into_string();
        assert_eq!((svg.matches("<polyline").count(), svg.matches("class=\"key").count()), (5, 2));
        assert!(!svg.contains("hidden"));
    }
}
