//! A trained linear layer without bias, such as the `score` head: `y = x Wᵀ`.

use std::rc::Rc;

use candle_core::Result;

use super::buffer::{elements, scratch, tensor};
use super::cpu::matrix::{Matrix, MatrixMut, matmul};
use super::rows_of;
use super::tape::{Param, Tape, Value};

/// Maps `x` `(N, in)` to `(N, out)` by the parameter `weight` `(out, in)`.
///
/// # Errors
/// If the last dimension of `x` is not `in`.
pub fn linear(tape: &Tape, x: &Value, weight: &Rc<Param>) -> Result<Value> {
    let (outputs, inputs) = weight.value().dims2()?;
    let rows = rows_of(x.tensor(), inputs)?;
    let mut output = scratch(rows * outputs);
    {
        let (x, w) = (elements(x.tensor())?, elements(weight.value())?);
        let w = Matrix::new(&w, outputs, inputs, inputs).transposed();
        let mut y = MatrixMut::new(&mut output, rows, outputs, outputs);
        matmul(&mut y, false, 1.0, Matrix::new(&x, rows, inputs, inputs), w);
    }
    let output = tensor(output, (rows, outputs))?;
    if !tape.is_recording() {
        return Ok(Value::constant(output));
    }
    let (x, x_gradient, weight) = (x.tensor().clone(), x.gradient(), Rc::clone(weight));
    Ok(tape.record(output, move |incoming| {
        let (x, incoming, w) = (elements(&x)?, elements(&incoming)?, elements(weight.value())?);
        let g = Matrix::new(&incoming, rows, outputs, outputs);
        weight.accumulate(|gradient| {
            let x = Matrix::new(&x, rows, inputs, inputs);
            matmul(&mut MatrixMut::new(gradient, outputs, inputs, inputs), true, 1.0, g.transposed(), x);
        })?;
        let Some(gradient) = x_gradient else { return Ok(()) };
        gradient.write(&(rows, inputs).into(), |gradient, accumulate| {
            let w = Matrix::new(&w, outputs, inputs, inputs);
            matmul(&mut MatrixMut::new(gradient, rows, inputs, inputs), accumulate, 1.0, g, w);
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, check_params, numbers};

    #[test]
    fn linear_passes_finite_differences() {
        let x = [(numbers(5 * 7, 1), (5, 7))];
        let weight = (numbers(3 * 7, 2), (3, 7));
        let param = Param::new("w", tensor(weight.0.clone(), weight.1).unwrap()).unwrap();
        check(&x, |tape, inputs| linear(tape, &inputs[0], &param));
        check_params(&[weight], |tape, params| {
            linear(tape, &Value::constant(tensor(x[0].0.clone(), x[0].1)?), &params[0])
        });
    }
}
