//! The losses, as means, in f32 with f64 sums.

use std::rc::Rc;

use candle_core::{Result, Tensor, bail};

use super::tape::{Tape, Value};
use crate::kernels::buffer::{elements, tensor};

/// Weights of the terms of binary cross-entropy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BceWeights {
    /// Weight of positives, one number a label; `None`: 1 each.
    pub positive: Option<Vec<f32>>,
    /// What each term is.
    pub terms: Terms,
    /// ε: a label y is read as `(1 − ε) y + ε / K`, with K = 2 for independent labels and K = L for classes.
    pub smoothing: f32,
}

/// The terms of a label that holds and of one that does not, for the probability p = σ(x) of a logit x.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Terms {
    /// `−ln p` and `−ln(1 − p)`.
    #[default]
    Plain,
    /// The same times `(1 − p)^γ` and `p^γ`, so that what is easy counts less (Lin et al., 2017).
    Focal {
        /// γ
        gamma: f32,
    },
    /// `−(1 − p)^γ₊ ln p` and `−q^γ₋ ln(1 − q)` with `q = max(p − m, 0)`: negatives that are easy count less than
    /// positives, and those below the margin nothing (Ridnik et al., 2021).
    Asymmetric {
        /// γ₊
        positive: f32,
        /// γ₋
        negative: f32,
        /// m
        margin: f32,
    },
    /// Focal terms, rebalanced and tolerant of negatives (Wu et al., 2020).
    Balanced(Balance),
}

/// The distribution-balanced loss of Wu et al., 2020. A term of label j in a row has the weight
/// `α + σ(β (r − μ))`, `r = (1/n_j) / Σ 1/n_k` over the row's labels k. Logits are shifted by
/// `ν_j = −κ/λ · ln(N/n_j − 1)`, and a negative's term is that of λ times the logit, divided by λ.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// `1/n_j`
    inverse: Vec<f32>,
    /// `ν_j`
    shift: Vec<f32>,
    gamma: f32,
}

impl Balance {
    /// α, β, μ, λ and κ of the published settings for MS-COCO.
    const ALPHA: f32 = 0.1;
    const BETA: f32 = 10.0;
    const MU: f32 = 0.2;
    const LAMBDA: f32 = 2.0;
    const KAPPA: f32 = 0.05;

    /// For labels that `counts` of `rows` rows have. One that none or all have counts as half a row more or less.
    #[must_use]
    pub fn new(counts: &[usize], rows: usize, gamma: f32) -> Self {
        let rows = rows as f32;
        let counts = counts.iter().map(|&count| (count as f32).clamp(0.5, rows - 0.5));
        let shift = |count: f32| -(rows / count - 1.0).ln() * Self::KAPPA / Self::LAMBDA;
        Self { inverse: counts.clone().map(|count| 1.0 / count).collect(), shift: counts.map(shift).collect(), gamma }
    }

    /// The weights of a row's terms.
    fn weights(&self, labels: &[f32]) -> Vec<f32> {
        let sum: f32 = labels.iter().zip(&self.inverse).filter(|(y, _)| **y > 0.5).map(|(_, inverse)| inverse).sum();
        // The sum over no label is −0, and a row without labels must get the weight of r = ∞.
        let sum = sum.abs();
        let weight = |inverse: &f32| Self::ALPHA + 1.0 / (1.0 + (-Self::BETA * (inverse / sum - Self::MU)).exp());
        self.inverse.iter().map(weight).collect()
    }
}

