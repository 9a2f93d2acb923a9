//! The GPU: ops whose tensors live there.
//!
//! Each op here does what its namesake beside this folder does on the CPU: the same forward and
//! backward on the same tape, in f32 or with bf16 activations. Kernels are in the `.cu` files; matrix
//! products are cuBLAS's. All work goes to one stream, in order, so memory may be freed as soon as
//! the last kernel that uses it is queued. A loss and the head that it follows are computed on the CPU:
//! they are a few rows.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod lora_linear;
mod matrix;
pub(crate) mod norm;
pub(crate) mod optimizer;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use candle_core::cuda_backend::cudarc::cublas;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaSlice, DevicePtr, LaunchConfig, PushKernelArg, sys};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};

pub(crate) use matrix::DeviceMatrix;
use rayon::prelude::*;

use super::cpu::memory::Limits;
use crate::ops::tape::Gradient;

#[expect(unreachable_pub, reason = "the build script writes them so")]
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// The oldest card that has bf16.
const OLDEST: (i32, i32) = (8, 0);

/// Opens a GPU.
///
/// # Errors
/// If there is none of this number, its driver is too old, or it has no bf16.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
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
    // The kernels are loaded now, so that a card that cannot run them is told at once.
    function(gpu, "add_f32").map_err(|error| {
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
pub(crate) fn name(device: &CudaDevice) -> Result<String> {
    device.cuda_stream().context().name().w()
}

/// The newest CUDA that the driver knows, such as 13.0.
pub(crate) fn driver_version() -> Result<String> {
    let mut version = 0;
    // SAFETY: the call writes one integer.
    #[expect(unsafe_code, reason = "a driver call that cudarc does not wrap")]
    unsafe {
        sys::cuDriverGetVersion(&raw mut version).result().w()?;
    }
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// Waits until all that was queued is done.
pub(crate) fn wait(device: &CudaDevice) -> Result<()> {
    device.cuda_stream().synchronize().w()
}

/// The GPU's memory.
pub(crate) fn limits(device: &CudaDevice) -> Result<Limits> {
    let (free, total) = device.cuda_stream().context().mem_get_info().w()?;
    Ok(Limits { total: total as u64, available: free as u64 })
}

/// The most memory of the GPU that this process has used so far.
pub(crate) fn peak_bytes(device: &CudaDevice) -> Result<u64> {
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

/// What a kernel is given.
#[derive(Clone, Copy)]
enum Arg {
    /// A place in the GPU's memory, or 0 where the kernel may be given none.
    Address(u64),
    Size(usize),
    U32(u32),
    I32(i32),
    F32(f32),
}

impl From<u64> for Arg {
    fn from(address: u64) -> Self {
        Self::Address(address)
    }
}

impl From<usize> for Arg {
    fn from(size: usize) -> Self {
        Self::Size(size)
    }
}

impl From<u32> for Arg {
    fn from(number: u32) -> Self {
        Self::U32(number)
    }
}

impl From<i32> for Arg {
    fn from(number: i32) -> Self {
        Self::I32(number)
    }
}

impl From<bool> for Arg {
    fn from(flag: bool) -> Self {
        Self::I32(i32::from(flag))
    }
}

impl From<f32> for Arg {
    fn from(number: f32) -> Self {
        Self::F32(number)
    }
}

macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::kernels::cuda::Arg::from($value)),*][..] };
}
use args;

/// Blocks, threads a block, and bytes of shared memory a block.
#[derive(Clone, Copy)]
struct Grid {
    blocks: (u32, u32),
    threads: u32,
    shared_bytes: u32,
}

const THREADS: u32 = 256;
/// Threads that run together.
const WARP: u32 = 32;

impl Grid {
    /// Threads that share `work` items among them; kernels loop if there are more.
    fn over(work: usize) -> Self {
        let blocks = work.div_ceil(THREADS as usize).clamp(1, 1 << 16) as u32;
        Self { blocks: (blocks, 1), threads: THREADS, shared_bytes: 0 }
    }

