//! The bridge between candle's tensors and the slices that CPU kernels work on.

use std::cell::RefCell;
use std::ops::Deref;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};

/// The elements of a contiguous f32 tensor on the CPU. Holds candle's read lock: drop it before
/// writing to the same tensor.
pub(crate) struct Elements<'a> {
    storage: StorageRef<'a>,
    start: usize,
    end: usize,
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.end],
            _ => unreachable!("`elements` accepts f32 tensors on the CPU only"),
        }
    }
}

/// Reads a tensor in place.
///
/// # Errors
/// If the tensor is not contiguous, not f32 or not on the CPU.
pub(crate) fn elements(tensor: &Tensor) -> Result<Elements<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got strides {:?}", layout.stride());
    };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Elements { storage, start, end }),
        _ => bail!("expected f32 on the CPU, got {:?} on {:?}", tensor.dtype(), tensor.device()),
    }
}

/// Writes a tensor in place. Every tensor that shares its storage changes with it.
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
