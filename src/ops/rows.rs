//! Moving rows and columns about: pooling, parts of a fused product, sums.

use std::ops::Range;
use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Tape, Value};
use crate::kernels;
use crate::kernels::constant::Constant;

/// Rows `indices` of `x` `(N, D)`, in that order. Indices are distinct.
///
/// # Errors
/// If an index is not below N.
pub fn gather(tape: &Tape, x: &Value, indices: &Rc<Constant<u32>>) -> Result<Value> {
    let (rows, _) = x.tensor().dims2()?;
    if let Some(index) = indices.iter().find(|&&index| index as usize >= rows) {
        bail!("row {index} of {rows}");
    }
    let output = kernels::gather(x.tensor(), indices)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let indices = Rc::clone(indices);
    Ok(tape.record(output, move |g| gradient.accumulate(|sum| kernels::scatter(&g, sum, &indices, rows))))
}

/// The mean row of each sequence of `x` `(N, D)`: sequence b has the rows `offsets[b] .. offsets[b + 1]`,
/// at least one. Gives `(B, D)`.
///
/// # Errors
/// If the offsets do not fit `x`.
pub fn mean_rows(tape: &Tape, x: &Value, offsets: &[usize]) -> Result<Value> {
    let (rows, _) = x.tensor().dims2()?;
    if offsets.last() != Some(&rows) || offsets.windows(2).any(|pair| pair[0] >= pair[1]) {
        bail!("sequences at {offsets:?} do not make {rows} rows");
    }
    let sequences: Vec<Range<usize>> = offsets.windows(2).map(|pair| pair[0]..pair[1]).collect();
    let output = kernels::mean_rows(x.tensor(), &sequences)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    Ok(tape.record(output, move |g| gradient.accumulate(|sum| kernels::mean_rows_backward(&g, sum, &sequences))))
}

/// Some columns of `x` `(N, D)`: a part of a product whose weights are stored as one.
///
/// # Errors
/// If there are no such columns.
pub fn columns(tape: &Tape, x: &Value, columns: Range<usize>) -> Result<Value> {
    let (_, width) = x.tensor().dims2()?;
    if columns.is_empty() || columns.end > width {
        bail!("columns {columns:?} of {width}");
    }
    let output = kernels::columns(x.tensor(), columns.clone())?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    Ok(tape.record(output, move |g| gradient.accumulate(|sum| kernels::columns_backward(&g, sum, columns, width))))
}

/// `a + b`, of one shape.
///
/// # Errors
/// If the shapes differ.
pub fn add(tape: &Tape, a: &Value, b: &Value) -> Result<Value> {
    if a.tensor().shape() != b.tensor().shape() {
        bail!("a sum of shapes {:?} and {:?}", a.tensor().shape(), b.tensor().shape());
    }
    let output = kernels::add(a.tensor(), b.tensor())?;
    let gradients = [a.gradient(), b.gradient()];
    if gradients.iter().all(Option::is_none) {
        return Ok(Value::constant(output));
    }
    Ok(tape.record(output, move |g| gradients.iter().flatten().try_for_each(|gradient| gradient.add(Rc::clone(&g)))))
}

/// `a + scale · b`, of one shape.
///
/// # Errors
/// If the shapes differ.
pub fn add_scaled(tape: &Tape, a: &Value, b: &Value, scale: f32) -> Result<Value> {
    if scale == 1.0 {
        return add(tape, a, b);
    }
    if a.tensor().shape() != b.tensor().shape() {
        bail!("a sum of shapes {:?} and {:?}", a.tensor().shape(), b.tensor().shape());
    }
    let output = kernels::scale(b.tensor(), Some(a.tensor().copy()?), scale)?;
    let [of_a, of_b] = [a.gradient(), b.gradient()];
    if of_a.is_none() && of_b.is_none() {
        return Ok(Value::constant(output));
    }
    Ok(tape.record(output, move |g| {
        if let Some(gradient) = of_b {
            gradient.accumulate(|sum| kernels::scale(&g, sum, scale))?;
        }
        of_a.map_or(Ok(()), |gradient| gradient.add(g))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};

    #[test]
    fn means_columns_and_sums_pass_finite_differences() {
        let x = (numbers(6 * 5, 1), (6, 5));
        check(std::slice::from_ref(&x), |tape, inputs| mean_rows(tape, &inputs[0], &[0, 1, 4, 6]));
        check(std::slice::from_ref(&x), |tape, inputs| {
            let (a, b) = (columns(tape, &inputs[0], 1..3)?, columns(tape, &inputs[0], 3..5)?);
            add(tape, &a, &b)
        });
        let two = [x.clone(), (numbers(6 * 5, 2), (6, 5))];
        check(&two, |tape, inputs| add(tape, &inputs[0], &inputs[1]));
        check(&two, |tape, inputs| add_scaled(tape, &inputs[0], &inputs[1], 0.3));
    }

    #[test]
    fn gather_passes_finite_differences() {
        let indices = Rc::new(vec![4, 0, 2].into());
        check(&[(numbers(5 * 3, 1), (5, 3))], |tape, inputs| gather(tape, &inputs[0], &indices));
    }
}
