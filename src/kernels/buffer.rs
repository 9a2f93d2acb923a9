//! The bridge between candle's tensors and the slices that CPU kernels work on.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{block_rows, par_rows};

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
        return super::cuda::memory::download(tensor).map(Elements::Copied);
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
            super::cuda::memory::overwrite(storage, range, &data)
        }
    }
    tensor.inplace_op1(&Modify(RefCell::new(f)))
}

/// Numbers that threads write parts of their own of.
pub(crate) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: whoever takes parts promises that they do not overlap.
#[expect(unsafe_code, reason = "parts of one slice for several threads")]
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), lifetime: PhantomData }
    }

    /// Some of the numbers.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[expect(unsafe_code, reason = "parts of one slice for several threads")]
    #[expect(clippy::mut_from_ref, reason = "the caller keeps parts apart")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "a part outside its slice");
        // SAFETY: inside the slice, which stays borrowed; the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

/// New rows of `width`, on all cores: `f(first row, rows)` gets zeros, a block at a time.
///
/// The zeros of a block are still in a core's cache when `f` overwrites them, where clearing the
/// whole buffer first would be one more pass over memory.
pub(crate) fn new_rows(len: usize, width: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    let rows = block_rows(width);
    let new = &mut data.spare_capacity_mut()[..len];
    let write = |(index, block): (usize, &mut [MaybeUninit<f32>])| {
        block.fill(MaybeUninit::new(0.0));
        // SAFETY: every element was just written, and a `MaybeUninit<f32>` is laid out as an f32.
        #[expect(unsafe_code, reason = "an output is written once, by all cores")]
        let block = unsafe { std::slice::from_raw_parts_mut(block.as_mut_ptr().cast::<f32>(), block.len()) };
        f(index * rows, block);
    };
    // To hand a single block to the other threads takes longer than the block.
    if len <= rows * width.max(1) {
        new.chunks_mut(rows * width.max(1)).enumerate().for_each(write);
    } else {
        new.par_chunks_mut(rows * width.max(1)).enumerate().for_each(write);
    }
    // SAFETY: the capacity is there, and the blocks, all of which were written, are the whole of it.
    #[expect(unsafe_code, reason = "an output is written once, by all cores")]
    unsafe {
        data.set_len(len);
    }
    data
}

/// Two matrices at once, as [`new_rows`] makes one.
pub(crate) fn new_pairs(len: usize, width: usize, f: impl Fn(usize, [&mut [f32]; 2]) + Sync) -> [Vec<f32>; 2] {
    let mut second = Vec::with_capacity(len);
    let (rows, to) = (block_rows(width) * width.max(1), second.as_mut_ptr() as usize);
    let first = new_rows(len, width, |row, block| {
        debug_assert_eq!(row * width % rows, 0);
        // SAFETY: the same part of the second matrix as the block is of the first, inside its capacity, which
        // no other task writes; all bits zero are zeros of f32.
        #[expect(unsafe_code, reason = "an output is written once, by all cores")]
        let other = unsafe {
            let to = (to as *mut f32).add(row * width);
            to.write_bytes(0, block.len());
            std::slice::from_raw_parts_mut(to, block.len())
        };
        f(row, [block, other]);
    });
    // SAFETY: the blocks, all of which were written, are the whole of it.
    #[expect(unsafe_code, reason = "an output is written once, by all cores")]
    unsafe {
        second.set_len(len);
    }
    [first, second]
}

/// Rows of a gradient, on all cores: `f(first row, rows, accumulate)` adds to those of `sum`, or
/// overwrites the zeros of a new tensor.
pub(crate) fn sum_rows(
    sum: Option<Tensor>,
    shape: impl Into<Shape>,
    width: usize,
    f: impl Fn(usize, &mut [f32], bool) + Sync,
) -> Result<Tensor> {
    let Some(sum) = sum else {
        let shape = shape.into();
        return tensor(new_rows(shape.elem_count(), width, |first, block| f(first, block, false)), shape);
    };
    modify(&sum, |data| par_rows(data, width, |first, block| f(first, block, true)))?;
    Ok(sum)
}

/// Moves floats into a tensor on the CPU.
pub(crate) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// The number of rows of a `(rows, width)` tensor.
pub(crate) fn rows_of(tensor: &Tensor, width: usize) -> Result<usize> {
    match tensor.dims2() {
        Ok((rows, columns)) if columns == width => Ok(rows),
        _ => bail!("expected a matrix of {width} columns, got shape {:?}", tensor.dims()),
    }
}
