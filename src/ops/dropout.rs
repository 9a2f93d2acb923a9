//! Dropout: each element is zero with probability p, and counts 1 / (1 − p) otherwise.

use std::rc::Rc;

use candle_core::Result;

use super::tape::{Tape, Value, owned};
use crate::kernels;
pub use crate::kernels::mask::Dropout;
use crate::kernels::mask::Mask;

impl Dropout {
    /// Returns true if dropout is active on this tape.
    #[must_use]
    pub fn is_active(&self, tape: &Tape) -> bool {
        self.p > 0.0 && tape.dropout().is_some()
    }
}

/// Drops elements of `x` `(N, D)`.
///
/// # Errors
/// If `x` is not a matrix.
pub fn dropout(tape: &Tape, x: Value, site: &Dropout) -> Result<Value> {
    let Some(choice) = site.choice(tape.dropout()) else { return Ok(x) };
    let mask = Mask::new(choice, x.tensor().dims2()?);
    let output = kernels::dropout(x.tensor(), &mask)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    Ok(tape.record(output, move |g| {
        // The gradient that arrives is ours alone, more often than not: then it is changed in place.
        let g = owned(g)?;
        kernels::dropout_in_place(&g, &mask)?;
        gradient.add(Rc::new(g))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::{elements, tensor};
    use crate::ops::finite_differences::numbers;
    use crate::ops::tape::DropoutKey;

    #[test]
    fn dropout_keeps_the_mean_and_its_gradient_has_the_same_mask() {
        let site = Dropout { p: 0.25, site: 3 };
        let key = DropoutKey { seed: 1, micro_batch: 2 };
        let x: Vec<f32> = numbers(83 * 41, 1).iter().map(|x| x + 2.0).collect();
        let (value, gradient) = Value::leaf(tensor(x.clone(), (83, 41)).unwrap());
        let tape = Tape::recording(Some(key));
        let y = dropout(&tape, value, &site).unwrap();
        let output = elements(y.tensor()).unwrap().to_vec();
        let ones = tensor(vec![1.0; x.len()], (83, 41)).unwrap();
        tape.backward(&y, ones).unwrap();
        let gradient = gradient.take().unwrap();
        let gradient = elements(&gradient).unwrap();
        let kept = output.iter().filter(|&&y| y != 0.0).count() as f32 / x.len() as f32;
        // Three deviations of a binomial of 3,403.
        assert!((kept - 0.75).abs() < 0.023, "{kept} is kept");
        for ((x, y), g) in x.iter().zip(&output).zip(gradient.iter()) {
            let factor = if *y == 0.0 { 0.0 } else { 4.0 / 3.0 };
            assert!((y - factor * x).abs() < 1e-5 && (g - factor).abs() < 1e-6);
        }
    }
}
