//! AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), moments in f32.

use std::rc::Rc;

use candle_core::Result;

use crate::ops::buffer::{elements, modify};
use crate::ops::tape::Param;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The state of one optimization.
#[derive(Debug)]
pub struct AdamW {
    params: Vec<(Rc<Param>, Moments)>,
    weight_decay: f64,
    steps: i32,
}

/// Running means of the gradient and of its square.
#[derive(Debug)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl AdamW {
    /// An optimizer at its start. Every parameter decays: there are no biases or norms among them.
    #[must_use]
    pub fn new(params: &[Rc<Param>], weight_decay: f64) -> Self {
        let zeros = |param: &Rc<Param>| vec![0.0; param.value().elem_count()];
        let params = params
            .iter()
            .map(|param| (Rc::clone(param), Moments { first: zeros(param), second: zeros(param) }))
            .collect();
        Self { params, weight_decay, steps: 0 }
    }

    /// Bytes of state.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.params.iter().map(|(_, moments)| 4 * (moments.first.len() + moments.second.len())).sum()
    }

    /// One step with the parameters' gradients times `gradient_scale`.
    ///
    /// # Errors
    /// If a tensor cannot be read or written.
    pub fn step(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        self.steps += 1;
        let correction1 = 1.0 - BETA1.powi(self.steps);
        let correction2 = (1.0 - BETA2.powi(self.steps)).sqrt();
        let step_size = (learning_rate / correction1) as f32;
        let decay = (1.0 - learning_rate * self.weight_decay) as f32;
        let (beta1, beta2, epsilon) = (BETA1 as f32, BETA2 as f32, EPSILON as f32);
        let (scale, correction2) = (gradient_scale as f32, correction2 as f32);
        for (param, moments) in &mut self.params {
            let Moments { first, second } = moments;
            for ((m, v), g) in first.iter_mut().zip(second.iter_mut()).zip(elements(param.gradient())?.iter()) {
                let g = g * scale;
                *m += (1.0 - beta1) * (g - *m);
                *v = beta2 * *v + (1.0 - beta2) * g * g;
            }
            modify(param.value(), |values| {
                for ((p, m), v) in values.iter_mut().zip(first.iter()).zip(second.iter()) {
                    *p = *p * decay - step_size * m / (v.sqrt() / correction2 + epsilon);
                }
            })?;
        }
        Ok(())
    }
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
