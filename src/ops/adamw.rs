//! The step of AdamW on one parameter (Loshchilov and Hutter, 2019), moments in f32 or in 8 bits.

use std::borrow::Cow;

use candle_core::Result;
use rayon::prelude::*;

use super::tape::Param;
use crate::kernels::buffer::{elements, modify};
use crate::kernels::cpu::blockwise::{BLOCK, BlockwiseMoments};
use crate::kernels::cpu::dynamic_map::DynamicMap;

/// Tensors of fewer elements keep f32 moments, as in bitsandbytes: they are few, and small ones
/// suffer most from a shared scale.
const MIN_8BIT_ELEMENTS: usize = 4096;

/// How moments are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentStorage {
    /// 8 bytes a parameter.
    Float32,
    /// About 2 bytes a parameter.
    EightBit,
}

/// Running means of a tensor's gradient and of its square.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// As they are.
    Float32 {
        /// Of the gradient.
        first: Vec<f32>,
        /// Of its square.
        second: Vec<f32>,
    },
    /// As codes.
    Blockwise(BlockwiseMoments),
}

/// What 8-bit moments stand for.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) first: DynamicMap,
    pub(crate) second: DynamicMap,
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) learning_rate: f32,
    pub(crate) gradient_scale: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) epsilon: f32,
    /// 1 − β1^t
    pub(crate) correction1: f32,
    /// √(1 − β2^t)
    pub(crate) correction2: f32,
    /// 1 − learning rate · weight decay
    pub(crate) decay: f32,
}

/// Moments where their parameter is.
#[derive(Debug)]
pub(crate) enum HeldMoments {
    Host(Moments),
    #[cfg(feature = "cuda")]
    Device(Box<crate::kernels::cuda::optimizer::DeviceMoments>),
}

impl Maps {
    pub(crate) fn new() -> Self {
        Self { first: DynamicMap::new(true), second: DynamicMap::new(false) }
    }
}

impl Moments {
    /// The moments of `len` numbers before the first step.
    pub(crate) fn zeros(len: usize, storage: MomentStorage, maps: &Maps) -> Self {
        if is_8bit(len, storage) {
            Self::Blockwise(BlockwiseMoments::zeros(len, maps))
        } else {
            Self::Float32 { first: vec![0.0; len], second: vec![0.0; len] }
        }
    }

    /// Bytes of the moments of `len` numbers.
    pub(crate) fn bytes_for(len: usize, storage: MomentStorage) -> usize {
        if is_8bit(len, storage) { 2 * len + 8 * len.div_ceil(BLOCK) } else { 8 * len }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Float32 { first, second } => 4 * (first.len() + second.len()),
            Self::Blockwise(moments) => moments.bytes(),
        }
    }
}

fn is_8bit(len: usize, storage: MomentStorage) -> bool {
    storage == MomentStorage::EightBit && len >= MIN_8BIT_ELEMENTS
}

impl HeldMoments {
    /// Puts moments where `param` is.
    pub(crate) fn new(param: &Param, moments: Moments, maps: &Maps) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if param.value().device().is_cuda() {
            let moments = crate::kernels::cuda::optimizer::DeviceMoments::new(param.value(), &moments, maps)?;
            return Ok(Self::Device(Box::new(moments)));
        }
        let _ = (param, maps);
        Ok(Self::Host(moments))
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Host(moments) => moments.bytes(),
            #[cfg(feature = "cuda")]
            Self::Device(moments) => moments.bytes(),
        }
    }

    /// The moments on the CPU.
    pub(crate) fn read(&self) -> Result<Cow<'_, Moments>> {
        match self {
            Self::Host(moments) => Ok(Cow::Borrowed(moments)),
            #[cfg(feature = "cuda")]
            Self::Device(moments) => moments.to_host().map(Cow::Owned),
        }
    }

    /// Updates the moments and the parameter's value with its gradient.
    pub(crate) fn step(&mut self, maps: &Maps, step: &Step, param: &Param) -> Result<()> {
        match self {
            Self::Host(moments) => {
                let gradient = elements(param.gradient())?;
                modify(param.value(), |values| match moments {
                    Moments::Float32 { first, second } => step_float32(step, &gradient, values, first, second),
                    Moments::Blockwise(moments) => moments.step(maps, step, &gradient, values),
                })
            }
            #[cfg(feature = "cuda")]
            Self::Device(moments) => moments.step(step, param.value(), param.gradient()),
        }
    }
}

fn step_float32(step: &Step, gradient: &[f32], values: &mut [f32], first: &mut [f32], second: &mut [f32]) {
    const PIECE: usize = 16_384;
    let step_size = step.learning_rate / step.correction1;
    values
        .par_chunks_mut(PIECE)
        .zip(gradient.par_chunks(PIECE))
        .zip(first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE)))
        .for_each(|((values, gradient), (first, second))| {
            for (((p, g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
                let g = g * step.gradient_scale;
                *m += (1.0 - step.beta1) * (g - *m);
                *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
                *p = *p * step.decay - step_size * *m / (v.sqrt() / step.correction2 + step.epsilon);
            }
        });
}

/// Σ g² over the gradients of all parameters, in f64.
///
/// # Errors
/// If a tensor cannot be read.
pub(crate) fn sum_of_squares<'a>(params: impl IntoIterator<Item = &'a Param>) -> Result<f64> {
    let (on_device, on_host): (Vec<_>, Vec<_>) =
        params.into_iter().map(Param::gradient).partition(|gradient| gradient.device().is_cuda());
    let mut sum = 0.0;
    #[cfg(feature = "cuda")]
    {
        sum += crate::kernels::cuda::optimizer::sum_of_squares(&on_device)?;
    }
    debug_assert!(cfg!(feature = "cuda") || on_device.is_empty(), "without CUDA there is no other device");
    for gradient in on_host {
        sum += elements(gradient)?.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
    }
    Ok(sum)
}
