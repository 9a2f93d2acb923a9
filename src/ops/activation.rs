//! Activations, alone and gated: `y = f(x)`, and `y = f(gate) ∘ up` (Shazeer, 2020).

use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Tape, Value};
use crate::kernels;
pub use crate::kernels::activation::{Activation, NAMES};
use crate::kernels::buffer::rows_of;

/// `f(x)`, element by element.
///
/// # Errors
/// If `x` is not a matrix.
pub fn activate(tape: &Tape, x: &Value, f: Activation) -> Result<Value> {
    x.tensor().dims2()?;
    let output = kernels::activate(x.tensor(), None, f)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let x = x.tensor().clone();
    Ok(tape.record(output, move |g| gradient.accumulate(|sum| kernels::activate_backward(&g, sum, &x, None, f))))
}

/// `f(gate) ∘ up`, both `(N, I)`.
///
/// # Errors
/// If the shapes differ.
pub fn gated(tape: &Tape, gate: &Value, up: &Value, f: Activation) -> Result<Value> {
    let (rows, width) = gate.tensor().dims2()?;
    if rows_of(up.tensor(), width)? != rows {
        bail!("a gate of {rows} rows for {:?}", up.tensor().dims());
    }
    let output = kernels::activate(gate.tensor(), Some(up.tensor()), f)?;
    let (of_gate, of_up) = (gate.gradient(), up.gradient());
    if of_gate.is_none() && of_up.is_none() {
        return Ok(Value::constant(output));
    }
    let (gate, up) = (gate.tensor().clone(), up.tensor().clone());
    Ok(tape.record(output, move |g| {
        if let (Some(of_gate), Some(of_up)) = (&of_gate, &of_up)
            && of_gate.is_empty()
            && of_up.is_empty()
        {
            let [to_gate, to_up] = kernels::gated_backward(&g, &gate, &up, f)?;
            of_gate.add(Rc::new(to_gate))?;
            return of_up.add(Rc::new(to_up));
        }
        if let Some(gradient) = &of_gate {
            gradient.accumulate(|sum| kernels::activate_backward(&g, sum, &gate, Some(&up), f))?;
        }
        if let Some(gradient) = &of_up {
            gradient.accumulate(|sum| kernels::gate_backward(&g, sum, &gate, f))?;
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::{elements, tensor};
    use crate::ops::finite_differences::{check, numbers};

    const ALL: [Activation; 5] =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Tanh];

    #[test]
    fn activations_pass_finite_differences() {
        for f in ALL {
            // Away from zero, where ReLU has no derivative.
            let x: Vec<f32> = numbers(7 * 19, 1).iter().map(|x| 2.0 * x + 0.02 * x.signum()).collect();
            check(&[(x.clone(), (7, 19))], |tape, inputs| activate(tape, &inputs[0], f));
            let inputs = [(x, (7, 19)), (numbers(7 * 19, 2), (7, 19))];
            check(&inputs, |tape, inputs| gated(tape, &inputs[0], &inputs[1], f));
        }
    }

    /// Values of torch 2.15's `gelu`, both forms, and `tanh`, in f64.
    #[test]
    fn activations_are_those_of_torch() {
        let x = [-3.0f32, -1.0, -0.25, 0.0, 0.125, 0.7, 2.0, 5.0];
        for (f, expected) in [
            (
                Activation::Gelu,
                [
                    -0.004_049_694,
                    -0.158_655_25,
                    -0.100_323_42,
                    0.0,
                    0.068_717_28,
                    0.530_625_44,
                    1.954_499_7,
                    4.999_998_6,
                ],
            ),
            (
                Activation::GeluTanh,
                [
                    -0.003_637_392,
                    -0.158_808_01,
                    -0.100_324_65,
                    0.0,
                    0.068_717_2,
                    0.530_570_15,
                    1.954_597_7,
                    4.999_999_8,
                ],
            ),
            (
                Activation::Tanh,
                [-0.995_054_7, -0.761_594_2, -0.244_918_66, 0.0, 0.124_353, 0.604_367_8, 0.964_027_6, 0.999_909_2],
            ),
        ] {
            let value = Value::constant(tensor(x.to_vec(), (1, x.len())).unwrap());
            let y = activate(&Tape::off(), &value, f).unwrap();
            for (y, expected) in elements(y.tensor()).unwrap().iter().zip(expected) {
                assert!((y - expected).abs() < 4e-7 * (1.0 + expected.abs()), "{f:?}: {y}, expected {expected}");
            }
        }
    }
}
