//! Frozen weights: `y = x Wᵀ` and `∂L/∂x = g W`, for `W` held in f32, bf16, f16 or NF4.
//!
//! `W` never has a gradient. What is stored otherwise than it is computed is converted tile by tile next
//! to the product, in a core's cache: the matrix never exists in f32.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{Result, Tensor};
use half::{bf16, f16};

use super::buffer::{elements, modify, tensor};
use super::cpu::flops;
use super::cpu::gemm::{
    Compute, Direction, Int8, Int8Rows, MatrixMut, NewMatrix, Packed, Packing, Source, Start, Weights, pack, product,
};
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
    compute: Compute,
    /// The weights packed once, for `x Wᵀ` and for `g W`.
    packed: OnceLock<Packed>,
    packed_transposed: OnceLock<Packed>,
    /// In place of all numbers, for predicting in int8.
    int8: Option<Int8>,
    /// What int8 stands for, once `g W` was asked for.
    read_back: OnceLock<Vec<bf16>>,
    /// The largest magnitude seen in each column of x, where that is asked for.
    maxima: Option<Mutex<Vec<f32>>>,
}

/// Rows of x, ready for products on the CPU.
pub(super) enum PackedInput {
    Floats(Packing),
    Int8(Int8Rows),
}

impl PackedInput {
    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Floats(x) => x.rows(),
            Self::Int8(x) => x.rows(),
        }
    }
}

impl FrozenMatrix {
    /// A matrix of `rows × columns` numbers, row-major.
    ///
    /// # Panics
    /// If the storage holds another number of them, or none.
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
        assert!(len > 0, "a {rows} × {columns} matrix has no products");
        Self {
            storage,
            rows,
            columns,
            compute: Compute::Float32,
            packed: OnceLock::new(),
            packed_transposed: OnceLock::new(),
            int8: None,
            read_back: OnceLock::new(),
            maxima: None,
        }
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
        let packed = [&self.packed, &self.packed_transposed].into_iter().filter_map(OnceLock::get).map(Packed::bytes);
        let int8 = self.int8.as_ref().map_or(0, Int8::bytes);
        let read_back = self.read_back.get().map_or(0, |values| 2 * values.len());
        packed.sum::<usize>()
            + int8
            + read_back
            + match &self.storage {
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
        self.weights(Direction::Forward).source.read(first, out);
    }

    /// Gives the pages of a mapped file back until the numbers are looked at again.
    pub fn release(&self) {
        match &self.storage {
            Storage::F32(data) => data.release(),
            Storage::Bf16(data) => data.release(),
            Storage::F16(data) => data.release(),
            _ => {}
        }
    }

    /// The same matrix, whose products on the CPU are computed in `compute`.
    #[must_use]
    pub fn computed_in(self, compute: Compute) -> Self {
        Self { compute, ..Self::new(self.storage, self.rows, self.columns) }
    }

    /// Packs the weights once for `y = x Wᵀ`, beside the stored ones: few rows are then several times as
    /// fast.
    pub fn pack(&self) {
        self.pack_for(Direction::Forward);
        self.release();
    }

    /// Packs the weights once for `y = x Wᵀ` and for `g W`.
    pub fn pack_both_ways(&self) {
        self.pack_for(Direction::Backward);
        self.pack();
    }

    fn pack_for(&self, direction: Direction) {
        // Where there is no instruction for it, packed weights would take twice the memory.
        if !self.compute.is_native() {
            return;
        }
        let packed = match direction {
            Direction::Forward => &self.packed,
            Direction::Backward => &self.packed_transposed,
        };
        // Not inside of `get_or_init`: it runs on all threads, of which one may come here for another product.
        if packed.get().is_none() {
            let _ = packed.set(Packed::new(self.compute, &self.weights(direction)));
        }
    }

    /// A matrix whose products `y = x Wᵀ` are computed in int8, for an x whose columns have these largest magnitudes.
    #[must_use]
    pub fn in_int8(values: Vec<f32>, (rows, columns): (usize, usize), maxima: &[f32]) -> Self {
        let wide = Self::new(Storage::F32(Buffer::Owned(values)), rows, columns);
        let int8 = Int8::new(&wide.weights(Direction::Forward), maxima);
        Self { storage: Storage::F32(Buffer::Owned(Vec::new())), int8: Some(int8), ..wide }
    }

    /// From now on takes note of the largest magnitude in each column of x.
    pub fn observe(&mut self) {
        self.maxima = Some(Mutex::new(vec![0.0; self.columns]));
    }

    /// The largest magnitudes that were seen, where that was asked for.
    #[must_use]
    pub fn maxima(&self) -> Option<Vec<f32>> {
        let maxima = self.maxima.as_ref()?;
        Some(maxima.lock().unwrap_or_else(PoisonError::into_inner).clone())
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
        Ok(Self::new(Storage::Device(Box::new(matrix)), rows, columns))
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
    pub fn product(&self, x: &Tensor, sum: Option<Tensor>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.on_device()?.product(x, sum);
        }
        let (n, x) = (x.dim(0)?, elements(x)?);
        self.note(&x);
        let x = self.prepare(&x, &|_| {});
        summed(sum, n, self.rows, |y, start| self.multiply(&x, y, start))
    }

