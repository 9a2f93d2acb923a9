//! A frozen linear layer with a low-rank adapter (Hu et al., 2021):
//! `y = x Wᵀ + b + (α/r) · drop(x) Aᵀ Bᵀ`, with only A and B trained.
//!
//! One op, so that the dropped-out copy of `x` is never stored, only which elements were kept: one
//! bit each, a 32nd of `x`, because drawing them a second and third time in the backward took a
//! twentieth of a step.

use std::cell::OnceCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::adapter_routing::Slot;
use super::tape::{Param, Saved, Tape, Value};
use crate::kernels;
use crate::kernels::adapted::{Layer, LowRankBackward};
use crate::kernels::buffer::rows_of;
use crate::kernels::constant::Constant;
use crate::kernels::low_rank::LowRank;
use crate::kernels::mask::{Choice, Mask};
use crate::kernels::matrix::FrozenMatrix;
use crate::rng::{Purpose, Stream};

/// A frozen `(out, in)` weight, its bias if the model has one, and an adapter if it is trained.
#[derive(Debug)]
pub struct LoraLinear {
    /// W, `(out, in)`.
    pub weight: Arc<FrozenMatrix>,
    /// b, `out` values.
    pub bias: Option<Constant>,
    /// The trained part.
    pub adapter: Option<Adapter>,
    /// Where the layer finds the adapters of several classifiers that share it, for predicting.
    pub slot: Option<Slot>,
    /// W and the adapter in one, for predicting in int8: in place of both.
    pub merged: OnceCell<FrozenMatrix>,
}

impl LoraLinear {
    /// What x is multiplied by.
    fn matrix(&self) -> &FrozenMatrix {
        self.merged.get().unwrap_or(&self.weight)
    }
}

/// The trained part of a [`LoraLinear`].
#[derive(Clone, Debug)]
pub struct Adapter {
    /// A, `(r, in)`.
    pub a: Rc<Param>,
    /// B, `(out, r)`.
    pub b: Rc<Param>,
    /// α / r.
    pub scaling: f32,
    /// Probability with which an element of `x` is left out.
    pub dropout: f32,
    /// Random stream of the mask: the position of A in the list of parameters.
    pub site: u32,
}

impl Adapter {
    /// Decides which elements of x are kept, or `None` where all are.
    fn choice(&self, tape: &Tape) -> Option<Choice> {
        let key = tape.dropout().filter(|_| self.dropout > 0.0)?;
        let stream = Stream::new(key.seed, self.site, key.micro_batch, Purpose::Dropout);
        Some(Choice { stream, p: self.dropout })
    }
}

/// Maps `x` `(N, in)` to `(N, out)`, and adds `residual` `(N, out)` if given.
///
/// # Errors
/// If the last dimension of `x` is not `in`, or that of `residual` is not `out`.
pub fn lora_linear(tape: &Tape, x: &Value, layer: &Rc<LoraLinear>, residual: Option<&Value>) -> Result<Value> {
    if let Some(residual) = residual
        && rows_of(residual.tensor(), layer.weight.rows())? != x.tensor().dim(0)?
    {
        bail!("a residual of {:?} for {:?}", residual.tensor().dims(), x.tensor().dims());
    }
    let [y] = linears(tape, x, [layer], residual)?;
    Ok(y)
}

/// The outputs of several layers with the same input, which is read once for all of them.
///
/// # Errors
/// If the last dimension of `x` is not `in`.
pub fn lora_linears<const K: usize>(tape: &Tape, x: &Value, layers: [&Rc<LoraLinear>; K]) -> Result<[Value; K]> {
    linears(tape, x, layers, None)
}

