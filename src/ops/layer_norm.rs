//! Layer normalisation (Ba et al., 2016): `y = w · (x − mean(x)) / √(var(x) + ε) + b`.

use std::rc::Rc;

use candle_core::Result;

use super::rows_of;
use super::tape::{Param, Tape, Value};
use crate::kernels::buffer::{elements, scratch, tensor};
use crate::kernels::constant::Constant;
use crate::kernels::cpu::math::{dot, simd};
use crate::kernels::cpu::par_rows;

/// A frozen scale and shift of width D, and the ε of the norm.
#[derive(Debug)]
pub struct LayerNorm {
    /// w, D values.
    pub weight: Constant,
    /// b, D values, if the model has one.
    pub bias: Option<Constant>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// What the backward needs of each row.
struct Moments {
    mean: Vec<f32>,
    /// 1 / √(var(x) + ε)
    inverse: Vec<f32>,
}

/// Normalises each row of `x` `(N, D)`.
///
/// # Errors
/// If `x` is not f32 with D columns.
pub fn layer_norm(tape: &Tape, x: &Value, norm: &Rc<LayerNorm>) -> Result<Value> {
    let width = norm.weight.len();
    let rows = rows_of(x.tensor(), width)?;
    #[cfg(feature = "cuda")]
    if x.tensor().device().is_cuda() {
        return crate::kernels::cuda::norm::layer_norm(tape, x, norm);
    }
    let mut moments = Moments { mean: scratch(rows), inverse: scratch(rows) };
    let mut output = scratch(rows * width);
    {
        let x = elements(x.tensor())?;
        means(&mut moments.mean, &x, width);
        inverse_deviations(&mut moments.inverse, &x, &moments.mean, norm);
        normalize(&mut output, &moments, &x, norm);
    }
    let output = tensor(output, (rows, width))?;
    let Some(gradient) = x.gradient() else {
        return Ok(Value::constant(output));
    };
    let (x, norm) = (x.tensor().clone(), Rc::clone(norm));
    Ok(tape.record(output, move |incoming| {
        let (x, incoming) = (elements(&x)?, elements(&incoming)?);
        gradient.write(&(rows, width).into(), |gradient, accumulate| {
            backward(gradient, accumulate, &x, &incoming, &norm.weight, &moments);
        })
    }))
}

/// Multiplies each row of `x` `(N, D)` by a trained weight and adds a trained bias: what follows a
/// [`LayerNorm`] of ones, where its scale is trained.
///
/// # Errors
/// If `x` is not f32 with D columns.
pub fn scale_and_shift(tape: &Tape, x: &Value, weight: &Rc<Param>, bias: Option<&Rc<Param>>) -> Result<Value> {
    let width = weight.value().elem_count();
    let rows = rows_of(x.tensor(), width)?;
    let mut output = scratch(rows * width);
    {
        let (x, w) = (elements(x.tensor())?, elements(weight.value())?);
        let b = bias.map(|bias| elements(bias.value())).transpose()?;
        for (y, x) in output.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for column in 0..width {
                y[column] = x[column] * w[column] + b.as_ref().map_or(0.0, |b| b[column]);
            }
        }
    }
    let output = tensor(output, (rows, width))?;
    if !tape.is_recording() {
        return Ok(Value::constant(output));
    }
    let (x, x_gradient, weight, bias) = (x.tensor().clone(), x.gradient(), Rc::clone(weight), bias.map(Rc::clone));
    Ok(tape.record(output, move |incoming| {
        let (x, g, w) = (elements(&x)?, elements(&incoming)?, elements(weight.value())?);
        weight.accumulate(|sum| {
            for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
                for column in 0..width {
                    sum[column] += x[column] * g[column];
                }
            }
        })?;
        if let Some(bias) = &bias {
            bias.accumulate(|sum| super::linear::add_columns(sum, &g))?;
        }
        let Some(gradient) = x_gradient else { return Ok(()) };
        gradient.write(&(rows, width).into(), |gradient, accumulate| {
            for (gradient, g) in gradient.chunks_exact_mut(width).zip(g.chunks_exact(width)) {
                for column in 0..width {
                    let before = if accumulate { gradient[column] } else { 0.0 };
                    gradient[column] = before + g[column] * w[column];
                }
            }
        })
    }))
}

simd! {
    fn means(mean: &mut [f32], x: &[f32], width: usize) {
        par_rows(mean, 1, |first, block| {
            for (row, mean) in (first..).zip(block) {
                *mean = sum(&x[row * width..][..width]) / width as f32;
            }
        });
    }
}

