//! Rotary positions, in the two-halves layout.

use candle_core::{Result, Tensor};

use super::math::simd;
use super::par_rows;
use crate::kernels::buffer::modify;
use crate::kernels::constant::Constant;
use crate::kernels::rope::RopeTable;

/// Rotates every head of the rows of `x` in place, by `sign` times the angles of their positions.
pub(crate) fn rotate(x: &Tensor, table: &RopeTable, positions: &Constant<u32>, sign: f32) -> Result<()> {
    let width = x.dim(1)?;
    modify(x, |x| rotate_rows(x, width, table, positions, sign))
}

simd! {
    fn rotate_rows(x: &mut [f32], width: usize, table: &RopeTable, positions: &[u32], sign: f32) {
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