fn linears<const K: usize>(
    tape: &Tape,
    x: &Value,
    layers: [&Rc<LoraLinear>; K],
    residual: Option<&Value>,
) -> Result<[Value; K]> {
    let rows = x.tensor().dim(0)?;
    let pairs = layers.map(|layer| low_rank(tape, x, layer));
    let pairs: Vec<Option<LowRank>> = pairs.into_iter().collect::<Result<_>>()?;
    let routed = layers.map(|layer| match &layer.slot {
        Some(slot) if layer.merged.get().is_none() => slot.pairs(x.tensor()),
        _ => Ok(Vec::new()),
    });
    let routed: Vec<Vec<(Range<usize>, Rc<LowRank>)>> = routed.into_iter().collect::<Result<_>>()?;
    let parts: Vec<Layer<'_>> = layers
        .iter()
        .zip(pairs.iter().zip(&routed))
        .map(|(layer, (pair, routed))| {
            let routed = routed.iter().map(|(rows, pair)| (rows.clone(), &**pair));
            let low_rank = pair.iter().map(|pair| (0..rows, pair)).chain(routed).collect();
            Layer { weight: layer.matrix(), bias: layer.bias.as_ref(), low_rank }
        })
        .collect();
    let outputs = kernels::adapted(x.tensor(), &parts, residual.map(Value::tensor))?;
    let values =
        layers.into_iter().zip(pairs.into_iter().zip(routed)).zip(outputs).map(|((layer, pairs), (output, us))| {
            if !tape.is_recording() {
                return Ok(Value::constant(output));
            }
            let low_rank = match (&layer.adapter, &layer.slot, pairs) {
                (Some(adapter), _, (Some(pair), _)) => {
                    Some((Rc::clone(&adapter.a), Rc::clone(&adapter.b), Rc::new(pair)))
                }
                // A classifier on a shared base, alone in the batch: one pair is of all rows.
                (None, Some(slot), (_, routed)) => {
                    slot.alone()?.zip(routed.into_iter().next()).map(|((a, b), (_, pair))| (a, b, pair))
                }
                _ => None,
            };
            let low_rank =
                low_rank.zip(us.into_iter().next()).map(|((a, b, pair), u)| Passed { a, b, pair, x: x.saved(), u });
            Ok(recorded(tape, (x, residual), layer, output, low_rank))
        });
    let values: Vec<Value> = values.collect::<Result<_>>()?;
    Ok(values.try_into().unwrap_or_else(|_| unreachable!("an output for each layer")))
}

/// The adapter of a layer for an input, and what of it is kept.
fn low_rank(tape: &Tape, x: &Value, layer: &LoraLinear) -> Result<Option<LowRank>> {
    let rows = rows_of(x.tensor(), layer.weight.columns())?;
    let Some(adapter) = layer.adapter.as_ref().filter(|_| layer.merged.get().is_none()) else { return Ok(None) };
    let mask = adapter.choice(tape).map(|choice| Mask::new(choice, (rows, layer.weight.columns())));
    kernels::low_rank(x.tensor(), adapter.a.value(), adapter.b.value(), adapter.scaling, mask).map(Some)
}

/// An adapter that the input has passed.
struct Passed {
    a: Rc<Param>,
    b: Rc<Param>,
    pair: Rc<LowRank>,
    x: Saved,
    /// `drop(x) Aᵀ`
    u: Tensor,
}

