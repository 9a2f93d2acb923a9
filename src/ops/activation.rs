//! Activations, alone and gated: `y = f(x)`, and `y = f(gate) ∘ up` (Shazeer, 2020).

use candle_core::Result;

use super::rows_of;
use super::tape::{Tape, Value};
use crate::kernels::buffer::{elements, scratch, tensor};
use crate::kernels::cpu::math::{erf, exp, sigmoid, simd, tanh};
use crate::kernels::cpu::{MAP_WIDTH, map_block, par_rows};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x)
    Silu,
    /// x · Φ(x), Φ the normal distribution.
    Gelu,
    /// The same with Φ approached by a hyperbolic tangent.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// tanh(x)
    Tanh,
}

impl Activation {
    /// By its name in transformers' configurations.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "relu" => Self::Relu,
            "tanh" => Self::Tanh,
            _ => return None,
        })
    }
}

/// Names that [`Activation::from_name`] knows.
pub const NAMES: &str = "silu, gelu, gelu_new, gelu_pytorch_tanh, relu, tanh";

/// `f(x)`, element by element.
///
/// # Errors
/// If `x` is not a matrix of f32.
pub fn activate(tape: &Tape, x: &Value, f: Activation) -> Result<Value> {
    let shape = x.tensor().dims2()?;
    #[cfg(feature = "cuda")]
    if x.tensor().device().is_cuda() {
        return crate::kernels::cuda::elementwise::activate(tape, x, None, f);
    }
    let mut output = scratch(shape.0 * shape.1);
    forward(&mut output, &elements(x.tensor())?, None, f);
    let output = tensor(output, shape)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let x = x.tensor().clone();
    Ok(tape.record(output, move |incoming| {
        let (x, incoming) = (elements(&x)?, elements(&incoming)?);
        gradient.write(&shape.into(), |gradient, accumulate| backward(gradient, accumulate, &incoming, &x, None, f))
    }))
}

/// `f(gate) ∘ up`, both `(N, I)`.
///
/// # Errors
/// If the shapes differ or are not f32.
pub fn gated(tape: &Tape, gate: &Value, up: &Value, f: Activation) -> Result<Value> {
    let shape = gate.tensor().dims2()?;
    rows_of(up.tensor(), shape.1)?;
    #[cfg(feature = "cuda")]
    if gate.tensor().device().is_cuda() {
        return crate::kernels::cuda::elementwise::activate(tape, gate, Some(up), f);
    }
    let mut output = scratch(shape.0 * shape.1);
    forward(&mut output, &elements(gate.tensor())?, Some(&elements(up.tensor())?), f);
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
                backward(gradient, accumulate, &incoming, &gate, Some(&up), f);
            })?;
        }
        if let Some(gradient) = &gradients.1 {
            gradient.write(&shape.into(), |gradient, accumulate| {
                gradient_of_up(gradient, accumulate, &incoming, &gate, f);
            })?;
        }
        Ok(())
    }))
}

/// √(2/π), and the cubic term, of the approximation by a tangent.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;

/// Φ(x) and its derivative, the normal density.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const INVERSE_ROOT_TAU: f32 = 0.398_942_3;
    (0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2), INVERSE_ROOT_TAU * exp(-0.5 * x * x))
}

/// The same, approached by a hyperbolic tangent.
#[inline(always)]
fn normal_by_tanh(x: f32) -> (f32, f32) {
    let t = tanh(TANH_SCALE * (x + TANH_CUBIC * x * x * x));
    let slope = 0.5 * (1.0 - t * t) * TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x * x);
    (0.5 + 0.5 * t, slope)
}

/// A function and its derivative. Not closures, because only functions can be told to be inlined: where
/// they were not, an element took ten times as long.
trait Pointwise {
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

struct Silu;
struct Gelu;
struct GeluTanh;
struct Relu;
struct Tanh;

impl Pointwise for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    }
}

impl Pointwise for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal(x).0
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let (probability, density) = normal(x);
        probability + x * density
    }
}

impl Pointwise for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal_by_tanh(x).0
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let (probability, density) = normal_by_tanh(x);
        probability + x * density
    }
}

impl Pointwise for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        if x > 0.0 { x } else { 0.0 }
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

impl Pointwise for Tanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        tanh(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let t = tanh(x);
        1.0 - t * t
    }
}

/// Runs `$map` with `$function` as the type of an activation, compiled for each on its own.
macro_rules! by_kind {
    ($kind:expr, $function:ident => $map:expr) => {
        match $kind {
            Activation::Silu => by_kind!(@with Silu, $function, $map),
            Activation::Gelu => by_kind!(@with Gelu, $function, $map),
            Activation::GeluTanh => by_kind!(@with GeluTanh, $function, $map),
            Activation::Relu => by_kind!(@with Relu, $function, $map),
            Activation::Tanh => by_kind!(@with Tanh, $function, $map),
        }
    };
    (@with $kind:ident, $function:ident, $map:expr) => {{
        type $function = $kind;
        $map
    }};
}

simd! {
    fn forward(output: &mut [f32], x: &[f32], up: Option<&[f32]>, f: Activation) {
        par_rows(output, MAP_WIDTH, |first, block| {
            by_kind!(f, F => match up {
                None => map_block(first, block, false, [x], |[x]| F::value(x)),
                Some(up) => map_block(first, block, false, [x, up], |[x, up]| F::value(x) * up),
            });
        });
    }
}

simd! {
    /// Of `f(x)`, or of the gate of `f(x) ∘ up`.
    fn backward(gradient: &mut [f32], accumulate: bool, incoming: &[f32], x: &[f32], up: Option<&[f32]>, f: Activation) {
        par_rows(gradient, MAP_WIDTH, |first, block| {
            by_kind!(f, F => match up {
                None => map_block(first, block, accumulate, [incoming, x], |[g, x]| g * F::slope(x)),
                Some(up) => map_block(first, block, accumulate, [incoming, x, up], |[g, x, up]| g * up * F::slope(x)),
            });
        });
    }
}

simd! {
    fn gradient_of_up(gradient: &mut [f32], accumulate: bool, incoming: &[f32], gate: &[f32], f: Activation) {
        par_rows(gradient, MAP_WIDTH, |first, block| {
            by_kind!(f, F => map_block(first, block, accumulate, [incoming, gate], |[g, gate]| g * F::value(gate)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
