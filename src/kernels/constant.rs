//! Frozen numbers that kernels read beside their inputs: scales, biases, angles, positions.

use std::ops::Deref;
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};

/// Frozen numbers on the CPU; and on a GPU, once a kernel there has asked for them.
#[derive(Debug)]
pub struct Constant<T = f32> {
    values: Vec<T>,
    #[cfg(feature = "cuda")]
    on_device: OnceLock<CudaSlice<T>>,
}

impl<T> From<Vec<T>> for Constant<T> {
    fn from(values: Vec<T>) -> Self {
        Self {
            values,
            #[cfg(feature = "cuda")]
            on_device: OnceLock::new(),
        }
    }
}

impl<T> Deref for Constant<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

#[cfg(feature = "cuda")]
impl<T: DeviceRepr + 'static> Constant<T> {
    /// The numbers on a GPU, always the same one.
    pub(crate) fn on(&self, device: &candle_core::CudaDevice) -> candle_core::Result<&CudaSlice<T>> {
        if self.on_device.get().is_none() {
            // Only one thread drives a GPU: no other thread has set it meanwhile.
            let _ = self.on_device.set(device.clone_htod(&self.values)?);
        }
        Ok(self.on_device.get().expect("it was just set"))
    }
}
