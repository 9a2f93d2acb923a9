//! AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), moments in f32 or in 8 bits.

use std::borrow::Cow;
use std::rc::Rc;

use candle_core::Result;

use crate::ops::adamw::{self, Maps, ParamMoments, Step, sum_of_squares};
pub use crate::ops::adamw::{MomentStorage, Moments};
use crate::ops::tape::Param;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The state of one optimization.
#[derive(Debug)]
pub struct AdamW {
    params: Vec<(Rc<Param>, ParamMoments)>,
    maps: Maps,
    weight_decay: f64,
    /// Parameters from this one on are the head's.
    head: usize,
    steps: i32,
}

impl AdamW {
    /// An optimizer at its start. Biases and norms do not decay, as with transformers' trainer.
    ///
    /// # Errors
    /// If a GPU's memory does not suffice.
    pub fn new(params: &[Rc<Param>], weight_decay: f64, storage: MomentStorage) -> Result<Self> {
        let maps = Maps::new();
        let held = |param: &Rc<Param>| {
            let moments = Moments::zeros(param.value().elem_count(), storage, &maps);
            Ok((Rc::clone(param), ParamMoments::new(param, moments, &maps)?))
        };
        let params: Vec<_> = params.iter().map(held).collect::<Result<_>>()?;
        Ok(Self { head: params.len(), params, maps, weight_decay, steps: 0 })
    }

    /// Bytes of the state that [`AdamW::new`] would make.
    #[must_use]
    pub fn bytes_for(params: &[Rc<Param>], storage: MomentStorage) -> usize {
        params.iter().map(|param| Moments::bytes_for(param.value().elem_count(), storage)).sum()
    }

    /// Bytes of state.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.params.iter().map(|(_, moments)| moments.bytes()).sum()
    }

    /// The moments of each parameter, in their order.
    pub fn moments(&self) -> impl Iterator<Item = Result<Cow<'_, Moments>>> {
        self.params.iter().map(|(_, moments)| moments.read())
    }

    /// Lets `f` change the moments of each parameter.
    pub fn restore<E: From<candle_core::Error>>(
        &mut self,
        f: impl Fn(&Param, &mut Moments) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        for (param, held) in &mut self.params {
            let mut moments = held.read()?.into_owned();
            f(param, &mut moments)?;
            *held = ParamMoments::new(param, moments, &self.maps)?;
        }
        Ok(())
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

    /// The same optimizer, with parameters from number `head` on in a group of their own.
    #[must_use]
    pub fn with_head(self, head: usize) -> Self {
        Self { head, ..self }
    }

    /// One step with the parameters' gradients times `gradient_scale`.
    pub fn step(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        self.step_groups([learning_rate; 2], gradient_scale)
    }

    /// One step with a learning rate for all parameters before the head's, and one for the head's.
    pub fn step_groups(&mut self, rates: [f64; 2], gradient_scale: f64) -> Result<()> {
        self.steps += 1;
        let step = Step {
            learning_rate: 0.0,
            gradient_scale: gradient_scale as f32,
            beta1: BETA1 as f32,
            beta2: BETA2 as f32,
            epsilon: EPSILON as f32,
            correction1: (1.0 - BETA1.powi(self.steps)) as f32,
            correction2: (1.0 - BETA2.powi(self.steps)).sqrt() as f32,
            decay: 1.0,
        };
        let (head, weight_decay) = (self.head, self.weight_decay);
        let updates = self.params.iter_mut().enumerate().map(|(index, (param, moments))| {
            let rate = rates[usize::from(index >= head)];
            let decay = if decays(param.name()) { (1.0 - rate * weight_decay) as f32 } else { 1.0 };
            (moments, Step { learning_rate: rate as f32, decay, ..step }, &**param)
        });
        adamw::step(&self.maps, updates)
    }
}

/// Returns true if a parameter of this name decays.
fn decays(name: &str) -> bool {
    let (module, kind) = name.rsplit_once('.').unwrap_or(("", name));
    kind != "bias" && !module.to_lowercase().ends_with("norm")
}

/// The Euclidean norm of all gradients together.
pub fn gradient_norm(params: &[Rc<Param>]) -> Result<f64> {
    Ok(sum_of_squares(params.iter().map(|param| &**param))?.sqrt())
}

/// The factor that scales gradients of norm `norm` to at most `limit`; a limit of 0 is off.
#[must_use]
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
