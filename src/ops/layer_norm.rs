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
    let again = {
        let (x, norm) = (x.clone(), Rc::clone(&norm));
        move || kernels::layer_norm(&x, &norm.weight, norm.bias.as_ref(), norm.epsilon).map(|(output, _)| output)
    };
    let value = tape.record(output, move |g| {
        gradient.accumulate(|sum| kernels::layer_norm_backward(&g, sum, &x, &norm.weight, &moments))
    });
    Ok(value.computed_again(again))
}

/// [`layer_norm`] whose scale, and shift if there is one, are trained.
///
/// # Errors
/// If `x` has not D columns.
pub fn trained_layer_norm(
    tape: &Tape,
    x: &Value,
    weight: &Rc<Param>,
    bias: Option<&Rc<Param>>,
    epsilon: f32,
) -> Result<Value> {
    rows_of(x.tensor(), weight.value().elem_count())?;
    let of_bias = bias.map(|bias| bias.value());
    let (output, moments) = kernels::trained_layer_norm(x.tensor(), weight.value(), of_bias, epsilon)?;
    if !tape.is_recording() {
        return Ok(Value::constant(output));
    }
    let (x, of_x, weight, bias) = (x.tensor().clone(), x.gradient(), Rc::clone(weight), bias.map(Rc::clone));
    Ok(tape.record(output, move |g| {
        weight.accumulate(|sum, accumulate| kernels::sum_gradient_of_scale(&g, sum, accumulate, &x, &moments))?;
        if let Some(bias) = &bias {
            bias.accumulate(|sum, accumulate| kernels::sum_columns(&g, sum, accumulate))?;
        }
        let Some(gradient) = of_x else { return Ok(()) };
        gradient.accumulate(|sum| kernels::trained_layer_norm_backward(&g, sum, &x, weight.value(), &moments))
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
    fn trained_layer_norm_passes_finite_differences() {
        // More columns than one task sums.
        let (rows, width) = (5, 71);
        let x = (numbers(rows * width, 1), (rows, width));
        let make = |seed| Param::new("p", tensor(numbers(width, seed), width).unwrap()).unwrap();
        let (weight, bias) = (make(2), make(3));
        check(std::slice::from_ref(&x), |tape, inputs| {
            trained_layer_norm(tape, &inputs[0], &weight, Some(&bias), 1e-3)
        });
        let params = [(numbers(width, 2), (1, width)), (numbers(width, 3), (1, width))];
        check_params(&params, |tape, params| {
            let x = Value::constant(tensor(x.0.clone(), x.1)?);
            trained_layer_norm(tape, &x, &params[0], Some(&params[1]), 1e-3)
        });
    }
}
