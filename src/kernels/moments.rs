//! Moments where their parameter is, and the step there.

use std::borrow::Cow;

use candle_core::{Result, Tensor};

use super::adamw::{Maps, Step};
use super::buffer::{elements, modify};
use super::cpu::adamw::{self, Moments};

/// The moments of one parameter, on its device.
#[derive(Debug)]
pub(crate) enum HeldMoments {
    Host(Moments),
    #[cfg(feature = "cuda")]
    Device(Box<super::cuda::optimizer::DeviceMoments>),
}

impl HeldMoments {
    /// Puts moments where `param` is.
    pub(crate) fn new(param: &Tensor, moments: Moments, maps: &Maps) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if param.device().is_cuda() {
            let moments = super::cuda::optimizer::DeviceMoments::new(param, &moments, maps)?;
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
}

/// One parameter's part of a step.
pub(crate) struct Update<'a> {
    pub(crate) moments: &'a mut HeldMoments,
    pub(crate) step: Step,
    pub(crate) value: &'a Tensor,
    pub(crate) gradient: &'a Tensor,
}

/// Updates moments and values with gradients: those on a GPU all at once, and the others while it does.
pub(crate) fn step<'a>(maps: &Maps, updates: impl IntoIterator<Item = Update<'a>>) -> Result<()> {
    #[cfg(feature = "cuda")]
    let mut on_device = super::cuda::optimizer::Steps::default();
    let mut on_host = Vec::new();
    for Update { moments, step, value, gradient } in updates {
        match moments {
            HeldMoments::Host(moments) => on_host.push((moments, step, value, gradient)),
            #[cfg(feature = "cuda")]
            HeldMoments::Device(moments) => on_device.add(moments, &step, value, gradient)?,
        }
    }
    #[cfg(feature = "cuda")]
    on_device.take()?;
    for (moments, step, value, gradient) in on_host {
        let gradient = elements(gradient)?;
        modify(value, |values| moments.step(maps, &step, &gradient, values))?;
    }
    Ok(())
}

/// Σ x² over all tensors, which are of f32, in f64.
pub(crate) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    let (on_device, on_host): (Vec<&Tensor>, Vec<&Tensor>) =
        tensors.iter().partition(|tensor| tensor.device().is_cuda());
    // The GPU sums while the CPU does.
    #[cfg(feature = "cuda")]
    let queued = super::cuda::optimizer::SumOfSquares::queue(&on_device)?;
    debug_assert!(cfg!(feature = "cuda") || on_device.is_empty(), "without CUDA there is no other device");
    let sums = on_host.iter().map(|tensor| Ok(adamw::sum_of_squares(&elements(tensor)?)));
    let sums = sums.collect::<Result<Vec<_>>>()?;
    #[cfg(feature = "cuda")]
    let sum = queued.read()?;
    #[cfg(not(feature = "cuda"))]
    let sum = 0.0;
    Ok(sums.iter().fold(sum, |sum, part| sum + part))
}