/// Mean over B·L of binary cross-entropy on logits, or one of its kin, stable for any of them.
///
/// # Errors
/// If `labels` has not the shape of `logits` `(B, L)`, or there are not L weights.
pub fn bce_with_logits(tape: &Tape, logits: &Value, labels: &Tensor, weights: &BceWeights) -> Result<Value> {
    let given = weights.positive.as_ref().map(Vec::len).into_iter();
    let balanced = if let Terms::Balanced(balance) = &weights.terms { Some(balance.inverse.len()) } else { None };
    for given in given.chain(balanced) {
        if Some(&given) != logits.tensor().dims().last() {
            bail!("weights of {given} labels for logits of shape {:?}", logits.tensor().dims());
        }
    }
    mean_loss(tape, logits, labels, |x, y, columns| {
        let count = x.len() as f64;
        let (mut loss, mut slopes) = (0.0, Vec::with_capacity(x.len()));
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact(columns)) {
            let of_row = if let Terms::Balanced(balance) = &weights.terms { balance.weights(y) } else { Vec::new() };
            for (label, (&x, &y)) in x.iter().zip(y).enumerate() {
                let weight = weights.positive.as_ref().map_or(1.0, |positive| positive[label]);
                let y = (1.0 - weights.smoothing) * y + 0.5 * weights.smoothing;
                let [(if_positive, positive_slope), (if_negative, negative_slope)] = weights.terms.of(x, label);
                let of_term = of_row.get(label).copied().unwrap_or(1.0);
                loss += f64::from(of_term * (weight * y * if_positive + (1.0 - y) * if_negative));
                slopes.push(of_term * (weight * y * positive_slope + (1.0 - y) * negative_slope) / count as f32);
            }
        }
        (loss / count, slopes)
    })
}

impl Terms {
    /// The terms of a logit if its label holds and if it does not, each with its derivative.
    fn of(&self, x: f32, label: usize) -> [(f32, f32); 2] {
        match self {
            Self::Plain => [focal_term(x, 0.0), mirrored(focal_term(-x, 0.0))],
            Self::Focal { gamma } => [focal_term(x, *gamma), mirrored(focal_term(-x, *gamma))],
            Self::Asymmetric { positive, negative, margin } => {
                let of_negative = match *margin > 0.0 {
                    true => shifted_term(x, *negative, *margin),
                    false => mirrored(focal_term(-x, *negative)),
                };
                [focal_term(x, *positive), of_negative]
            }
            Self::Balanced(balance) => {
                let x = x + balance.shift[label];
                let (if_negative, slope) = mirrored(focal_term(-Balance::LAMBDA * x, balance.gamma));
                [focal_term(x, balance.gamma), (if_negative / Balance::LAMBDA, slope)]
            }
        }
    }
}

/// A term of −x as one of x.
fn mirrored((term, slope): (f32, f32)) -> (f32, f32) {
    (term, -slope)
}

/// `(1 − p)^γ · (−ln p)` for p = σ(x), and its derivative.
fn focal_term(x: f32, gamma: f32) -> (f32, f32) {
    // −ln σ(x), without overflow.
    let log = (-x).max(0.0) + (-x.abs()).exp().ln_1p();
    let miss = 1.0 / (1.0 + x.exp());
    if gamma == 0.0 {
        return (log, -miss);
    }
    let factor = miss.powf(gamma);
    (factor * log, -factor * (gamma * (1.0 - miss) * log + miss))
}

/// `−q^γ ln(1 − q)` for q = max(σ(x) − m, 0), and its derivative; m is above 0, so the logarithm is finite.
fn shifted_term(x: f32, gamma: f32, margin: f32) -> (f32, f32) {
    let p = 1.0 / (1.0 + (-x).exp());
    let q = p - margin;
    if q <= 0.0 {
        return (0.0, 0.0);
    }
    let log = -(-q).ln_1p();
    let factor = q.powf(gamma);
    // d/dq; p (1 − p) is d/dx of q.
    let slope = factor * (gamma * log / q + 1.0 / (1.0 - q));
    (factor * log, slope * p * (1.0 - p))
}

/// Mean over B of `ln Σ e^x − x[class]`: softmax cross-entropy; each row of `labels` is one-hot. Of each row a part
/// `smoothing` goes to all classes alike.
///
/// # Errors
/// If `labels` has not the shape of `logits` `(B, L)`.
pub fn cross_entropy(tape: &Tape, logits: &Value, labels: &Tensor, smoothing: f32) -> Result<Value> {
    mean_loss(tape, logits, labels, |x, y, classes| {
        let rows = (x.len() / classes) as f64;
        let mut loss = 0.0;
        let mut slopes = Vec::with_capacity(x.len());
        for (x, y) in x.chunks_exact(classes).zip(y.chunks_exact(classes)) {
            let smooth = |y: f32| (1.0 - smoothing) * y + smoothing / classes as f32;
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = x.iter().map(|x| (x - max).exp()).sum();
            let target: f32 = x.iter().zip(y).map(|(x, &y)| x * smooth(y)).sum();
            loss += f64::from(max + sum.ln() - target);
            slopes.extend(x.iter().zip(y).map(|(x, &y)| ((x - max).exp() / sum - smooth(y)) / rows as f32));
        }
        (loss / rows, slopes)
    })
}

