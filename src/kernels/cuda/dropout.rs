//! Dropout with a mask that is drawn wherever it is used: see `dropout.cu`.

use candle_core::{Result, Tensor};

use super::launch::{Code, Flag, Grid, StreamWords, kernels, ptx};
use super::memory::{Activations, Address, activations, device_of, scratch};
use crate::kernels::mask::Mask;

const CODE: Code = Code { name: "dropout", ptx: ptx::DROPOUT };

kernels! { CODE:
    fn dropout<T>(
        out: Address<Activations>, x: Address<Activations>, n: usize, stream: StreamWords, threshold: u32, scale: f32,
        accumulate: Flag,
    );
}

/// `x` with what is left out set to zero, and the rest scaled.
pub(in crate::kernels) fn dropout(x: &Tensor, mask: &Mask) -> Result<Tensor> {
    let output = scratch(&device_of(x)?, x.dtype(), x.shape())?;
    masked(&output, x, mask, false)?;
    Ok(output)
}

/// The same, in place.
pub(in crate::kernels) fn dropout_in_place(x: &Tensor, mask: &Mask) -> Result<()> {
    masked(x, x, mask, false)
}

/// `out = mask(x) / (1 − p)`, or `out += …` if `accumulate`.
pub(super) fn masked(out: &Tensor, x: &Tensor, mask: &Mask, accumulate: bool) -> Result<()> {
    let (n, choice) = (x.elem_count(), &mask.choice);
    let [out, from] = [activations(out)?, activations(x)?];
    let (threshold, scale) = (choice.threshold(), choice.scale());
    let grid = Grid::over(n / 4);
    kernel::dropout(&device_of(x)?, x.dtype(), grid, out, from, n, choice, threshold, scale, accumulate)
}
