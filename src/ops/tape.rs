//! Reverse-mode differentiation: a list of closures, run backwards.
//!
//! An op computes its output and, if an input needs a gradient, records one closure that turns the
//! output's gradient into the inputs'. Backward pops closures in reverse, so what an op saved is
//! freed as soon as it was used. Nothing is recorded for what needs no gradient: the frozen base,
//! and all that comes before the first trained parameter.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use candle_core::{Result, Tensor, bail};

use crate::kernels;
pub use crate::kernels::mask::DropoutKey;

type Step = Box<dyn FnOnce() -> Result<()>>;

/// A record of one forward pass.
pub struct Tape {
    steps: Option<RefCell<Vec<Step>>>,
    dropout: Option<DropoutKey>,
    /// How often the layer that is computed was computed before.
    turn: Cell<u32>,
}

/// A tensor in a forward pass and, if it needs one, its gradient.
#[derive(Clone)]
pub struct Value {
    tensor: Tensor,
    gradient: Option<Gradient>,
    /// How to compute the tensor again, where that is cheap and what it takes is saved anyway.
    again: Option<Rc<Again>>,
}

/// A tensor that is computed again in the backward, once for all that ask for it.
pub(crate) struct Again {
    compute: Box<dyn Fn() -> Result<Tensor>>,
    computed: OnceCell<Tensor>,
}

/// A tensor that a backward needs.
pub(crate) enum Saved {
    Kept(Tensor),
    Again(Rc<Again>),
}

/// The gradients of one value, as they arrive.
///
/// The first to arrive is kept as it is; later ones are added, in place if nothing else holds the
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
        Self { steps: Some(RefCell::default()), dropout, turn: Cell::new(0) }
    }

    /// A tape that records nothing: inference.
    #[must_use]
    pub fn off() -> Self {
        Self { steps: None, dropout: None, turn: Cell::new(0) }
    }

    /// The key for dropout masks, or `None` where dropout is off.
    #[must_use]
    pub fn dropout(&self) -> Option<DropoutKey> {
        // 2³² over the golden ratio: turn 0 keeps the seed, and others are far apart.
        let shift = self.turn.get().wrapping_mul(0x9e37_79b9);
        self.dropout.map(|key| DropoutKey { seed: key.seed ^ shift, ..key })
    }

    /// Lets a layer that is computed again draw masks of its own: those of its `turn`, counted from 0.
    pub(crate) fn take_turn(&self, turn: u32) {
        self.turn.set(turn);
    }

    /// Returns true if ops must save what their backward needs.
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
        Value { tensor: output, gradient: Some(gradient), again: None }
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
    pub fn recompute(&self, input: &Value, f: impl Fn(&Tape, &Value) -> Result<Value> + 'static) -> Result<Value> {
        let dropout = self.dropout();
        let silent = Tape { steps: None, dropout, turn: Cell::new(0) };
        let output = f(&silent, &Value::constant(input.tensor.clone()))?;
        if !self.is_recording() {
            return Ok(output);
        }
        let (tensor, target) = (input.tensor.clone(), input.gradient.clone());
        Ok(self.record(output.tensor, move |gradient| {
            let tape = Tape::recording(dropout);
            let gradient_of_inner = target.as_ref().map(|_| Gradient::default());
            let inner = Value { tensor, gradient: gradient_of_inner, again: None };
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
        Self { tensor, gradient: None, again: None }
    }

    /// A value whose gradient is wanted, and where to read it after the backward: for tests and benches.
    #[must_use]
    pub fn leaf(tensor: Tensor) -> (Self, Gradient) {
        let gradient = Gradient::default();
        (Self { tensor, gradient: Some(gradient.clone()), again: None }, gradient)
    }

    /// The value's numbers.
    #[must_use]
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Lets backwards compute the tensor again rather than keep it: for an op that costs little and whose own
    /// backward keeps what `compute` takes. It must give the same bytes.
    pub(crate) fn computed_again(self, compute: impl Fn() -> Result<Tensor> + 'static) -> Self {
        let again = Again { compute: Box::new(compute), computed: OnceCell::new() };
        Self { again: Some(Rc::new(again)), ..self }
    }

    /// The tensor, for a backward.
    pub(crate) fn saved(&self) -> Saved {
        match &self.again {
            Some(again) => Saved::Again(Rc::clone(again)),
            None => Saved::Kept(self.tensor.clone()),
        }
    }

    /// Where this value's gradient goes, if it needs one.
    pub(crate) fn gradient(&self) -> Option<Gradient> {
        self.gradient.clone()
    }
}

impl Saved {
    pub(crate) fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Kept(tensor) => Ok(tensor),
            Self::Again(again) => {
                if let Some(computed) = again.computed.get() {
                    return Ok(computed);
                }
                let computed = (again.compute)()?;
                Ok(again.computed.get_or_init(|| computed))
            }
        }
    }
}

