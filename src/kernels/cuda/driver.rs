//! The GPU itself: opening it, its memory and its name.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas;
use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{CudaDevice, Device, Result, bail};

use crate::kernels::cpu::memory::Limits;

/// The oldest card that has bf16.
const OLDEST: (i32, i32) = (8, 0);

/// Opens a GPU.
///
/// # Errors
/// If there is none of this number, its driver is too old, or it has no bf16.
pub(in crate::kernels) fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal).map_err(|error| {
        error.context(format!(
            "cuda:{ordinal} cannot be opened; `nvidia-smi` shows the GPUs and the driver, which must be of CUDA 13 (580) \
             or later"
        ))
    })?;
    let gpu = device.as_cuda_device()?;
    let stream = gpu.cuda_stream();
    let context = stream.context();
    let capability = context.compute_capability().w()?;
    if capability < OLDEST {
        bail!(
            "cuda:{ordinal}, {}, has compute capability {}.{}, and llmcls needs {}.{} or later (bf16); use --device cpu",
            context.name().w()?,
            capability.0,
            capability.1,
            OLDEST.0,
            OLDEST.1
        );
    }
    let exact = cublas::sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // Sums stay in f32 to the end: parts of a long product would otherwise be added in bf16.
    // SAFETY: the handle is this device's own.
    #[expect(unsafe_code, reason = "cuBLAS takes a pointer")]
    unsafe {
        cublas::sys::cublasSetMathMode(*gpu.cublas_handle().handle(), exact).result().w()?;
    }
    // SAFETY: all work of this process is queued on this one stream, by one thread.
    #[expect(unsafe_code, reason = "candle cannot know that there is one stream")]
    unsafe {
        gpu.disable_event_tracking();
    }
    keep_memory(context.cu_device())?;
    // The kernels are loaded now, so that a GPU that cannot run them is reported at once.
    super::elementwise::load(gpu).map_err(|error| {
        error.context(format!("cuda:{ordinal}: this build's kernels do not run on it; see the README's GPU section"))
    })?;
    Ok(device)
}

/// Tells the driver to keep freed memory for the next allocation.
fn keep_memory(device: sys::CUdevice) -> Result<()> {
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: both calls get pointers to values of the types that they are documented to take.
    #[expect(unsafe_code, reason = "driver calls that cudarc does not wrap")]
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, device).result().w()?;
        sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
        .result()
        .w()
    }
}

/// The GPU's name.
pub(in crate::kernels) fn name(device: &CudaDevice) -> Result<String> {
    device.cuda_stream().context().name().w()
}

/// The newest CUDA that the driver knows, such as 13.0.
pub(in crate::kernels) fn driver_version() -> Result<String> {
    let mut version = 0;
    // SAFETY: the call writes one integer.
    #[expect(unsafe_code, reason = "a driver call that cudarc does not wrap")]
    unsafe {
        sys::cuDriverGetVersion(&raw mut version).result().w()?;
    }
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// Waits until all that was queued is done.
pub(in crate::kernels) fn wait(device: &CudaDevice) -> Result<()> {
    device.cuda_stream().synchronize().w()
}

/// The GPU's memory.
pub(in crate::kernels) fn limits(device: &CudaDevice) -> Result<Limits> {
    let (free, total) = device.cuda_stream().context().mem_get_info().w()?;
    Ok(Limits { total: total as u64, available: free as u64 })
}

/// The most memory of the GPU that this process has used so far.
pub(in crate::kernels) fn peak_bytes(device: &CudaDevice) -> Result<u64> {
    let mut pool = std::ptr::null_mut();
    let mut peak = 0u64;
    // SAFETY: as in `keep_memory`.
    #[expect(unsafe_code, reason = "driver calls that cudarc does not wrap")]
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, device.cuda_stream().context().cu_device()).result().w()?;
        sys::cuMemPoolGetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
            (&raw mut peak).cast(),
        )
        .result()
        .w()?;
    }
    Ok(peak)
}
