//! x, packed: panels of a few rows, unit by unit.

#![expect(unsafe_code, reason = "packed words are reached by raw pointers")]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Kernel, Number, Shared, Strips, Words};
use super::path::{Compute, Path};
use super::views::MatrixMut;
use super::weights::Source;
use crate::kernels::cpu::math::simd;

/// Terms that are narrowed at a time.
const PIECE: usize = 512;

thread_local! {
    /// Kept from call to call: fresh pages would cost more than the packing.
    static PANELS: RefCell<Words> = const { RefCell::new(Words::NONE) };
}

/// The first factor of a product: a matrix whose rows are `stride` apart, or, transposed, its columns.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) stride: usize,
    pub(super) is_transposed: bool,
    /// Multiplies every number.
    pub(super) scale: f32,
}

impl Input<'_> {
    fn check(&self) {
        let (lines, length) = if self.is_transposed { (self.depth, self.rows) } else { (self.rows, self.depth) };
        assert!(lines == 0 || (lines - 1) * self.stride + length <= self.data.len(), "the matrix exceeds its slice");
    }
}

/// The first factor of products, packed for one kind of number and one path.
pub(crate) struct Packing {
    words: Words,
    rows: usize,
    pub(super) depth: usize,
    pub(super) compute: Compute,
    pub(super) path: Path,
    panel_words: usize,
}

/// The first factor of products, panel by panel.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a, K> {
    kernel: PhantomData<K>,
    layout: Layout<'a>,
    pub(super) rows: usize,
}

/// How the rows of a panel lie.
#[derive(Clone, Copy)]
enum Layout<'a> {
    /// For each unit along k, all rows.
    Packed(&'a Packing),
    /// Row by row, as they came.
    InPlace(Input<'a>),
}

/// What the chains of a product start at.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// At zero: what the output holds is overwritten.
    Zero,
    /// At what the output holds.
    Sum,
    /// At a bias, which is the same for each row, and a matrix of the output's shape; one of the two may be empty.
    Given { bias: &'a [f32], residual: &'a [f32] },
    /// At what a function makes of the output's rows and columns from the given ones on, just before they are
    /// needed: so it costs no pass over memory.
    Written(&'a (dyn Fn(usize, usize, MatrixMut<'_>) + Sync)),
}

impl<'a> Start<'a> {
    /// At a bias and a residual, where there are such.
    pub(crate) fn given(bias: Option<&'a [f32]>, residual: Option<&'a [f32]>) -> Self {
        match (bias, residual) {
            (None, None) => Self::Zero,
            _ => Self::Given { bias: bias.unwrap_or(&[]), residual: residual.unwrap_or(&[]) },
        }
    }

    /// Refuses a bias or a residual that is not of an output's shape.
    pub(super) fn check(self, rows: usize, columns: usize) {
        if let Self::Given { bias, residual } = self {
            assert!(bias.is_empty() || bias.len() == columns, "a bias of {} for {columns} columns", bias.len());
            assert!(residual.is_empty() || residual.len() == rows * columns, "a residual of another shape");
        }
    }

    /// Writes what the chains of a block start at, unless they start at zero or at what is there. The block starts at
    /// `row` and `column` of an output of `width` columns.
    pub(super) fn write(self, (row, column): (usize, usize), width: usize, mut block: MatrixMut<'_>) {
        match self {
            Self::Zero | Self::Sum => {}
            Self::Written(write) => write(row, column, block),
            Self::Given { bias, residual } => {
                let (rows, columns) = block.shape();
                for index in 0..rows {
                    let y = block.row(index);
                    let residual = residual.get((row + index) * width + column..).unwrap_or(&[]);
                    match (bias.get(column..column + columns), residual.get(..columns)) {
                        (Some(bias), Some(residual)) => add(y, bias, residual),
                        (Some(start), None) | (None, Some(start)) => y.copy_from_slice(start),
                        (None, None) => y.fill(0.0),
                    }
                }
            }
        }
    }

    /// Of a chain's terms from `term` on.
    pub(super) fn at(self, term: usize) -> Self {
        if term == 0 { self } else { Self::Sum }
    }
}

simd! {
    fn add(y: &mut [f32], a: &[f32], b: &[f32]) {
        y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + b);
    }
}

/// Columns of y that a task computes, and where y is.
#[derive(Clone)]
pub(super) struct Part {
    /// Panels.
    pub(super) panels: Range<usize>,
    pub(super) columns: Range<usize>,
    pub(super) y: Shared<f32>,
    pub(super) y_stride: usize,
}

/// Weights as micro-kernels read them.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) weights: *const u32,
    pub(super) strip_words: usize,
    pub(super) unit_words: usize,
}

impl Tile {
    /// Strips that were packed, `strip_words` apart.
    pub(super) fn packed<K: Kernel>(weights: *const u32, strip_words: usize) -> Self {
        Self { weights, strip_words, unit_words: K::WORDS * K::STRIP }
    }
}

