//! Frozen weights in the GPU's memory, as stored: f32, bf16 or NF4.
//!
//! NF4 is widened into a buffer before each product, and the buffer given back after it: the driver's
//! pool hands the same memory out again.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, DType, Result, Tensor};

use super::gemm::{Operand, gemm};
use super::launch::{Code, Grid, kernels, ptx};
use super::memory::{Activations, Address, activations, address_of, scratch, sum_or_new, upload};
use crate::kernels::cpu::nf4::{LEVELS, Nf4};

const CODE: Code = Code { name: "nf4", ptx: ptx::NF4 };

kernels! { CODE:
    fn dequantize_nf4<T>(
        out: Address<Activations>, codes: Address<u8>, absmax: Address<u8>, nested_map: Address<f32>,
        nested_absmax: Address<f32>, level_values: Address<f32>, offset: f32, n: usize,
    );
}

/// A `(rows, columns)` matrix.
#[derive(Debug)]
pub struct DeviceMatrix {
    held: Held,
    shape: (usize, usize),
    device: CudaDevice,
    /// Dtype of the activations that it is multiplied with.
    dtype: DType,
}

#[derive(Debug)]
enum Held {
    Dense(Tensor),
    Nf4(Box<Codes>),
}

/// An [`Nf4`].
#[derive(Debug)]
struct Codes {
    codes: CudaSlice<u8>,
    absmax: CudaSlice<u8>,
    nested_map: CudaSlice<f32>,
    nested_absmax: CudaSlice<f32>,
    levels: CudaSlice<f32>,
    offset: f32,
    bytes: usize,
}

impl DeviceMatrix {
    /// Copies a matrix; `read` gives its numbers. It is held in `dtype`.
    pub(in crate::kernels) fn dense(
        device: &CudaDevice,
        shape: (usize, usize),
        dtype: DType,
        read: impl FnOnce(&mut [f32]),
    ) -> Result<Self> {
        let mut data = vec![0.0; shape.0 * shape.1];
        read(&mut data);
        let held = Held::Dense(upload(device, &data, dtype, &shape.into())?);
        Ok(Self { held, shape, device: device.clone(), dtype })
    }

    /// Copies a quantized matrix, for activations of `dtype`.
    pub(in crate::kernels) fn nf4(
        device: &CudaDevice,
        shape: (usize, usize),
        dtype: DType,
        weights: &Nf4,
    ) -> Result<Self> {
        let codes = Codes {
            codes: device.clone_htod(&weights.codes)?,
            absmax: device.clone_htod(&weights.absmax)?,
            nested_map: device.clone_htod(weights.nested_map.values())?,
            nested_absmax: device.clone_htod(&weights.nested_absmax)?,
            levels: device.clone_htod(&LEVELS)?,
            offset: weights.offset,
            bytes: weights.bytes(),
        };
        Ok(Self { held: Held::Nf4(Box::new(codes)), shape, device: device.clone(), dtype })
    }

    /// Bytes held.
    pub(in crate::kernels) fn bytes(&self) -> usize {
        match &self.held {
            Held::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Held::Nf4(codes) => codes.bytes,
        }
    }

    /// `sum + x Wᵀ`, or `x Wᵀ` without a sum; `x` is `(n, in)`.
    pub(in crate::kernels) fn product(&self, x: &Tensor, sum: Option<Tensor>) -> Result<Tensor> {
        let (sum, accumulate) = sum_or_new(sum, x, (x.dim(0)?, self.shape.0))?;
        let weights = self.weights()?;
        let transposed = Operand::of(&weights)?.transposed();
        gemm(&self.device, Operand::of(&sum)?, accumulate, 1.0, Operand::of(x)?, transposed)?;
        Ok(sum)
    }

    /// `sum + g W`, or `g W` without a sum; `g` is `(n, out)`.
    pub(in crate::kernels) fn product_transposed(&self, g: &Tensor, sum: Option<Tensor>) -> Result<Tensor> {
        let (sum, accumulate) = sum_or_new(sum, g, (g.dim(0)?, self.shape.1))?;
        let weights = self.weights()?;
        gemm(&self.device, Operand::of(&sum)?, accumulate, 1.0, Operand::of(g)?, Operand::of(&weights)?)?;
        Ok(sum)
    }

    /// The numbers in the type of activations.
    fn weights(&self) -> Result<Tensor> {
        let held = match &self.held {
            Held::Dense(tensor) => return Ok(tensor.clone()),
            Held::Nf4(held) => held,
        };
        let wide = scratch(&self.device, self.dtype, self.shape)?;
        let len = self.shape.0 * self.shape.1;
        kernel::dequantize_nf4(
            &self.device,
            self.dtype,
            // Twice eight weights a thread.
            Grid::over(len.div_ceil(16)),
            activations(&wide)?,
            address_of(&held.codes),
            address_of(&held.absmax),
            address_of(&held.nested_map),
            address_of(&held.nested_absmax),
            address_of(&held.levels),
            held.offset,
            len,
        )?;
        Ok(wide)
    }
}
