//! Products with A and B are r numbers wide: row by row while a row is in cache, or, for their gradients,
//! a few columns at a time with the sums in registers.

#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::MatrixMut;
use super::lanes::{Lanes, WIDTH, for_each_cpu};
use crate::kernels::buffer::elements;
use crate::kernels::low_rank::LowRank;
use crate::kernels::mask::{Bits, Mask};
use candle_core::{Result, Tensor};

/// Columns of a gradient that one task sums.
const COLUMNS: usize = 128;

/// A and B for products with rows like `x`.
pub(crate) fn low_rank(_x: &Tensor, a: &Tensor, b: &Tensor, scaling: f32, mask: Option<Mask>) -> Result<LowRank> {
    let (rank, outputs) = (a.dim(0)?, b.dim(0)?);
    let numbers = elements(b)?;
    let mut transposed = vec![0.0; rank * outputs];
    for (r, row) in transposed.chunks_exact_mut(outputs).enumerate() {
        for (out, value) in row.iter_mut().enumerate() {
            *value = numbers[out * rank + r];
        }
    }
    let b = crate::kernels::buffer::tensor(transposed, (rank, outputs))?;
    Ok(LowRank { a: a.clone(), b, rank, scaling, mask })
}

impl LowRank {
    pub(super) fn bits(&self) -> Option<&Bits> {
        self.mask.as_ref().map(Mask::bits)
    }

    /// Scales kept elements up, so that the expected sum stays the same.
    pub(super) fn kept_scale(&self) -> f32 {
        self.mask.as_ref().map_or(1.0, |mask| mask.choice.scale())
    }
}

/// `out = scale · mask(x) · matrixᵀ` for some rows of x: `x` `(N, width)`, `matrix` `(r, width)`, `out`
/// `(rows, r)`.
pub(super) fn dots(out: &mut [f32], x: &[f32], rows: Range<usize>, matrix: &[f32], scale: f32, bits: Option<&Bits>) {
    if rows.is_empty() {
        return;
    }
    let rank = out.len() / rows.len();
    let width = matrix.len() / rank;
    assert!(out.len() == rows.len() * rank && matrix.len() == rank * width && rows.end * width <= x.len());
    assert!(bits.is_none_or(|bits| bits.covers(rows.end, width)));
    let job = Dots { out: out.as_mut_ptr(), x, rows, matrix, rank, width, scale, bits };
    // SAFETY: the rows are inside x, and `out` has a number for each of them and each rank.
    unsafe { dots_of(&job) }
}

struct Dots<'a> {
    out: *mut f32,
    x: &'a [f32],
    rows: Range<usize>,
    matrix: &'a [f32],
    rank: usize,
    width: usize,
    scale: f32,
    bits: Option<&'a Bits>,
}

