//! Frozen weights: `y = x Wᵀ` and `∂L/∂x = g W`, for `W` held in f32, bf16, f16 or NF4.
//!
//! `W` never has a gradient. What is not f32 is widened tile by tile next to the product, into a
//! buffer that stays in a core's cache: the matrix never exists in f32.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{Result, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::buffer::{elements, modify, tensor};
use super::cpu::gemm::{Matrix, MatrixMut, NewMatrix, matmul};
use super::cpu::math::simd;
use super::cpu::memory::Buffer;
use super::cpu::nf4::Nf4;

/// The numbers of a matrix, as stored.
#[derive(Debug)]
pub enum Storage {
    /// 4 bytes a weight.
    F32(Buffer<f32>),
    /// 2 bytes a weight.
    Bf16(Buffer<bf16>),
    /// 2 bytes a weight.
    F16(Buffer<f16>),
    /// About 0.516 bytes a weight.
    Nf4(Nf4),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Device(Box<super::cuda::matrix::DeviceMatrix>),
}

/// A frozen `(out, in)` matrix.
#[derive(Debug)]
pub struct FrozenMatrix {
    storage: Storage,
    rows: usize,
    columns: usize,
}

/// A task computes at most this many columns of the output.
const MAX_TASK_COLUMNS: usize = 256;
/// Columns of the output that the vector kernels compute together: tasks are cut at multiples.
const KERNEL_COLUMNS: usize = 16;
/// Weights that are widened at a time: 512 KiB of f32, about a core's L2 cache.
const TILE: usize = 256 * 512;

thread_local! {
    static TILE_BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl FrozenMatrix {
    /// A matrix of `rows × columns` numbers, row-major.
    ///
    /// # Panics
    /// If the storage holds another number of them.
    #[must_use]
    pub fn new(storage: Storage, rows: usize, columns: usize) -> Self {
        let len = match &storage {
            Storage::F32(data) => data.len(),
            Storage::Bf16(data) => data.len(),
            Storage::F16(data) => data.len(),
            Storage::Nf4(weights) => weights.len,
            #[cfg(feature = "cuda")]
            Storage::Device(_) => rows * columns,
        };
        assert_eq!(len, rows * columns, "a {rows} × {columns} matrix of {len} numbers");
        Self { storage, rows, columns }
    }

    /// The width of the output.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The width of the input.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes held, mapped or owned.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(data) => 4 * data.len(),
            Storage::Bf16(data) => 2 * data.len(),
            Storage::F16(data) => 2 * data.len(),
            Storage::Nf4(weights) => weights.bytes(),
            #[cfg(feature = "cuda")]
            Storage::Device(matrix) => matrix.bytes(),
        }
    }

    /// The numbers from flat index `first` on, in f32.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match &self.storage {
            Storage::F32(data) => out.copy_from_slice(&data[range]),
            Storage::Bf16(data) => widen(out, &data[range]),
            Storage::F16(data) => data[range].convert_to_f32_slice(out),
            Storage::Nf4(weights) => weights.dequantize(first, out),
            #[cfg(feature = "cuda")]
            Storage::Device(_) => unreachable!("only matrices on the CPU are read"),
        }
    }

    /// The same matrix on a GPU, for activations of `dtype`.
    #[cfg(feature = "cuda")]
    pub(super) fn moved_to(self, device: &candle_core::CudaDevice, dtype: candle_core::DType) -> Result<Self> {
        use super::cuda::matrix::DeviceMatrix;
        let (rows, columns) = (self.rows, self.columns);
        let matrix = match &self.storage {
            Storage::Nf4(weights) => DeviceMatrix::nf4(device, (rows, columns), dtype, weights)?,
            _ => DeviceMatrix::dense(device, (rows, columns), dtype, |out| self.read(0, out))?,
        };
        Ok(Self { storage: Storage::Device(Box::new(matrix)), rows, columns })
    }

    /// The matrix on a GPU.
    #[cfg(feature = "cuda")]
    fn on_device(&self) -> Result<&super::cuda::matrix::DeviceMatrix> {
        match &self.storage {
            Storage::Device(matrix) => Ok(matrix),
            _ => candle_core::bail!("activations on a GPU meet weights on the CPU"),
        }
    }

    /// `sum + x Wᵀ`, or `x Wᵀ` without a sum, which is then added to in place; `x` is `(n, in)`.
    ///
    /// # Errors
    /// If the matrix and the tensors are on different devices.
    pub(crate) fn product(&self, x: &Tensor, sum: Option<Tensor>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.on_device()?.product(x, sum);
        }
        let (n, x) = (x.dim(0)?, elements(x)?);
        summed(sum, n, self.rows, |y, accumulate| self.multiply(&x, y, accumulate))
    }

    /// `sum + g W`, or `g W` without a sum; `g` is `(n, out)`.
    ///
    /// # Errors
    /// As [`FrozenMatrix::product`].
    pub(crate) fn product_transposed(&self, g: &Tensor, sum: Option<Tensor>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if g.device().is_cuda() {
            return self.on_device()?.product_transposed(g, sum);
        }
        let (n, g) = (g.dim(0)?, elements(g)?);
        summed(sum, n, self.columns, |y, accumulate| self.multiply_transposed(&g, y, accumulate))
    }

    /// `y = x Wᵀ`, or `y += x Wᵀ` if `accumulate`; `x` is `(n, in)`, `y` `(n, out)`. Every element of `y`
    /// is overwritten, or added to.
    fn multiply(&self, x: &[f32], y: MatrixMut<'_>, accumulate: bool) {
        let n = x.len() / self.columns;
        let width = task_width(self.rows);
        y.par_columns(width, |row, mut y| {
            let rows = row..(row + width).min(self.rows);
            for columns in cuts(self.columns, TILE / width) {
                let x = Matrix::new(&x[columns.start..], n, columns.len(), self.columns);
                let add = accumulate || columns.start > 0;
                self.with_tile(rows.clone(), columns, |tile| matmul(&mut y, add, 1.0, x, tile.transposed()));
            }
        });
    }

    /// `y = g W`, or `y += g W` if `accumulate`; `g` is `(n, out)`, `y` `(n, in)`.
    fn multiply_transposed(&self, g: &[f32], y: MatrixMut<'_>, accumulate: bool) {
        let n = g.len() / self.rows;
        let width = task_width(self.columns);
        y.par_columns(width, |column, mut y| {
            let columns = column..(column + width).min(self.columns);
            for rows in cuts(self.rows, TILE / width) {
                let g = Matrix::new(&g[rows.start..], n, rows.len(), self.rows);
                let add = accumulate || rows.start > 0;
                self.with_tile(rows, columns.clone(), |tile| matmul(&mut y, add, 1.0, g, tile));
            }
        });
    }

    /// Calls `f` with a tile in f32: in place if it is stored so.
    fn with_tile(&self, rows: Range<usize>, columns: Range<usize>, f: impl FnOnce(Matrix<'_>)) {
        let first = rows.start * self.columns + columns.start;
        if let Storage::F32(data) = &self.storage {
            return f(Matrix::new(&data[first..], rows.len(), columns.len(), self.columns));
        }
        TILE_BUFFER.with_borrow_mut(|tile| {
            tile.resize(TILE, 0.0);
            for (row, out) in tile.chunks_exact_mut(columns.len()).take(rows.len()).enumerate() {
                self.read(first + row * self.columns, out);
            }
            f(Matrix::new(tile, rows.len(), columns.len(), columns.len()));
        });
    }
}

