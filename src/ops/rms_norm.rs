//! Root-mean-square normalisation (Zhang and Sennrich, 2019): `y = w · x / √(mean(x²) + ε)`.

use std::rc::Rc;

use candle_core::Result;

use super::buffer::{elements, scratch, tensor};
use super::cpu::math::dot;
use super::cpu::par_rows;
use super::rows_of;
use super::tape::{Tape, Value};

/// A frozen scale of width D and the ε of its norm.
#[derive(Debug)]
pub struct RmsNorm {
    /// Scale, D values.
    pub weight: Vec<f32>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// Normalises each row of `x` `(N, D)`.
///
/// # Errors
/// If `x` is not f32 with D columns.
pub fn rms_norm(tape: &Tape, x: &Value, norm: &Rc<RmsNorm>) -> Result<Value> {
    let width = norm.weight.len();
    let rows = rows_of(x.tensor(), width)?;
    let input = elements(x.tensor())?;
    let RmsNorm { weight, epsilon } = &**norm;
    let mut inverse = scratch(rows);
    par_rows(&mut inverse, 1, |first, out| {
        for (row, out) in out.iter_mut().enumerate() {
            let x = &input[(first + row) * width..][..width];
            *out = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
        }
    });
    let mut output = scratch(rows * width);
    par_rows(&mut output, width, |first, block| {
        for (row, y) in (first..).zip(block.chunks_exact_mut(width)) {
            let x = &input[row * width..][..width];
            for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                *y = x * inverse[row] * weight;
            }
        }
    });
    let output = tensor(output, (rows, width))?;
    drop(input);
    let Some(gradient) = x.gradient() else {
        return Ok(Value::constant(output));
    };
    let (x, norm) = (x.tensor().clone(), Rc::clone(norm));
    Ok(tape.record(output, move |incoming| {
        let (x, incoming, weight) = (elements(&x)?, elements(&incoming)?, &*norm.weight);
        gradient.write(&(rows, width).into(), |gradient, accumulate| {
            par_rows(gradient, width, |first, block| {
                for (row, gradient) in (first..).zip(block.chunks_exact_mut(width)) {
                    let at = row * width..(row + 1) * width;
                    backward_row(&x[at.clone()], &incoming[at], weight, inverse[row], gradient, accumulate);
                }
            });
        })
    }))
}

/// With s = 1/√(mean(x²) + ε): `∂L/∂x = s·(g∘w) − x · s³/D · Σ g∘w∘x`.
#[inline(always)]
fn backward_row(x: &[f32], incoming: &[f32], weight: &[f32], scale: f32, gradient: &mut [f32], accumulate: bool) {
    if !accumulate {
        gradient.fill(0.0);
    }
    // The sum of three factors, in lanes so that it vectorises.
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let mut tail = 0.0;
    let ((x16, x_rest), (g16, g_rest), (w16, w_rest)) =
        (x.as_chunks::<LANES>(), incoming.as_chunks::<LANES>(), weight.as_chunks::<LANES>());
    for ((x, g), w) in x16.iter().zip(g16).zip(w16) {
        for lane in 0..LANES {
            sums[lane] = (g[lane] * w[lane]).mul_add(x[lane], sums[lane]);
        }
    }
    for ((x, g), w) in x_rest.iter().zip(g_rest).zip(w_rest) {
        tail += g * w * x;
    }
    let sum = sums.iter().sum::<f32>() + tail;
    let pull = sum * scale * scale * scale / x.len() as f32;
    for (((gradient, x), g), w) in gradient.iter_mut().zip(x).zip(incoming).zip(weight) {
        *gradient += scale * g * w - pull * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};

    #[test]
    fn rms_norm_passes_finite_differences() {
        let norm = Rc::new(RmsNorm { weight: numbers(21, 3).iter().map(|w| 1.0 + w).collect(), epsilon: 1e-3 });
        check(&[(numbers(5 * 21, 1), (5, 21))], |tape, inputs| rms_norm(tape, &inputs[0], &norm));
    }
}