/// The output, with its backward on the tape.
fn recorded(
    tape: &Tape,
    (x, residual): (&Value, Option<&Value>),
    layer: &Rc<LoraLinear>,
    output: Tensor,
    // Without an adapter the backward does not look at x.
    low_rank: Option<Passed>,
) -> Value {
    let (of_x, of_residual) = (x.gradient(), residual.and_then(Value::gradient));
    if low_rank.is_none() && of_x.is_none() && of_residual.is_none() {
        return Value::constant(output);
    }
    let layer = Rc::clone(layer);
    tape.record(output, move |g| {
        if let Some(gradient) = of_residual {
            gradient.add(Rc::clone(&g))?;
        }
        let backward = |of_x: Option<Option<Tensor>>| {
            let Some(Passed { a: of_a, b: of_b, pair, x, u }) = &low_rank else {
                return kernels::adapted_backward(&g, layer.matrix(), None, of_x);
            };
            let (x, mut found) = (x.tensor()?, None);
            of_a.accumulate(|a, add_a| {
                of_b.accumulate(|b, add_b| {
                    let low_rank = LowRankBackward { pair, x, u, of_a: (a, add_a), of_b: (b, add_b) };
                    found = kernels::adapted_backward(&g, &layer.weight, Some(low_rank), of_x)?;
                    Ok(())
                })
            })?;
            Ok(found)
        };
        let Some(gradient) = of_x else { return backward(None).map(drop) };
        gradient.accumulate(|sum| Ok(backward(Some(sum))?.expect("the gradient was asked for")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::{elements, tensor};
    use crate::kernels::cpu::memory::Buffer;
    use crate::kernels::matrix::Storage;
    use crate::ops::finite_differences::{check, check_params, numbers};
    use crate::ops::tape::DropoutKey;

    const INPUTS: usize = 19;
    const OUTPUTS: usize = 13;
    const ROWS: usize = 11;

    fn layer(a: &Rc<Param>, b: &Rc<Param>, dropout: f32) -> Rc<LoraLinear> {
        let weight = Storage::F32(Buffer::Owned(numbers(INPUTS * OUTPUTS, 1)));
        Rc::new(LoraLinear {
            weight: Arc::new(FrozenMatrix::new(weight, OUTPUTS, INPUTS)),
            bias: Some(numbers(OUTPUTS, 7).into()),
            adapter: Some(Adapter { a: Rc::clone(a), b: Rc::clone(b), scaling: 1.5, dropout, site: 3 }),
            slot: None,
            merged: OnceCell::new(),
        })
    }

    fn param(shape: (usize, usize), seed: u32) -> Rc<Param> {
        Param::new("p", tensor(numbers(shape.0 * shape.1, seed), shape).unwrap()).unwrap()
    }

    #[test]
    fn lora_linear_passes_finite_differences_for_inputs_residuals_a_and_b() {
        for rank in [2, 6] {
            let inputs = [(numbers(ROWS * INPUTS, 2), (ROWS, INPUTS)), (numbers(ROWS * OUTPUTS, 3), (ROWS, OUTPUTS))];
            let shapes = [(rank, INPUTS), (OUTPUTS, rank)];
            let with_params = layer(&param(shapes[0], 4), &param(shapes[1], 5), 0.0);
            check(&inputs, |tape, inputs| lora_linear(tape, &inputs[0], &with_params, Some(&inputs[1])));
            let params = shapes.map(|shape| (numbers(shape.0 * shape.1, 6), shape));
            check_params(&params, |tape, params| {
                let x = Value::constant(tensor(inputs[0].0.clone(), inputs[0].1)?);
                lora_linear(tape, &x, &layer(&params[0], &params[1], 0.0), None)
            });
        }
    }

    /// With B the identity-like probe, the gradient of x shows the mask that the forward used.
    #[test]
    fn dropout_keeps_the_asked_share_and_the_backward_draws_the_same_mask() {
        let (a, b) = (param((2, INPUTS), 4), param((OUTPUTS, 2), 5));
        let run = |dropout: f32, micro_batch: u32| {
            let layer = layer(&a, &b, dropout);
            let (x, gradient) = Value::leaf(tensor(vec![1.0; 500 * INPUTS], (500, INPUTS)).unwrap());
            let tape = Tape::recording(Some(DropoutKey { seed: 1, micro_batch }));
            let y = lora_linear(&tape, &x, &layer, None).unwrap();
            let output = elements(y.tensor()).unwrap().to_vec();
            // L = Σ y·w is linear in x, so Σ ∂L/∂x · x + (bias part) = L for the very same mask.
            let w = numbers(500 * OUTPUTS, 8);
            tape.backward(&y, tensor(w.clone(), (500, OUTPUTS)).unwrap()).unwrap();
            let gradient = elements(&gradient.take().unwrap()).unwrap().to_vec();
            let bias = layer.bias.as_deref().unwrap();
            let loss: f64 = output
                .iter()
                .zip(&w)
                .enumerate()
                .map(|(i, (y, w))| f64::from(y - bias[i % OUTPUTS]) * f64::from(*w))
                .sum();
            let linear: f64 = gradient.iter().map(|&g| f64::from(g)).sum();
            assert!((loss - linear).abs() < 1e-2, "{loss} {linear}");
            (output, gradient)
        };
        assert_eq!(run(0.3, 5), run(0.3, 5));
        assert_ne!(run(0.3, 5).0, run(0.3, 6).0);
    }
}
