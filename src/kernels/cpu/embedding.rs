//! Rows of trained tables: sums of one row of each, and the gradients of the tables.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::kernels::buffer::{elements, modify, new_rows, tensor};

/// Numbers of a row that one task sums.
const COLUMNS: usize = 64;
/// Numbers that one task sets to zero.
const PIECE: usize = 1 << 16;

/// Row n is the sum of row `rows[n]` of each table `(V, D)`.
pub(crate) fn sum_table_rows(tables: &[(&Tensor, &[u32])], count: usize) -> Result<Tensor> {
    let width = tables[0].0.dim(1)?;
    let data = tables.iter().map(|(table, _)| elements(table)).collect::<Result<Vec<_>>>()?;
    let output = new_rows(count * width, width, |first, block| {
        for (n, out) in (first..).zip(block.chunks_exact_mut(width)) {
            for (index, ((_, rows), data)) in tables.iter().zip(&data).enumerate() {
                let row = &data[rows[n] as usize * width..][..width];
                match index {
                    0 => out.copy_from_slice(row),
                    _ => out.iter_mut().zip(row).for_each(|(out, x)| *out += x),
                }
            }
        }
    });
    tensor(output, (count, width))
}

/// The gradient of a table in [`sum_table_rows`], to `sum`: row n of `g` counts for row `rows[n]`, unless that is
/// `skipped`.
pub(crate) fn sum_gradient_of_table(
    g: &Tensor,
    sum: &Tensor,
    accumulate: bool,
    rows: &[u32],
    skipped: Option<u32>,
) -> Result<()> {
    let width = g.dim(1)?;
    let g = elements(g)?;
    // Rows may repeat, so tasks share the columns: by turns, as each column's numbers lie apart.
    let turns = width.div_ceil(COLUMNS);
    let mut parts: Vec<Vec<f32>> = vec![Vec::new(); turns];
    let (mut distinct, mut places) = (rows.to_vec(), Vec::with_capacity(rows.len()));
    distinct.sort_unstable();
    distinct.dedup();
    for row in rows {
        places.push(distinct.binary_search(row).expect("every row is among the distinct ones"));
    }
    parts.par_iter_mut().enumerate().for_each(|(turn, part)| {
        let columns = COLUMNS.min(width - turn * COLUMNS);
        part.resize(distinct.len() * columns, 0.0);
        for (g, place) in g.chunks_exact(width).zip(&places) {
            let sums = &mut part[place * columns..][..columns];
            sums.iter_mut().zip(&g[turn * COLUMNS..]).for_each(|(sum, g)| *sum += g);
        }
    });
    modify(sum, |sum| {
        if !accumulate {
            sum.par_chunks_mut(PIECE).for_each(|piece| piece.fill(0.0));
        }
        for (place, row) in distinct.iter().enumerate().filter(|(_, row)| Some(**row) != skipped) {
            let sum = &mut sum[*row as usize * width..][..width];
            for (sum, part) in sum.chunks_mut(COLUMNS).zip(&parts) {
                let columns = sum.len();
                sum.iter_mut().zip(&part[place * columns..]).for_each(|(sum, x)| *sum += x);
            }
        }
    })
}
