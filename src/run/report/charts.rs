//! Small charts as SVG. Colours come from the report's style sheet.

use std::fmt::Write;

use super::html::escape;

/// A line through points.
#[derive(Clone)]
pub(super) struct Series {
    pub(super) name: String,
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
        Self { name, from, to }
    }

    pub(super) fn unit(name: &'a str) -> Self {
        Self { name, from: 0.0, to: 1.0 }
    }

    /// About five round numbers on it.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.to - self.from) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough);
        let step = step.unwrap_or(power);
        let first = (self.from / step).ceil() as i64;
        (first..)
            .map(|index| (index as f64 * step * 1e12).round() / 1e12)
            .take_while(|tick| *tick <= self.to + 1e-9 * step)
            .collect()
    }
}

impl Chart<'_> {
    /// Lines, with a legend if they are several; `ideal` adds the diagonal.
    pub(super) fn lines(&self, series: &[Series], has_diagonal: bool) -> String {
        let mut svg = self.frame();
        if has_diagonal {
            let (from, to) = (self.at(self.x.from, self.y.from), self.at(self.x.to, self.y.to));
            put(&mut svg, format_args!(r#"<path class="ideal" d="M{} {}L{} {}"/>"#, from.0, from.1, to.0, to.1));
        }
        for (index, line) in series.iter().enumerate() {
            let points: Vec<String> = line
                .points
                .iter()
                .filter(|(x, y)| x.is_finite() && y.is_finite())
                .map(|&(x, y)| {
                    let (x, y) = self.at(x, y);
                    format!("{x:.1},{y:.1}")
                })
                .collect();
            let colour = index % COLOURS;
            put(&mut svg, format_args!(r#"<polyline class="line s{colour}" points="{}"/>"#, points.join(" ")));
            if points.len() == 1 {
                let (x, y) = points[0].split_once(',').expect("made above");
                put(&mut svg, format_args!(r#"<circle class="f{colour}" cx="{x}" cy="{y}" r="3"/>"#));
            }
        }
        if series.len() > 1 {
            let mut x = LEFT + 6.0;
            for (index, line) in series.iter().take(COLOURS).enumerate() {
                put(
                    &mut svg,
                    format_args!(
                        r#"<rect class="f{index}" x="{x:.0}" y="{}" width="9" height="3"/><text x="{:.0}" y="{}">{}</text>"#,
                        8.0,
                        x + 12.0,
                        13.0,
                        escape(&line.name)
                    ),
                );
                x += 24.0 + 6.2 * line.name.chars().count() as f64;
            }
        }
        self.figure(&svg)
    }

    /// Bars between the edges of a histogram, and a mark at `mark`.
    pub(super) fn bars(&self, bars: &[(f64, f64, f64)], mark: Option<f64>) -> String {
        let mut svg = self.frame();
        for &(from, to, height) in bars {
            let ((x, y), (right, floor)) = (self.at(from, height), self.at(to, 0.0));
            put(
                &mut svg,
                format_args!(
                    r#"<rect class="bar" x="{x:.1}" y="{y:.1}" width="{:.1}" height="{:.1}"/>"#,
                    (right - x - 1.0).max(0.5),
                    floor - y
                ),
            );
        }
        if let Some(mark) = mark {
            let ((x, top), (_, floor)) = (self.at(mark, self.y.to), self.at(mark, self.y.from));
            put(&mut svg, format_args!(r#"<path class="mark" d="M{x:.1} {top:.1}V{floor:.1}"/>"#));
        }
        self.figure(&svg)
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |value: f64, axis: &Axis<'_>| ((value - axis.from) / (axis.to - axis.from)).clamp(0.0, 1.0);
        let x = LEFT + part(x, &self.x) * (WIDTH - LEFT - RIGHT);
        (x, HEIGHT - BOTTOM - part(y, &self.y) * (HEIGHT - TOP - BOTTOM))
    }

    /// Axes with their ticks and names.
    fn frame(&self) -> String {
        let mut svg = String::new();
        for tick in self.y.ticks() {
            let (_, y) = self.at(self.x.from, tick);
            put(
                &mut svg,
                format_args!(
                    r#"<path class="axis" d="M{LEFT} {y:.1}H{}"/><text x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
                    WIDTH - RIGHT,
                    LEFT - 6.0,
                    y + 4.0,
                    short(tick)
                ),
            );
        }
        let floor = HEIGHT - BOTTOM;
        for tick in self.x.ticks() {
            let (x, _) = self.at(tick, self.y.from);
            put(
                &mut svg,
                format_args!(
                    r#"<path class="axis" d="M{x:.1} {floor}v4"/><text x="{x:.1}" y="{}" text-anchor="middle">{}</text>"#,
                    floor + 16.0,
                    short(tick)
                ),
            );
        }
        put(
            &mut svg,
            format_args!(
                r#"<text x="{}" y="{}" text-anchor="middle">{}</text><text x="12" y="{}" text-anchor="middle" transform="rotate(-90 12 {})">{}</text>"#,
                (LEFT + WIDTH - RIGHT) / 2.0,
                HEIGHT - 6.0,
                escape(self.x.name),
                (TOP + floor) / 2.0,
                (TOP + floor) / 2.0,
                escape(self.y.name)
            ),
        );
        svg
    }

    fn figure(&self, inside: &str) -> String {
        let title = escape(self.title);
        format!(
            r#"<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{inside}</svg></figure>"#
        )
    }
}

fn put(svg: &mut String, part: std::fmt::Arguments<'_>) {
    svg.write_fmt(part).expect("a string takes all that is written");
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
        let line = |name: &str| Series { name: name.to_owned(), points: vec![(0.0, f64::NAN), (0.5, 0.5), (1.0, 1.0)] };
        let svg = chart.lines(&[line("<i>"), line("b")], true);
        assert!(!svg.contains("<b>") && !svg.contains("<i>") && !svg.contains("NaN"), "{svg}");
        assert!(svg.contains("&lt;i&gt;") && svg.contains("&quot;y&quot;"));
    }
}
