//! Frozen numbers that ops read beside their inputs: scales, biases, angles.

use std::ops::Deref;
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::{DType, Device, Result, Tensor};

/// Frozen f32 numbers, on the CPU; and on a GPU, once an op there has asked for them.
#[derive(Debug)]
pub struct Constant {
    values: Vec<f32>,
    #[cfg(feature = "cuda")]
    on_device: OnceLock<Tensor>,
}

impl From<Vec<f32>> for Constant {
    fn from(values: Vec<f32>) -> Self {
        Self {
            values,
            #[cfg(feature = "cuda")]
            on_device: OnceLock::new(),
        }
    }
}

impl Deref for Constant {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

#[cfg(feature = "cuda")]
impl Constant {
    /// The numbers on a GPU, always the same one.
    pub(crate) fn on(&self, device: &Device) -> Result<&Tensor> {
        if self.on_device.get().is_none() {
            let copy = super::cuda::upload(device.as_cuda_device()?, &self.values, DType::F32, &self.len().into())?;
            // Only one thread drives a GPU: nobody else has set it meanwhile.
            let _ = self.on_device.set(copy);
        }
        Ok(self.on_device.get().expect("it was just set"))
    }
}
