//! Copies to the GPU by way of page-locked memory, which the GPU reads by itself while this thread goes on.
//!
//! Numbers are converted a piece at a time, on all cores, while the piece before is copied. A piece is written again
//! only when the copy out of it is done, which its event tells.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, sys};
use candle_core::{CudaDevice, DType, Result};
use rayon::prelude::*;

/// f32 that a piece holds: 2 MiB, long enough for a copy at full speed.
const PIECE: usize = 1 << 19;
/// Pieces that are kept: two batches of embedded tokens, so that one is converted while the GPU is behind.
const MOST_PIECES: usize = 16;
/// Numbers that a core converts at a time.
const PART: usize = 1 << 14;
/// Fewer bytes are copied as they are: the driver keeps them with the command.
const LEAST_BYTES: usize = 64 << 10;

thread_local! {
    static STAGING: RefCell<Staging> = RefCell::default();
}

/// Page-locked memory, and when the last copy out of it is done.
struct Piece {
    memory: PinnedHostSlice<f32>,
    // The memory has an event of its own, which is not recorded where a context has event tracking off.
    copied: CudaEvent,
}

/// Pieces, used in turn.
#[derive(Default)]
struct Staging {
    pieces: Vec<Piece>,
    next: usize,
    /// The system gave no more.
    is_refused: bool,
}

/// Returns true for so many numbers of `dtype` that they should come this way.
pub(super) fn is_for(count: usize, dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16) && count * dtype.size_in_bytes() >= LEAST_BYTES
}

/// Numbers of f32 that go to a GPU: `read(first row, rows)` writes some of them, on any core.
pub(super) struct Rows<'a> {
    pub(super) count: usize,
    pub(super) width: usize,
    pub(super) read: &'a (dyn Fn(usize, &mut [f32]) + Sync),
}

/// Queues the copy of rows, as f32 or bf16, to the address of a tensor; false if there is no page-locked memory, or a
/// row is too wide.
pub(super) fn send(device: &CudaDevice, rows: &Rows<'_>, dtype: DType, to: u64) -> Result<bool> {
    STAGING.with_borrow_mut(|staging| {
        let stream = device.cuda_stream();
        let at_once = PIECE * size_of::<f32>() / dtype.size_in_bytes() / rows.width;
        if at_once == 0 || !staging.prepare(&stream) {
            return Ok(false);
        }
        for first in (0..rows.count).step_by(at_once) {
            let part = first..rows.count.min(first + at_once);
            let at = to + (first * rows.width * dtype.size_in_bytes()) as u64;
            staging.take(&stream).send(rows, part, dtype, at, &stream)?;
        }
        Ok(true)
    })
}

impl Staging {
    /// Returns true if there is a piece for this stream.
    fn prepare(&mut self, stream: &CudaStream) -> bool {
        if self.pieces.first().is_some_and(|piece| piece.memory.context() != stream.context()) {
            *self = Self::default();
        }
        if self.pieces.is_empty() {
            self.grow(stream);
        }
        !self.pieces.is_empty()
    }

    /// The next piece, of which there must be one: a new one while there are few.
    fn take(&mut self, stream: &CudaStream) -> &mut Piece {
        if self.next == self.pieces.len() && self.next < MOST_PIECES {
            self.grow(stream);
        }
        let index = self.next % self.pieces.len();
        self.next = index + 1;
        &mut self.pieces[index]
    }

    fn grow(&mut self, stream: &CudaStream) {
        if self.is_refused {
            return;
        }
        match Piece::new(stream) {
            Ok(piece) => self.pieces.push(piece),
            Err(_) => self.is_refused = true,
        }
    }
}

impl Piece {
    fn new(stream: &CudaStream) -> Result<Self> {
        let context = stream.context();
        let copied = context.new_event(Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)).w()?;
        // SAFETY: it is written before it is read, and every bit pattern is a number.
        #[expect(unsafe_code, reason = "memory of the driver's")]
        let memory = unsafe { context.alloc_pinned_with_flags(PIECE, 0).w()? };
        Ok(Self { memory, copied })
    }

    /// Writes some rows here as numbers of `dtype`, and queues their copy to the address `to`.
    fn send(&mut self, rows: &Rows<'_>, part: Range<usize>, dtype: DType, to: u64, stream: &CudaStream) -> Result<()> {
        self.copied.synchronize().w()?;
        let memory = self.memory.as_mut_slice().w()?;
        let count = part.len() * rows.width;
        fill(memory, rows, part, dtype);
        let bytes = count * dtype.size_in_bytes();
        // SAFETY: the memory has these bytes, and so has the tensor at `to`; the event keeps the
        // memory from being written or freed before the copy.
        #[expect(unsafe_code, reason = "a driver call on an address")]
        unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, memory.as_ptr().cast(), bytes, stream.cu_stream()).result().w()?;
        }
        self.copied.record(stream).w()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // A device that failed copies nothing any more.
        let _ = self.copied.synchronize();
    }
}

/// Writes rows to a piece as numbers of `dtype`.
fn fill(piece: &mut [f32], rows: &Rows<'_>, part: Range<usize>, dtype: DType) {
    let (together, count) = ((PART / rows.width).max(1), part.len() * rows.width);
    let first = |index: usize| part.start + index * together;
    if dtype == DType::F32 {
        let blocks = piece[..count].par_chunks_mut(together * rows.width).enumerate();
        blocks.for_each(|(index, to)| (rows.read)(first(index), to));
        return;
    }
    let piece: &mut [u16] = bytemuck::cast_slice_mut(piece);
    let blocks = piece[..count].par_chunks_mut(together * rows.width).enumerate();
    blocks.for_each_init(Vec::new, |wide, (index, to)| {
        wide.resize(to.len(), 0.0);
        (rows.read)(first(index), wide);
        to.iter_mut().zip(wide).for_each(|(to, x)| *to = half::bf16::from_f32(*x).to_bits());
    });
}
