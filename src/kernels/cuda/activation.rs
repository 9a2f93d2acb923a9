//! Activations, alone and gated, and their slopes: see `activation.cu`.

use candle_core::{Result, Tensor};

use super::launch::{Code, Flag, Grid, kernels, ptx};
use super::memory::{Activations, Address, activations, device_of, optional, scratch, sum_or_new};
use crate::kernels::activation::Activation;

const CODE: Code = Code { name: "activation", ptx: ptx::ACTIVATION };

kernels! { CODE:
    fn activate<T>(
        out: Address<Activations>, x: Address<Activations>, up: Address<Activations>, n: usize, kind: i32,
    );
    fn activate_backward<T>(
        gradient: Address<Activations>, g: Address<Activations>, x: Address<Activations>, up: Address<Activations>,
        n: usize, kind: i32, accumulate: Flag,
    );
    fn gate_backward<T>(
        gradient: Address<Activations>, g: Address<Activations>, gate: Address<Activations>,
        n: usize, kind: i32, accumulate: Flag,
    );
    fn gated_backward<T>(
        of_gate: Address<Activations>, of_up: Address<Activations>, g: Address<Activations>,
        gate: Address<Activations>, up: Address<Activations>, n: usize, kind: i32,
    );
}

/// The order of `Activation` in activation.cu.
fn number_of(f: Activation) -> i32 {
    match f {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::Tanh => 4,
    }
}

/// `f(x)`, or `f(x) ∘ up`.
pub(in crate::kernels) fn activate(x: &Tensor, up: Option<&Tensor>, f: Activation) -> Result<Tensor> {
    let (device, dtype, n) = (device_of(x)?, x.dtype(), x.elem_count());
    let output = scratch(&device, dtype, x.shape())?;
    let addresses = (activations(&output)?, activations(x)?, optional(up)?);
    kernel::activate(&device, dtype, Grid::over(n / 4), addresses.0, addresses.1, addresses.2, n, number_of(f))?;
    Ok(output)
}

/// The gradient of `x` in `f(x)`, or in `f(x) ∘ up`.
pub(in crate::kernels) fn activate_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    x: &Tensor,
    up: Option<&Tensor>,
    f: Activation,
) -> Result<Tensor> {
    let (device, dtype, n) = (device_of(x)?, x.dtype(), x.elem_count());
    let (sum, accumulate) = sum_or_new(sum, x, x.shape())?;
    let [out, g, x] = [activations(&sum)?, activations(g)?, activations(x)?];
    kernel::activate_backward(
        &device,
        dtype,
        Grid::over(n / 4),
        out,
        g,
        x,
        optional(up)?,
        n,
        number_of(f),
        accumulate,
    )?;
    Ok(sum)
}

/// The gradients of `gate` and of `up` in `f(gate) ∘ up`, new ones.
pub(in crate::kernels) fn gated_backward(g: &Tensor, gate: &Tensor, up: &Tensor, f: Activation) -> Result<[Tensor; 2]> {
    let (device, dtype, n) = (device_of(gate)?, gate.dtype(), gate.elem_count());
    let found = [scratch(&device, dtype, gate.shape())?, scratch(&device, dtype, up.shape())?];
    let [of_gate, of_up] = [activations(&found[0])?, activations(&found[1])?];
    let [g, gate, up] = [activations(g)?, activations(gate)?, activations(up)?];
    kernel::gated_backward(&device, dtype, Grid::over(n / 4), of_gate, of_up, g, gate, up, n, number_of(f))?;
    Ok(found)
}

/// The gradient of `up` in `f(gate) ∘ up`.
pub(in crate::kernels) fn gate_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    gate: &Tensor,
    f: Activation,
) -> Result<Tensor> {
    let (device, dtype, n) = (device_of(gate)?, gate.dtype(), gate.elem_count());
    let (sum, accumulate) = sum_or_new(sum, gate, gate.shape())?;
    let [out, g, gate] = [activations(&sum)?, activations(g)?, activations(gate)?];
    kernel::gate_backward(&device, dtype, Grid::over(n / 4), out, g, gate, n, number_of(f), accumulate)?;
    Ok(sum)
}
