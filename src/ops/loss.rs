//! The two losses, as means, in f32 with f64 sums.

use std::rc::Rc;

use candle_core::{Result, Tensor, bail};

use super::tape::{Tape, Value};
use crate::kernels::buffer::{elements, tensor};

/// Weights of the terms of binary cross-entropy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BceWeights {
    /// Weight of positives, one number a label; `None`: 1 each.
    pub positive: Option<Vec<f32>>,
    /// γ of the focal loss (Lin et al., 2017): a term counts `(1 − p)^γ` for the probability p of the
    /// truth, so that what is easy counts less. 0: off.
    pub gamma: f32,
}

/// Mean over B·L of `−w·y·ln p − (1 − y)·ln(1 − p)` for p = σ(logit): binary cross-entropy on logits,
/// stable for any of them, with the terms weighted.
///
/// # Errors
/// If `labels` has not the shape of `logits` `(B, L)`, or there are not L weights.
pub fn bce_with_logits(tape: &Tape, logits: &Value, labels: &Tensor, weights: &BceWeights) -> Result<Value> {
    if let Some(positive) =
        weights.positive.as_ref().filter(|positive| Some(&positive.len()) != logits.tensor().dims().last())
    {
        bail!("{} weights of positives for logits of shape {:?}", positive.len(), logits.tensor().dims());
    }
    mean_loss(tape, logits, labels, |x, y, columns| {
        let count = x.len() as f64;
        let mut loss = 0.0;
        let slopes = x.iter().zip(y).enumerate().map(|(index, (&x, &y))| {
            let weight = weights.positive.as_ref().map_or(1.0, |positive| positive[index % columns]);
            let (if_positive, slope_if_positive) = focal_term(x, weights.gamma);
            let (if_negative, slope_if_negative) = focal_term(-x, weights.gamma);
            loss += f64::from(weight * y * if_positive + (1.0 - y) * if_negative);
            (weight * y * slope_if_positive - (1.0 - y) * slope_if_negative) / count as f32
        });
        let slopes = slopes.collect();
        (loss / count, slopes)
    })
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

/// Mean over B of `ln Σ e^x − x[class]`: softmax cross-entropy; each row of `labels` is one-hot.
///
/// # Errors
/// If `labels` has not the shape of `logits` `(B, L)`.
pub fn cross_entropy(tape: &Tape, logits: &Value, labels: &Tensor) -> Result<Value> {
    mean_loss(tape, logits, labels, |x, y, classes| {
        let rows = (x.len() / classes) as f64;
        let mut loss = 0.0;
        let mut slopes = Vec::with_capacity(x.len());
        for (x, y) in x.chunks_exact(classes).zip(y.chunks_exact(classes)) {
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = x.iter().map(|x| (x - max).exp()).sum();
            let target: f32 = x.iter().zip(y).map(|(x, y)| x * y).sum();
            loss += f64::from(max + sum.ln() - target);
            slopes.extend(x.iter().zip(y).map(|(x, y)| ((x - max).exp() / sum - y) / rows as f32));
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

    #[test]
    fn losses_pass_finite_differences() {
        let logits = [(numbers(15, 1), (5, 3))];
        let labels = tensor((0..15).map(|i| f32::from(u8::from(i % 4 == 0))).collect(), (5, 3)).unwrap();
        let weights = [
            BceWeights::default(),
            BceWeights { positive: Some(vec![3.0, 0.5, 1.0]), gamma: 0.0 },
            BceWeights { positive: Some(vec![3.0, 0.5, 1.0]), gamma: 2.0 },
        ];
        for weights in &weights {
            check(&logits, |tape, inputs| bce_with_logits(tape, &inputs[0], &labels, weights));
        }
        let one_hot = tensor((0..15).map(|i| f32::from(u8::from(i % 3 == (i / 3) % 3))).collect(), (5, 3)).unwrap();
        check(&logits, |tape, inputs| cross_entropy(tape, &inputs[0], &one_hot));
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
            let weights = BceWeights { positive, gamma };
            bce_with_logits(&Tape::off(), &logits, &labels, &weights).unwrap().tensor().to_scalar::<f32>().unwrap()
        };
        assert!((loss(Some(vec![2.0, 3.0, 0.5]), 0.0) - 0.994_298_6).abs() < 1e-6);
        assert!((loss(None, 2.0) - 0.339_465_7).abs() < 1e-6);
    }
}
