//! Rotary position embedding (Su et al., 2021), in the two-halves layout of transformers:
//! `(a, b) → (a cos − b sin, b cos + a sin)` for a = `x[i]`, b = `x[i + d/2]`.

use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Tape, Value};
use crate::kernels::buffer::modify;
use crate::kernels::constant::Constant;
use crate::kernels::cpu::math::simd;
use crate::kernels::cpu::par_rows;

/// cos and sin of every position's angles.
#[derive(Debug)]
pub struct RopeTable {
    /// `(positions, half)`
    cos: Constant,
    /// `(positions, half)`
    sin: Constant,
    /// Pairs of a head that are rotated: d/2, or fewer.
    half: usize,
    /// d
    head_size: usize,
}

impl RopeTable {
    /// Angles `position · frequency` for positions `0 .. positions`, for heads of width `head_size`, of
    /// which the first `2 · frequencies` elements are rotated. cos and sin are multiplied by `scale`.
    ///
    /// # Panics
    /// If a head has fewer elements than that.
    #[must_use]
    pub fn new(frequencies: &[f32], head_size: usize, scale: f32, positions: usize) -> Self {
        assert!(2 * frequencies.len() <= head_size, "{} frequencies for heads of {head_size}", frequencies.len());
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        Self {
            cos: angles().map(|angle| scale * angle.cos()).collect::<Vec<_>>().into(),
            sin: angles().map(|angle| scale * angle.sin()).collect::<Vec<_>>().into(),
            half: frequencies.len(),
            head_size,
        }
    }

    /// How many positions it holds.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// cos and sin on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(&self, device: &candle_core::Device) -> Result<(&candle_core::Tensor, &candle_core::Tensor)> {
        Ok((self.cos.on(device)?, self.sin.on(device)?))
    }

    /// The width of a head, and pairs of it that are rotated.
    #[cfg(feature = "cuda")]
    pub(crate) fn widths(&self) -> (usize, usize) {
        (self.head_size, self.half)
    }
}

simd! {
    /// Rotates every head of the rows of `x`, by `sign` times their angles.
    fn rotate(x: &mut [f32], width: usize, table: &RopeTable, positions: &[u32], sign: f32) {
        let half = table.half;
        par_rows(x, width, |first, block| {
            for (row, x) in (first..).zip(block.chunks_exact_mut(width)) {
                let at = positions[row] as usize * half;
                let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
                for head in x.chunks_exact_mut(table.head_size) {
                    let (a, b) = head[..2 * half].split_at_mut(half);
                    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        let sin = sign * sin;
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        });
    }
}

/// Rotates `x` `(N, heads · d)` by `positions` (N entries), in place: `x` is consumed.
///
/// # Errors
/// If the width is not a multiple of the table's, or a position is not in the table.
pub fn rope(tape: &Tape, x: Value, table: &Rc<RopeTable>, positions: &Rc<[u32]>) -> Result<Value> {
    let (rows, width) = x.tensor().dims2()?;
    if width % table.head_size != 0 || rows != positions.len() {
        bail!("rope over ({rows}, {width}) with {} positions and heads of {}", positions.len(), table.head_size);
    }
    if let Some(position) = positions.iter().find(|&&p| p as usize >= table.positions()) {
        bail!("position {position} is outside the rope table of {}", table.positions());
    }
    #[cfg(feature = "cuda")]
    if x.tensor().device().is_cuda() {
        return crate::kernels::cuda::elementwise::rope(tape, x, table, positions);
    }
    modify(x.tensor(), |x| rotate(x, width, table, positions, 1.0))?;
    let Some(gradient) = x.gradient() else {
        return Ok(x);
    };
    let (table, positions) = (Rc::clone(table), Rc::clone(positions));
    Ok(tape.record(x.tensor().clone(), move |mut incoming| {
        if Rc::get_mut(&mut incoming).is_none() {
            let copy = incoming.copy()?;
            incoming = Rc::new(copy);
        }
        modify(&incoming, |g| rotate(g, width, &table, &positions, -1.0))?;
        gradient.add(incoming)
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
            let positions: Rc<[u32]> = vec![0, 1, 2, 0, 10].into();
            check(&[(numbers(5 * 12, 1), (5, 12))], |tape, inputs| {
                // rope consumes its input and the check looks at it again.
                let copy = crate::ops::rows::gather(tape, &inputs[0], &(0..5).collect::<Vec<_>>().into())?;
                rope(tape, copy, &table, &positions)
            });
        }
    }
}
