//! Products of f32 matrices with any strides, on the calling thread: safe views around the kernels.

#![expect(unsafe_code, reason = "a strided block of a matrix cannot be a slice")]

use std::marker::PhantomData;

use rayon::prelude::*;

use super::kernel::{Kernel, Shared};
use super::panels::{Input, Panels, Part};
use super::path::{Compute, Path};
use super::tasks::{multiply_part, with_kernel};
use super::tile::COLUMNS;
use super::weights::{Direction, Source, Weights};
use crate::kernels::cpu::flops;

/// A read-only matrix: rows, or columns, end to end.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    /// Numbers from one row to the next; if transposed, from one column to the next.
    stride: usize,
    is_transposed: bool,
}

impl<'a> Matrix<'a> {
    /// `rows × columns`, row-major, rows `stride` elements apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(is_inside(data.len(), rows, columns, stride), "matrix exceeds its slice");
        Self { data, rows, columns, stride, is_transposed: false }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The same numbers with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, is_transposed: !self.is_transposed, ..self }
    }
}

/// A row-major matrix that is about to be written: its memory holds nothing yet.
pub(crate) struct NewMatrix {
    data: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl NewMatrix {
    pub(crate) fn new(rows: usize, columns: usize) -> Self {
        Self { data: Vec::with_capacity(rows * columns), rows, columns }
    }

    /// The matrix, to be written.
    ///
    /// # Safety
    /// Of each element, the first access must be a write: by [`MatrixMut::clear`], or by a product that
    /// does not accumulate.
    pub(crate) unsafe fn view(&mut self) -> MatrixMut<'_> {
        MatrixMut {
            data: self.data.as_mut_ptr(),
            rows: self.rows,
            columns: self.columns,
            row_stride: self.columns,
            lifetime: PhantomData,
        }
    }

    /// The numbers.
    ///
    /// # Safety
    /// Every element must have been written.
    pub(crate) unsafe fn finish(mut self) -> Vec<f32> {
        // SAFETY: the capacity is there, and the caller wrote every element.
        unsafe { self.data.set_len(self.rows * self.columns) };
        self.data
    }
}

/// A writable row-major matrix whose rows are `row_stride` elements apart.
pub(crate) struct MatrixMut<'a> {
    data: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: like `&mut [f32]`, it is the only way to reach its elements.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// `rows × columns`, row-major, rows `row_stride` elements apart.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(is_inside(data.len(), rows, columns, row_stride), "matrix exceeds its slice");
        assert!(rows <= 1 || columns <= row_stride, "rows overlap");
        Self { data: data.as_mut_ptr(), rows, columns, row_stride, lifetime: PhantomData }
    }

    /// All of it, to tasks that write parts of their own.
    pub(super) fn shared(self, rows: usize, columns: usize) -> Shared<f32> {
        let is_whole = (self.rows, self.columns, self.row_stride) == (rows, columns, columns);
        assert!(is_whole, "the output of {rows} rows of {columns} is {} of {}", self.rows, self.columns);
        Shared(self.data)
    }

    /// Sets all to zero.
    pub(crate) fn clear(&mut self) {
        for row in 0..self.rows {
            // SAFETY: the row is inside the slice, as in `row`; all bits zero are a zero of f32.
            unsafe {
                self.data.add(row * self.row_stride).write_bytes(0, self.columns);
            }
        }
    }

    /// One row.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: `new` and `blocks` keep every row inside the slice, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.columns) }
    }

    /// A writable block: rows and columns from the given ones on.
    pub(crate) fn block(&mut self, row: usize, rows: usize, column: usize, columns: usize) -> MatrixMut<'_> {
        assert!(row + rows <= self.rows && column + columns <= self.columns, "block exceeds its matrix");
        // SAFETY: inside `self`, which stays borrowed while the block lives.
        let data = unsafe { self.data.add(row * self.row_stride + column) };
        MatrixMut { data, rows, columns, row_stride: self.row_stride, lifetime: PhantomData }
    }

    /// Cuts the matrix into a grid: at the given rows, and every `width` columns. Blocks come row
    /// of the grid by row. `row_ends` ascends and its last entry is at most the number of rows.
    pub(crate) fn grid(self, row_ends: &[usize], width: usize) -> Vec<MatrixMut<'a>> {
        let mut blocks = Vec::with_capacity(row_ends.len() * self.columns.div_ceil(width));
        let mut start = 0;
        for &end in row_ends {
            assert!(start <= end && end <= self.rows, "grid exceeds its matrix");
            for column in (0..self.columns).step_by(width) {
                let columns = width.min(self.columns - column);
                // SAFETY: blocks of a grid do not overlap, and each lies inside the matrix.
                let data = unsafe { self.data.add(start * self.row_stride + column) };
                blocks.push(MatrixMut {
                    data,
                    rows: end - start,
                    columns,
                    row_stride: self.row_stride,
                    lifetime: PhantomData,
                });
            }
            start = end;
        }
        blocks
    }

    /// Runs `f(first column, block)` for every `width` columns, on all cores.
    pub(crate) fn par_columns(self, width: usize, f: impl Fn(usize, MatrixMut<'_>) + Sync) {
        let rows = self.rows;
        self.grid(&[rows], width)
            .into_par_iter()
            .enumerate()
            .with_max_len(1)
            .for_each(|(index, block)| f(index * width, block));
    }
}

