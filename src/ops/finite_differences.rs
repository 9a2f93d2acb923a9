//! Checks an op's backward against central differences of its forward.

use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::tape::{Param, Tape, Value};
use crate::kernels::buffer::{elements, tensor};

/// Fixed, irregular numbers in (-1, 1).
pub(crate) fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut out = vec![0.0; len];
    crate::rng::Stream::new(seed, 0, 0, crate::rng::Purpose::Base).uniform(0, 1.0, &mut out);
    out
}

type Input = (Vec<f32>, (usize, usize));

/// Checks the gradient of every input.
pub(crate) fn check(inputs: &[Input], f: impl Fn(&Tape, &[Value]) -> Result<Value>) {
    let make = |(data, shape): &Input| tensor(data.clone(), *shape).unwrap();
    compare(
        inputs,
        |inputs| {
            let (values, gradients): (Vec<_>, Vec<_>) = inputs.iter().map(|input| Value::leaf(make(input))).unzip();
            let tape = Tape::recording(None);
            let output = f(&tape, &values).unwrap();
            tape.backward(&output, weighting(&output)).unwrap();
            let taken = gradients.iter().map(|gradient| gradient.take().expect("every input needs a gradient"));
            taken.map(|gradient| elements(&gradient).unwrap().to_vec()).collect()
        },
        |inputs| {
            let values: Vec<_> = inputs.iter().map(|input| Value::constant(make(input))).collect();
            f(&Tape::off(), &values).unwrap()
        },
    );
}

/// Checks trained parameters as [`check`] does inputs.
pub(crate) fn check_params(params: &[Input], f: impl Fn(&Tape, &[Rc<Param>]) -> Result<Value>) {
    let make = |params: &[Input]| -> Vec<Rc<Param>> {
        let make = |(data, shape): &Input| Param::new("p", tensor(data.clone(), *shape).unwrap()).unwrap();
        params.iter().map(make).collect()
    };
    compare(
        params,
        |params| {
            let params = make(params);
            let tape = Tape::recording(None);
            let output = f(&tape, &params).unwrap();
            tape.backward(&output, weighting(&output)).unwrap();
            params.iter().map(|param| elements(param.gradient()).unwrap().to_vec()).collect()
        },
        |params| f(&Tape::off(), &make(params)).unwrap(),
    );
}

/// The gradient that the checks start from: a fixed random one.
fn weighting(output: &Value) -> Tensor {
    tensor(numbers(output.tensor().elem_count(), 99), output.tensor().shape().clone()).unwrap()
}

/// Compares each gradient with `(f(x + h) − f(x − h)) / 2h`.
fn compare(inputs: &[Input], backward: impl Fn(&[Input]) -> Vec<Vec<f32>>, forward: impl Fn(&[Input]) -> Value) {
    let objective = |inputs: &[Input]| -> f64 {
        let output = forward(inputs);
        let weights = weighting(&output);
        let (y, weights) = (elements(output.tensor()).unwrap(), elements(&weights).unwrap());
        y.iter().zip(weights.iter()).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum()
    };
    // The error of a central difference in f32 is about ε/h + h²: near its best at this step.
    let step = 4e-3;
    for (index, gradient) in backward(inputs).iter().enumerate() {
        for (element, gradient) in gradient.iter().enumerate() {
            let mut moved = inputs.to_vec();
            moved[index].0[element] += step;
            let up = objective(&moved);
            moved[index].0[element] -= 2.0 * step;
            let difference = (up - objective(&moved)) / (2.0 * f64::from(step));
            let error = (difference - f64::from(*gradient)).abs();
            assert!(
                error < 2e-3 * (1.0 + difference.abs()),
                "input {index}, element {element}: backward {gradient}, differences {difference}"
            );
        }
    }
}
