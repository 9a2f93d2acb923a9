//! AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), moments in f32 or in 8 bits.

use std::rc::Rc;

use candle_core::Result;
use rayon::prelude::*;

use super::blockwise::{BlockwiseMoments, Maps};
use crate::ops::buffer::{elements, modify};
use crate::ops::tape::Param;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

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

/// The state of one optimization.
#[derive(Debug)]
pub struct AdamW {
    params: Vec<(Rc<Param>, Moments)>,
    maps: Maps,
    weight_decay: f64,
    steps: i32,
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

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) learning_rate: f32,
    pub(super) gradient_scale: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) epsilon: f32,
    /// 1 − β1^t
    pub(super) correction1: f32,
    /// √(1 − β2^t)
    pub(super) correction2: f32,
    /// 1 − learning rate · weight decay
    pub(super) decay: f32,
}

impl AdamW {
    /// An optimizer at its start. Biases and norms do not decay, as with transformers' trainer.
    #[must_use]
    pub fn new(params: &[Rc<Param>], weight_decay: f64, storage: MomentStorage) -> Self {
        let maps = Maps::new();
        let moments = |param: &Rc<Param>| {
            let len = param.value().elem_count();
            if storage == MomentStorage::EightBit && len >= MIN_8BIT_ELEMENTS {
                Moments::Blockwise(BlockwiseMoments::zeros(len, &maps))
            } else {
                Moments::Float32 { first: vec![0.0; len], second: vec![0.0; len] }
            }
        };
        let params = params.iter().map(|param| (Rc::clone(param), moments(param))).collect();
        Self { params, maps, weight_decay, steps: 0 }
    }

    /// Bytes of state.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.params.iter().map(|(_, moments)| moments.bytes()).sum()
    }

    /// The moments of each parameter, in their order.
    pub fn moments(&self) -> impl Iterator<Item = &Moments> {
        self.params.iter().map(|(_, moments)| moments)
    }

    /// As [`AdamW::moments`], to be restored.
    pub fn moments_mut(&mut self) -> impl Iterator<Item = &mut Moments> {
        self.params.iter_mut().map(|(_, moments)| moments)
    }

    /// Steps done.
    #[must_use]
    pub fn steps(&self) -> i32 {
        self.steps
    }

    /// Goes on after `steps` steps.
    pub fn set_steps(&mut self, steps: i32) {
        self.steps = steps;
    }

    /// One step with the parameters' gradients times `gradient_scale`.
    ///
    /// # Errors
    /// If a tensor cannot be read or written.
    pub fn step(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        self.steps += 1;
        let step = Step {
            learning_rate: learning_rate as f32,
            gradient_scale: gradient_scale as f32,
            beta1: BETA1 as f32,
            beta2: BETA2 as f32,
            epsilon: EPSILON as f32,
            correction1: (1.0 - BETA1.powi(self.steps)) as f32,
            correction2: (1.0 - BETA2.powi(self.steps)).sqrt() as f32,
            decay: 1.0,
        };
        for (param, moments) in &mut self.params {
            let decay = if decays(param.name()) { (1.0 - learning_rate * self.weight_decay) as f32 } else { 1.0 };
            let step = Step { decay, ..step };
            let gradient = elements(param.gradient())?;
            modify(param.value(), |values| match moments {
                Moments::Float32 { first, second } => step_float32(&step, &gradient, values, first, second),
                Moments::Blockwise(moments) => moments.step(&self.maps, &step, &gradient, values),
            })?;
        }
        Ok(())
    }
}

/// Whether a parameter of this name decays.
fn decays(name: &str) -> bool {
    let (module, kind) = name.rsplit_once('.').unwrap_or(("", name));
    kind != "bias" && !module.ends_with("norm")
}

impl Moments {
    fn bytes(&self) -> usize {
        match self {
            Self::Float32 { first, second } => 4 * (first.len() + second.len()),
            Self::Blockwise(moments) => moments.bytes(),
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

/// The Euclidean norm of all gradients together.
///
/// # Errors
/// If a tensor cannot be read.
pub fn gradient_norm(params: &[Rc<Param>]) -> Result<f64> {
    let mut sum = 0.0;
    for param in params {
        sum += elements(param.gradient())?.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
    }
    Ok(sum.sqrt())
}

/// The factor that brings gradients of norm `norm` to at most `limit`; a limit of 0 is off.
#[must_use]
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
