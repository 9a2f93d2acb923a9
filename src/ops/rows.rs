//! Moving rows and columns about: pooling, parts of a fused product, sums.

use std::ops::Range;
use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Tape, Value};
use crate::kernels;
use crate::kernels::buffer::{elements, tensor};
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

/// The largest number of each column among the rows of each sequence of `x` `(N, D)`, which is on the CPU; of equal ones
/// the first has the gradient. Gives `(B, D)`.
///
/// # Errors
/// If the offsets do not fit `x`.
pub fn max_rows(tape: &Tape, x: &Value, offsets: &[usize]) -> Result<Value> {
    let (rows, width) = x.tensor().dims2()?;
    if offsets.last() != Some(&rows) || offsets.windows(2).any(|pair| pair[0] >= pair[1]) {
        bail!("sequences at {offsets:?} do not make {rows} rows");
    }
    let numbers = elements(x.tensor())?;
    let best = |ends: &[usize], column: usize| {
        let first = ends[0] * width + column;
        (ends[0]..ends[1]).map(|row| row * width + column).fold(first, |best, at| {
            // A number that is none shows.
            if numbers[at] > numbers[best] || numbers[at].is_nan() { at } else { best }
        })
    };
    let places: Vec<usize> =
        offsets.windows(2).flat_map(|ends| (0..width).map(move |column| best(ends, column))).collect();
    let output: Vec<f32> = places.iter().map(|&at| numbers[at]).collect();
    drop(numbers);
    let output = tensor(output, (offsets.len() - 1, width))?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    Ok(tape.record(output, move |g| {
        let mut of_x = vec![0.0; rows * width];
        for (&at, &g) in places.iter().zip(&*elements(&g)?) {
            of_x[at] = g;
        }
        gradient.add(Rc::new(tensor(of_x, (rows, width))?))
    }))
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
        check(std::slice::from_ref(&x), |tape, inputs| max_rows(tape, &inputs[0], &[0, 1, 4, 6]));
        check(std::slice::from_ref(&x), |tape, inputs| {
            let (a, b) = (columns(tape, &inputs[0], 1..3)?, columns(tape, &inputs[0], 3..5)?);
            add(tape, &a, &b)
        });
        let two = [x.clone(), (numbers(6 * 5, 2), (6, 5))];
        check(&two, |tape, inputs| add(tape, &inputs[0], &inputs[1]));
        check(&two, |tape, inputs| add_scaled(tape, &inputs[0], &inputs[1], 0.3));
    }

    #[test]
    fn the_largest_of_each_column_is_taken() {
        let x = tensor(vec![1.0, -2.0, 3.0, -5.0, 2.0, -4.0, 0.5, f32::NAN], (4, 2)).unwrap();
        let found = max_rows(&Tape::off(), &Value::constant(x), &[0, 1, 3, 4]).unwrap();
        let found = elements(found.tensor()).unwrap().to_vec();
        assert_eq!(found[..5], [1.0, -2.0, 3.0, -4.0, 0.5]);
        assert!(found[5].is_nan());
    }

    #[test]
    fn gather_passes_finite_differences() {
        let indices = Rc::new(vec![4, 0, 2].into());
        check(&[(numbers(5 * 3, 1), (5, 3))], |tape, inputs| gather(tape, &inputs[0], &indices));
    }
}
