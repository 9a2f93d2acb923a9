//! Kernels for the CPU, and the parts they share: vector arithmetic, matrix products, work split over cores.

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod adapted;
pub(crate) mod attention;
pub mod blockwise;
pub(crate) mod dropout;
pub mod dynamic_map;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub mod flops;
pub(crate) mod gemm;
mod lanes;
pub(crate) mod linear;
pub(crate) mod low_rank;
pub(crate) mod math;
pub mod memory;
pub mod nf4;
pub(crate) mod norm;
mod relative;
pub(crate) mod rope;
pub(crate) mod rows;

use rayon::prelude::*;

/// Runs `f(first row, rows)` over blocks of whole rows of `out`, on all cores. The cut depends on
/// the shape alone, never on the number of threads.
pub(crate) fn par_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = block_rows(width);
    // To hand a single block to the other threads takes longer than the block.
    if out.len() <= rows * width.max(1) {
        return f(0, out);
    }
    out.par_chunks_mut(rows * width.max(1)).enumerate().for_each(|(index, block)| f(index * rows, block));
}

/// Rows of a task of [`par_rows`]: about 16 Ki elements, large against the cost of a task, small against
/// a core's cache.
pub(crate) fn block_rows(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// Elements that [`map_block`] is called for at a time: pass it to [`par_rows`] as the width.
pub(crate) const MAP_WIDTH: usize = 1024;

/// `block = f(inputs)`, or `block += f(inputs)` if `accumulate`, element by element; `block` starts
/// at row `first` of rows of [`MAP_WIDTH`].
#[inline(always)]
pub(crate) fn map_block<const K: usize>(
    first: usize,
    block: &mut [f32],
    accumulate: bool,
    inputs: [&[f32]; K],
    f: impl Fn([f32; K]) -> f32,
) {
    let inputs = inputs.map(|input| &input[first * MAP_WIDTH..][..block.len()]);
    for (index, out) in block.iter_mut().enumerate() {
        // Called in one place, `f` is sure to be inlined.
        let value = f(inputs.map(|input| input[index]));
        *out = if accumulate { *out + value } else { value };
    }
}
