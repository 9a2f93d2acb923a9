//! Activations, alone and gated, and their slopes.

use candle_core::{Result, Tensor};

use super::math::{erf, exp, sigmoid, simd, tanh};
use super::{MAP_WIDTH, map_block};
use crate::kernels::activation::Activation;
use crate::kernels::buffer::{elements, new_pairs, new_rows, sum_rows, tensor};

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

/// `f(x)`, or `f(x) ∘ up`.
pub(crate) fn activate(x: &Tensor, up: Option<&Tensor>, f: Activation) -> Result<Tensor> {
    let up = up.map(elements).transpose()?;
    tensor(values(&elements(x)?, up.as_deref(), f), x.shape().clone())
}

/// The gradient of `x` in `f(x)`, or in `f(x) ∘ up`.
pub(crate) fn activate_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    x: &Tensor,
    up: Option<&Tensor>,
    f: Activation,
) -> Result<Tensor> {
    let up = up.map(elements).transpose()?;
    add_slopes(sum, x, &elements(g)?, &elements(x)?, up.as_deref(), f)
}

/// The gradients of `gate` and of `up` in `f(gate) ∘ up`, new ones, in one pass.
pub(crate) fn gated_backward(g: &Tensor, gate: &Tensor, up: &Tensor, f: Activation) -> Result<[Tensor; 2]> {
    let shape = gate.shape();
    let [of_gate, of_up] = gated_slopes(&elements(g)?, &elements(gate)?, &elements(up)?, f);
    Ok([tensor(of_gate, shape.clone())?, tensor(of_up, shape.clone())?])
}

/// The gradient of `up` in `f(gate) ∘ up`.
pub(crate) fn gate_backward(g: &Tensor, sum: Option<Tensor>, gate: &Tensor, f: Activation) -> Result<Tensor> {
    add_values(sum, gate, &elements(g)?, &elements(gate)?, f)
}

simd! {
    fn values(x: &[f32], up: Option<&[f32]>, f: Activation) -> Vec<f32> {
        new_rows(x.len(), MAP_WIDTH, |first, block| {
            by_kind!(f, F => match up {
                None => map_block(first, block, false, [x], |[x]| F::value(x)),
                Some(up) => map_block(first, block, false, [x, up], |[x, up]| F::value(x) * up),
            });
        })
    }
}

simd! {
    fn add_slopes(
        sum: Option<Tensor>,
        like: &Tensor,
        g: &[f32],
        x: &[f32],
        up: Option<&[f32]>,
        f: Activation,
    ) -> Result<Tensor> {
        sum_rows(sum, like.shape().clone(), MAP_WIDTH, |first, block, accumulate| {
            by_kind!(f, F => match up {
                None => map_block(first, block, accumulate, [g, x], |[g, x]| g * F::slope(x)),
                Some(up) => map_block(first, block, accumulate, [g, x, up], |[g, x, up]| g * up * F::slope(x)),
            });
        })
    }
}

simd! {
    fn add_values(sum: Option<Tensor>, like: &Tensor, g: &[f32], gate: &[f32], f: Activation) -> Result<Tensor> {
        sum_rows(sum, like.shape().clone(), MAP_WIDTH, |first, block, accumulate| {
            by_kind!(f, F => map_block(first, block, accumulate, [g, gate], |[g, gate]| g * F::value(gate)));
        })
    }
}

simd! {
    fn gated_slopes(g: &[f32], gate: &[f32], up: &[f32], f: Activation) -> [Vec<f32>; 2] {
        new_pairs(gate.len(), MAP_WIDTH, |first, [of_gate, of_up]| {
            let start = first * MAP_WIDTH;
            let (g, gate, up) = (&g[start..], &gate[start..], &up[start..]);
            by_kind!(f, F => {
                for (index, (of_gate, of_up)) in of_gate.iter_mut().zip(of_up).enumerate() {
                    let (value, slope) = F::both(gate[index]);
                    *of_gate = g[index] * up[index] * slope;
                    *of_up = g[index] * value;
                }
            });
        })
    }
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

    /// Both: what they share is computed once, as the compiler sees.
    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        (Self::value(x), Self::slope(x))
    }
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
