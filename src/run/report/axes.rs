//! The axes of a chart: which numbers they hold, and their ticks.

/// From where to where an axis goes, and its name.
#[derive(Clone, Copy)]
pub(super) struct Axis<'a> {
    pub(super) name: &'a str,
    pub(super) from: f64,
    pub(super) to: f64,
    /// From tick to tick.
    step: f64,
    /// Powers of ten have equal distances; begins at 1, with room for 0 below.
    pub(super) is_logarithmic: bool,
}

impl<'a> Axis<'a> {
    /// An axis that holds all numbers, and begins and ends with a tick.
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
            to = from + if from == 0.0 { 1.0 } else { 0.1 * from.abs() };
        }
        let step = step(to - from);
        let round = |value: f64| (value * step * 1e12).round() / 1e12;
        let (from, to) = (round((from / step + 1e-9).floor()), round((to / step - 1e-9).ceil()));
        Self { name, from, to, step, is_logarithmic: false }
    }

    pub(super) fn unit(name: &'a str) -> Self {
        Self { name, from: 0.0, to: 1.0, step: 0.2, is_logarithmic: false }
    }

    /// Counts, of which some are much larger than others.
    pub(super) fn counts(name: &'a str, counts: impl Iterator<Item = f64>) -> Self {
        let most = counts.fold(1.0, f64::max);
        Self { name, from: 0.5, to: 10f64.powf(most.log10().ceil()).max(10.0), step: 1.0, is_logarithmic: true }
    }

    /// Where a number is, from 0 to 1.
    pub(super) fn part(&self, value: f64) -> f64 {
        let part = match self.is_logarithmic {
            true => (value.max(self.from) / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        };
        part.clamp(0.0, 1.0)
    }

    /// About five round numbers on it.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.is_logarithmic {
            let powers: Vec<f64> = (0..=self.to.log10().round() as i32).map(|power| 10f64.powi(power)).collect();
            return powers.iter().rev().step_by(powers.len().div_ceil(6)).rev().copied().collect();
        }
        let step = self.step;
        let first = (self.from / step - 1e-9).ceil() as i64;
        (first..)
            .map(|index| (index as f64 * step * 1e12).round() / 1e12)
            .take_while(|tick| *tick <= self.to + 1e-9 * step)
            .collect()
    }
}

/// A round number that fits about five times.
fn step(range: f64) -> f64 {
    let rough = range / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= 0.999 * rough);
    step.unwrap_or(power)
}

/// A number, as short as it can be said.
pub(super) fn short(number: f64) -> String {
    if number.abs() >= 1e6 {
        return format!("{}M", (number / 1e5).round() / 10.0);
    }
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
        let axis = Axis::around("", [0.13, 0.94].into_iter(), false);
        let ticks: Vec<String> = axis.ticks().into_iter().map(short).collect();
        assert_eq!(ticks, ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(Axis::around("", [12_000.0].into_iter(), true).ticks().len(), 4);
        assert_eq!([short(2500.0), short(0.5), short(-0.0), short(0.0015)], ["2.5k", "0.5", "0", "1.5e-3"]);
    }

    #[test]
    fn an_axis_holds_its_numbers_between_its_first_and_last_tick() {
        for numbers in
            [vec![0.5, 0.37], vec![0.002], vec![3.1, 12.2, f64::NAN], vec![0.2, 0.6], vec![], vec![-1.5, 2.0]]
        {
            for from_zero in [true, false] {
                let axis = Axis::around("", numbers.iter().copied(), from_zero);
                let ticks = axis.ticks();
                assert_eq!((ticks[0], ticks[ticks.len() - 1]), (axis.from, axis.to), "{numbers:?}");
                let is_inside = |number: f64| (axis.from..=axis.to).contains(&number) || number.is_nan();
                assert!(numbers.iter().all(|&number| is_inside(number) || from_zero && number < 0.0), "{numbers:?}");
                assert!((2..=9).contains(&ticks.len()), "{numbers:?}: {ticks:?}");
            }
        }
    }

    #[test]
    fn counts_of_one_stand_above_the_floor() {
        let axis = Axis::counts("", [0.0, 1.0, 12_345.0].into_iter());
        assert_eq!(axis.ticks(), [1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0]);
        assert!(axis.part(0.0) == 0.0 && axis.part(1.0) > 0.02 && axis.part(12_345.0) < 1.0);
        assert_eq!(Axis::counts("", [].into_iter()).ticks(), [1.0, 10.0]);
    }
}
