//! Matrix products by cuBLAS, row-major as everywhere here.

use std::ffi::c_void;
use std::time::Instant;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use super::driver::wait;
use super::memory::bytes_of;
use crate::kernels::cpu::flops;

/// A row-major matrix in the GPU's memory, or the transpose of one.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    address: u64,
    dtype: DType,
    /// Rows as stored.
    rows: usize,
    columns: usize,
    is_transposed: bool,
    /// Numbers from one stored row to the next.
    stride: usize,
}

impl Operand {
    /// A tensor of two dimensions.
    pub(super) fn of(tensor: &Tensor) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        Ok(Self {
            address: bytes_of(tensor)?,
            dtype: tensor.dtype(),
            rows,
            columns,
            is_transposed: false,
            stride: columns,
        })
    }

    pub(super) fn transposed(self) -> Self {
        Self { is_transposed: !self.is_transposed, ..self }
    }

    /// Some columns, of one that is not transposed.
    pub(super) fn part(self, first: usize, columns: usize) -> Self {
        debug_assert!(!self.is_transposed && first + columns <= self.columns, "columns of {}", self.columns);
        let address = self.address + (first * self.dtype.size_in_bytes()) as u64;
        Self { address, columns, ..self }
    }

    /// Rows and columns as multiplied.
    fn shape(&self) -> (usize, usize) {
        if self.is_transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    fn operation(&self) -> sys::cublasOperation_t {
        if self.is_transposed { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N }
    }
}

/// `out = alpha · a b`, or `out += alpha · a b` if `accumulate`; sums are f32.
pub(super) fn gemm(
    device: &CudaDevice,
    out: Operand,
    accumulate: bool,
    alpha: f32,
    a: Operand,
    b: Operand,
) -> Result<()> {
    let ((m, k), (k_of_b, n)) = (a.shape(), b.shape());
    if k != k_of_b || (out.rows, out.columns) != (m, n) || out.is_transposed {
        bail!("a product of {:?} and {:?} is not {:?}", a.shape(), b.shape(), (out.rows, out.columns));
    }
    flops::count(m, k, n);
    let beta = if accumulate { 1.0f32 } else { 0.0 };
    let pointer = |operand: Operand| operand.address as *mut c_void;
    // cuBLAS is column-major: there, a row-major matrix is its transpose, and outᵀ = bᵀ aᵀ.
    // SAFETY: each operand's address is that of rows × columns elements of its type.
    #[expect(unsafe_code, reason = "cuBLAS takes addresses")]
    unsafe {
        result::gemm_ex(
            *device.cublas_handle().handle(),
            b.operation(),
            a.operation(),
            n as i32,
            m as i32,
            k as i32,
            (&raw const alpha).cast(),
            pointer(b),
            data_type(b.dtype)?,
            b.stride as i32,
            pointer(a),
            data_type(a.dtype)?,
            a.stride as i32,
            (&raw const beta).cast(),
            pointer(out),
            data_type(out.dtype)?,
            out.stride as i32,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
        .w()
    }
}

/// Floating-point operations a second of a large product of activations: the best of a few.
pub(in crate::kernels) fn measure_rate(device: &CudaDevice, dtype: DType) -> Result<f64> {
    const SIZE: usize = 4096;
    let zeros = || Tensor::zeros((SIZE, SIZE), dtype, &Device::Cuda(device.clone()));
    let [a, b, out] = [zeros()?, zeros()?, zeros()?];
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        wait(device)?;
        let begin = Instant::now();
        gemm(device, Operand::of(&out)?, false, 1.0, Operand::of(&a)?, Operand::of(&b)?.transposed())?;
        wait(device)?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIZE as f64).powi(3) / best)
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        other => bail!("a product of {other:?}"),
    }
}
