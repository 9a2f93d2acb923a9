//! The two losses, as means, in f32 with f64 sums.

use candle_core::{Result, Tensor, bail};

use super::buffer::{elements, tensor};
use super::tape::{Tape, Value};

/// Mean over B·L of `max(x, 0) − x·y + ln(1 + e^−|x|)`: binary cross-entropy on logits, stable for
/// any x.
///
/// # Errors
/// If `labels` has not the shape of `logits` `(B, L)`.
pub fn bce_with_logits(tape: &Tape, logits: &Value, labels: &Tensor) -> Result<Value> {
    mean_loss(tape, logits, labels, |x, y, _| {
        let count = x.len() as f64;
        let loss: f64 = x.iter().zip(y).map(|(&x, &y)| f64::from(x.max(0.0) - x * y + (-x.abs()).exp().ln_1p())).sum();
        let slope = |(&x, &y): (&f32, &f32)| (1.0 / (1.0 + (-x).exp()) - y) / count as f32;
        (loss / count, x.iter().zip(y).map(slope).collect())
    })
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
        gradient.write(&shape.into(), |gradient, accumulate| {
            for (gradient, slope) in gradient.iter_mut().zip(&slopes) {
                *gradient = scale * slope + if accumulate { *gradient } else { 0.0 };
            }
        })
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
        check(&logits, |tape, inputs| bce_with_logits(tape, &inputs[0], &labels));
        let one_hot = tensor((0..15).map(|i| f32::from(u8::from(i % 3 == (i / 3) % 3))).collect(), (5, 3)).unwrap();
        check(&logits, |tape, inputs| cross_entropy(tape, &inputs[0], &one_hot));
    }

    #[test]
    fn huge_logits_give_a_finite_loss() {
        let logits = Value::constant(tensor(vec![1e4, -1e4, 90.0], (1, 3)).unwrap());
        let labels = tensor(vec![0.0, 1.0, 1.0], (1, 3)).unwrap();
        let loss = bce_with_logits(&Tape::off(), &logits, &labels).unwrap();
        assert_eq!(loss.tensor().to_scalar::<f32>().unwrap(), 20_000.0 / 3.0);
    }
}
