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

#![expect(unsafe_code, reason = "tiles are shared between packing and micro-kernels by raw pointers")]

mod arithmetic;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod nf4;
mod packed;
mod panels;
mod portable;
mod strided;
#[cfg(test)]
mod tests;
mod tile;
mod weights;

use rayon::prelude::*;

use kernel::{Kernel, Shared};
use panels::{Input, Panels, Part, Tile};

pub(crate) use packed::Packed;
pub(crate) use strided::{Matrix, MatrixMut, NewMatrix, matmul};
pub(crate) use weights::{Direction, Source, Weights};

/// Units of a chain done before the next columns: a panel of 14 rows takes 14 KiB of L1.
const DEPTH: usize = 256;
/// The same where x is one panel: the tile is read once, and is to stay in L1.
const SHALLOW: usize = 32;
/// Words between two strips of a tile.
const GAP: usize = 32;
/// Columns of y that one tile of weights serves at most: with `DEPTH`, 256 KiB of L2.
const COLUMNS: usize = 256;

/// In what products with frozen weights are computed on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Both operands in f32.
    #[default]
    Float32,
    /// Both operands rounded to bf16, with sums in f32.
    Bfloat16,
}

impl Compute {
    /// As configurations have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// The CPU's instructions that compute it.
    #[must_use]
    pub fn instructions(self) -> &'static str {
        match (Path::of_this_cpu(self), self) {
            (Path::Avx512, Self::Bfloat16) => "AVX512_BF16",
            (Path::Avx512, Self::Float32) => "AVX-512",
            (Path::Avx2, _) => "AVX2",
            (Path::Portable, _) => "none in particular",
        }
    }

    /// Whether this CPU has an instruction for it, and it is fast therefore.
    #[must_use]
    pub fn is_native(self) -> bool {
        match self {
            Self::Float32 => true,
            Self::Bfloat16 => Path::of_this_cpu(self) == Path::Avx512,
        }
    }
}

/// Which instructions compute a product. The result is the same, but for f32 on a portable path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Avx512,
    Avx2,
    Portable,
}

impl Path {
    /// The fastest that this CPU has.
    pub(crate) fn of_this_cpu(compute: Compute) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::kernels::cpu::math::Level;
            let level = Level::of_this_cpu();
            let has_avx512 = level == Level::V4 && (compute == Compute::Float32 || has_avx512_bf16());
            match level {
                Level::V4 | Level::V3 if !has_avx512 => Self::Avx2,
                Level::V4 | Level::V3 => Self::Avx512,
                Level::Baseline => Self::Portable,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = compute;
            Self::Portable
        }
    }
}

/// Whether this CPU has `VDPBF16PS`, and may use it.
#[cfg(target_arch = "x86_64")]
fn has_avx512_bf16() -> bool {
    use crate::kernels::cpu::math::Level;
    Level::of_this_cpu() == Level::V4 && is_x86_feature_detected!("avx512bf16")
}

/// Evaluates an expression with `$kernel` being the type for a kind of number and a path.
macro_rules! with_kernel {
    ($compute:expr, $path:expr, $kernel:ident => $body:expr) => {
        match ($compute, $path) {
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::Compute::Float32, $crate::kernels::cpu::gemm::Path::Avx512) => {
                type $kernel = $crate::kernels::cpu::gemm::avx512::Float32;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::Compute::Bfloat16, $crate::kernels::cpu::gemm::Path::Avx512) => {
                type $kernel = $crate::kernels::cpu::gemm::avx512::Bfloat16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::Compute::Float32, $crate::kernels::cpu::gemm::Path::Avx2) => {
                type $kernel = $crate::kernels::cpu::gemm::avx2::Float32;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::Compute::Bfloat16, $crate::kernels::cpu::gemm::Path::Avx2) => {
                type $kernel = $crate::kernels::cpu::gemm::avx2::Bfloat16;
                $body
            }
            ($crate::kernels::cpu::gemm::Compute::Float32, _) => {
                type $kernel = $crate::kernels::cpu::gemm::portable::Float32;
                $body
            }
            ($crate::kernels::cpu::gemm::Compute::Bfloat16, _) => {
                type $kernel = $crate::kernels::cpu::gemm::portable::Bfloat16;
                $body
            }
        }
    };
}
use with_kernel;

