//! Reverse-mode differentiation: a list of closures, run backwards.
//!
//! An op computes its output and, if an input needs a gradient, records one closure that turns the
//! output's gradient into the inputs'. Backward pops closures in reverse, so what an op saved is
//! freed as soon as it was used. Nothing is recorded for what needs no gradient: the frozen base,
//! and all that comes before the first trained parameter.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use candle_core::{Result, Tensor, bail};

use crate::kernels::buffer;
use crate::kernels::cpu::math::simd;
use crate::kernels::cpu::{MAP_WIDTH, map_block, par_rows};

type Step = Box<dyn FnOnce() -> Result<()>>;

/// What a dropout mask is drawn from, beside the site (see [`crate::rng`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// The training seed.
    pub seed: u32,
    /// Micro-batches since the start of training.
    pub micro_batch: u32,
}

/// A record of one forward pass.
pub struct Tape {
    steps: Option<RefCell<Vec<Step>>>,
    dropout: Option<DropoutKey>,
}

/// A tensor in a forward pass and, if it needs one, the place of its gradient.
pub struct Value {
    tensor: Tensor,
    gradient: Option<Gradient>,
}

/// The place where gradients for one value arrive.
///
/// The first to arrive is kept as it is; later ones are added, in place if nobody else holds the
/// tensor: both inputs of a sum receive the very same one.
#[derive(Clone)]
pub struct Gradient(Rc<RefCell<Option<Rc<Tensor>>>>);

/// A trained tensor: f32, with a gradient that adds up over micro-batches.
#[derive(Debug)]
pub struct Param {
    name: String,
    value: Tensor,
    gradient: Tensor,
    has_gradient: Cell<bool>,
}

impl Tape {
    /// A tape for training. `dropout` of `None` switches dropout off.
    #[must_use]
    pub fn recording(dropout: Option<DropoutKey>) -> Self {
        Self { steps: Some(RefCell::default()), dropout }
    }

    /// A tape that records nothing: inference.
    #[must_use]
    pub fn off() -> Self {
        Self { steps: None, dropout: None }
    }

    /// The key for dropout masks, or `None` where dropout is off.
    #[must_use]
    pub fn dropout(&self) -> Option<DropoutKey> {
        self.dropout
    }

    /// Whether ops must save what their backward needs.
    pub(crate) fn is_recording(&self) -> bool {
        self.steps.is_some()
    }

    /// Wraps an op's output. `backward` receives the output's gradient.
    pub(crate) fn record(&self, output: Tensor, backward: impl FnOnce(Rc<Tensor>) -> Result<()> + 'static) -> Value {
        let Some(steps) = &self.steps else {
            return Value::constant(output);
        };
        let gradient = Gradient::default();
        let incoming = gradient.clone();
        steps.borrow_mut().push(Box::new(move || match incoming.take() {
            Some(gradient) => backward(gradient),
            None => Ok(()),
        }));
        Value { tensor: output, gradient: Some(gradient) }
    }

    /// Runs the recorded closures backwards from `output`, whose gradient is `gradient`.
    ///
    /// # Errors
    /// If `output` does not depend on anything trained, or an op fails.
    pub fn backward(self, output: &Value, gradient: Tensor) -> Result<()> {
        let (Some(steps), Some(slot)) = (self.steps, &output.gradient) else {
            bail!("nothing to differentiate: the output depends on no trained parameter");
        };
        slot.add(Rc::new(gradient))?;
        let mut steps = steps.into_inner();
        while let Some(step) = steps.pop() {
            step()?;
        }
        Ok(())
    }

    /// Runs `f` on `input`, keeping only `input`: the backward runs `f` again on a tape of its own
    /// (gradient checkpointing; Chen et al., 2016). Dropout masks come out the same, because they
    /// are functions of a counter.
    ///
    /// # Errors
    /// If `f` fails.
    pub fn recompute(&self, input: &Value, f: impl Fn(&Tape, &Value) -> Result<Value> + 'static) -> Result<Value> {
        let silent = Tape { steps: None, dropout: self.dropout };
        let output = f(&silent, &Value::constant(input.tensor.clone()))?;
        if !self.is_recording() {
            return Ok(output);
        }
        let (dropout, tensor, target) = (self.dropout, input.tensor.clone(), input.gradient.clone());
        Ok(self.record(output.tensor, move |gradient| {
            let tape = Tape::recording(dropout);
            let inner = Value { tensor, gradient: target.as_ref().map(|_| Gradient::default()) };
            let output = f(&tape, &inner)?;
            tape.backward(&output, Rc::unwrap_or_clone(gradient))?;
            if let (Some(target), Some(inner)) = (target, inner.gradient.and_then(|slot| slot.take())) {
                target.add(inner)?;
            }
            Ok(())
        }))
    }
}

impl Value {
    /// A value that needs no gradient.
    #[must_use]
    pub fn constant(tensor: Tensor) -> Self {
        Self { tensor, gradient: None }
    }

