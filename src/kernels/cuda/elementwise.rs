//! Sums and conversions.

use candle_core::{CudaDevice, DType, Result, Tensor};

use super::launch::{Code, Flag, Grid, function, kernels, ptx};
use super::memory::{Activations, Address, activations, device_of, floats, scratch, sum_or_new, upload};
use crate::kernels::buffer::elements;

const CODE: Code = Code { name: "elementwise", ptx: ptx::ELEMENTWISE };

kernels! { CODE:
    fn add<T>(out: Address<Activations>, a: Address<Activations>, b: Address<Activations>, n: usize);
    fn scale<T>(out: Address<Activations>, x: Address<Activations>, n: usize, accumulate: Flag, factor: f32);
    fn narrow<T>(
        first: Address<Activations>, first_x: Address<f32>, first_n: usize, second: Address<Activations>,
        second_x: Address<f32>, second_n: usize,
    );
}

/// Loads a kernel, so that a GPU that cannot run them is reported at once.
pub(super) fn load(device: &CudaDevice) -> Result<()> {
    function(device, CODE, "add_f32").map(drop)
}

/// `a + b`
pub(in crate::kernels) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (device, dtype, n) = (device_of(a)?, a.dtype(), a.elem_count());
    let output = scratch(&device, dtype, a.shape())?;
    kernel::add(&device, dtype, Grid::over(n / 4), activations(&output)?, activations(a)?, activations(b)?, n)?;
    Ok(output)
}

/// `sum += x`
pub(in crate::kernels) fn add_in_place(sum: &Tensor, x: &Tensor) -> Result<()> {
    let (n, address) = (sum.elem_count(), activations(sum)?);
    kernel::add(&device_of(sum)?, sum.dtype(), Grid::over(n / 4), address, address, activations(x)?, n)
}

/// `scale · x`, or `sum + scale · x`.
pub(in crate::kernels) fn scale(x: &Tensor, sum: Option<Tensor>, scale: f32) -> Result<Tensor> {
    let (device, dtype, n) = (device_of(x)?, x.dtype(), x.elem_count());
    let (sum, accumulate) = sum_or_new(sum, x, x.shape())?;
    kernel::scale(&device, dtype, Grid::over(n / 4), activations(&sum)?, activations(x)?, n, accumulate, scale)?;
    Ok(sum)
}

/// `x`, where and as `like` is: a gradient that comes from the CPU is one of f32.
pub(in crate::kernels) fn from_host(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    if x.device().is_cuda() {
        return Ok(x.clone());
    }
    upload(&device_of(like)?, &elements(x)?, like.dtype(), x.shape())
}

/// Two tensors of f32 in the type of activations.
pub(super) fn narrowed(pair: [&Tensor; 2], dtype: DType) -> Result<[Tensor; 2]> {
    if dtype == DType::F32 {
        return Ok(pair.map(Tensor::clone));
    }
    let device = device_of(pair[0])?;
    let output = [scratch(&device, dtype, pair[0].shape())?, scratch(&device, dtype, pair[1].shape())?];
    let [first, second] = [activations(&output[0])?, activations(&output[1])?];
    let n = pair.map(Tensor::elem_count);
    let grid = Grid::over(n[0] + n[1]);
    kernel::narrow(&device, dtype, grid, first, floats(pair[0])?, n[0], second, floats(pair[1])?, n[1])?;
    Ok(output)
}
