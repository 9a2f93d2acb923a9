//! A trained linear layer, such as the `score` head: `y = x Wᵀ + b`.

use std::rc::Rc;

use candle_core::Result;

use super::tape::{Param, Tape, Value};
use crate::kernels;
use crate::kernels::buffer::rows_of;

/// Maps `x` `(N, in)` to `(N, out)` by the parameters `weight` `(out, in)` and `bias` (out values).
///
/// # Errors
/// If the last dimension of `x` is not `in`.
pub fn linear(tape: &Tape, x: &Value, weight: &Rc<Param>, bias: Option<&Rc<Param>>) -> Result<Value> {
    rows_of(x.tensor(), weight.value().dim(1)?)?;
    let output = kernels::linear(x.tensor(), weight.value(), bias.map(|bias| bias.value()))?;
    if !tape.is_recording() {
        return Ok(Value::constant(output));
    }
    let (x, of_x, weight, bias) = (x.tensor().clone(), x.gradient(), Rc::clone(weight), bias.map(Rc::clone));
    Ok(tape.record(output, move |g| {
        weight.accumulate(|sum, accumulate| kernels::sum_outer_products(&g, sum, accumulate, &x))?;
        if let Some(bias) = &bias {
            bias.accumulate(|sum, accumulate| kernels::sum_columns(&g, sum, accumulate))?;
        }
        let Some(gradient) = of_x else { return Ok(()) };
        gradient.accumulate(|sum| kernels::linear_backward(&g, sum, weight.value()))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::tensor;
    use crate::ops::finite_differences::{check, check_params, numbers};

    #[test]
    fn linear_passes_finite_differences() {
        let x = [(numbers(5 * 7, 1), (5, 7))];
        let weight = (numbers(3 * 7, 2), (3, 7));
        let bias = (numbers(3, 3), (1, 3));
        let make = |(data, shape): &(Vec<f32>, (usize, usize))| {
            Param::new("p", tensor(data.clone(), *shape).unwrap()).unwrap()
        };
        let params = [make(&weight), make(&bias)];
        check(&x, |tape, inputs| linear(tape, &inputs[0], &params[0], None));
        check_params(&[weight, bias], |tape, params| {
            linear(tape, &Value::constant(tensor(x[0].0.clone(), x[0].1)?), &params[0], Some(&params[1]))
        });
    }
}
