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
//! | bf16 | AMX, and `LLMCLS_AMX=1` | tiles, with an order of sums of their own |
//! | bf16 | AVX2 and FMA | the same chain of f32 multiply-adds on widened operands, the same bits |
//! | either | anything else | plain loops |
//!
//! x is packed once, into panels of a few rows, unless it is read so seldom that a copy would not pay. Tasks share the columns of y. A task walks
//! along k in blocks: it packs a tile of weights that stays in its core's L2 cache, and multiplies
//! every panel by it. A panel's part of the block stays in L1 meanwhile.

#[cfg(target_arch = "x86_64")]
mod amx;
mod arithmetic;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod int8;
mod kernel;
mod nf4;
mod packed;
mod panels;
mod path;
mod portable;
mod reused;
mod strided;
mod tasks;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod views;
mod vnni;
mod weights;

use tasks::{for_each_task, multiply_part, with_kernel};

pub(crate) use tasks::pack;

pub(crate) use int8::{Int8, Int8Rows};
pub(crate) use packed::Packed;
pub(crate) use panels::{Packing, Start};
pub use path::Compute;
pub(crate) use path::Path;
pub(crate) use reused::{ALIGNMENT, Reused};
pub(crate) use strided::matmul;
pub(crate) use views::{Matrix, MatrixMut, NewMatrix};
pub(crate) use weights::{Direction, Source, Weights};

/// `y = gᵀ x`, or `y +=` if `accumulate`, on all threads: `g` `(n, rows of y)`, `x` `(n, columns of y)`. Along n each
/// output is one chain of fused multiply-adds in f32.
pub(crate) fn outer_products(g: &[f32], x: &[f32], y: MatrixMut<'_>, accumulate: bool) {
    let (outputs, columns) = y.shape();
    let n = g.len() / outputs.max(1);
    assert!(g.len() == n * outputs && x.len() == n * columns, "rows of {outputs} and {columns} numbers");
    assert!(n > 0, "a sum of no rows");
    let weights = Weights { source: Source::F32(x), rows: n, columns, stride: columns, direction: Direction::Backward };
    let start = if accumulate { Start::Sum } else { Start::Zero };
    let path = Path::of_this_cpu(Compute::Float32);
    let input = Matrix::new(g, n, outputs, outputs).transposed().as_input(1.0);
    let packing =
        with_kernel!(Compute::Float32, path, K => Packing::new::<K>((Compute::Float32, path), input, true, &|_| {}));
    product(&weights, &packing, y, start);
}

/// `y = start + x Wᵀ` or `start + g W`, by the direction of `weights`; packs the weights as it goes, on all
/// threads. `y` is `(n, outputs)`.
pub(crate) fn product(weights: &Weights<'_>, x: &Packing, y: MatrixMut<'_>, starts: Start<'_>) {
    let (outputs, depth) = (weights.outputs(), weights.depth());
    assert!(depth > 0 && x.depth == depth, "a product of depths {} and {depth}", x.depth);
    starts.check(x.rows(), outputs);
    let y = y.shared(x.rows(), outputs);
    with_kernel!(x.compute, x.path, K => {
        let panels = x.panels::<K>();
        for_each_task(&panels, (outputs, depth), y, |part| {
            multiply_part(&panels, weights, &part, starts);
        });
    });
}
