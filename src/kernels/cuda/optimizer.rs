//! AdamW's step, and the norm of gradients.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, DType, Result, Tensor};

use super::{Grid, THREADS, address, address_of, args, device_of, launch, scratch_buffer, upload};
use crate::kernels::cpu::blockwise::{BLOCK, BlockwiseMoments};
use crate::ops::adamw::{Maps, Moments, Step};

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
    pub(crate) fn new(param: &Tensor, moments: &Moments, maps: &Maps) -> Result<Self> {
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
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Float32 { first, second } => 4 * (first.elem_count() + second.elem_count()),
            Self::Blockwise { first, second, first_scales, second_scales, .. } => {
                first.len() + second.len() + 4 * (first_scales.len() + second_scales.len())
            }
        }
    }

    /// Copies moments back.
    pub(crate) fn to_host(&self) -> Result<Moments> {
        Ok(match self {
            Self::Float32 { first, second } => {
                Moments::Float32 { first: super::download(first)?, second: super::download(second)? }
            }
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
    pub(crate) fn step(&self, step: &Step, value: &Tensor, gradient: &Tensor) -> Result<()> {
        let (device, n) = (device_of(value)?, value.elem_count());
        let Step { learning_rate, gradient_scale, beta1, beta2, epsilon, correction1, correction2, decay } = *step;
        let numbers = args![learning_rate, gradient_scale, beta1, beta2, epsilon, correction1, correction2, decay];
        let [value, gradient] = [address(value)?, address(gradient)?];
        match self {
            Self::Float32 { first, second } => {
                let tensors = args![value, address(first)?, address(second)?, gradient, n];
                launch(&device, "adamw", Grid::over(n), &[tensors, numbers].concat())
            }
            Self::Blockwise { first, second, first_scales, second_scales, first_map, second_map, .. } => {
                let tensors = args![
                    value,
                    address_of(first),
                    address_of(second),
                    address_of(first_scales),
                    address_of(second_scales),
                    address_of(first_map),
                    address_of(second_map),
                    gradient,
                    n
                ];
                let grid = Grid { blocks: (n.div_ceil(BLOCK) as u32, 1), threads: THREADS, shared_bytes: 0 };
                launch(&device, "adamw_8bit", grid, &[tensors, numbers].concat())
            }
        }
    }
}

const _: () = assert!(BLOCK == THREADS as usize, "adamw_8bit has a thread for each moment of a block");

/// Σ x² over all tensors, which are of f32: in a fixed order.
pub(crate) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    /// Partial sums of a tensor.
    const PARTS: usize = 64;
    let Some(first) = tensors.first() else { return Ok(0.0) };
    let device = device_of(first)?;
    let sums = scratch_buffer::<f64>(&device, PARTS * tensors.len())?;
    for (index, tensor) in tensors.iter().enumerate() {
        let out = address_of(&sums) + (8 * PARTS * index) as u64;
        let grid = Grid { blocks: (PARTS as u32, 1), threads: THREADS, shared_bytes: 0 };
        launch(&device, "sum_of_squares", grid, args![out, address(tensor)?, tensor.elem_count()])?;
    }
    Ok(device.clone_dtoh(&sums)?.iter().sum())
}