simd! {
    fn inverse_deviations(inverse: &mut [f32], x: &[f32], mean: &[f32], norm: &LayerNorm) {
        let width = norm.weight.len();
        par_rows(inverse, 1, |first, block| {
            let mut centered = vec![0.0; width];
            for (row, inverse) in (first..).zip(block) {
                for (centered, x) in centered.iter_mut().zip(&x[row * width..]) {
                    *centered = x - mean[row];
                }
                *inverse = 1.0 / (dot(&centered, &centered) / width as f32 + norm.epsilon).sqrt();
            }
        });
    }
}

simd! {
    fn normalize(output: &mut [f32], moments: &Moments, x: &[f32], norm: &LayerNorm) {
        let width = norm.weight.len();
        par_rows(output, width, |first, block| {
            for (row, y) in (first..).zip(block.chunks_exact_mut(width)) {
                let (mean, inverse) = (moments.mean[row], moments.inverse[row]);
                for ((y, x), weight) in y.iter_mut().zip(&x[row * width..]).zip(&*norm.weight) {
                    *y = (x - mean) * inverse * weight;
                }
                for (y, bias) in y.iter_mut().zip(norm.bias.iter().flat_map(|bias| bias.iter())) {
                    *y += bias;
                }
            }
        });
    }
}

simd! {
    /// With x̂ the normalised row and h = g ∘ w: `∂L/∂x = s · (h − mean(h) − x̂ · mean(h ∘ x̂))`.
    fn backward(gradient: &mut [f32], accumulate: bool, x: &[f32], incoming: &[f32], weight: &[f32], moments: &Moments) {
        let width = weight.len();
        par_rows(gradient, width, |first, block| {
            let (mut weighted, mut normalized) = (vec![0.0; width], vec![0.0; width]);
            for (row, gradient) in (first..).zip(block.chunks_exact_mut(width)) {
                let (mean, inverse) = (moments.mean[row], moments.inverse[row]);
                for ((weighted, g), w) in weighted.iter_mut().zip(&incoming[row * width..]).zip(weight) {
                    *weighted = g * w;
                }
                for (normalized, x) in normalized.iter_mut().zip(&x[row * width..]) {
                    *normalized = (x - mean) * inverse;
                }
                let middle = sum(&weighted) / width as f32;
                let pull = dot(&weighted, &normalized) / width as f32;
                if !accumulate {
                    gradient.fill(0.0);
                }
                for ((gradient, weighted), normalized) in gradient.iter_mut().zip(&weighted).zip(&normalized) {
                    *gradient += inverse * (weighted - middle - normalized * pull);
                }
            }
        });
    }
}

/// Σ x, in a fixed order that vectors can follow.
#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    sums.iter().chain(rest).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, check_params, numbers};

    #[test]
    fn layer_norm_passes_finite_differences() {
        for bias in [None, Some(numbers(21, 4))] {
            let weight = numbers(21, 3).iter().map(|w| 1.0 + w).collect::<Vec<_>>().into();
            let bias = bias.map(Constant::from);
            let norm = Rc::new(LayerNorm { weight, bias, epsilon: 1e-3 });
            check(&[(numbers(5 * 21, 1), (5, 21))], |tape, inputs| layer_norm(tape, &inputs[0], &norm));
        }
    }

    #[test]
    fn a_layer_norm_centres_and_scales() {
        let norm = Rc::new(LayerNorm { weight: vec![2.0; 4].into(), bias: Some(vec![1.0; 4].into()), epsilon: 0.0 });
        let x = Value::constant(tensor(vec![1.0, 3.0, 1.0, 3.0], (1, 4)).unwrap());
        let y = layer_norm(&Tape::off(), &x, &norm).unwrap();
        assert_eq!(&*elements(y.tensor()).unwrap(), &[-1.0, 3.0, -1.0, 3.0]);
    }

    #[test]
    fn scale_and_shift_passes_finite_differences() {
        let x = (numbers(5 * 7, 1), (5, 7));
        let make = |seed| Param::new("p", tensor(numbers(7, seed), (1, 7)).unwrap()).unwrap();
        let (weight, bias) = (make(2), make(3));
        check(std::slice::from_ref(&x), |tape, inputs| scale_and_shift(tape, &inputs[0], &weight, Some(&bias)));
        let params = [(numbers(7, 2), (1, 7)), (numbers(7, 3), (1, 7))];
        check_params(&params, |tape, params| {
            let x = Value::constant(tensor(x.0.clone(), x.1)?);
            scale_and_shift(tape, &x, &params[0], Some(&params[1]))
        });
    }
}