impl Packing {
    /// Packs all rows, on all threads if `is_parallel`; `also` hears of rows as soon as they were read.
    pub(super) fn new<K: Kernel>(
        (compute, path): (Compute, Path),
        x: Input<'_>,
        is_parallel: bool,
        also: &(dyn Fn(Range<usize>) + Sync),
    ) -> Self {
        let Input { rows, depth, .. } = x;
        x.check();
        assert!(!x.is_transposed || K::TERMS == 1, "only f32 is packed from columns");
        // With room for what `transpose` writes behind the last row.
        let panel_words = (depth.div_ceil(K::TERMS) * K::WORDS * K::ROWS + 16).next_multiple_of(16);
        let mut words = PANELS.take();
        let to = Shared(words.of(panel_count::<K>(rows) * panel_words).as_mut_ptr());
        let pack = |index: usize| {
            let range = panel::<K>(rows, index);
            // SAFETY: each panel has its own words, as many as were reserved, and x was checked above.
            unsafe { pack_panel::<K>(&x, range.clone(), to.get().add(index * panel_words)) }
            also(range);
        };
        let count = panel_count::<K>(rows);
        if is_parallel && count >= 8 {
            (0..count).into_par_iter().for_each(pack);
        } else {
            (0..count).for_each(pack);
        }
        Self { words, rows, depth, compute, path, panel_words }
    }

    /// Rows of x.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The panels, by the kernel that they were packed for.
    pub(super) fn panels<K: Kernel>(&self) -> Panels<'_, K> {
        Panels { kernel: PhantomData, layout: Layout::Packed(self), rows: self.rows }
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        PANELS.set(std::mem::take(&mut self.words));
    }
}

impl<'a, K: Kernel> Panels<'a, K> {
    /// Rows where they lie, if the kernel can read them so: few products are worth a copy.
    pub(super) fn in_place(x: Input<'a>) -> Option<Self> {
        let is_fit = K::READS_ROWS && !x.is_transposed && x.scale == 1.0;
        is_fit.then(|| {
            x.check();
            Self { kernel: PhantomData, layout: Layout::InPlace(x), rows: x.rows }
        })
    }

    pub(super) fn count(&self) -> usize {
        panel_count::<K>(self.rows)
    }

    /// y's part = its start + x's terms from `term` on times the packed tile of them, `units` long.
    ///
    /// # Safety
    /// The tile was packed so, and nobody else touches the part of y, which exists.
    pub(super) unsafe fn multiply(&self, term: usize, units: usize, tile: Tile, part: &Part, start: Start<'_>) {
        for index in part.panels.clone() {
            let range = panel::<K>(self.rows, index);
            // SAFETY: as the caller promised; the panel has this many units.
            unsafe {
                let y = part.y.get().add(range.start * part.y_stride + part.columns.start);
                let block = MatrixMut::from_raw(y, range.len(), part.columns.len(), part.y_stride);
                start.write((range.start, part.columns.start), part.y_stride, block);
                let strips = Strips {
                    weights: tile.weights,
                    strip_words: tile.strip_words,
                    unit_words: tile.unit_words,
                    strip: K::STRIP,
                    columns: part.columns.len(),
                    y,
                    y_stride: part.y_stride,
                    add: !matches!(start, Start::Zero),
                };
                match self.layout {
                    Layout::Packed(packing) => {
                        let panel = packing.words.as_ptr().add(index * packing.panel_words);
                        let width = K::panel_width(range.len());
                        K::panel(range.len(), units, panel.add(term / K::TERMS * K::WORDS * width), &strips);
                    }
                    Layout::InPlace(x) => {
                        let row = x.data.as_ptr().add(range.start * x.stride + term);
                        K::panel_of_rows(range.len(), units, row, x.stride, &strips);
                    }
                }
            }
        }
    }
}

fn panel_count<K: Kernel>(rows: usize) -> usize {
    rows.div_ceil(K::ROWS)
}

/// The rows of a panel: panels differ by one row at most.
fn panel<K: Kernel>(rows: usize, index: usize) -> Range<usize> {
    let count = panel_count::<K>(rows);
    index * rows / count..(index + 1) * rows / count
}

/// # Safety
/// The matrix holds these rows, and there is room for the panel.
unsafe fn pack_panel<K: Kernel>(x: &Input<'_>, range: Range<usize>, to: *mut u32) {
    let width = K::panel_width(range.len());
    if x.is_transposed {
        // SAFETY: the caller's promises.
        unsafe {
            let from = x.data.as_ptr().add(range.start);
            K::copy_columns(to, range.len(), from, x.stride, x.depth, x.scale);
        }
        return;
    }
    let in_place = if x.scale == 1.0 { K::in_place(Source::F32(x.data)) } else { None };
    K::Number::with_buffer(16 * PIECE, |buffer| {
        for start in (0..x.depth).step_by(PIECE) {
            let len = PIECE.min(x.depth - start);
            let mut lines = [std::ptr::null(); 16];
            for ((line, row), buffer) in lines.iter_mut().zip(range.clone()).zip(buffer.chunks_exact_mut(PIECE)) {
                let first = row * x.stride + start;
                *line = match in_place {
                    Some(data) => data[first..][..len].as_ptr(),
                    None => narrow::<K>(&mut buffer[..len], &x.data[first..][..len], x.scale),
                };
            }
            // SAFETY: the caller's promises; a line is `len` long.
            unsafe {
                let to = to.add(start / K::TERMS * K::WORDS * width);
                K::transpose(to, width, width, &lines[..range.len()], len, 0);
            }
        }
    });
}

fn narrow<K: Kernel>(to: &mut [K::Number], from: &[f32], scale: f32) -> *const K::Number {
    /// Numbers scaled at a time: as few as a short row has.
    const FEW: usize = 32;
    if scale == 1.0 {
        K::narrow(to, from);
    } else {
        for (to, from) in to.chunks_mut(FEW).zip(from.chunks(FEW)) {
            let mut scaled = [0.0; FEW];
            let scaled = &mut scaled[..from.len()];
            for (scaled, x) in scaled.iter_mut().zip(from) {
                *scaled = scale * x;
            }
            K::narrow(to, scaled);
        }
    }
    to.as_ptr()
}
