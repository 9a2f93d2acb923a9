//! Rotary position embedding (Su et al., 2021), in the two-halves layout of transformers:
//! `(a, b) → (a cos − b sin, b cos + a sin)` for a = `x[i]`, b = `x[i + d/2]`.

use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Tape, Value, owned};
use crate::kernels;
use crate::kernels::constant::Constant;
pub use crate::kernels::rope::RopeTable;

/// Rotates `x` `(N, heads · d)` by `positions` (N entries), in place: `x` is consumed.
///
/// # Errors
/// If the width is not a multiple of the table's, or a position is not in the table.
pub fn rope(tape: &Tape, x: Value, table: &Rc<RopeTable>, positions: &Rc<Constant<u32>>) -> Result<Value> {
    let (rows, width) = x.tensor().dims2()?;
    if width % table.head_size != 0 || rows != positions.len() {
        bail!("rope over ({rows}, {width}) with {} positions and heads of {}", positions.len(), table.head_size);
    }
    if let Some(position) = positions.iter().find(|&&p| p as usize >= table.positions()) {
        bail!("position {position} is outside the rope table of {}", table.positions());
    }
    kernels::rotate(x.tensor(), table, positions, 1.0)?;
    let Some(gradient) = x.gradient() else { return Ok(x) };
    let (table, positions) = (Rc::clone(table), Rc::clone(positions));
    Ok(tape.record(x.tensor().clone(), move |g| {
        let g = owned(g)?;
        kernels::rotate(&g, &table, &positions, -1.0)?;
        gradient.add(Rc::new(g))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};

    #[test]
    fn rope_passes_finite_differences() {
        // Heads that are rotated in full, and two thirds of them, with another scale.
        for (frequencies, scale) in [(&[1.0, 0.3, 0.05][..], 1.0), (&[1.0, 0.3], 1.2)] {
            let table = Rc::new(RopeTable::new(frequencies, 6, scale, 11));
            let positions = Rc::new(vec![0, 1, 2, 0, 10].into());
            check(&[(numbers(5 * 12, 1), (5, 12))], |tape, inputs| {
                // rope consumes its input and the check looks at it again.
                let copy = crate::ops::rows::gather(tape, &inputs[0], &Rc::new((0..5).collect::<Vec<_>>().into()))?;
                rope(tape, copy, &table, &positions)
            });
        }
    }
}