/// `y = x Wᵀ` or `g W`, by the direction of `weights`, or `y +=` if `accumulate`; packs the weights as
/// it goes, on all threads. `x` is `(n, depth)`, `y` `(n, outputs)`.
pub(crate) fn product(compute: Compute, weights: &Weights<'_>, x: &[f32], y: MatrixMut<'_>, accumulate: bool) {
    product_on(Path::of_this_cpu(compute), compute, weights, x, y, accumulate);
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

/// A row-major matrix of `depth` columns.
fn rows_of(x: &[f32], depth: usize) -> Input<'_> {
    let rows = x.len() / depth.max(1);
    assert_eq!(x.len(), rows * depth, "rows of {depth} numbers");
    Input { data: x, rows, depth, stride: depth, is_transposed: false, scale: 1.0 }
}

/// A part of y, block by block along k.
fn multiply_part<K: Kernel>(panels: &Panels<K>, weights: &Weights<'_>, part: &Part, accumulate: bool) {
    let depth = weights.depth();
    let in_place = columns_in_place(panels, weights, part, accumulate);
    let part = &Part { columns: part.columns.start + in_place..part.columns.end, ..part.clone() };
    if part.columns.is_empty() {
        return;
    }
    let block = if panels.rows > K::ROWS { DEPTH } else { SHALLOW } * K::TERMS;
    // Not a power of two: the strips' words at one k would share few sets of the L1 cache.
    let strip_words = block / K::TERMS * K::WORDS * K::STRIP + GAP;
    tile::with_buffer(part.columns.len().div_ceil(K::STRIP) * strip_words, |tile| {
        for start in (0..depth).step_by(block) {
            let terms = start..(start + block).min(depth);
            let units = terms.len().div_ceil(K::TERMS);
            tile::pack::<K>(weights, part.columns.clone(), terms, tile, strip_words);
            // SAFETY: tasks have parts of their own; the tile was just packed.
            unsafe {
                let tile = Tile::packed::<K>(tile.as_ptr(), strip_words);
                panels.multiply(start, units, tile, part, accumulate || start > 0);
            }
        }
    });
}

/// Multiplies few rows by whole strips of weights where they lie: packing would cost more than it gives.
/// Returns how many columns of the part that were.
fn columns_in_place<K: Kernel>(panels: &Panels<K>, weights: &Weights<'_>, part: &Part, accumulate: bool) -> usize {
    /// Rows from which on packed weights are faster.
    const MANY: usize = 9;
    let Source::F32(data) = weights.source else { return 0 };
    let is_fit = K::READS_STRIDED && weights.direction == Direction::Backward && panels.rows < MANY;
    let columns = if is_fit { part.columns.len() / K::STRIP * K::STRIP } else { 0 };
    if columns == 0 {
        return 0;
    }
    let columns = part.columns.start..part.columns.start + columns;
    assert!((weights.rows - 1) * weights.stride + columns.end <= data.len(), "the matrix exceeds its slice");
    let tile =
        Tile { weights: data[columns.start..].as_ptr().cast(), strip_words: K::STRIP, unit_words: weights.stride };
    let count = columns.len();
    // SAFETY: tasks have parts of their own; whole strips of every row are inside the matrix.
    unsafe { panels.multiply(0, weights.rows, tile, &Part { columns, ..part.clone() }, accumulate) };
    count
}

/// Shares y evenly: whole strips of its columns, and where there are too few for the threads, its rows
/// too.
fn for_each_task<K: Kernel>(panels: &Panels<K>, outputs: usize, y: Shared<f32>, f: impl Fn(Part) + Sync) {
    let threads = rayon::current_num_threads();
    let (strips, count) = (outputs.div_ceil(K::STRIP), panels.count());
    let across = outputs.div_ceil(COLUMNS).next_multiple_of(threads).min(strips);
    if across == 0 || count == 0 {
        return;
    }
    // A cut through the rows packs the weights once more: only for threads that would have nothing.
    let down = if across < threads { threads.div_ceil(across).min(count.div_ceil(4)) } else { 1 };
    (0..across * down).into_par_iter().with_max_len(1).for_each(|task| {
        let (column, row) = (task % across, task / across);
        let start = column * strips / across * K::STRIP;
        let end = ((column + 1) * strips / across * K::STRIP).min(outputs);
        f(Part { panels: row * count / down..(row + 1) * count / down, columns: start..end, y, y_stride: outputs });
    });
}
