//! A trained linear layer, such as the `score` head: `y = x Wᵀ + b`.

use std::rc::Rc;

use candle_core::Result;

use super::rows_of;
use super::tape::{Param, Tape, Value};
use crate::kernels::buffer::{elements, scratch, tensor};
use crate::kernels::cpu::gemm::{Matrix, MatrixMut, matmul};

/// Maps `x` `(N, in)` to `(N, out)` by the parameters `weight` `(out, in)` and `bias` (out values).
///
/// # Errors
/// If the last dimension of `x` is not `in`.
pub fn linear(tape: &Tape, x: &Value, weight: &Rc<Param>, bias: Option<&Rc<Param>>) -> Result<Value> {
    let (outputs, inputs) = weight.value().dims2()?;
    let rows = rows_of(x.tensor(), inputs)?;
    let mut output = scratch(rows * outputs);
    {
        let (x, w) = (elements(x.tensor())?, elements(weight.value())?);
        let w = Matrix::new(&w, outputs, inputs, inputs).transposed();
        let mut y = MatrixMut::new(&mut output, rows, outputs, outputs);
        matmul(&mut y, false, 1.0, Matrix::new(&x, rows, inputs, inputs), w);
    }
    if let Some(bias) = bias {
        let bias = elements(bias.value())?;
        for y in output.chunks_exact_mut(outputs) {
            y.iter_mut().zip(bias.iter()).for_each(|(y, bias)| *y += bias);
        }
    }
    let output = tensor(output, (rows, outputs))?;
    if !tape.is_recording() {
        return Ok(Value::constant(output));
    }
    let (x, x_gradient, weight, bias) = (x.tensor().clone(), x.gradient(), Rc::clone(weight), bias.map(Rc::clone));
    Ok(tape.record(output, move |incoming| {
        let (x, incoming, w) = (elements(&x)?, elements(&incoming)?, elements(weight.value())?);
        let g = Matrix::new(&incoming, rows, outputs, outputs);
        weight.accumulate(|gradient| {
            let x = Matrix::new(&x, rows, inputs, inputs);
            matmul(&mut MatrixMut::new(gradient, outputs, inputs, inputs), true, 1.0, g.transposed(), x);
        })?;
        if let Some(bias) = &bias {
            bias.accumulate(|sum| add_columns(sum, &incoming))?;
        }
        let Some(gradient) = x_gradient else { return Ok(()) };
        gradient.write(&(rows, inputs).into(), |gradient, accumulate| {
            let w = Matrix::new(&w, outputs, inputs, inputs);
            matmul(&mut MatrixMut::new(gradient, rows, inputs, inputs), accumulate, 1.0, g, w);
        })
    }))
}

/// Adds the rows of a matrix to `sum`: the gradient of a bias.
pub(super) fn add_columns(sum: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
