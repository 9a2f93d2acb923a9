//! Layer normalisation (Ba et al., 2016): `y = w · (x − mean(x)) / √(var(x) + ε) + b`.

use std::rc::Rc;

use candle_core::Result;

use super::tape::{Param, Tape, Value};
use crate::kernels;
use crate::kernels::buffer::rows_of;
use crate::kernels::constant::Constant;

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

/// Normalises each row of `x` `(N, D)`.
///
/// # Errors
/// If `x` has not D columns.
pub fn layer_norm(tape: &Tape, x: &Value, norm: &Rc<LayerNorm>) -> Result<Value> {
    rows_of(x.tensor(), norm.weight.len())?;
    let (output, moments) = kernels::layer_norm(x.tensor(), &norm.weight, norm.bias.as_ref(), norm.epsilon)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let (x, norm) = (x.tensor().clone(), Rc::clone(norm));
    Ok(tape.record(output, move |g| {
        gradient.accumulate(|sum| kernels::layer_norm_backward(&g, sum, &x, &norm.weight, &moments))
    }))
}

/// Multiplies each row of `x` `(N, D)` by a trained weight and adds a trained bias: what follows a
/// [`LayerNorm`] of ones, where its scale is trained.
///
/// # Errors
/// If `x` has not D columns.
pub fn scale_and_shift(tape: &Tape, x: &Value, weight: &Rc<Param>, bias: Option<&Rc<Param>>) -> Result<Value> {
    rows_of(x.tensor(), weight.value().elem_count())?;
    let output = kernels::scale_and_shift(x.tensor(), weight.value(), bias.map(|bias| bias.value()))?;
    if !tape.is_recording() {
        return Ok(Value::constant(output));
    }
    let (x, of_x, weight, bias) = (x.tensor().clone(), x.gradient(), Rc::clone(weight), bias.map(Rc::clone));
    Ok(tape.record(output, move |g| {
        weight.accumulate(|sum, accumulate| kernels::sum_products(&g, sum, accumulate, &x))?;
        if let Some(bias) = &bias {
            bias.accumulate(|sum, accumulate| kernels::sum_columns(&g, sum, accumulate))?;
        }
        let Some(gradient) = of_x else { return Ok(()) };
        gradient.accumulate(|sum| kernels::scale_backward(&g, sum, weight.value()))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::{elements, tensor};
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
