//! Matrix products: `y = x Wᵀ` and `y = g W`, in f32 or bf16, with one order of sums.
//!
//! An output is one chain of fused multiply-adds along k, whatever the rows beside it, the threads,
//! the blocks and the width of the vectors: blocks only store and reload the chain's sum, which is
//! exact. So a text's scores are the same whatever it is batched with. What a chain is in bf16 stands
//! in [`arithmetic`]; in f32 it is `c ← c + x[k] · w[k]`, fused, k ascending.
//!
//! | compute | on a CPU with | how |
//! |---|---|---|
//! | f32 | AVX-512; AVX2 and FMA | 14 × 32 or 6 × 16 sums in registers |
//! | bf16 | AVX512_BF16 | `VDPBF16PS`, two multiply-adds an instruction and lane |
//! | bf16 | AVX2 and FMA | the same chain of f32 multiply-adds on widened operands, the same bits |
//! | either | anything else | plain loops |
//!
//! x is packed once a call, into panels of a few rows. Tasks share the columns of y. A task walks
//! along k in blocks: it packs a tile of weights that stays in its core's L2 cache, and multiplies
//! every panel by it. A panel's part of the block stays in L1 meanwhile.

mod arithmetic;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod nf4;
mod packed;
mod panels;
mod path;
mod portable;
mod strided;
mod tasks;
#[cfg(test)]
mod tests;
mod tile;
mod weights;

use panels::Panels;
use tasks::{for_each_task, multiply_part, rows_of, with_kernel};

pub(crate) use packed::Packed;
pub use path::Compute;
pub(crate) use path::Path;
pub(crate) use strided::{Matrix, MatrixMut, NewMatrix, matmul};
pub(crate) use weights::{Direction, Source, Weights};

/// `y = x Wᵀ` or `g W`, by the direction of `weights`, or `y +=` if `accumulate`; packs the weights as
/// it goes, on all threads. `x` is `(n, depth)`, `y` `(n, outputs)`.
pub(crate) fn product(compute: Compute, weights: &Weights<'_>, x: &[f32], y: MatrixMut<'_>, accumulate: bool) {
    product_on(Path::of_this_cpu(compute), compute, weights, x, y, accumulate);
}

/// `y = gᵀ x`, or `y +=` if `accumulate`, on all threads: `g` `(n, rows of y)`, `x` `(n, columns of y)`. Along n each
/// output is one chain of fused multiply-adds in f32.
pub(crate) fn outer_products(g: &[f32], x: &[f32], y: MatrixMut<'_>, accumulate: bool) {
    let (outputs, columns) = y.shape();
    let n = g.len() / outputs.max(1);
    assert!(g.len() == n * outputs && x.len() == n * columns, "rows of {outputs} and {columns} numbers");
    if n == 0 {
        if !accumulate {
            let mut y = y;
            y.clear();
        }
        return;
    }
    let weights = Weights { source: Source::F32(x), rows: n, columns, stride: columns, direction: Direction::Backward };
    let input = panels::Input { data: g, rows: outputs, depth: n, stride: outputs, is_transposed: true, scale: 1.0 };
    let y = y.shared(outputs, columns);
    let path = Path::of_this_cpu(Compute::Float32);
    with_kernel!(Compute::Float32, path, K => {
        let panels = Panels::<K>::pack(input, true);
        for_each_task(&panels, columns, y, |part| multiply_part(&panels, &weights, &part, accumulate));
    });
}

/// The same by given instructions, which this CPU must have.
fn product_on(path: Path, compute: Compute, weights: &Weights<'_>, x: &[f32], y: MatrixMut<'_>, accumulate: bool) {
    let (outputs, depth) = (weights.outputs(), weights.depth());
    let x = rows_of(x, depth);
    assert!(depth > 0, "products of nothing");
    let y = y.shared(x.rows, outputs);
    with_kernel!(compute, path, K => {
        let panels = Panels::<K>::pack(x, true);
        for_each_task(&panels, outputs, y, |part| {
            multiply_part(&panels, weights, &part, accumulate);
        });
    });
}
