//! Picking rows: embedding look-up's trained cousin, used to pool one token a sequence.

use std::rc::Rc;

use candle_core::{Result, bail};

use super::buffer::{elements, scratch, tensor};
use super::tape::{Tape, Value};

/// Rows `indices` of `x` `(N, D)`, in that order. Indices are distinct.
///
/// # Errors
/// If an index is not below N.
pub fn gather(tape: &Tape, x: &Value, indices: &Rc<[u32]>) -> Result<Value> {
    let (rows, width) = x.tensor().dims2()?;
    if let Some(index) = indices.iter().find(|&&index| index as usize >= rows) {
        bail!("row {index} of {rows}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};

    #[test]
    fn gather_passes_finite_differences() {
        let indices: Rc<[u32]> = vec![4, 0, 2].into();
        check(&[(numbers(5 * 3, 1), (5, 3))], |tape, inputs| gather(tape, &inputs[0], &indices));
    }
}
