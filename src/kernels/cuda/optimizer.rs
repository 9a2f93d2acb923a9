//! AdamW's step, and the norm of gradients.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::{CudaDevice, DType, Result, Tensor};

use super::launch::{Code, Grid, THREADS, kernels, ptx};
use super::memory::{Address, address_of, device_of, download, floats, scratch_buffer, upload};
use crate::kernels::adamw::{Maps, Step};
use crate::kernels::cpu::adamw::Moments;
use crate::kernels::cpu::blockwise::{BLOCK, BlockwiseMoments};

const CODE: Code = Code { name: "optimizer", ptx: ptx::OPTIMIZER };

kernels! { CODE:
    fn adamw(
        values: Address<f32>, first: Address<f32>, second: Address<f32>, gradient: Address<f32>, n: usize,
        step: StepNumbers,
    );
    fn adamw_8bit(
        values: Address<f32>, first: Address<u8>, second: Address<u8>, first_scales: Address<f32>,
        second_scales: Address<f32>, first_map: Address<f32>, second_map: Address<f32>, gradient: Address<f32>,
        n: usize, step: StepNumbers,
    );
    fn sum_of_squares(out: Address<f64>, x: Address<f32>, n: usize);
}

/// The numbers of a step: `Step` in optimizer.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct StepNumbers {
    learning_rate: f32,
    gradient_scale: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    correction1: f32,
    correction2: f32,
    decay: f32,
}

// SAFETY: laid out as in C.
#[expect(unsafe_code, reason = "a parameter of a kernel")]
unsafe impl DeviceRepr for StepNumbers {}

impl From<&Step> for StepNumbers {
    fn from(step: &Step) -> Self {
        let Step { learning_rate, gradient_scale, beta1, beta2, epsilon, correction1, correction2, decay } = *step;
        Self { learning_rate, gradient_scale, beta1, beta2, epsilon, correction1, correction2, decay }
    }
}

/// The moments of one parameter.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "boxed where it is held")]
pub(crate) enum DeviceMoments {
    Float32 {
        first: Tensor,
        second: Tensor,
    },
    Blockwise {
        device: CudaDevice,
        first: CudaSlice<u8>,
        second: CudaSlice<u8>,
        first_scales: CudaSlice<f32>,
        second_scales: CudaSlice<f32>,
        first_map: CudaSlice<f32>,
        second_map: CudaSlice<f32>,
    },
}

impl DeviceMoments {
    /// Copies moments to where `param` is.
    pub(in crate::kernels) fn new(param: &Tensor, moments: &Moments, maps: &Maps) -> Result<Self> {
        let device = device_of(param)?;
        Ok(match moments {
            Moments::Float32 { first, second } => Self::Float32 {
                first: upload(&device, first, DType::F32, param.shape())?,
                second: upload(&device, second, DType::F32, param.shape())?,
            },
            Moments::Blockwise(moments) => Self::Blockwise {
                first: device.clone_htod(&moments.first)?,
                second: device.clone_htod(&moments.second)?,
                first_scales: device.clone_htod(&moments.first_scales)?,
                second_scales: device.clone_htod(&moments.second_scales)?,
                first_map: device.clone_htod(maps.first.values())?,
                second_map: device.clone_htod(maps.second.values())?,
                device,
            },
        })
    }

    /// Bytes of state.
    pub(in crate::kernels) fn bytes(&self) -> usize {
        match self {
            Self::Float32 { first, second } => 4 * (first.elem_count() + second.elem_count()),
            Self::Blockwise { first, second, first_scales, second_scales, .. } => {
                first.len() + second.len() + 4 * (first_scales.len() + second_scales.len())
            }
        }
    }

    /// Copies moments back.
    pub(in crate::kernels) fn to_host(&self) -> Result<Moments> {
        Ok(match self {
            Self::Float32 { first, second } => Moments::Float32 { first: download(first)?, second: download(second)? },
            Self::Blockwise { device, first, second, first_scales, second_scales, .. } => {
                Moments::Blockwise(BlockwiseMoments {
                    first: device.clone_dtoh(first)?,
                    second: device.clone_dtoh(second)?,
                    first_scales: device.clone_dtoh(first_scales)?,
                    second_scales: device.clone_dtoh(second_scales)?,
                })
            }
        })
    }

    /// Updates moments and `value`.
    pub(in crate::kernels) fn step(&self, step: &Step, value: &Tensor, gradient: &Tensor) -> Result<()> {
        let (device, n) = (device_of(value)?, value.elem_count());
        let [value, gradient] = [floats(value)?, floats(gradient)?];
        match self {
            Self::Float32 { first, second } => {
                kernel::adamw(&device, Grid::over(n), value, floats(first)?, floats(second)?, gradient, n, step)
            }
            Self::Blockwise { first, second, first_scales, second_scales, first_map, second_map, .. } => {
                let grid = Grid { blocks: (n.div_ceil(BLOCK) as u32, 1), threads: THREADS, shared_bytes: 0 };
                let [codes, of_squares] = [address_of(first), address_of(second)];
                let [scales, more_scales] = [address_of(first_scales), address_of(second_scales)];
                let [map, map_of_squares] = [address_of(first_map), address_of(second_map)];
                kernel::adamw_8bit(
                    &device,
                    grid,
                    value,
                    codes,
                    of_squares,
                    scales,
                    more_scales,
                    map,
                    map_of_squares,
                    gradient,
                    n,
                    step,
                )
            }
        }
    }
}

const _: () = assert!(BLOCK == THREADS as usize, "adamw_8bit has a thread for each moment of a block");

/// Σ x² over all tensors, which are of f32: in a fixed order.
pub(in crate::kernels) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    /// Partial sums of a tensor.
    const PARTS: usize = 64;
    let Some(first) = tensors.first() else { return Ok(0.0) };
    let device = device_of(first)?;
    let sums = scratch_buffer::<f64>(&device, PARTS * tensors.len())?;
    for (index, tensor) in tensors.iter().enumerate() {
        let out = address_of(&sums).after(PARTS * index);
        let grid = Grid { blocks: (PARTS as u32, 1), threads: THREADS, shared_bytes: 0 };
        kernel::sum_of_squares(&device, grid, out, floats(tensor)?, tensor.elem_count())?;
    }
    Ok(device.clone_dtoh(&sums)?.iter().sum())
}