fn is_inside(len: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= len
}

/// dst = scale · a · b, or dst += scale · a · b if `accumulate`; on the calling thread. `scale` multiplies
/// the numbers of `a`.
pub(crate) fn matmul(dst: &mut MatrixMut<'_>, accumulate: bool, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    matmul_on(Path::of_this_cpu(Compute::Float32), dst, accumulate, scale, a, b);
}

pub(super) fn matmul_on(
    path: Path,
    dst: &mut MatrixMut<'_>,
    accumulate: bool,
    scale: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
) {
    assert!(
        dst.rows == a.rows && dst.columns == b.columns && a.columns == b.rows,
        "product of {}×{} and {}×{} into {}×{}",
        a.rows,
        a.columns,
        b.rows,
        b.columns,
        dst.rows,
        dst.columns
    );
    flops::count(a.rows, a.columns, b.columns);
    if dst.rows == 0 || dst.columns == 0 {
        return;
    }
    if a.columns == 0 {
        (0..dst.rows).filter(|_| !accumulate).for_each(|row| dst.row(row).fill(0.0));
        return;
    }
    let x =
        Input { data: a.data, rows: a.rows, depth: a.columns, stride: a.stride, is_transposed: a.is_transposed, scale };
    let (rows, columns, direction) = match b.is_transposed {
        true => (b.columns, b.rows, Direction::Forward),
        false => (b.rows, b.columns, Direction::Backward),
    };
    let weights = Weights { source: Source::F32(b.data), rows, columns, stride: b.stride, direction };
    with_kernel!(Compute::Float32, path, K => multiply::<K>(dst, accumulate, x, &weights));
}

fn multiply<K: Kernel>(dst: &mut MatrixMut<'_>, accumulate: bool, x: Input<'_>, weights: &Weights<'_>) {
    let panels = Panels::<K>::pack(x, false);
    let columns = weights.outputs();
    for start in (0..columns).step_by(COLUMNS) {
        let part = Part {
            panels: 0..panels.count(),
            columns: start..(start + COLUMNS).min(columns),
            y: Shared(dst.data),
            y_stride: dst.row_stride,
        };
        multiply_part(&panels, weights, &part, accumulate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_matrices_accumulate() {
        // a: 2×3 inside rows of 4; b: 5×3, used transposed; dst: 2×5 inside rows of 7.
        let a: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..15).map(|i| i as f32 - 7.0).collect();
        let mut dst = vec![1.0; 14];
        let mut view = MatrixMut::new(&mut dst, 2, 5, 7);
        matmul(&mut view, true, 2.0, Matrix::new(&a, 2, 3, 4), Matrix::new(&b, 5, 3, 3).transposed());
        for row in 0..2 {
            for column in 0..5 {
                let sum: f32 = (0..3).map(|k| a[row * 4 + k] * b[column * 3 + k]).sum();
                assert_eq!(dst[row * 7 + column], 1.0 + 2.0 * sum);
            }
            assert_eq!(dst[row * 7 + 5..row * 7 + 7], [1.0, 1.0]);
        }
    }

    #[test]
    fn a_grid_covers_every_element_once() {
        let mut data = vec![0.0; 5 * 7];
        for (index, mut block) in MatrixMut::new(&mut data, 5, 7, 7).grid(&[2, 2, 5], 3).into_iter().enumerate() {
            for row in 0..block.rows {
                for value in block.row(row) {
                    *value += 1.0 + index as f32;
                }
            }
        }
        let expected: Vec<f32> =
            (0..35).map(|i| [1.0, 2.0, 3.0, 7.0, 8.0, 9.0][usize::from(i / 7 >= 2) * 3 + (i % 7) / 3]).collect();
        assert_eq!(data, expected);
    }
}