    /// `sum + g W`, or `g W` without a sum; `g` is `(n, out)`.
    pub fn product_transposed(&self, g: &Tensor, sum: Option<Tensor>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if g.device().is_cuda() {
            return self.on_device()?.product_transposed(g, sum);
        }
        let (n, g) = (g.dim(0)?, elements(g)?);
        let g = self.prepare_transposed(&g, &|_| {});
        summed(sum, n, self.columns, |y, start| self.multiply_transposed(&g, y, start))
    }

    /// Whether rows of x that were prepared for one of the two can be multiplied by the other.
    pub(super) fn shares_input_with(&self, other: &Self) -> bool {
        self.columns == other.columns
            && match (&self.int8, &other.int8) {
                (Some(own), Some(other)) => own.shares_rows_with(other),
                (None, None) => self.compute == other.compute,
                _ => false,
            }
    }

    /// Takes note of rows of x, if the matrix observes them.
    pub(super) fn note(&self, x: &[f32]) {
        if let Some(maxima) = &self.maxima {
            let mut maxima = maxima.lock().unwrap_or_else(PoisonError::into_inner);
            for row in x.chunks_exact(self.columns) {
                maxima.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
            }
        }
    }

    /// Prepares rows of x for `y = x Wᵀ` on the CPU; `also` hears of rows as soon as they were read.
    pub(super) fn prepare(&self, x: &[f32], also: &(dyn Fn(Range<usize>) + Sync)) -> PackedInput {
        match &self.int8 {
            Some(int8) => PackedInput::Int8(int8.quantize(x, also)),
            None => PackedInput::Floats(pack(self.compute, x, self.columns, also)),
        }
    }

    /// `y = start + x Wᵀ` on the CPU.
    pub(super) fn multiply(&self, x: &PackedInput, y: MatrixMut<'_>, start: Start<'_>) {
        flops::count(y.shape().0, self.columns, self.rows);
        match (x, &self.int8, self.packed.get()) {
            (PackedInput::Int8(x), Some(int8), _) => int8.product(x, y, start),
            (PackedInput::Floats(x), None, Some(packed)) => packed.product(x, y, start),
            (PackedInput::Floats(x), None, None) => product(&self.weights(Direction::Forward), x, y, start),
            _ => unreachable!("x was prepared for a matrix of another kind"),
        }
    }

    /// Prepares rows of g for `g W` on the CPU; `also` hears of rows as soon as they were read.
    pub(super) fn prepare_transposed(&self, g: &[f32], also: &(dyn Fn(Range<usize>) + Sync)) -> Packing {
        pack(self.compute, g, self.rows, also)
    }

    /// `y = start + g W` on the CPU, g packed.
    pub(super) fn multiply_transposed(&self, g: &Packing, y: MatrixMut<'_>, start: Start<'_>) {
        flops::count(y.shape().0, self.rows, self.columns);
        match self.packed_transposed.get() {
            Some(packed) => packed.product(g, y, start),
            None => product(&self.weights(Direction::Backward), g, y, start),
        }
    }

    fn weights(&self, direction: Direction) -> Weights<'_> {
        let source = match &self.storage {
            _ if let Some(int8) = &self.int8 => Source::Bf16(self.read_back.get_or_init(|| int8.values())),
            Storage::F32(data) => Source::F32(data),
            Storage::Bf16(data) => Source::Bf16(data),
            Storage::F16(data) => Source::F16(data),
            Storage::Nf4(weights) => Source::Nf4(weights),
            #[cfg(feature = "cuda")]
            Storage::Device(_) => unreachable!("only matrices on the CPU take part in its products"),
        };
        Weights { source, rows: self.rows, columns: self.columns, stride: self.columns, direction }
    }
}

/// Lets `multiply` overwrite a new `(rows, columns)` tensor, or add to `sum`.
fn summed(
    sum: Option<Tensor>,
    rows: usize,
    columns: usize,
    multiply: impl Fn(MatrixMut<'_>, Start<'_>),
) -> Result<Tensor> {
    let Some(sum) = sum else {
        let mut output = NewMatrix::new(rows, columns);
        // SAFETY: a product that does not accumulate writes the whole of its output, and reads none of it.
        #[expect(unsafe_code, reason = "an output is written once, by all cores")]
        let output = unsafe {
            multiply(output.view(), Start::Zero);
            output.finish()
        };
        return tensor(output, (rows, columns));
    };
    modify(&sum, |data| multiply(MatrixMut::new(data, rows, columns, columns), Start::Sum))?;
    Ok(sum)
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
                matrix.pack_both_ways();
                let again = matrix.product_transposed(&of_g, None).unwrap();
                assert!(*elements(&again).unwrap() == *back, "packed once, {n} × {rows} × {columns}");
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