    /// A warp for each row.
    fn warp_each(rows: usize) -> Self {
        Self { blocks: (rows.div_ceil((THREADS / WARP) as usize) as u32, 1), threads: THREADS, shared_bytes: 0 }
    }
}

/// The name of a kernel for activations of a type.
fn kernel(name: &str, dtype: DType) -> Result<String> {
    match dtype {
        DType::F32 => Ok(format!("{name}_f32")),
        DType::BF16 => Ok(format!("{name}_bf16")),
        other => bail!("activations of {other:?} on a GPU"),
    }
}

thread_local! {
    static FUNCTIONS: RefCell<HashMap<String, CudaFunction>> = RefCell::default();
}

/// A kernel, loaded once.
fn function(device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    if let Some(function) = FUNCTIONS.with_borrow(|functions| functions.get(name).cloned()) {
        return Ok(function);
    }
    let (module, code) = match name {
        _ if name.starts_with("attention") => ("attention", ptx::ATTENTION),
        _ if name.contains("norm") => ("norm", ptx::NORM),
        _ if name.contains("nf4") => ("nf4", ptx::NF4),
        "adamw" | "adamw_8bit" | "sum_of_squares" => ("optimizer", ptx::OPTIMIZER),
        _ => ("elementwise", ptx::ELEMENTWISE),
    };
    let function = device.get_or_load_custom_func(name, module, code)?.into_cuda_function();
    FUNCTIONS.with_borrow_mut(|functions| functions.insert(name.to_owned(), function.clone()));
    Ok(function)
}

/// Queues a kernel. The arguments must be of the number and types of the kernel's parameters, and the
/// addresses those of as many elements as it touches: the kernels' only callers are in this folder.
fn launch(device: &CudaDevice, name: &str, grid: Grid, args: &[Arg]) -> Result<()> {
    let function = function(device, name)?;
    if grid.shared_bytes > 48 << 10 {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, grid.shared_bytes as i32).w()?;
    }
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for arg in args {
        match arg {
            Arg::Address(value) => builder.arg(value),
            Arg::Size(value) => builder.arg(value),
            Arg::U32(value) => builder.arg(value),
            Arg::I32(value) => builder.arg(value),
            Arg::F32(value) => builder.arg(value),
        };
    }
    let config = LaunchConfig {
        grid_dim: (grid.blocks.0, grid.blocks.1, 1),
        block_dim: (grid.threads, 1, 1),
        shared_mem_bytes: grid.shared_bytes,
    };
    // SAFETY: see above; the tests compare every kernel with the CPU's.
    #[expect(unsafe_code, reason = "a kernel's parameters cannot be checked")]
    unsafe {
        builder.launch(config).w()?;
    }
    Ok(())
}

/// Where a contiguous tensor of f32 or bf16 starts in the GPU's memory.
fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("expected a contiguous tensor on the GPU, got strides {:?} on {:?}", layout.stride(), tensor.device());
    };
    let start = start as u64;
    match &storage.slice {
        CudaStorageSlice::F32(slice) => Ok(address_of(slice) + 4 * start),
        CudaStorageSlice::BF16(slice) => Ok(address_of(slice) + 2 * start),
        _ => bail!("expected f32 or bf16, got {:?}", tensor.dtype()),
    }
}

/// Where a buffer starts.
fn address_of<T>(slice: &CudaSlice<T>) -> u64 {
    // Without event tracking there is nothing that the guard would do.
    slice.device_ptr(slice.stream()).0
}

/// A tensor that the caller overwrites in full before anything reads it.
fn scratch(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
    // SAFETY: as for `buffer::scratch`: callers write before they read.
    #[expect(unsafe_code, reason = "an output is written once")]
    unsafe {
        Tensor::empty(shape, dtype, &Device::Cuda(device.clone()))
    }
}

/// A buffer beside tensors, as [`scratch`].
fn scratch_buffer<T: candle_core::cuda_backend::cudarc::driver::DeviceRepr>(
    device: &CudaDevice,
    len: usize,
) -> Result<CudaSlice<T>> {
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "an output is written once")]
    unsafe {
        device.alloc::<T>(len)
    }
}

