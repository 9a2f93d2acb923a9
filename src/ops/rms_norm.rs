//! Root-mean-square normalisation (Zhang and Sennrich, 2019): `y = w · x / √(mean(x²) + ε)`.

use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Tape, Value};
use crate::kernels::buffer::{elements, scratch, tensor};
use crate::kernels::constant::Constant;
use crate::kernels::cpu::math::{dot, simd};
use crate::kernels::cpu::par_rows;

/// A frozen scale of width D and the ε of its norm.
#[derive(Debug)]
pub struct RmsNorm {
    /// Scale, D values.
    pub weight: Constant,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// Normalises each row of `x` `(N, D)`, or each D-wide part of rows that are several D wide, as heads
/// side by side are.
///
/// # Errors
/// If `x` is not f32 with a multiple of D columns.
pub fn rms_norm(tape: &Tape, x: &Value, norm: &Rc<RmsNorm>) -> Result<Value> {
    let width = norm.weight.len();
    let shape = x.tensor().dims2()?;
    if shape.1 % width != 0 {
        bail!("a norm of width {width} over rows of {}", shape.1);
    }
    #[cfg(feature = "cuda")]
    if x.tensor().device().is_cuda() {
        return crate::kernels::cuda::norm::rms_norm(tape, x, norm);
    }
    let rows = shape.0 * (shape.1 / width);
    let mut inverse = scratch(rows);
    let mut output = scratch(rows * width);
    normalize(&mut output, &mut inverse, &elements(x.tensor())?, norm);
    let output = tensor(output, shape)?;
    let Some(gradient) = x.gradient() else {
        return Ok(Value::constant(output));
    };
    let (x, norm) = (x.tensor().clone(), Rc::clone(norm));
    Ok(tape.record(output, move |incoming| {
        let (x, incoming, weight) = (elements(&x)?, elements(&incoming)?, &*norm.weight);
        gradient.write(&shape.into(), |gradient, accumulate| {
            backward(gradient, accumulate, &x, &incoming, weight, &inverse);
        })
    }))
}

simd! {
    /// Writes the normalised rows, and each row's 1/√(mean(x²) + ε).
    fn normalize(output: &mut [f32], inverse: &mut [f32], x: &[f32], norm: &RmsNorm) {
        let width = norm.weight.len();
        par_rows(inverse, 1, |first, inverse| {
            for (row, inverse) in (first..).zip(inverse) {
                let x = &x[row * width..][..width];
                *inverse = 1.0 / (dot(x, x) / width as f32 + norm.epsilon).sqrt();
            }
        });
        par_rows(output, width, |first, block| {
            for (row, y) in (first..).zip(block.chunks_exact_mut(width)) {
                let x = &x[row * width..][..width];
                for ((y, x), weight) in y.iter_mut().zip(x).zip(&*norm.weight) {
                    *y = x * inverse[row] * weight;
                }
            }
        });
    }
}

simd! {
    /// With s = 1/√(mean(x²) + ε): `∂L/∂x = s·(g∘w) − x · s³/D · Σ g∘w∘x`.
    fn backward(gradient: &mut [f32], accumulate: bool, x: &[f32], incoming: &[f32], weight: &[f32], inverse: &[f32]) {
        let width = weight.len();
        par_rows(gradient, width, |first, block| {
            let mut weighted = vec![0.0; width];
            for (row, gradient) in (first..).zip(block.chunks_exact_mut(width)) {
                let (x, incoming) = (&x[row * width..][..width], &incoming[row * width..][..width]);
                for ((weighted, g), w) in weighted.iter_mut().zip(incoming).zip(weight) {
                    *weighted = g * w;
                }
                let scale = inverse[row];
                let pull = dot(&weighted, x) * scale * scale * scale / width as f32;
                if !accumulate {
                    gradient.fill(0.0);
                }
                for ((gradient, x), weighted) in gradient.iter_mut().zip(x).zip(&weighted) {
                    *gradient += scale * weighted - pull * x;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};

    #[test]
    fn rms_norm_passes_finite_differences() {
        let norm = Rc::new(RmsNorm {
            weight: numbers(21, 3).iter().map(|w| 1.0 + w).collect::<Vec<_>>().into(),
            epsilon: 1e-3,
        });
        for shape in [(5, 21), (3, 42)] {
            check(&[(numbers(shape.0 * shape.1, 1), shape)], |tape, inputs| rms_norm(tape, &inputs[0], &norm));
        }
    }
}
