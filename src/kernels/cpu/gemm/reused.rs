//! An f32 matrix that is packed once and multiplied several times, in parts, on the calling thread.

#![expect(unsafe_code, reason = "packed words are reached by raw pointers")]

use std::ops::Range;

use super::kernel::{DEPTH, Kernel, Shared, Words};
use super::panels::{Packing, Panels, Part, Start, Tile};
use super::path::{Compute, Path};
use super::tasks::with_kernel;
use super::tile::{self, COLUMNS};
use super::views::{Matrix, MatrixMut};
use crate::kernels::cpu::flops;

/// Parts start at multiples of this many columns: a strip on every path, or two.
pub(crate) const ALIGNMENT: usize = 32;

/// The second factor of products, packed. Its memory is kept for the next matrix.
pub(crate) struct Reused {
    words: Words,
    columns: usize,
    depth: usize,
    path: Path,
}

impl Reused {
    /// Nothing yet.
    pub(crate) const EMPTY: Self = Self { words: Words::NONE, columns: 0, depth: 0, path: Path::Portable };

    /// Packs `b` `(depth, columns)` in place of what was there.
    pub(crate) fn pack(&mut self, b: Matrix<'_>) {
        self.pack_on(Path::of_this_cpu(Compute::Float32), b);
    }

    pub(super) fn pack_on(&mut self, path: Path, b: Matrix<'_>) {
        let weights = b.as_weights();
        (self.columns, self.depth, self.path) = (weights.outputs(), weights.depth(), path);
        assert!(self.columns > 0 && self.depth > 0, "a factor of {} × {}", self.depth, self.columns);
        with_kernel!(Compute::Float32, path, K => {
            let strip_words = strip_words::<K>(self.depth);
            let words = self.words.of(self.columns.div_ceil(K::STRIP) * strip_words);
            for start in (0..self.columns).step_by(COLUMNS) {
                let columns = start..(start + COLUMNS).min(self.columns);
                let words = &mut words[start / K::STRIP * strip_words..];
                tile::pack::<K>(&weights, columns, 0..self.depth, words, strip_words);
            }
        });
    }

    /// dst = scale · a · b, or dst += scale · a · b, for some columns and terms of b: `a` is
    /// `(rows, terms)`, `dst` `(rows, columns)`. Columns start at a multiple of [`ALIGNMENT`].
    pub(crate) fn multiply(
        &self,
        dst: &mut MatrixMut<'_>,
        accumulate: bool,
        scale: f32,
        a: Matrix<'_>,
        (columns, terms): (Range<usize>, Range<usize>),
    ) {
        let x = a.as_input(scale);
        assert!(dst.shape() == (x.rows, columns.len()) && x.depth == terms.len(), "a product of unequal shapes");
        assert!(columns.end <= self.columns && terms.end <= self.depth, "a part outside the packed matrix");
        assert!(columns.start.is_multiple_of(ALIGNMENT), "a part that starts inside a strip");
        flops::count(x.rows, terms.len(), columns.len());
        if x.rows == 0 || columns.is_empty() || terms.is_empty() {
            return;
        }
        let starts = if accumulate { Start::Sum } else { Start::Zero };
        with_kernel!(Compute::Float32, self.path, K => {
            let packing;
            let panels = if let Some(panels) = Panels::<K>::in_place(x) {
                panels
            } else {
                packing = Packing::new::<K>((Compute::Float32, self.path), x, false, &|_| {});
                packing.panels::<K>()
            };
            let strip_words = strip_words::<K>(self.depth);
            let (y, y_stride) = dst.raw();
            let part = Part { panels: 0..panels.count(), columns: 0..columns.len(), y: Shared(y), y_stride };
            for start in (0..terms.len()).step_by(DEPTH) {
                let units = (terms.len() - start).min(DEPTH);
                let at = columns.start / K::STRIP * strip_words + (terms.start + start) * K::STRIP;
                // SAFETY: `pack_on` wrote these strips for this path; `dst` is ours, and as large as the part.
                unsafe {
                    let tile = Tile::packed::<K>(self.words.as_ptr().add(at), strip_words);
                    panels.multiply(start, units, tile, &part, starts.at(start));
                }
            }
        });
    }
}

/// Words of a strip, and some more: the strips' words at one k would share few sets of the L1 cache.
fn strip_words<K: Kernel>(depth: usize) -> usize {
    depth * K::STRIP + 32
}
