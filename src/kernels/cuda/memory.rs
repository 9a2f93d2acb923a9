//! The GPU's memory: typed addresses, and copies to and from it.

use std::marker::PhantomData;

use bytemuck::AnyBitPattern;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, sys};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use super::staging::{self, Rows};

/// Stands for the type of activations, f32 or bf16, that a kernel is called for.
pub(super) enum Activations {}

/// Where numbers of a type lie in the GPU's memory, or none where a kernel may be given none.
#[repr(transparent)]
pub(super) struct Address<T>(u64, PhantomData<*const T>);

impl<T> Clone for Address<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Address<T> {}

// SAFETY: it is a u64, as a pointer in a kernel's parameters is.
#[expect(unsafe_code, reason = "a parameter of a kernel")]
unsafe impl<T> DeviceRepr for Address<T> {}

impl<T> Address<T> {
    /// No address.
    pub(super) fn none() -> Self {
        Self(0, PhantomData)
    }

    /// The address `count` numbers on.
    pub(super) fn after(self, count: usize) -> Self {
        Self(self.0 + (size_of::<T>() * count) as u64, PhantomData)
    }

    pub(super) fn bytes(self) -> u64 {
        self.0
    }
}

/// Where a tensor of activations starts.
pub(super) fn activations(tensor: &Tensor) -> Result<Address<Activations>> {
    bytes_of(tensor).map(|address| Address(address, PhantomData))
}

/// Where a tensor of activations starts, if there is one.
pub(super) fn optional(tensor: Option<&Tensor>) -> Result<Address<Activations>> {
    tensor.map_or(Ok(Address::none()), activations)
}

/// Where a tensor of f32 starts.
pub(super) fn floats(tensor: &Tensor) -> Result<Address<f32>> {
    if tensor.dtype() != DType::F32 {
        bail!("expected f32, got {:?}", tensor.dtype());
    }
    bytes_of(tensor).map(|address| Address(address, PhantomData))
}

/// Where a buffer starts.
pub(super) fn address_of<T>(slice: &CudaSlice<T>) -> Address<T> {
    // Without event tracking there is nothing that the guard would do.
    Address(slice.device_ptr(slice.stream()).0, PhantomData)
}

/// Where a contiguous tensor of f32 or bf16 starts.
pub(super) fn bytes_of(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("expected a contiguous tensor on the GPU, got strides {:?} on {:?}", layout.stride(), tensor.device());
    };
    match &storage.slice {
        CudaStorageSlice::F32(slice) => Ok(address_of(slice).after(start).bytes()),
        CudaStorageSlice::BF16(slice) => Ok(address_of(slice).after(start).bytes()),
        _ => bail!("expected f32 or bf16, got {:?}", tensor.dtype()),
    }
}

/// The tensor to which a kernel adds a gradient, or a new one like `like`; and whether to add.
pub(super) fn sum_or_new(sum: Option<Tensor>, like: &Tensor, shape: impl Into<Shape>) -> Result<(Tensor, bool)> {
    match sum {
        Some(sum) => Ok((sum, true)),
        None => Ok((scratch(&device_of(like)?, like.dtype(), shape)?, false)),
    }
}

/// A tensor that the caller overwrites in full before anything reads it.
pub(super) fn scratch(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
    // SAFETY: kernels of a GPU read what they find there, and every bit pattern is a number; callers write
    // before they read.
    #[expect(unsafe_code, reason = "an output is written once")]
    unsafe {
        Tensor::empty(shape, dtype, &Device::Cuda(device.clone()))
    }
}

/// A buffer beside tensors, as [`scratch`]. Its type has no bit pattern that is not a value.
pub(super) fn scratch_buffer<T: DeviceRepr + AnyBitPattern>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "an output is written once")]
    unsafe {
        device.alloc::<T>(len)
    }
}

/// The device of a tensor on a GPU.
pub(in crate::kernels) fn device_of(tensor: &Tensor) -> Result<CudaDevice> {
    Ok(tensor.device().as_cuda_device()?.clone())
}

/// Sets a tensor's elements to zero.
pub(super) fn clear(tensor: &Tensor) -> Result<()> {
    let device = device_of(tensor)?;
    let stream = device.cuda_stream();
    let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
    // SAFETY: the tensor has these bytes, and zero bits are a zero of f32 and of bf16.
    #[expect(unsafe_code, reason = "a driver call on an address")]
    unsafe {
        sys::cuMemsetD8Async(bytes_of(tensor)?, 0, bytes, stream.cu_stream()).result().w()
    }
}

/// f32 on the CPU to a tensor of `dtype` on the GPU.
pub(in crate::kernels) fn upload(device: &CudaDevice, data: &[f32], dtype: DType, shape: &Shape) -> Result<Tensor> {
    let read = |first: usize, to: &mut [f32]| to.copy_from_slice(&data[first..first + to.len()]);
    if let Some(tensor) = staged(device, &Rows { count: data.len(), width: 1, read: &read }, dtype, shape)? {
        return Ok(tensor);
    }
    let slice = match dtype {
        DType::F32 => CudaStorageSlice::F32(device.clone_htod(data)?),
        DType::BF16 => {
            /// Numbers that one thread narrows sooner than the others wake up, while the GPU may be waiting.
            const FEW: usize = 1 << 16;
            let narrow = |&x: &f32| half::bf16::from_f32(x);
            let narrow: Vec<_> = match data.len() {
                ..=FEW => data.iter().map(narrow).collect(),
                _ => data.par_iter().map(narrow).collect(),
            };
            CudaStorageSlice::BF16(device.clone_htod(&narrow)?)
        }
        other => bail!("activations of {other:?} on a GPU"),
    };
    let storage = CudaStorage { slice, device: device.clone() };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape.clone(), BackpropOp::none(), false))
}

/// Rows of f32 on the CPU, which `read(first row, rows)` gives, to a tensor of `dtype` on the GPU; none where they are
/// to come as a whole, to [`upload`].
pub(in crate::kernels) fn upload_rows(
    device: &CudaDevice,
    (count, width): (usize, usize),
    dtype: DType,
    read: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> Result<Option<Tensor>> {
    staged(device, &Rows { count, width, read }, dtype, &(count, width).into())
}

/// A tensor that came by way of page-locked memory, if it is large and there is some.
fn staged(device: &CudaDevice, rows: &Rows<'_>, dtype: DType, shape: &Shape) -> Result<Option<Tensor>> {
    if !staging::is_for(rows.count * rows.width, dtype) {
        return Ok(None);
    }
    let tensor = scratch(device, dtype, shape)?;
    Ok(staging::send(device, rows, dtype, bytes_of(&tensor)?)?.then_some(tensor))
}

/// A tensor of f32 or bf16 on the GPU to f32 on the CPU.
pub(in crate::kernels) fn download(tensor: &Tensor) -> Result<Vec<f32>> {
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
pub(in crate::kernels) fn overwrite(
    storage: &mut CudaStorage,
    (start, end): (usize, usize),
    data: &[f32],
) -> Result<()> {
    let device = storage.device.clone();
    match &mut storage.slice {
        CudaStorageSlice::F32(slice) => device.memcpy_htod(data, &mut slice.slice_mut(start..end)),
        _ => bail!("expected f32 on the GPU"),
    }
}
