//! Moving rows and columns about: pooling, parts of a fused product, sums.

use std::ops::Range;
use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Tape, Value};
use crate::kernels::buffer::{elements, scratch, tensor};
use crate::kernels::cpu::math::simd;
use crate::kernels::cpu::{MAP_WIDTH, map_block, par_rows};

/// Rows `indices` of `x` `(N, D)`, in that order. Indices are distinct.
///
/// # Errors
/// If an index is not below N.
pub fn gather(tape: &Tape, x: &Value, indices: &Rc<[u32]>) -> Result<Value> {
    let (rows, width) = x.tensor().dims2()?;
    if let Some(index) = indices.iter().find(|&&index| index as usize >= rows) {
        bail!("row {index} of {rows}");
    }
    #[cfg(feature = "cuda")]
    if x.tensor().device().is_cuda() {
        return crate::kernels::cuda::elementwise::gather(tape, x, indices);
    }
    let mut output = scratch(indices.len() * width);
    {
        let input = elements(x.tensor())?;
        for (out, &index) in output.chunks_exact_mut(width).zip(indices.iter()) {
            out.copy_from_slice(&input[index as usize * width..][..width]);
        }
    }
    let output = tensor(output, (indices.len(), width))?;
    let Some(gradient) = x.gradient() else {
        return Ok(Value::constant(output));
    };
    let indices = Rc::clone(indices);
    Ok(tape.record(output, move |incoming| {
        let incoming = elements(&incoming)?;
        gradient.write(&(rows, width).into(), |gradient, accumulate| {
            if !accumulate {
                gradient.fill(0.0);
            }
            for (incoming, &index) in incoming.chunks_exact(width).zip(indices.iter()) {
                for (sum, incoming) in gradient[index as usize * width..][..width].iter_mut().zip(incoming) {
                    *sum += incoming;
                }
            }
        })
    }))
}

/// The mean row of each sequence of `x` `(N, D)`: sequence b has the rows `offsets[b] .. offsets[b + 1]`,
/// at least one. Gives `(B, D)`.
///
/// # Errors
/// If the offsets do not fit `x`.
pub fn mean_rows(tape: &Tape, x: &Value, offsets: &[usize]) -> Result<Value> {
    let (rows, width) = x.tensor().dims2()?;
    if offsets.last() != Some(&rows) || offsets.windows(2).any(|pair| pair[0] >= pair[1]) {
        bail!("sequences at {offsets:?} do not make {rows} rows");
    }
    let sequences: Rc<[Range<usize>]> = offsets.windows(2).map(|pair| pair[0]..pair[1]).collect();
    let mut output = vec![0.0; sequences.len() * width];
    {
        let x = elements(x.tensor())?;
        for (out, rows) in output.chunks_exact_mut(width).zip(sequences.iter()) {
            for row in rows.clone() {
                out.iter_mut().zip(&x[row * width..]).for_each(|(sum, x)| *sum += x);
            }
            out.iter_mut().for_each(|sum| *sum /= rows.len() as f32);
        }
    }
    let output = tensor(output, (sequences.len(), width))?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    Ok(tape.record(output, move |incoming| {
        let incoming = elements(&incoming)?;
        gradient.write(&(rows, width).into(), |gradient, accumulate| {
            if !accumulate {
                gradient.fill(0.0);
            }
            for (incoming, rows) in incoming.chunks_exact(width).zip(sequences.iter()) {
                let share = 1.0 / rows.len() as f32;
                for row in rows.clone() {
                    let gradient = &mut gradient[row * width..][..width];
                    gradient.iter_mut().zip(incoming).for_each(|(sum, g)| *sum += share * g);
                }
            }
        })
    }))
}

/// Some columns of `x` `(N, D)`: a part of a product whose weights are stored as one.
///
/// # Errors
/// If there are no such columns.
pub fn columns(tape: &Tape, x: &Value, columns: Range<usize>) -> Result<Value> {
    let (rows, width) = x.tensor().dims2()?;
    if columns.is_empty() || columns.end > width {
        bail!("columns {columns:?} of {width}");
    }
    #[cfg(feature = "cuda")]
    if x.tensor().device().is_cuda() {
        return crate::kernels::cuda::elementwise::columns(tape, x, columns);
    }
    let mut output = scratch(rows * columns.len());
    copy_columns(&mut output, &elements(x.tensor())?, width, columns.clone());
    let output = tensor(output, (rows, columns.len()))?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    Ok(tape.record(output, move |incoming| {
        let incoming = elements(&incoming)?;
        gradient.write(&(rows, width).into(), |gradient, accumulate| {
            par_rows(gradient, width, |first, block| {
                for (row, gradient) in (first..).zip(block.chunks_exact_mut(width)) {
                    if !accumulate {
                        gradient.fill(0.0);
                    }
                    let incoming = &incoming[row * columns.len()..];
                    gradient[columns.clone()].iter_mut().zip(incoming).for_each(|(sum, g)| *sum += g);
                }
            });
        })
    }))
}

fn copy_columns(out: &mut [f32], x: &[f32], width: usize, columns: Range<usize>) {
    let count = columns.len();
    par_rows(out, count, |first, block| {
        for (row, out) in (first..).zip(block.chunks_exact_mut(count)) {
            out.copy_from_slice(&x[row * width..][columns.clone()]);
        }
    });
}

/// `a + b`, of one shape.
///
/// # Errors
/// If the shapes differ.
pub fn add(tape: &Tape, a: &Value, b: &Value) -> Result<Value> {
    if a.tensor().shape() != b.tensor().shape() {
        bail!("a sum of shapes {:?} and {:?}", a.tensor().shape(), b.tensor().shape());
    }
    #[cfg(feature = "cuda")]
    if a.tensor().device().is_cuda() {
        return crate::kernels::cuda::elementwise::add(tape, a, b);
    }
    let mut output = scratch(a.tensor().elem_count());
    sum(&mut output, &elements(a.tensor())?, &elements(b.tensor())?);
    let output = tensor(output, a.tensor().shape().clone())?;
    let gradients = (a.gradient(), b.gradient());
    if gradients.0.is_none() && gradients.1.is_none() {
        return Ok(Value::constant(output));
    }
    Ok(tape.record(output, move |incoming| {
        for gradient in [gradients.0, gradients.1].into_iter().flatten() {
            gradient.add(Rc::clone(&incoming))?;
        }
        Ok(())
    }))
}

simd! {
    fn sum(output: &mut [f32], a: &[f32], b: &[f32]) {
        par_rows(output, MAP_WIDTH, |first, block| map_block(first, block, false, [a, b], |[a, b]| a + b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};

    #[test]
    fn means_columns_and_sums_pass_finite_differences() {
        let x = (numbers(6 * 5, 1), (6, 5));
        check(std::slice::from_ref(&x), |tape, inputs| mean_rows(tape, &inputs[0], &[0, 1, 4, 6]));
        check(std::slice::from_ref(&x), |tape, inputs| {
            let (a, b) = (columns(tape, &inputs[0], 1..3)?, columns(tape, &inputs[0], 3..5)?);
            add(tape, &a, &b)
        });
        check(&[x.clone(), (numbers(6 * 5, 2), (6, 5))], |tape, inputs| add(tape, &inputs[0], &inputs[1]));
    }

    #[test]
    fn gather_passes_finite_differences() {
        let indices: Rc<[u32]> = vec![4, 0, 2].into();
        check(&[(numbers(5 * 3, 1), (5, 3))], |tape, inputs| gather(tape, &inputs[0], &indices));
    }
}