    /// A value whose gradient is wanted, and where to read it after the backward: for tests and benches.
    #[must_use]
    pub fn leaf(tensor: Tensor) -> (Self, Gradient) {
        let gradient = Gradient::default();
        (Self { tensor, gradient: Some(gradient.clone()) }, gradient)
    }

    /// The numbers.
    #[must_use]
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Where this value's gradient goes, if it needs one.
    pub(crate) fn gradient(&self) -> Option<Gradient> {
        self.gradient.clone()
    }
}

impl Default for Gradient {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(None)))
    }
}

impl Gradient {
    /// Adds a gradient.
    pub(crate) fn add(&self, gradient: Rc<Tensor>) -> Result<()> {
        let Some(mut present) = self.take() else {
            self.0.replace(Some(gradient));
            return Ok(());
        };
        if Rc::get_mut(&mut present).is_none() {
            present = Rc::new(present.copy()?);
        }
        add_in_place(&present, &gradient)?;
        self.0.replace(Some(present));
        Ok(())
    }

    /// Lets an op write its gradient of `len` elements itself: `f(buffer, accumulate)` must
    /// overwrite the buffer, or add to it if `accumulate`.
    pub(crate) fn write(&self, shape: &candle_core::Shape, f: impl Fn(&mut [f32], bool)) -> Result<()> {
        self.write_tensor(
            || buffer::tensor(buffer::scratch(shape.elem_count()), shape.clone()),
            |gradient, accumulate| buffer::modify(gradient, |data| f(data, accumulate)),
        )
    }

    /// As [`Gradient::write`], wherever the tensor is: `make` gives one to overwrite.
    pub(crate) fn write_tensor(
        &self,
        make: impl FnOnce() -> Result<Tensor>,
        f: impl FnOnce(&Tensor, bool) -> Result<()>,
    ) -> Result<()> {
        let gradient = match self.take() {
            Some(mut present) => {
                if Rc::get_mut(&mut present).is_none() {
                    present = Rc::new(present.copy()?);
                }
                f(&present, true)?;
                present
            }
            None => {
                let gradient = make()?;
                f(&gradient, false)?;
                Rc::new(gradient)
            }
        };
        self.0.replace(Some(gradient));
        Ok(())
    }

    /// Takes what has arrived.
    #[must_use]
    pub fn take(&self) -> Option<Rc<Tensor>> {
        self.0.take()
    }
}

impl Param {
    /// A parameter with no gradient yet.
    ///
    /// # Errors
    /// If `value` is not f32.
    pub fn new(name: impl Into<String>, value: Tensor) -> Result<Rc<Self>> {
        let gradient = value.zeros_like()?;
        Ok(Rc::new(Self { name: name.into(), value, gradient, has_gradient: Cell::new(false) }))
    }

    /// The name in the weights' own module tree, such as `score.weight`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The current value. Training changes it in place.
    #[must_use]
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The sum of the gradients since the last [`Param::clear_gradient`], if there were any.
    #[must_use]
    pub fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// Whether any gradient has arrived since the last [`Param::clear_gradient`].
    #[must_use]
    pub fn has_gradient(&self) -> bool {
        self.has_gradient.get()
    }

    /// Forgets the gradient.
    ///
    /// # Errors
    /// If the tensor cannot be written.
    pub fn clear_gradient(&self) -> Result<()> {
        self.has_gradient.set(false);
        if self.gradient.device().is_cuda() {
            // The first gradient to arrive overwrites it.
            return Ok(());
        }
        buffer::modify(&self.gradient, |gradient| gradient.fill(0.0))
    }

    /// Adds numbers to the gradient, as the backward of an op does.
    ///
    /// # Errors
    /// If the tensor cannot be written.
    pub fn add_to_gradient(&self, addend: &[f32]) -> Result<()> {
        self.accumulate(|gradient| add(gradient, addend))
    }

    /// Lets an op add to the gradient.
    pub(crate) fn accumulate(&self, f: impl Fn(&mut [f32])) -> Result<()> {
        self.has_gradient.set(true);
        buffer::modify(&self.gradient, f)
    }

    /// As [`Param::accumulate`] on a GPU: `f(gradient, accumulate)` must overwrite it, or add to it.
    #[cfg(feature = "cuda")]
    pub(crate) fn accumulate_on_device(&self, f: impl FnOnce(&Tensor, bool) -> Result<()>) -> Result<()> {
        f(&self.gradient, self.has_gradient.replace(true))
    }
}

fn add_in_place(sum: &Tensor, other: &Tensor) -> Result<()> {
    if sum.shape() != other.shape() {
        bail!("gradients of shapes {:?} and {:?} meet", sum.shape(), other.shape());
    }
    #[cfg(feature = "cuda")]
    if sum.device().is_cuda() {
        return crate::kernels::cuda::elementwise::add_in_place(sum, other);
    }
    let other = buffer::elements(other)?;
    buffer::modify(sum, |sum| add(sum, &other))
}

simd! {
    fn add(sum: &mut [f32], other: &[f32]) {
        par_rows(sum, MAP_WIDTH, |first, block| map_block(first, block, true, [other], |[x]| x));
    }
}
