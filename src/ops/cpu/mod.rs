//! What the CPU kernels share: vector arithmetic, matrix products, and the split over cores.

pub mod flops;
pub(crate) mod math;
pub(crate) mod matrix;

use rayon::prelude::*;

/// Runs `f(first row, rows)` over blocks of whole rows of `out`, on all cores, compiled for this
/// CPU's vector unit. The cut depends on the shape alone, never on the number of threads.
pub(crate) fn par_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    // About 16 Ki elements: large against the cost of a task, small against a core's cache.
    let rows = (16_384 / width.max(1)).max(1);
    out.par_chunks_mut(rows * width.max(1))
        .enumerate()
        .for_each(|(index, block)| math::simd(|| f(index * rows, block)));
}

/// out = f(inputs), or out += f(inputs) if `accumulate`, element by element on all cores.
pub(crate) fn map<const K: usize>(
    out: &mut [f32],
    accumulate: bool,
    inputs: [&[f32]; K],
    f: impl Fn([f32; K]) -> f32 + Sync,
) {
    const BLOCK: usize = 1024;
    par_rows(out, BLOCK, |first, block| {
        let inputs = inputs.map(|input| &input[first * BLOCK..][..block.len()]);
        if accumulate {
            for (index, out) in block.iter_mut().enumerate() {
                *out += f(inputs.map(|input| input[index]));
            }
        } else {
            for (index, out) in block.iter_mut().enumerate() {
                *out = f(inputs.map(|input| input[index]));
            }
        }
    });
}