impl Default for Gradient {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(None)))
    }
}

impl Gradient {
    pub(crate) fn add(&self, gradient: Rc<Tensor>) -> Result<()> {
        let Some(present) = self.take() else {
            self.0.replace(Some(gradient));
            return Ok(());
        };
        if present.shape() != gradient.shape() {
            bail!("gradients of shapes {:?} and {:?} meet", present.shape(), gradient.shape());
        }
        let present = owned(present)?;
        kernels::add_in_place(&present, &gradient)?;
        self.0.replace(Some(Rc::new(present)));
        Ok(())
    }

    /// Lets a kernel add a gradient: `f` gets the sum of those that arrived, to add to in place, or gives
    /// the first.
    pub(crate) fn accumulate(&self, f: impl FnOnce(Option<Tensor>) -> Result<Tensor>) -> Result<()> {
        let sum = f(self.take().map(owned).transpose()?)?;
        self.0.replace(Some(Rc::new(sum)));
        Ok(())
    }

    /// Returns true if no gradient has arrived yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Takes the gradient that has arrived.
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

    /// The sum of the gradients since the last [`Param::clear_gradient`]; an old one if none has arrived,
    /// as [`Param::has_gradient`] tells.
    #[must_use]
    pub fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// Returns true if any gradient has arrived since the last [`Param::clear_gradient`].
    #[must_use]
    pub fn has_gradient(&self) -> bool {
        self.has_gradient.get()
    }

    /// Forgets the gradient: the next to arrive overwrites it.
    pub fn clear_gradient(&self) {
        self.has_gradient.set(false);
    }

    /// Adds numbers to the gradient, as the backward of an op does.
    ///
    /// # Errors
    /// If there are more or fewer of them than the parameter has.
    pub fn add_to_gradient(&self, addend: &[f32]) -> Result<()> {
        self.accumulate(|sum, accumulate| kernels::add_numbers(sum, accumulate, addend))
    }

    /// Adds a tensor of the parameter's shape to the gradient, which must have arrived.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add_tensor_to_gradient(&self, addend: &Tensor) -> Result<()> {
        kernels::add_in_place(&self.gradient, addend)
    }

    /// Replaces the gradient by these numbers, bit for bit.
    ///
    /// # Errors
    /// If there are more or fewer of them than the parameter has.
    pub fn set_gradient(&self, numbers: &[f32]) -> Result<()> {
        if numbers.len() != self.gradient.elem_count() {
            bail!("{} numbers for a gradient of shape {:?}", numbers.len(), self.gradient.shape());
        }
        self.accumulate(|gradient, _| kernels::buffer::modify(gradient, |gradient| gradient.copy_from_slice(numbers)))
    }

    /// Replaces the value by these numbers.
    ///
    /// # Errors
    /// If there are more or fewer of them than the parameter has.
    pub fn set_value(&self, numbers: &[f32]) -> Result<()> {
        if numbers.len() != self.value.elem_count() {
            bail!("{} numbers for a parameter of shape {:?}", numbers.len(), self.value.shape());
        }
        kernels::buffer::modify(&self.value, |value| value.copy_from_slice(numbers))
    }

    /// Lets a kernel add to the gradient: `f(gradient, accumulate)` must overwrite it, or add to it.
    pub(crate) fn accumulate(&self, f: impl FnOnce(&Tensor, bool) -> Result<()>) -> Result<()> {
        f(&self.gradient, self.has_gradient.replace(true))
    }
}

/// A gradient that may be changed: itself if nothing else holds it, else a copy.
pub(crate) fn owned(gradient: Rc<Tensor>) -> Result<Tensor> {
    Rc::try_unwrap(gradient).or_else(|shared| shared.copy())
}
