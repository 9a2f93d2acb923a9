//! Frozen weights in the GPU's memory, as stored: f32, bf16 or NF4.
//!
//! NF4 is widened into a buffer before each product, and the buffer given back after it: the driver's
//! pool hands the same memory out again.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, DType, Result, Tensor};

use super::gemm::{Operand, gemm};
use super::{Grid, address, address_of, args, kernel, launch, scratch, upload};
use crate::kernels::cpu::nf4::{LEVELS, Nf4};

/// A `(rows, columns)` matrix.
#[derive(Debug)]
pub struct DeviceMatrix {
    held: Held,
    shape: (usize, usize),
    device: CudaDevice,
    /// Of the activations that it is multiplied with.
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
    pub(crate) fn dense(
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
    pub(crate) fn nf4(device: &CudaDevice, shape: (usize, usize), dtype: DType, weights: &Nf4) -> Result<Self> {
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
    pub(crate) fn bytes(&self) -> usize {
        match &self.held {
            Held::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Held::Nf4(codes) => codes.bytes,
        }
    }

    /// `y = x Wᵀ`, or `y += x Wᵀ` if `accumulate`; `x` is `(n, in)`, `y` `(n, out)`.
    pub(super) fn product(&self, x: u64, y: u64, n: usize, accumulate: bool) -> Result<()> {
        let (rows, columns) = self.shape;
        let (x, y) = (Operand::new(x, self.dtype, (n, columns)), Operand::new(y, self.dtype, (n, rows)));
        self.with_weights(|weights| gemm(&self.device, y, accumulate, 1.0, x, weights.transposed()))
    }

    /// `y = g W`, or `y += g W` if `accumulate`; `g` is `(n, out)`, `y` `(n, in)`.
    pub(super) fn product_transposed(&self, g: u64, y: u64, n: usize, accumulate: bool) -> Result<()> {
        let (rows, columns) = self.shape;
        let (g, y) = (Operand::new(g, self.dtype, (n, rows)), Operand::new(y, self.dtype, (n, columns)));
        self.with_weights(|weights| gemm(&self.device, y, accumulate, 1.0, g, weights))
    }

    fn with_weights(&self, f: impl FnOnce(Operand) -> Result<()>) -> Result<()> {
        match &self.held {
            Held::Dense(tensor) => f(Operand::new(address(tensor)?, self.dtype, self.shape)),
            Held::Nf4(codes) => {
                let wide = self.dequantized(codes)?;
                f(Operand::new(address(&wide)?, self.dtype, self.shape))
            }
        }
    }

    fn dequantized(&self, held: &Codes) -> Result<Tensor> {
        let wide = scratch(&self.device, self.dtype, self.shape)?;
        let len = self.shape.0 * self.shape.1;
        launch(
            &self.device,
            &kernel("dequantize_nf4", self.dtype)?,
            Grid::over(len.div_ceil(8)),
            args![
                address(&wide)?,
                address_of(&held.codes),
                address_of(&held.absmax),
                address_of(&held.nested_map),
                address_of(&held.nested_absmax),
                address_of(&held.levels),
                held.offset,
                len
            ],
        )?;
        Ok(wide)
    }
}
