//! Where a model computes, and in what: on the CPU or on a GPU, in f32 or bf16.

use std::marker::PhantomData;
use std::time::Instant;

use candle_core::{DType, Result, Tensor};

use super::buffer::tensor;
use super::cpu::gemm::Compute;
use super::cpu::memory::{Buffer, Limits};
use super::matrix::{FrozenMatrix, Storage};

/// True if this build can use a GPU.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

/// A device, the type of activations on it, and how it treats frozen weights.
///
/// It stays on its thread: work for a GPU is queued by one thread, and nothing would keep a second one
/// from reading what the first is still computing.
#[derive(Clone, Debug)]
pub struct Device {
    device: candle_core::Device,
    dtype: DType,
    compute: Compute,
    packs_weights: bool,
    on_one_thread: PhantomData<*const ()>,
}

/// Facts about a GPU for records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuDescription {
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// The newest CUDA that its driver knows.
    pub driver: String,
    /// The most of its memory that this process has used so far, in bytes.
    pub peak_bytes: u64,
}

impl Device {
    fn new(device: candle_core::Device, dtype: DType) -> Self {
        Self { device, dtype, compute: Compute::Float32, packs_weights: false, on_one_thread: PhantomData }
    }

    /// The CPU, which computes in f32 unless [told otherwise](Device::computing_in), whatever weights are
    /// stored in.
    #[must_use]
    pub fn cpu() -> Self {
        Self::new(candle_core::Device::Cpu, DType::F32)
    }

    /// Opens the GPU of a number, for bf16.
    ///
    /// # Errors
    /// If there is none, it is too old, or this build is for the CPU only.
    pub fn gpu(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::new(super::cuda::driver::open(ordinal)?, DType::BF16));
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!(
            "cuda:{ordinal}: this build of llmcls computes on the CPU only; use --device cpu, leave it out, or build with \
             `--features cuda`"
        )
    }

    /// The same device with activations of another type; the CPU keeps f32.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype: if self.is_gpu() { dtype } else { DType::F32 }, ..self.clone() }
    }

    /// The same device with products of frozen weights computed in `compute`, if it is the CPU.
    #[must_use]
    pub fn computing_in(&self, compute: Compute) -> Self {
        Self { compute, ..self.clone() }
    }

    /// In what products with frozen weights are computed, if it is the CPU.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The same device, which packs frozen weights once for their products with x if it is the CPU: for
    /// predicting, where the gradient's products do not follow.
    #[must_use]
    pub fn packing_weights(&self, packs_weights: bool) -> Self {
        Self { packs_weights, ..self.clone() }
    }

    /// Returns true for a GPU.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        self.device.is_cuda()
    }

    /// Bytes of a number of an activation.
    #[must_use]
    pub fn activation_bytes(&self) -> usize {
        self.dtype.size_in_bytes()
    }

    /// Activations, from f32 on the CPU.
    ///
    /// # Errors
    /// If the GPU's memory does not suffice.
    pub fn put(&self, tensor: Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &self.device {
            return super::cuda::memory::upload(device, &super::buffer::elements(&tensor)?, self.dtype, tensor.shape());
        }
        Ok(tensor)
    }

    /// Activations, `(rows, width)`, of which `read(first row, rows)` gives some, on all cores, in f32.
    ///
    /// # Errors
    /// If the GPU's memory does not suffice.
    pub(crate) fn put_rows(
        &self,
        (rows, width): (usize, usize),
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &self.device
            && let Some(tensor) = super::cuda::memory::upload_rows(device, (rows, width), self.dtype, &read)?
        {
            return Ok(tensor);
        }
        self.put(super::buffer::tensor(super::buffer::new_rows(rows * width, width, read), (rows, width))?)
    }

    /// A trained tensor of zeros: f32 wherever it is.
    ///
    /// # Errors
    /// If the GPU's memory does not suffice.
    pub fn zeros(&self, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
        Tensor::zeros(shape, DType::F32, &self.device)
    }

    /// A frozen matrix, moved to the device.
    ///
    /// # Errors
    /// If the GPU's memory does not suffice.
    pub fn hold(&self, matrix: FrozenMatrix) -> Result<FrozenMatrix> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &self.device {
            return matrix.moved_to(device, self.dtype);
        }
        let matrix = matrix.computed_in(self.compute);
        if self.packs_weights {
            matrix.pack();
        }
        Ok(matrix)
    }

    /// Waits until all that was queued is done: before a clock is read.
    pub fn wait(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &self.device {
            return super::cuda::driver::wait(device);
        }
        Ok(())
    }

    /// Floating-point operations a second of a large matrix product: the best of a few.
    ///
    /// # Errors
    /// If a GPU's memory does not suffice.
    pub fn measure_rate(&self) -> Result<f64> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &self.device {
            return super::cuda::gemm::measure_rate(device, self.dtype);
        }
        self.measure_cpu_rate()
    }

    fn measure_cpu_rate(&self) -> Result<f64> {
        const SIZE: usize = 1024;
        let weights = match self.compute {
            Compute::Float32 => Storage::F32(Buffer::Owned(vec![0.5; SIZE * SIZE])),
            Compute::Bfloat16 => Storage::Bf16(Buffer::Owned(vec![half::bf16::from_f32(0.5); SIZE * SIZE])),
        };
        let matrix = FrozenMatrix::new(weights, SIZE, SIZE).computed_in(self.compute);
        let x = self.put(tensor(vec![0.25; SIZE * SIZE], (SIZE, SIZE))?)?;
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            let begin = Instant::now();
            matrix.product(&x, None)?;
            best = best.min(begin.elapsed().as_secs_f64());
        }
        Ok(2.0 * (SIZE as f64).powi(3) / best)
    }

    /// The device's memory, where the system tells.
    #[must_use]
    pub fn memory(&self) -> Option<Limits> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &self.device {
            return super::cuda::driver::limits(device).ok();
        }
        super::cpu::memory::limits()
    }

    /// The GPU, if it is one.
    #[must_use]
    pub fn description(&self) -> Option<GpuDescription> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &self.device {
            return Some(GpuDescription {
                name: super::cuda::driver::name(device).ok()?,
                driver: super::cuda::driver::driver_version().ok()?,
                peak_bytes: super::cuda::driver::peak_bytes(device).ok()?,
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Device;

    /// For a type that is `Send`, the compiler cannot tell which of the two `IS_SEND` is meant.
    trait NotSend<Marker> {
        const IS_SEND: bool = false;
    }

    struct Also;

    impl<T: ?Sized> NotSend<()> for T {}
    impl<T: ?Sized + Send> NotSend<Also> for T {}

    #[test]
    fn a_device_stays_on_its_thread() {
        const { assert!(!<Device as NotSend<_>>::IS_SEND) }
    }
}