/// `f(logits, labels, L)` gives the mean loss and its derivative by each logit.
fn mean_loss(
    tape: &Tape,
    logits: &Value,
    labels: &Tensor,
    f: impl Fn(&[f32], &[f32], usize) -> (f64, Vec<f32>),
) -> Result<Value> {
    let shape = logits.tensor().dims2()?;
    if labels.dims2()? != shape || shape.0 * shape.1 == 0 {
        bail!("loss over logits of shape {shape:?} and labels of shape {:?}", labels.dims());
    }
    let (loss, slopes) = f(&elements(logits.tensor())?, &elements(labels)?, shape.1);
    let loss = tensor(vec![loss as f32], ())?;
    let Some(gradient) = logits.gradient() else {
        return Ok(Value::constant(loss));
    };
    Ok(tape.record(loss, move |incoming| {
        let scale = elements(&incoming)?[0];
        gradient.add(Rc::new(tensor(slopes.iter().map(|slope| scale * slope).collect(), shape)?))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};

    fn plain() -> BceWeights {
        BceWeights::default()
    }

    #[test]
    fn losses_pass_finite_differences() {
        let logits = [(numbers(15, 1), (5, 3))];
        let labels = tensor((0..15).map(|i| f32::from(u8::from(i % 4 == 0))).collect(), (5, 3)).unwrap();
        let weights = [
            BceWeights::default(),
            BceWeights { positive: Some(vec![3.0, 0.5, 1.0]), ..BceWeights::default() },
            BceWeights { positive: Some(vec![3.0, 0.5, 1.0]), terms: Terms::Focal { gamma: 2.0 }, smoothing: 0.2 },
            BceWeights { terms: Terms::Asymmetric { positive: 1.0, negative: 4.0, margin: 0.05 }, ..plain() },
            BceWeights {
                terms: Terms::Asymmetric { positive: 0.5, negative: 2.0, margin: 0.0 },
                smoothing: 0.1,
                ..plain()
            },
            BceWeights { terms: Terms::Balanced(Balance::new(&[30, 4, 0], 50, 2.0)), ..plain() },
        ];
        for weights in &weights {
            check(&logits, |tape, inputs| bce_with_logits(tape, &inputs[0], &labels, weights));
        }
        let one_hot = tensor((0..15).map(|i| f32::from(u8::from(i % 3 == (i / 3) % 3))).collect(), (5, 3)).unwrap();
        for smoothing in [0.0, 0.2] {
            check(&logits, |tape, inputs| cross_entropy(tape, &inputs[0], &one_hot, smoothing));
        }
    }

    #[test]
    fn huge_logits_give_a_finite_loss_of_every_kind() {
        let logits = vec![1e4, -1e4, 90.0, -90.0, 60.0, 1e4];
        let labels = tensor(vec![0.0, 1.0, 1.0, 0.0, 0.0, 0.0], (2, 3)).unwrap();
        for terms in [
            Terms::Focal { gamma: 2.0 },
            Terms::Asymmetric { positive: 1.0, negative: 4.0, margin: 0.05 },
            Terms::Asymmetric { positive: 0.0, negative: 0.5, margin: 0.0 },
            // The second row has no label at all.
            Terms::Balanced(Balance::new(&[0, 3, 50], 50, 2.0)),
        ] {
            let weights = BceWeights { terms, ..plain() };
            let tape = Tape::recording(None);
            let (x, gradient) = Value::leaf(tensor(logits.clone(), (2, 3)).unwrap());
            let loss = bce_with_logits(&tape, &x, &labels, &weights).unwrap();
            assert!(loss.tensor().to_scalar::<f32>().unwrap().is_finite(), "{weights:?}");
            tape.backward(&loss, tensor(vec![1.0], ()).unwrap()).unwrap();
            let gradient = gradient.take().unwrap();
            assert!(elements(&gradient).unwrap().iter().all(|x| x.is_finite()), "{weights:?}");
        }
    }

    #[test]
    fn huge_logits_give_a_finite_loss() {
        let logits = Value::constant(tensor(vec![1e4, -1e4, 90.0], (1, 3)).unwrap());
        let labels = tensor(vec![0.0, 1.0, 1.0], (1, 3)).unwrap();
        let loss = bce_with_logits(&Tape::off(), &logits, &labels, &BceWeights::default()).unwrap();
        assert_eq!(loss.tensor().to_scalar::<f32>().unwrap(), 20_000.0 / 3.0);
    }

    /// `torch.nn.functional.binary_cross_entropy_with_logits(x, y, pos_weight=w)` and
    /// the mean of `binary_cross_entropy_with_logits(x, y, reduction="none") * (1 - p_t) ** 2`, torch 2.15.
    #[test]
    fn weighted_losses_are_those_of_torch() {
        let logits = Value::constant(tensor(vec![0.5, -1.0, 2.0, -0.3, 1.2, -2.5], (2, 3)).unwrap());
        let labels = tensor(vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0], (2, 3)).unwrap();
        let loss = |positive: Option<Vec<f32>>, gamma| {
            let weights = BceWeights { positive, terms: Terms::Focal { gamma }, smoothing: 0.0 };
            bce_with_logits(&Tape::off(), &logits, &labels, &weights).unwrap().tensor().to_scalar::<f32>().unwrap()
        };
        assert!((loss(Some(vec![2.0, 3.0, 0.5]), 0.0) - 0.994_298_6).abs() < 1e-6);
        assert!((loss(None, 2.0) - 0.339_465_7).abs() < 1e-6);
    }

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        logits: Vec<Vec<f32>>,
        labels: Vec<Vec<f32>>,
        loss: f32,
        gradient: Vec<Vec<f32>>,
        #[serde(flatten)]
        more: serde_json::Value,
    }

    fn weights(case: &Case) -> BceWeights {
        let number = |key: &str| case.more[key].as_f64().unwrap_or(0.0) as f32;
        let terms = match case.name.as_str() {
            "asymmetric" => Terms::Asymmetric {
                positive: number("positive"),
                negative: number("negative"),
                margin: number("margin"),
            },
            "distribution_balanced" => {
                let counts: Vec<usize> = serde_json::from_value(case.more["counts"].clone()).unwrap();
                Terms::Balanced(Balance::new(&counts, case.more["rows"].as_u64().unwrap() as usize, number("gamma")))
            }
            _ => Terms::Plain,
        };
        BceWeights { terms, smoothing: number("smoothing"), ..plain() }
    }

    /// The numbers are made by `scripts/make_recipe_fixtures.py`, with torch 2.15.
    #[test]
    fn losses_and_their_derivatives_are_those_of_torch() {
        #[derive(serde::Deserialize)]
        struct Fixtures {
            losses: Vec<Case>,
        }
        let fixtures: Fixtures = serde_json::from_str(include_str!("../../tests/fixtures/recipes.json")).unwrap();
        assert_eq!(fixtures.losses.len(), 6);
        for case in fixtures.losses {
            let shape = (case.logits.len(), case.logits[0].len());
            let (tape, weights) = (Tape::recording(None), weights(&case));
            let (x, gradient) = Value::leaf(tensor(case.logits.concat(), shape).unwrap());
            let labels = tensor(case.labels.concat(), shape).unwrap();
            let loss = match case.name.as_str() {
                "smoothed_classes" => cross_entropy(&tape, &x, &labels, weights.smoothing),
                _ => bce_with_logits(&tape, &x, &labels, &weights),
            };
            let loss = loss.unwrap();
            let value = loss.tensor().to_scalar::<f32>().unwrap();
            // Powers and exponentials in f32.
            assert!((value - case.loss).abs() < 2e-6 * (1.0 + case.loss), "{}: {value}, {}", case.name, case.loss);
            tape.backward(&loss, tensor(vec![1.0], ()).unwrap()).unwrap();
            let found = gradient.take().unwrap();
            for (index, (found, expected)) in elements(&found).unwrap().iter().zip(case.gradient.concat()).enumerate() {
                assert!((found - expected).abs() < 2e-6, "{}[{index}]: {found}, {expected}", case.name);
            }
        }
    }
}
