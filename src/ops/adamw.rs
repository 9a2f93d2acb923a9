//! The step of AdamW on one parameter (Loshchilov and Hutter, 2019), moments in f32 or in 8 bits.

use std::borrow::Cow;

use candle_core::Result;

use super::tape::Param;
pub use crate::kernels::adamw::MomentStorage;
pub(crate) use crate::kernels::adamw::{Maps, Step};
pub use crate::kernels::cpu::adamw::Moments;
use crate::kernels::moments::{self, HeldMoments, Update};

/// The moments of a parameter, on its device.
#[derive(Debug)]
pub(crate) struct ParamMoments(HeldMoments);

impl ParamMoments {
    /// Puts moments where `param` is.
    pub(crate) fn new(param: &Param, moments: Moments, maps: &Maps) -> Result<Self> {
        HeldMoments::new(param.value(), moments, maps).map(Self)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The moments on the CPU.
    pub(crate) fn read(&self) -> Result<Cow<'_, Moments>> {
        self.0.read()
    }
}

/// Updates moments and the parameters' values with their gradients.
pub(crate) fn step<'a>(
    maps: &Maps,
    updates: impl IntoIterator<Item = (&'a mut ParamMoments, Step, &'a Param)>,
) -> Result<()> {
    let updates = updates.into_iter().map(|(moments, step, param)| Update {
        moments: &mut moments.0,
        step,
        value: param.value(),
        gradient: param.gradient(),
    });
    moments::step(maps, updates)
}

/// Σ g² over the gradients of all parameters, in f64.
pub(crate) fn sum_of_squares<'a>(params: impl IntoIterator<Item = &'a Param>) -> Result<f64> {
    moments::sum_of_squares(&params.into_iter().map(Param::gradient).collect::<Vec<_>>())
}
