//! Views of f32 matrices with any strides.

#![expect(unsafe_code, reason = "a strided block of a matrix cannot be a slice")]

use std::marker::PhantomData;
use std::ops::Range;

use super::kernel::Shared;

/// A read-only matrix: rows, or columns, end to end.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Numbers from one row to the next; if transposed, from one column to the next.
    pub(super) stride: usize,
    pub(super) is_transposed: bool,
}

impl<'a> Matrix<'a> {
    /// `rows × columns`, row-major, rows `stride` elements apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(is_inside(data.len(), rows, columns, stride), "matrix exceeds its slice");
        Self { data, rows, columns, stride, is_transposed: false }
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

    /// A matrix by its first number.
    ///
    /// # Safety
    /// It exists, and nothing else reaches it while the view lives.
    pub(super) unsafe fn from_raw(data: *mut f32, rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, lifetime: PhantomData }
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The first number, and numbers from one row to the next.
    pub(crate) fn raw(&mut self) -> (*mut f32, usize) {
        (self.data, self.row_stride)
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

    /// The same, of a matrix that is not needed any more.
    pub(crate) fn into_block(self, rows: Range<usize>, columns: Range<usize>) -> MatrixMut<'a> {
        assert!(rows.end <= self.rows && columns.end <= self.columns, "block exceeds its matrix");
        // SAFETY: inside `self`, which is gone.
        let data = unsafe { self.data.add(rows.start * self.row_stride + columns.start) };
        MatrixMut { data, rows: rows.len(), columns: columns.len(), row_stride: self.row_stride, lifetime: PhantomData }
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
}

fn is_inside(len: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= len
}

#[cfg(test)]
mod tests {
    use super::*;

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
