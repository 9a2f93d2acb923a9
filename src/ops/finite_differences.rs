//! Checks an op's backward against central differences of its forward.

use candle_core::Result;

use super::buffer::{elements, tensor};
use super::tape::{Tape, Value};

/// Fixed, irregular numbers in (-1, 1).
pub(crate) fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut out = vec![0.0; len];
    crate::rng::Stream::new(seed, 0, 0, crate::rng::Purpose::Base).uniform(0, 1.0, &mut out);
    out
}

type Input = (Vec<f32>, (usize, usize));

/// Compares, for a random weighting of the outputs, every input's gradient with
/// `(f(x + h) − f(x − h)) / 2h`.
pub(crate) fn check(inputs: &[Input], f: impl Fn(&Tape, &[Value]) -> Result<Value>) {
    let constants = |inputs: &[Input]| -> Vec<Value> {
        inputs.iter().map(|(data, shape)| Value::constant(tensor(data.clone(), *shape).unwrap())).collect()
    };
    let (values, gradients): (Vec<_>, Vec<_>) =
        inputs.iter().map(|(data, shape)| Value::leaf(tensor(data.clone(), *shape).unwrap())).unzip();
    let tape = Tape::recording(None);
    let output = f(&tape, &values).unwrap();
    let weights = numbers(output.tensor().elem_count(), 99);
    let weighting = tensor(weights.clone(), output.tensor().shape().clone()).unwrap();
    tape.backward(&output, weighting).unwrap();
    let objective = |inputs: &[Input]| -> f64 {
        let output = f(&Tape::off(), &constants(inputs)).unwrap();
        elements(output.tensor()).unwrap().iter().zip(&weights).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum()
    };
    // The error of a central difference in f32 is about ε/h + h²: near its best at this step.
    let step = 4e-3;
    for (index, gradient) in gradients.iter().enumerate() {
        let gradient = gradient.take().expect("every input of the check needs a gradient");
        let gradient = elements(&gradient).unwrap();
        for element in 0..inputs[index].0.len() {
            let mut moved = inputs.to_vec();
            moved[index].0[element] += step;
            let up = objective(&moved);
            moved[index].0[element] -= 2.0 * step;
            let difference = (up - objective(&moved)) / (2.0 * f64::from(step));
            let error = (difference - f64::from(gradient[element])).abs();
            assert!(
                error < 2e-3 * (1.0 + difference.abs()),
                "input {index}, element {element}: backward {}, differences {difference}",
                gradient[element]
            );
        }
    }
}
