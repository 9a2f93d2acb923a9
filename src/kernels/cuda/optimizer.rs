//! AdamW's step, and the norm of gradients.

use std::cell::OnceCell;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::{CudaDevice, DType, Result, Tensor};

use super::launch::{Code, Grid, THREADS, kernels, ptx};
use super::memory::{Address, address_of, device_of, download, floats, scratch_buffer, upload};
use crate::kernels::adamw::{Maps, Step};
use crate::kernels::cpu::adamw::Moments;
use crate::kernels::cpu::blockwise::{BLOCK, BlockwiseMoments};

const CODE: Code = Code { name: "optimizer", ptx: ptx::OPTIMIZER };

kernels! { CODE:
    fn adamw(updates: Address<Update>);
    fn adamw_8bit(updates: Address<BlockwiseUpdate>);
    fn sum_of_squares(out: Address<f64>, tensors: Address<Numbers>);
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

/// One parameter's step, of moments in f32: `Update` in optimizer.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Update {
    values: Address<f32>,
    first: Address<f32>,
    second: Address<f32>,
    gradient: Address<f32>,
    n: usize,
    step: StepNumbers,
}

/// One parameter's step, of moments in 8 bits: `BlockwiseUpdate` in optimizer.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BlockwiseUpdate {
    values: Address<f32>,
    first: Address<u8>,
    second: Address<u8>,
    first_scales: Address<f32>,
    second_scales: Address<f32>,
    first_map: Address<f32>,
    second_map: Address<f32>,
    gradient: Address<f32>,
    n: usize,
    step: StepNumbers,
}

/// The elements of a tensor of f32: `Numbers` in optimizer.cu.
#[repr(C)]
struct Numbers {
    x: Address<f32>,
    n: usize,
}

// SAFETY: laid out as in C.
#[expect(unsafe_code, reason = "read by a kernel")]
unsafe impl DeviceRepr for Update {}

// SAFETY: laid out as in C.
#[expect(unsafe_code, reason = "read by a kernel")]
unsafe impl DeviceRepr for BlockwiseUpdate {}

// SAFETY: laid out as in C.
#[expect(unsafe_code, reason = "read by a kernel")]
unsafe impl DeviceRepr for Numbers {}

impl From<&Step> for StepNumbers {
    fn from(step: &Step) -> Self {
        let Step { learning_rate, gradient_scale, beta1, beta2, epsilon, correction1, correction2, decay } = *step;
        Self { learning_rate, gradient_scale, beta1, beta2, epsilon, correction1, correction2, decay }
    }
}

/// Moments, and their parameter, never move: their addresses are looked up once, as that takes half a millisecond for
/// the adapters of a model, while the GPU waits for them.
pub(crate) struct Once<T>(OnceCell<T>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(OnceCell::new())
    }
}

impl<T> std::fmt::Debug for Once<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("addresses")
    }
}

impl<T: Copy> Once<T> {
    fn get(&self, find: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(found) = self.0.get() {
            return Ok(*found);
        }
        let found = find()?;
        Ok(*self.0.get_or_init(|| found))
    }
}

