//! From where a model computes to the CPU: a loss, and the head that it follows, are a few rows.

use std::rc::Rc;

use candle_core::Result;

use super::tape::{Tape, Value};
use crate::kernels;

/// `x` in f32 on the CPU, where it may be already; its gradient goes back to where `x` is.
pub fn to_host(tape: &Tape, x: Value) -> Result<Value> {
    let output = kernels::to_host(x.tensor())?;
    if kernels::are_together(&output, x.tensor()) {
        return Ok(x);
    }
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let x = x.tensor().clone();
    Ok(tape.record(output, move |g| gradient.add(Rc::new(kernels::from_host(&g, &x)?))))
}