for_each_cpu! {
    fn dots_of(job: &Dots<'_>) = all_dots<4, 4; 2, 2>;
}

/// R rows and C ranks at a time, so that enough sums are under way.
#[inline(always)]
unsafe fn all_dots<L: Lanes, const R: usize, const C: usize>(job: &Dots<'_>) {
    let mut row = job.rows.start;
    while row < job.rows.end {
        let is_whole = row + R <= job.rows.end;
        let mut r = 0;
        while r < job.rank {
            unsafe {
                match (is_whole, job.rank - r) {
                    (true, rest) if rest >= C => some_dots::<L, R, C>(job, row, r),
                    (true, rest) if rest >= 2 => some_dots::<L, R, 2>(job, row, r),
                    (true, _) => some_dots::<L, R, 1>(job, row, r),
                    (false, rest) if rest >= C => some_dots::<L, 1, C>(job, row, r),
                    (false, rest) if rest >= 2 => some_dots::<L, 1, 2>(job, row, r),
                    (false, _) => some_dots::<L, 1, 1>(job, row, r),
                }
            }
            r += if job.rank - r >= C {
                C
            } else if job.rank - r >= 2 {
                2
            } else {
                1
            };
        }
        row += if is_whole { R } else { 1 };
    }
}

#[inline(always)]
unsafe fn some_dots<L: Lanes, const R: usize, const C: usize>(job: &Dots<'_>, row: usize, r: usize) {
    let width = job.width;
    let (x, matrix) = unsafe { (job.x.as_ptr().add(row * width), job.matrix.as_ptr().add(r * width)) };
    let mut sums = [[unsafe { L::splat(0.0) }; C]; R];
    let mut at = 0;
    while at < width {
        let count = (width - at).min(WIDTH);
        let load = |from: *const f32| unsafe {
            if count == WIDTH { L::load(from.add(at)) } else { L::load_first(from.add(at), count) }
        };
        let a: [L; C] = std::array::from_fn(|c| load(unsafe { matrix.add(c * width) }));
        for member in 0..R {
            let mut x = load(unsafe { x.add(member * width) });
            if let Some(bits) = job.bits {
                x = unsafe { x.keep(bits.of(row + member, at)) };
            }
            for c in 0..C {
                sums[member][c] = unsafe { sums[member][c].multiply_add(x, a[c]) };
            }
        }
        at += WIDTH;
    }
    for member in 0..R {
        for c in 0..C {
            unsafe {
                let out = job.out.add((row + member - job.rows.start) * job.rank + r + c);
                *out = job.scale * sums[member][c].total();
            }
        }
    }
}

/// The sums of `scale · cᵀ · mask(x)` over all rows: `c` `(N, r)`, `x` `(N, width)`; gives `(r, width)`.
/// Several such are computed together.
///
/// A sum runs over the rows in their order, whatever the tasks.
pub(super) fn outer_sums<const K: usize>(jobs: [OuterSum<'_>; K]) -> [Vec<f32>; K] {
    let mut outputs = jobs.each_ref().map(|job| vec![0.0; job.rank() * job.width]);
    let mut tasks = Vec::new();
    for (job, out) in jobs.iter().zip(&mut outputs) {
        let blocks = MatrixMut::new(out, job.rank(), job.width, job.width).grid(&[job.rank()], COLUMNS);
        tasks.extend(blocks.into_iter().enumerate().map(|(index, block)| (job, index * COLUMNS, block)));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(job, column, mut block)| {
        let (columns, (out, stride)) = (block.shape().1, block.raw());
        // SAFETY: a block has a row for each rank and is this wide; rows of x and c were checked.
        unsafe { sums_of(job, column, columns, out, stride) }
    });
    outputs
}

/// One of the [`outer_sums`].
pub(super) struct OuterSum<'a> {
    x: &'a [f32],
    scaled: Vec<f32>,
    rows: usize,
    width: usize,
    bits: Option<&'a Bits>,
}

impl<'a> OuterSum<'a> {
    /// # Panics
    /// If the matrices have different numbers of rows.
    pub(super) fn new(c: &[f32], x: &'a [f32], width: usize, scale: f32, bits: Option<&'a Bits>) -> Self {
        let rows = x.len() / width;
        assert!(x.len() == rows * width && rows > 0 && c.len().is_multiple_of(rows), "rows of unequal matrices");
        assert!(bits.is_none_or(|bits| bits.covers(rows, width)));
        Self { x, scaled: c.iter().map(|c| scale * c).collect(), rows, width, bits }
    }

    fn rank(&self) -> usize {
        self.scaled.len() / self.rows
    }
}

for_each_cpu! {
    fn sums_of(job: &OuterSum<'_>, column: usize, columns: usize, out: *mut f32, stride: usize)
        = all_sums<4, 4; 2, 2>;
}

/// C ranks and V times sixteen columns at a time.
#[inline(always)]
unsafe fn all_sums<L: Lanes, const C: usize, const V: usize>(
    job: &OuterSum<'_>,
    column: usize,
    columns: usize,
    out: *mut f32,
    stride: usize,
) {
    let rank = job.rank();
    let mut at = 0;
    while at < columns {
        let is_wide = at + V * WIDTH <= columns;
        let mut r = 0;
        while r < rank {
            let to = unsafe { out.add(r * stride + at) };
            let count = (columns - at).min(WIDTH);
            unsafe {
                match (is_wide, rank - r) {
                    (true, rest) if rest >= C => some_sums::<L, C, V>(job, column + at, WIDTH, r, to, stride),
                    (true, rest) if rest >= 2 => some_sums::<L, 2, V>(job, column + at, WIDTH, r, to, stride),
                    (true, _) => some_sums::<L, 1, V>(job, column + at, WIDTH, r, to, stride),
                    (false, rest) if rest >= C => some_sums::<L, C, 1>(job, column + at, count, r, to, stride),
                    (false, rest) if rest >= 2 => some_sums::<L, 2, 1>(job, column + at, count, r, to, stride),
                    (false, _) => some_sums::<L, 1, 1>(job, column + at, count, r, to, stride),
                }
            }
            r += if rank - r >= C {
                C
            } else if rank - r >= 2 {
                2
            } else {
                1
            };
        }
        at += if is_wide { V * WIDTH } else { WIDTH };
    }
}

#[inline(always)]
unsafe fn some_sums<L: Lanes, const C: usize, const V: usize>(
    job: &OuterSum<'_>,
    column: usize,
    count: usize,
    r: usize,
    out: *mut f32,
    stride: usize,
) {
    let rank = job.rank();
    let mut sums = [[unsafe { L::splat(0.0) }; V]; C];
    for row in 0..job.rows {
        let x: [L; V] = std::array::from_fn(|v| unsafe {
            let from = job.x.as_ptr().add(row * job.width + column + v * WIDTH);
            let x = if count == WIDTH { L::load(from) } else { L::load_first(from, count) };
            match job.bits {
                Some(bits) => x.keep(bits.of(row, column + v * WIDTH)),
                None => x,
            }
        });
        for c in 0..C {
            let factor = unsafe { L::splat(*job.scaled.as_ptr().add(row * rank + r + c)) };
            for v in 0..V {
                sums[c][v] = unsafe { sums[c][v].multiply_add(factor, x[v]) };
            }
        }
    }
    for c in 0..C {
        for v in 0..V {
            unsafe {
                let to = out.add(c * stride + v * WIDTH);
                if count == WIDTH { sums[c][v].store(to) } else { sums[c][v].store_first(to, count) }
            }
        }
    }
}

/// Values that rows of an output start from, before a frozen product is added.
pub(super) struct Opening<'a> {
    /// A matrix of the output's shape to add.
    pub(super) residual: Option<&'a [f32]>,
    /// Numbers to add to each row.
    pub(super) bias: Option<&'a [f32]>,
    /// Products to add, each to some rows.
    pub(super) products: Vec<Product<'a>>,
    /// Dropout of the products; `None` keeps all of them.
    pub(super) bits: Option<&'a Bits>,
    /// True to add to the output's values.
    pub(super) accumulate: bool,
    /// The output's columns.
    pub(super) width: usize,
}

/// A product `c · matrix` of some rows.
pub(super) struct Product<'a> {
    pub(super) rows: Range<usize>,
    /// c, `(rows, r)`.
    pub(super) factors: Vec<f32>,
    /// `(r, width)`
    pub(super) matrix: &'a [f32],
}

