//! Root-mean-square normalisation (Zhang and Sennrich, 2019): `y = w · x / √(mean(x²) + ε)`.

use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Tape, Value};
use crate::kernels;
use crate::kernels::constant::Constant;

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
    let (output, inverse) = kernels::rms_norm(x.tensor(), &norm.weight, norm.epsilon)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let (x, norm) = (x.tensor().clone(), Rc::clone(norm));
    let again = {
        let (x, norm) = (x.clone(), Rc::clone(&norm));
        move || kernels::rms_norm(&x, &norm.weight, norm.epsilon).map(|(output, _)| output)
    };
    let value = tape.record(output, move |g| {
        gradient.accumulate(|sum| kernels::rms_norm_backward(&g, sum, &x, &norm.weight, &inverse))
    });
    Ok(value.computed_again(again))
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