/// The moments of one parameter.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "boxed where it is held")]
pub(crate) enum DeviceMoments {
    Float32 {
        first: Tensor,
        second: Tensor,
        update: Once<Update>,
    },
    Blockwise {
        update: Once<BlockwiseUpdate>,
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
                update: Once::default(),
            },
            Moments::Blockwise(moments) => Self::Blockwise {
                update: Once::default(),
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
            Self::Float32 { first, second, .. } => 4 * (first.elem_count() + second.elem_count()),
            Self::Blockwise { first, second, first_scales, second_scales, .. } => {
                first.len() + second.len() + 4 * (first_scales.len() + second_scales.len())
            }
        }
    }

    /// Copies moments back.
    pub(in crate::kernels) fn to_host(&self) -> Result<Moments> {
        Ok(match self {
            Self::Float32 { first, second, .. } => {
                Moments::Float32 { first: download(first)?, second: download(second)? }
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
}

/// The steps of all parameters on a GPU, for a launch of each kernel.
#[derive(Default)]
pub(in crate::kernels) struct Steps {
    device: Option<CudaDevice>,
    updates: Vec<Update>,
    blockwise: Vec<BlockwiseUpdate>,
}

impl Steps {
    /// Adds the step of a parameter, all of them on one device.
    pub(in crate::kernels) fn add(
        &mut self,
        moments: &DeviceMoments,
        step: &Step,
        value: &Tensor,
        gradient: &Tensor,
    ) -> Result<()> {
        if self.device.is_none() {
            self.device = Some(device_of(value)?);
        }
        let (n, step) = (value.elem_count(), step.into());
        match moments {
            DeviceMoments::Float32 { first, second, update } => {
                let update = update.get(|| {
                    let [values, gradient] = [floats(value)?, floats(gradient)?];
                    Ok(Update { values, first: floats(first)?, second: floats(second)?, gradient, n, step })
                })?;
                self.updates.push(Update { step, ..update });
            }
            DeviceMoments::Blockwise {
                first,
                second,
                first_scales,
                second_scales,
                first_map,
                second_map,
                update,
                ..
            } => {
                let update = update.get(|| {
                    Ok(BlockwiseUpdate {
                        values: floats(value)?,
                        first: address_of(first),
                        second: address_of(second),
                        first_scales: address_of(first_scales),
                        second_scales: address_of(second_scales),
                        first_map: address_of(first_map),
                        second_map: address_of(second_map),
                        gradient: floats(gradient)?,
                        n,
                        step,
                    })
                })?;
                self.blockwise.push(BlockwiseUpdate { step, ..update });
            }
        }
        Ok(())
    }

    /// Updates moments and values.
    pub(in crate::kernels) fn take(self) -> Result<()> {
        let Some(device) = self.device else { return Ok(()) };
        for updates in self.updates.chunks(MOST_TENSORS) {
            let held = device.clone_htod(updates)?;
            kernel::adamw(&device, grid(updates.iter().map(|update| update.n)), address_of(&held))?;
        }
        for updates in self.blockwise.chunks(MOST_TENSORS) {
            let held = device.clone_htod(updates)?;
            kernel::adamw_8bit(&device, grid(updates.iter().map(|update| update.n)), address_of(&held))?;
        }
        Ok(())
    }
}

/// Tensors of a launch: a grid has no more rows of blocks.
const MOST_TENSORS: usize = u16::MAX as usize;

/// Blocks of a launch: with more, most would find nothing to do in small tensors beside large ones. In tests so few
/// that blocks have several turns.
const MOST_BLOCKS: usize = if cfg!(test) { 64 } else { 1 << 14 };

/// Blocks for tensors of `n` elements each.
fn grid(n: impl ExactSizeIterator<Item = usize>) -> Grid {
    let tensors = n.len();
    let most = (MOST_BLOCKS / tensors).max(1);
    let blocks = n.max().unwrap_or(0).div_ceil(THREADS as usize).clamp(1, most);
    Grid { blocks: (blocks as u32, tensors as u32), threads: THREADS, shared_bytes: 0 }
}

const _: () = assert!(BLOCK == THREADS as usize, "adamw_8bit has a thread for each moment of a block");

/// Σ x² over tensors, which are of f32: in a fixed order.
pub(in crate::kernels) struct SumOfSquares(Option<(CudaDevice, CudaSlice<f64>)>);

impl SumOfSquares {
    /// Tells the GPU to sum.
    pub(in crate::kernels) fn queue(tensors: &[&Tensor]) -> Result<Self> {
        /// Partial sums of a tensor.
        const PARTS: usize = 64;
        let Some(first) = tensors.first() else { return Ok(Self(None)) };
        let device = device_of(first)?;
        let sums = scratch_buffer::<f64>(&device, PARTS * tensors.len())?;
        for (index, tensors) in tensors.chunks(MOST_TENSORS).enumerate() {
            let numbers = tensors.iter().map(|tensor| Ok(Numbers { x: floats(tensor)?, n: tensor.elem_count() }));
            let held = device.clone_htod(&numbers.collect::<Result<Vec<_>>>()?)?;
            let out = address_of(&sums).after(PARTS * MOST_TENSORS * index);
            let grid = Grid { blocks: (PARTS as u32, tensors.len() as u32), threads: THREADS, shared_bytes: 0 };
            kernel::sum_of_squares(&device, grid, out, address_of(&held))?;
        }
        Ok(Self(Some((device, sums))))
    }

    /// Waits for the sum; 0 of no tensors.
    pub(in crate::kernels) fn read(self) -> Result<f64> {
        let Some((device, sums)) = self.0 else { return Ok(0.0) };
        Ok(device.clone_dtoh(&sums)?.iter().sum())
    }
}
