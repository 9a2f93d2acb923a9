//! Weights packed once, for one direction and one kind of number.

#![expect(unsafe_code, reason = "packed words are reached by raw pointers")]

use std::fmt;

use rayon::prelude::*;

use super::kernel::{DEPTH, Kernel, Words};
use super::panels::{Packing, Start, Tile};
use super::path::{Compute, Path};
use super::tasks::{for_each_task, with_kernel};
use super::tile;
use super::views::MatrixMut;
use super::weights::Weights;

/// A matrix as the micro-kernels read it.
pub(crate) struct Packed {
    strips: Words,
    outputs: usize,
    depth: usize,
    compute: Compute,
    path: Path,
}

impl Packed {
    /// Packs a matrix on all threads.
    pub(crate) fn new(compute: Compute, weights: &Weights<'_>) -> Self {
        Self::on(Path::of_this_cpu(compute), compute, weights)
    }

    pub(super) fn on(path: Path, compute: Compute, weights: &Weights<'_>) -> Self {
        let (outputs, depth) = (weights.outputs(), weights.depth());
        let mut packed = Self { strips: Words::NONE, outputs, depth, compute, path };
        with_kernel!(compute, path, K => packed.fill::<K>(weights));
        packed
    }

    fn fill<K: Kernel>(&mut self, weights: &Weights<'_>) {
        let (outputs, depth) = (self.outputs, self.depth);
        let strip_words = strip_words::<K>(depth);
        let words = self.strips.of(outputs.div_ceil(K::STRIP) * strip_words);
        words.par_chunks_mut(strip_words).enumerate().for_each(|(strip, words)| {
            let columns = strip * K::STRIP..((strip + 1) * K::STRIP).min(outputs);
            for start in (0..depth).step_by(DEPTH * K::TERMS) {
                let terms = start..(start + DEPTH * K::TERMS).min(depth);
                let words = &mut words[start / K::TERMS * K::WORDS * K::STRIP..];
                tile::pack::<K>(weights, columns.clone(), terms, words, strip_words);
            }
        });
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.strips.bytes()
    }

    /// The product it was packed for; x was packed for the same kind of number and path.
    pub(crate) fn product(&self, x: &Packing, y: MatrixMut<'_>, starts: Start<'_>) {
        assert!((x.compute, x.path) == (self.compute, self.path), "operands that were packed for different products");
        assert!(self.depth > 0 && x.depth == self.depth, "a product of depths {} and {}", x.depth, self.depth);
        starts.check(x.rows(), self.outputs);
        let y = y.shared(x.rows(), self.outputs);
        with_kernel!(self.compute, self.path, K => {
            let panels = x.panels::<K>();
            let strip_words = strip_words::<K>(self.depth);
            for_each_task(&panels, (self.outputs, self.depth), y, |part| {
                let first = part.columns.start / K::STRIP * strip_words;
                for start in (0..self.depth).step_by(DEPTH * K::TERMS) {
                    let units = (self.depth - start).div_ceil(K::TERMS).min(DEPTH);
                    let at = first + start / K::TERMS * K::WORDS * K::STRIP;
                    // SAFETY: tasks have parts of their own; the strips were packed so.
                    unsafe {
                        let tile = Tile::packed::<K>(self.strips.as_ptr().add(at), strip_words);
                        panels.multiply(start, units, tile, &part, starts.at(start));
                    }
                }
            });
        });
    }
}

/// Words of a strip: whole cache lines.
fn strip_words<K: Kernel>(depth: usize) -> usize {
    depth.div_ceil(K::TERMS) * K::WORDS * K::STRIP
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} × {}, {:?})", self.outputs, self.depth, self.compute)
    }
}
