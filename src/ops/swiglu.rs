//! The gated activation of Llama's MLP (Shazeer, 2020): `y = silu(gate) ∘ up`.

use candle_core::Result;

use super::buffer::{elements, scratch, tensor};
use super::cpu::math::{sigmoid, simd};
use super::cpu::{MAP_WIDTH, map_block, par_rows};
use super::rows_of;
use super::tape::{Tape, Value};

/// `silu(gate) ∘ up`, both `(N, I)`.
///
/// # Errors
/// If the shapes differ or are not f32.
pub fn swiglu(tape: &Tape, gate: &Value, up: &Value) -> Result<Value> {
    let shape = gate.tensor().dims2()?;
    rows_of(up.tensor(), shape.1)?;
    let mut output = scratch(shape.0 * shape.1);
    {
        let (gate, up) = (elements(gate.tensor())?, elements(up.tensor())?);
        silu_times_up(&mut output, &gate, &up);
    }
    let output = tensor(output, shape)?;
    let gradients = (gate.gradient(), up.gradient());
    if gradients.0.is_none() && gradients.1.is_none() {
        return Ok(Value::constant(output));
    }
    let (gate, up) = (gate.tensor().clone(), up.tensor().clone());
    Ok(tape.record(output, move |incoming| {
        let (gate, up, incoming) = (elements(&gate)?, elements(&up)?, elements(&incoming)?);
        if let Some(gradient) = &gradients.0 {
            gradient.write(&shape.into(), |gradient, accumulate| {
                gradient_of_gate(gradient, accumulate, &incoming, &gate, &up);
            })?;
        }
        if let Some(gradient) = &gradients.1 {
            gradient.write(&shape.into(), |gradient, accumulate| {
                gradient_of_up(gradient, accumulate, &incoming, &gate);
            })?;
        }
        Ok(())
    }))
}

simd! {
    fn silu_times_up(output: &mut [f32], gate: &[f32], up: &[f32]) {
        par_rows(output, MAP_WIDTH, |first, block| {
            map_block(first, block, false, [gate, up], |[gate, up]| gate * sigmoid(gate) * up);
        });
    }
}

simd! {
    fn gradient_of_gate(gradient: &mut [f32], accumulate: bool, incoming: &[f32], gate: &[f32], up: &[f32]) {
        par_rows(gradient, MAP_WIDTH, |first, block| {
            map_block(first, block, accumulate, [incoming, gate, up], |[g, gate, up]| {
                let s = sigmoid(gate);
                g * up * s * (1.0 + gate * (1.0 - s))
            });
        });
    }
}

simd! {
    fn gradient_of_up(gradient: &mut [f32], accumulate: bool, incoming: &[f32], gate: &[f32]) {
        par_rows(gradient, MAP_WIDTH, |first, block| {
            map_block(first, block, accumulate, [incoming, gate], |[g, gate]| g * gate * sigmoid(gate));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};

    #[test]
    fn swiglu_passes_finite_differences() {
        let inputs = [(numbers(7 * 19, 1), (7, 19)), (numbers(7 * 19, 2), (7, 19))];
        check(&inputs, |tape, inputs| swiglu(tape, &inputs[0], &inputs[1]));
    }
}