impl Opening<'_> {
    /// Writes a block of the output that starts at `row` and `column`, a multiple of 16.
    pub(super) fn write(&self, row: usize, column: usize, mut block: MatrixMut<'_>) {
        let (rows, columns) = block.shape();
        let width = self.width;
        assert!(column + columns <= width && column.is_multiple_of(WIDTH));
        assert!(self.residual.is_none_or(|residual| (row + rows) * width <= residual.len()));
        assert!(self.bias.is_none_or(|bias| bias.len() == width));
        let fits = |product: &Product<'_>| product.factors.len() == product.rows.len() * (product.matrix.len() / width);
        assert!(self.products.iter().all(fits));
        assert!(self.bits.is_none_or(|bits| bits.covers(row + rows, width)));
        let (to, stride) = block.raw();
        let mut from = row;
        while from < row + rows {
            let product = self.products.iter().find(|product| product.rows.contains(&from));
            let starts = self.products.iter().map(|product| product.rows.start).filter(|&start| start > from);
            let end = product.map(|product| product.rows.end).or_else(|| starts.min()).unwrap_or(row + rows);
            let end = end.min(row + rows);
            let rows = OpeningRows { opening: self, product, rows: from..end, column, columns, stride };
            // SAFETY: rows of the block; all else was checked.
            unsafe { opening_rows(&rows, to.add((from - row) * stride)) }
            from = end;
        }
    }
}

/// Rows of a block that have the same product, or none.
struct OpeningRows<'a> {
    opening: &'a Opening<'a>,
    product: Option<&'a Product<'a>>,
    rows: Range<usize>,
    column: usize,
    columns: usize,
    /// From a row of the block to the next.
    stride: usize,
}