/// Lets `multiply` overwrite a new `(rows, columns)` tensor, or add to `sum`.
fn summed(sum: Option<Tensor>, rows: usize, columns: usize, multiply: impl Fn(MatrixMut<'_>, bool)) -> Result<Tensor> {
    let Some(sum) = sum else {
        let mut output = NewMatrix::new(rows, columns);
        // SAFETY: the first product of each part of the output does not accumulate, and they are all of it.
        #[expect(unsafe_code, reason = "an output is written once, by all cores")]
        let output = unsafe {
            multiply(output.view(), false);
            output.finish()
        };
        return tensor(output, (rows, columns));
    };
    modify(&sum, |data| multiply(MatrixMut::new(data, rows, columns, columns), true))?;
    Ok(sum)
}

simd! {
    /// bf16 is the upper half of an f32.
    fn widen(to: &mut [f32], from: &[bf16]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

/// The width of the tasks that share `columns` evenly among all threads.
fn task_width(columns: usize) -> usize {
    let threads = rayon::current_num_threads();
    let tasks = columns.div_ceil(MAX_TASK_COLUMNS).next_multiple_of(threads);
    columns.div_ceil(tasks).next_multiple_of(KERNEL_COLUMNS)
}

fn cuts(len: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(width).map(move |start| start..(start + width).min(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::numbers;

    /// Every storage, at shapes that do not divide into tiles or NF4 blocks.
    #[test]
    fn products_match_plain_loops_over_the_widened_weights() {
        for (n, rows, columns) in [(3, 300, 530), (1, 7, 65), (5, 520, 33)] {
            let weights = numbers(rows * columns, 1);
            let storages = [
                Storage::F32(Buffer::Owned(weights.clone())),
                Storage::Bf16(Buffer::Owned(weights.iter().map(|&w| bf16::from_f32(w)).collect())),
                Storage::F16(Buffer::Owned(weights.iter().map(|&w| f16::from_f32(w)).collect())),
                Storage::Nf4(Nf4::quantize(weights.len(), |first, out| {
                    out.copy_from_slice(&weights[first..first + out.len()]);
                })),
            ];
            for storage in storages {
                let matrix = FrozenMatrix::new(storage, rows, columns);
                let mut wide = vec![0.0; rows * columns];
                matrix.read(0, &mut wide);
                let (x, g) = (numbers(n * columns, 2), numbers(n * rows, 3));
                let [of_x, of_g, ones] = [(&x, columns), (&g, rows), (&vec![1.0; n * rows], rows)]
                    .map(|(data, width)| tensor(data.clone(), (n, width)).unwrap());
                let y = matrix.product(&of_x, Some(ones)).unwrap();
                let back = matrix.product_transposed(&of_g, None).unwrap();
                let (y, back) = (elements(&y).unwrap(), elements(&back).unwrap());
                for i in 0..n {
                    for row in 0..rows {
                        let sum: f32 = (0..columns).map(|k| x[i * columns + k] * wide[row * columns + k]).sum();
                        assert!((y[i * rows + row] - 1.0 - sum).abs() < 1e-4);
                    }
                    for k in 0..columns {
                        let sum: f32 = (0..rows).map(|row| g[i * rows + row] * wide[row * columns + k]).sum();
                        assert!((back[i * columns + k] - sum).abs() < 1e-4);
                    }
                }
            }
        }
    }
}
