//! A product in parts: which thread computes what, and in which blocks along k.

#![expect(unsafe_code, reason = "tiles are shared between packing and micro-kernels by raw pointers")]

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{DEPTH, Kernel, Shared};
use super::panels::{Input, Packing, Panels, Part, Start, Tile};
use super::path::{Compute, Path};
use super::tile::{self, COLUMNS};
use super::weights::{Direction, Source, Weights};

/// The same where x is one panel: the tile is read once, and is to stay in L1.
const SHALLOW: usize = 32;
/// Words between two strips of a tile.
const GAP: usize = 32;
/// Evaluates an expression with `$kernel` being the type for a kind of number and a path.
macro_rules! with_kernel {
    ($compute:expr, $path:expr, $kernel:ident => $body:expr) => {
        match ($compute, $path) {
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::path::Compute::Float32, $crate::kernels::cpu::gemm::path::Path::Avx512) => {
                type $kernel = $crate::kernels::cpu::gemm::avx512::Float32;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::path::Compute::Bfloat16, $crate::kernels::cpu::gemm::path::Path::Avx512) => {
                type $kernel = $crate::kernels::cpu::gemm::avx512::Bfloat16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::path::Compute::Bfloat16, $crate::kernels::cpu::gemm::path::Path::Amx) => {
                type $kernel = $crate::kernels::cpu::gemm::amx::Bfloat16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::path::Compute::Float32, $crate::kernels::cpu::gemm::path::Path::Avx2) => {
                type $kernel = $crate::kernels::cpu::gemm::avx2::Float32;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::kernels::cpu::gemm::path::Compute::Bfloat16, $crate::kernels::cpu::gemm::path::Path::Avx2) => {
                type $kernel = $crate::kernels::cpu::gemm::avx2::Bfloat16;
                $body
            }
            ($crate::kernels::cpu::gemm::path::Compute::Float32, _) => {
                type $kernel = $crate::kernels::cpu::gemm::portable::Float32;
                $body
            }
            ($crate::kernels::cpu::gemm::path::Compute::Bfloat16, _) => {
                type $kernel = $crate::kernels::cpu::gemm::portable::Bfloat16;
                $body
            }
        }
    };
}
pub(super) use with_kernel;

/// A row-major matrix of `depth` columns.
pub(super) fn rows_of(x: &[f32], depth: usize) -> Input<'_> {
    let rows = x.len() / depth.max(1);
    assert_eq!(x.len(), rows * depth, "rows of {depth} numbers");
    Input { data: x, rows, depth, stride: depth, is_transposed: false, scale: 1.0 }
}

/// A part of y, block by block along k.
pub(super) fn multiply_part<K: Kernel>(panels: &Panels<'_, K>, weights: &Weights<'_>, part: &Part, starts: Start<'_>) {
    let depth = weights.depth();
    let in_place = columns_in_place(panels, weights, part, starts);
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
                panels.multiply(start, units, tile, part, starts.at(start));
            }
        }
    });
}

/// Multiplies few rows by whole strips of weights where they lie: packing would cost more than it gives.
/// Returns how many columns of the part that were.
fn columns_in_place<K: Kernel>(panels: &Panels<'_, K>, weights: &Weights<'_>, part: &Part, starts: Start<'_>) -> usize {
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
    unsafe { panels.multiply(0, weights.rows, tile, &Part { columns, ..part.clone() }, starts) };
    count
}

/// Shares y evenly: whole strips of its columns, and where there are too few for the threads, its rows
/// too.
pub(super) fn for_each_task<K: Kernel>(
    panels: &Panels<'_, K>,
    (outputs, depth): (usize, usize),
    y: Shared<f32>,
    f: impl Fn(Part) + Sync,
) {
    /// Multiply-adds that one thread does sooner than the others wake up.
    const FEW: usize = 1 << 18;
    let is_small = panels.rows * depth * outputs < FEW;
    let threads = if is_small { 1 } else { rayon::current_num_threads() };
    let (strips, count) = (outputs.div_ceil(K::STRIP), panels.count());
    let across = outputs.div_ceil(COLUMNS).next_multiple_of(threads).min(strips);
    if across == 0 || count == 0 {
        return;
    }
    // A cut through the rows packs the weights once more: only for threads that would have nothing.
    let down = if across < threads { threads.div_ceil(across).min(count.div_ceil(4)) } else { 1 };
    let work = |task: usize| {
        let (column, row) = (task % across, task / across);
        let start = column * strips / across * K::STRIP;
        let end = ((column + 1) * strips / across * K::STRIP).min(outputs);
        f(Part { panels: row * count / down..(row + 1) * count / down, columns: start..end, y, y_stride: outputs });
    };
    if is_small {
        (0..across * down).for_each(work);
    } else {
        (0..across * down).into_par_iter().with_max_len(1).for_each(work);
    }
}

/// Packs `x` `(n, depth)` for products in `compute`, on all threads; `also` hears of rows as soon as they
/// were read, while they are in the cache.
pub(crate) fn pack(compute: Compute, x: &[f32], depth: usize, also: &(dyn Fn(Range<usize>) + Sync)) -> Packing {
    pack_on(Path::of_this_cpu(compute), compute, x, depth, also)
}

/// The same for given instructions, which this CPU must have.
pub(super) fn pack_on(
    path: Path,
    compute: Compute,
    x: &[f32],
    depth: usize,
    also: &(dyn Fn(Range<usize>) + Sync),
) -> Packing {
    let x = rows_of(x, depth);
    with_kernel!(compute, path, K => Packing::new::<K>((compute, path), x, true, also))
}