for_each_cpu! {
    fn opening_rows(job: &OpeningRows<'_>, to: *mut f32) = open_rows<4, 4; 2, 2>;
}

/// R rows and V times sixteen columns at a time, so that a loaded row of the matrix serves several sums.
#[inline(always)]
unsafe fn open_rows<L: Lanes, const R: usize, const V: usize>(job: &OpeningRows<'_>, to: *mut f32) {
    let mut at = 0;
    while at < job.columns {
        let is_wide = at + V * WIDTH <= job.columns;
        let mut row = job.rows.start;
        while row < job.rows.end {
            let is_whole = row + R <= job.rows.end;
            let count = (job.columns - at).min(WIDTH);
            unsafe {
                let to = to.add((row - job.rows.start) * job.stride + at);
                match (is_whole, is_wide) {
                    (true, true) => open_some::<L, R, V>(job, row, at, WIDTH, to),
                    (true, false) => open_some::<L, R, 1>(job, row, at, count, to),
                    (false, true) => open_some::<L, 1, V>(job, row, at, WIDTH, to),
                    (false, false) => open_some::<L, 1, 1>(job, row, at, count, to),
                }
            }
            row += if is_whole { R } else { 1 };
        }
        at += if is_wide { V * WIDTH } else { WIDTH };
    }
}

#[inline(always)]
unsafe fn open_some<L: Lanes, const R: usize, const V: usize>(
    job: &OpeningRows<'_>,
    row: usize,
    at: usize,
    count: usize,
    to: *mut f32,
) {
    let (opening, width, column) = (job.opening, job.opening.width, job.column + at);
    let load = |from: *const f32| unsafe { if count == WIDTH { L::load(from) } else { L::load_first(from, count) } };
    let mut values = [[unsafe { L::splat(0.0) }; V]; R];
    if let Some(product) = job.product {
        let rank = product.matrix.len() / width;
        let factors = unsafe { product.factors.as_ptr().add((row - product.rows.start) * rank) };
        for r in 0..rank {
            let matrix: [L; V] =
                std::array::from_fn(|v| load(unsafe { product.matrix.as_ptr().add(r * width + column + v * WIDTH) }));
            for member in 0..R {
                let factor = unsafe { L::splat(*factors.add(member * rank + r)) };
                for v in 0..V {
                    values[member][v] = unsafe { values[member][v].multiply_add(factor, matrix[v]) };
                }
            }
        }
    }
    for member in 0..R {
        for v in 0..V {
            let (row, column) = (row + member, column + v * WIDTH);
            unsafe {
                let to = to.add(member * job.stride + v * WIDTH);
                let mut value = values[member][v];
                if let Some(bits) = opening.bits {
                    value = value.keep(bits.of(row, column));
                }
                if let Some(bias) = opening.bias {
                    value = value.add(load(bias.as_ptr().add(column)));
                }
                if let Some(residual) = opening.residual {
                    value = value.add(load(residual.as_ptr().add(row * width + column)));
                }
                if opening.accumulate {
                    value = value.add(load(to));
                }
                if count == WIDTH { value.store(to) } else { value.store_first(to, count) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::mask::Choice;
    use crate::ops::finite_differences::numbers;
    use crate::rng::{Purpose, Stream};

    /// Widths and ranks that do not divide into registers, with and without a mask.
    #[test]
    fn products_and_sums_match_plain_loops() {
        for (rows, width, rank) in [(1, 5, 1), (7, 37, 2), (9, 200, 3), (13, 133, 9), (6, 64, 4)] {
            let choice = Choice { stream: Stream::new(1, 2, 3, Purpose::Dropout), p: 0.3 };
            let mask = Mask::new(choice, (rows, width));
            let (x, matrix, c) = (numbers(rows * width, 1), numbers(rank * width, 2), numbers(rows * rank, 3));
            for bits in [None, Some(mask.bits())] {
                let is_kept = |row: usize, k: usize| bits.is_none_or(|bits| bits.of(row, k) & 1 == 1);
                let kept = |row: usize, k: usize| if is_kept(row, k) { x[row * width + k] } else { 0.0 };
                let near = |got: f32, expected: f32| assert!((got - expected).abs() < 1e-5, "{got}, not {expected}");
                let mut out = vec![0.0; (rows - rows / 2) * rank];
                dots(&mut out, &x, rows / 2..rows, &matrix, 1.5, bits);
                for (index, out) in out.iter().enumerate() {
                    let (row, r) = (rows / 2 + index / rank, index % rank);
                    near(*out, 1.5 * (0..width).map(|k| kept(row, k) * matrix[r * width + k]).sum::<f32>());
                }
                let [sums] = outer_sums([OuterSum::new(&c, &x, width, 0.5, bits)]);
                for (index, sum) in sums.iter().enumerate() {
                    let (r, k) = (index / width, index % width);
                    near(*sum, 0.5 * (0..rows).map(|row| c[row * rank + r] * kept(row, k)).sum::<f32>());
                }
                let bias = numbers(width, 4);
                let (mut y, column) = (numbers(rows * width, 5), if width > 32 { 32 } else { 0 });
                let before = y.clone();
                let products = vec![Product { rows: 0..rows, factors: c.clone(), matrix: &matrix }];
                let opening =
                    Opening { residual: Some(&x), bias: Some(&bias), products, bits, accumulate: true, width };
                opening.write(0, column, MatrixMut::new(&mut y[column..], rows, width - column, width));
                for (index, (y, before)) in y.iter().zip(before).enumerate() {
                    let (row, k) = (index / width, index % width);
                    let low_rank: f32 = (0..rank).map(|r| c[row * rank + r] * matrix[r * width + k]).sum();
                    let added = x[index] + bias[k] + if is_kept(row, k) { low_rank } else { 0.0 };
                    near(*y, before + if k < column { 0.0 } else { added });
                }
            }
        }
    }
}