/// The device of a tensor on a GPU.
fn device_of(tensor: &Tensor) -> Result<CudaDevice> {
    Ok(tensor.device().as_cuda_device()?.clone())
}

/// Sets a tensor's elements to zero.
fn clear(tensor: &Tensor) -> Result<()> {
    let device = device_of(tensor)?;
    let stream = device.cuda_stream();
    let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
    // SAFETY: the tensor has these bytes, and zero bits are a zero of f32 and of bf16.
    #[expect(unsafe_code, reason = "a driver call on an address")]
    unsafe {
        sys::cuMemsetD8Async(address(tensor)?, 0, bytes, stream.cu_stream()).result().w()
    }
}

/// Copies elements between tensors of one type and size.
fn copy(to: &Tensor, from: &Tensor) -> Result<()> {
    let stream = device_of(to)?.cuda_stream();
    let bytes = to.elem_count() * to.dtype().size_in_bytes();
    if (from.dtype(), from.elem_count()) != (to.dtype(), to.elem_count()) {
        bail!("a copy of {:?} to {:?}", from.shape(), to.shape());
    }
    // SAFETY: both have these bytes.
    #[expect(unsafe_code, reason = "a driver call on addresses")]
    unsafe {
        sys::cuMemcpyDtoDAsync_v2(address(to)?, address(from)?, bytes, stream.cu_stream()).result().w()
    }
}

/// f32 on the CPU to a tensor of `dtype` on the GPU.
pub(crate) fn upload(device: &CudaDevice, data: &[f32], dtype: DType, shape: &Shape) -> Result<Tensor> {
    let slice = match dtype {
        DType::F32 => CudaStorageSlice::F32(device.clone_htod(data)?),
        DType::BF16 => {
            let narrow: Vec<half::bf16> = data.par_iter().map(|&x| half::bf16::from_f32(x)).collect();
            CudaStorageSlice::BF16(device.clone_htod(&narrow)?)
        }
        other => bail!("activations of {other:?} on a GPU"),
    };
    let storage = CudaStorage { slice, device: device.clone() };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape.clone(), BackpropOp::none(), false))
}

/// A tensor of f32 or bf16 on the GPU to f32 on the CPU.
pub(crate) fn download(tensor: &Tensor) -> Result<Vec<f32>> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("expected a contiguous tensor on the GPU, got strides {:?} on {:?}", layout.stride(), tensor.device());
    };
    match &storage.slice {
        CudaStorageSlice::F32(slice) => storage.device.clone_dtoh(&slice.slice(start..end)),
        CudaStorageSlice::BF16(slice) => {
            let narrow = storage.device.clone_dtoh(&slice.slice(start..end))?;
            Ok(narrow.iter().map(|x| x.to_f32()).collect())
        }
        _ => bail!("expected f32 or bf16, got {:?}", tensor.dtype()),
    }
}

/// Overwrites a tensor's elements, rounded to its type.
pub(crate) fn overwrite(storage: &mut CudaStorage, (start, end): (usize, usize), data: &[f32]) -> Result<()> {
    let device = storage.device.clone();
    match &mut storage.slice {
        CudaStorageSlice::F32(slice) => device.memcpy_htod(data, &mut slice.slice_mut(start..end)),
        _ => bail!("expected f32 on the GPU"),
    }
}

/// Lets an op write a gradient like `like`: `f(address, accumulate)` must overwrite it, or add to it.
fn write_gradient(gradient: &Gradient, like: &Tensor, f: impl FnOnce(u64, bool) -> Result<()>) -> Result<()> {
    let device = device_of(like)?;
    gradient.write_tensor(
        || scratch(&device, like.dtype(), like.shape()),
        |gradient, accumulate| f(address(gradient)?, accumulate),
    )
}

/// A gradient that may be changed: itself if nobody else holds it, else a copy.
fn owned(mut gradient: Rc<Tensor>) -> Result<Rc<Tensor>> {
    if Rc::get_mut(&mut gradient).is_none() {
        gradient = Rc::new(gradient.copy()?);
    }
    Ok(gradient)
}
