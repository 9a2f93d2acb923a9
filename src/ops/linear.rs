//! A trained linear layer, such as the `score` head: `y = x Wᵀ + b`, and `y = r + x Wᵀ + b` where it ends a block.

use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Param, Tape, Value};
use crate::kernels;
use crate::kernels::buffer::rows_of;

/// Maps `x` `(N, in)` to `(N, out)` by the parameters `weight` `(out, in)` and `bias` (out values), and adds
/// `residual` `(N, out)` if given.
///
/// # Errors
/// If the last dimension of `x` is not `in`, or that of `residual` is not `out`.
pub fn linear(
    tape: &Tape,
    x: &Value,
    weight: &Rc<Param>,
    bias: Option<&Rc<Param>>,
    residual: Option<&Value>,
) -> Result<Value> {
    let rows = rows_of(x.tensor(), weight.value().dim(1)?)?;
    if let Some(residual) = residual
        && rows_of(residual.tensor(), weight.value().dim(0)?)? != rows
    {
        bail!("a residual of {:?} for {rows} rows", residual.tensor().dims());
    }
    let of_bias = bias.map(|bias| bias.value());
    let output = kernels::linear(x.tensor(), weight.value(), of_bias, residual.map(Value::tensor))?;
    if !tape.is_recording() {
        return Ok(Value::constant(output));
    }
    let (of_x, of_residual) = (x.gradient(), residual.and_then(Value::gradient));
    let (x, weight, bias) = (x.tensor().clone(), Rc::clone(weight), bias.map(Rc::clone));
    Ok(tape.record(output, move |g| {
        if let Some(gradient) = of_residual {
            gradient.add(Rc::clone(&g))?;
        }
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
        check(&x, |tape, inputs| linear(tape, &inputs[0], &params[0], None, None));
        let residual = (numbers(5 * 3, 4), (5, 3));
        check(&[x[0].clone(), residual.clone()], |tape, inputs| {
            linear(tape, &inputs[0], &params[0], Some(&params[1]), Some(&inputs[1]))
        });
        check_params(&[weight, bias], |tape, params| {
            let [x, residual] = [&x[0], &residual].map(|(data, shape)| tensor(data.clone(), *shape).unwrap());
            let residual = Value::constant(residual);
            linear(tape, &Value::constant(x), &params[0], Some(&params[1]), Some(&residual))
        });
    }
}
