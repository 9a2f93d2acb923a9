//! The bridge between candle's tensors and the slices that CPU kernels work on.

use std::cell::RefCell;
use std::ops::Deref;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};

/// The elements of a contiguous tensor as f32 on the CPU. Those of an f32 tensor there are read in
/// place, under candle's read lock: drop it before writing to the same tensor.
pub(crate) enum Elements<'a> {
    InPlace {
        storage: StorageRef<'a>,
        start: usize,
        end: usize,
    },
    #[cfg(feature = "cuda")]
    Copied(Vec<f32>),
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::InPlace { storage, start, end } => match &**storage {
                Storage::Cpu(CpuStorage::F32(data)) => &data[*start..*end],
                _ => unreachable!("`elements` reads f32 tensors on the CPU in place"),
            },
            #[cfg(feature = "cuda")]
            Self::Copied(data) => data,
        }
    }
}

/// Reads a tensor: in place if it is on the CPU, else a copy.
///
/// # Errors
/// If the tensor is not contiguous, or not f32 on the CPU.
pub(crate) fn elements(tensor: &Tensor) -> Result<Elements<'_>> {
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        return super::cuda::download(tensor).map(Elements::Copied);
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got strides {:?}", layout.stride());
    };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Elements::InPlace { storage, start, end }),
        _ => bail!("expected f32 on the CPU, got {:?} on {:?}", tensor.dtype(), tensor.device()),
    }
}

/// Writes a tensor of f32 in place; one on a GPU by way of a copy. Every tensor that shares its storage
/// changes with it.
///
/// # Errors
/// As [`elements`].
pub(crate) fn modify(tensor: &Tensor, f: impl FnMut(&mut [f32])) -> Result<()> {
    // candle runs the op once, but through a shared reference.
    struct Modify<F>(RefCell<F>);
    impl<F: FnMut(&mut [f32])> InplaceOp1 for Modify<F> {
        fn name(&self) -> &'static str {
            "modify"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            match (storage, layout.contiguous_offsets()) {
                (CpuStorage::F32(data), Some((start, end))) => {
                    (self.0.borrow_mut())(&mut data[start..end]);
                    Ok(())
                }
                _ => bail!("expected a contiguous f32 tensor"),
            }
        }
        #[cfg(feature = "cuda")]
        fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
            let Some(range) = layout.contiguous_offsets() else { bail!("expected a contiguous f32 tensor") };
            let slice = storage.as_cuda_slice::<f32>()?;
            let mut data = storage.device.clone_dtoh(&slice.slice(range.0..range.1))?;
            (self.0.borrow_mut())(&mut data);
            super::cuda::overwrite(storage, range, &data)
        }
    }
    tensor.inplace_op1(&Modify(RefCell::new(f)))
}

/// A buffer of `len` floats that the caller overwrites in full before reading.
#[expect(unsafe_code, clippy::uninit_vec, reason = "an output is written once, by all cores")]
pub(crate) fn scratch(len: usize) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    // SAFETY: the capacity is there, every bit pattern is an f32, and callers write before they
    // read. candle's own `alloc_uninit` does the same. Zeroing every intermediate would be one more
    // pass over memory, on one thread.
    unsafe {
        data.set_len(len);
    }
    data
}

/// Moves floats into a tensor on the CPU.
pub(crate) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}
