//! Adapters of several classifiers over one frozen base, mixed in one batch:
//! `y = x Wᵀ + b` for all rows at once, then `y[rows] += s · x[rows] Aᵀ Bᵀ` for the rows of each classifier.
//!
//! A row's sums have the same order whatever the other rows are, so a classifier's outputs are those that it has
//! alone, bit for bit. For predicting: a backward, which explanations need, is there for one classifier at a time, and gives
//! the gradient of x alone a meaning.

use std::cell::{OnceCell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use candle_core::{Result, Tensor, bail};

use super::tape::Param;
use crate::kernels;
use crate::kernels::low_rank::LowRank;

/// A and B of one layer, of one classifier. Their numbers are read at the first product.
pub struct SharedAdapter {
    a: Rc<Param>,
    b: Rc<Param>,
    scaling: f32,
    pair: OnceCell<Rc<LowRank>>,
}

impl SharedAdapter {
    /// `scaling` is α / r.
    #[must_use]
    pub fn new(a: Rc<Param>, b: Rc<Param>, scaling: f32) -> Self {
        Self { a, b, scaling, pair: OnceCell::new() }
    }

    /// The pair as kernels want it, made once.
    fn pair(&self, x: &Tensor) -> Result<Rc<LowRank>> {
        if let Some(pair) = self.pair.get() {
            return Ok(Rc::clone(pair));
        }
        let pair = Rc::new(kernels::low_rank(x, self.a.value(), self.b.value(), self.scaling, None)?);
        Ok(Rc::clone(self.pair.get_or_init(|| pair)))
    }
}

/// The adapters of a classifier, one a layer of the base in its order; none where the layer is no target.
pub type SharedAdapters = Rc<[Option<SharedAdapter>]>;

/// Neighbouring sequences of a batch that belong to one classifier.
pub struct Group {
    /// The classifier's adapters.
    pub adapters: SharedAdapters,
    /// The sequences' tokens, by their rows in a batch of N.
    pub tokens: Range<usize>,
    /// The sequences themselves, by their rows where one token of each is left.
    pub sequences: Range<usize>,
}

/// Says which rows of the batch in work pass through which adapters. All layers of a base share it.
#[derive(Default)]
pub struct Routing {
    groups: RefCell<Vec<Group>>,
}

impl Routing {
    /// Routes rows to `groups`, which cover a batch in its order, while `f` runs.
    pub fn with<T>(&self, groups: Vec<Group>, f: impl FnOnce() -> T) -> T {
        self.groups.replace(groups);
        let result = f();
        self.groups.take();
        result
    }
}

/// A layer's place among those of its base.
pub struct Slot {
    /// The base's routing.
    pub routing: Rc<Routing>,
    /// The layer's number.
    pub index: usize,
}

/// What the backward of a routed layer needs: A and B of the only classifier in the batch.
pub(super) type Alone = (Rc<Param>, Rc<Param>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Slot {
    /// A and B of the layer, if the classifier has them, where it is alone in the batch.
    ///
    /// # Errors
    /// If there are several.
    pub(super) fn alone(&self) -> Result<Option<Alone>> {
        let groups = self.routing.groups.borrow();
        let [group] = groups.as_slice() else {
            bail!("a batch of {} classifiers has no backward", groups.len());
        };
        let adapter = group.adapters.get(self.index).and_then(Option::as_ref);
        Ok(adapter.map(|adapter| (Rc::clone(&adapter.a), Rc::clone(&adapter.b))))
    }

    /// The layer's adapters for `x`, which has a row a token or a row a sequence, each with the rows that are its.
    ///
    /// # Errors
    /// If the rows are neither.
    pub(super) fn pairs(&self, x: &Tensor) -> Result<Vec<(Range<usize>, Rc<LowRank>)>> {
        let groups = self.routing.groups.borrow();
        let rows = x.dim(0)?;
        // Where both counts are the same, so are the ranges: each sequence has one token.
        let is_of_tokens = groups.last().is_none_or(|group| group.tokens.end == rows);
        // Of one classifier all rows are, those of a table by distance too.
        let is_one = groups.len() == 1;
        let mut pairs = Vec::new();
        for group in groups.iter() {
            let whole = 0..rows;
            let range = match is_of_tokens {
                _ if is_one => &whole,
                true => &group.tokens,
                false => &group.sequences,
            };
            if range.end > rows {
                bail!("{rows} rows for adapters of rows up to {}", range.end);
            }
            if let Some(Some(adapter)) = group.adapters.get(self.index) {
                pairs.push((range.clone(), adapter.pair(x)?));
            }
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::{elements, tensor};
    use crate::kernels::cpu::memory::Buffer;
    use crate::kernels::matrix::{FrozenMatrix, Storage};
    use crate::ops::finite_differences::numbers;
    use crate::ops::lora_linear::{Adapter, LoraLinear, lora_linear};
    use crate::ops::tape::{Tape, Value};

    const INPUTS: usize = 37;
    const OUTPUTS: usize = 29;

    #[test]
    fn the_gradient_of_a_classifier_alone_passes_through_its_adapters() {
        let param = |shape: (usize, usize), seed| {
            Param::new("p", tensor(numbers(shape.0 * shape.1, seed), shape).unwrap()).unwrap()
        };
        let (a, b, scaling) = (param((3, INPUTS), 2), param((OUTPUTS, 3), 5), 1.5);
        let routing = Rc::new(Routing::default());
        let weight = || FrozenMatrix::new(Storage::F32(Buffer::Owned(numbers(INPUTS * OUTPUTS, 1))), OUTPUTS, INPUTS);
        let adapter = Adapter { a: Rc::clone(&a), b: Rc::clone(&b), scaling, dropout: 0.0, site: 0 };
        let own = Rc::new(LoraLinear {
            weight: weight().into(),
            bias: None,
            adapter: Some(adapter),
            slot: None,
            merged: OnceCell::new(),
        });
        let slot = Slot { routing: Rc::clone(&routing), index: 0 };
        let shared = Rc::new(LoraLinear {
            weight: weight().into(),
            bias: None,
            adapter: None,
            slot: Some(slot),
            merged: OnceCell::new(),
        });
        let group = || {
            let adapters: SharedAdapters = vec![Some(SharedAdapter::new(Rc::clone(&a), Rc::clone(&b), scaling))].into();
            Group { adapters, tokens: 0..7, sequences: 0..2 }
        };
        let gradient = |layer: &Rc<LoraLinear>, groups: Vec<Group>| -> Result<Vec<f32>> {
            let (x, gradient) = Value::leaf(tensor(numbers(7 * INPUTS, 3), (7, INPUTS))?);
            let tape = Tape::recording(None);
            let y = routing.with(groups, || lora_linear(&tape, &x, layer, None))?;
            tape.backward(&y, tensor(numbers(7 * OUTPUTS, 8), (7, OUTPUTS))?)?;
            Ok(elements(&gradient.take().expect("x has a gradient"))?.to_vec())
        };
        let expected = gradient(&own, Vec::new()).unwrap();
        assert_eq!(gradient(&shared, vec![group()]).unwrap(), expected);
        assert!(gradient(&shared, vec![group(), group()]).is_err());
    }

    /// Ranks 2 and 5, and a classifier without an adapter here; rows of tokens and of sequences.
    #[test]
    fn rows_of_a_mixed_batch_are_those_of_each_classifier_alone_to_the_bit() {
        let param = |shape: (usize, usize), seed| {
            Param::new("p", tensor(numbers(shape.0 * shape.1, seed), shape).unwrap()).unwrap()
        };
        let pairs = [(2, 1.5), (5, 0.3)].map(|(rank, scaling)| {
            (param((rank, INPUTS), rank as u32), param((OUTPUTS, rank), 9 + rank as u32), scaling)
        });
        let routing = Rc::new(Routing::default());
        let layer = |adapter: Option<Adapter>, slot: Option<Slot>| {
            let weight = FrozenMatrix::new(Storage::F32(Buffer::Owned(numbers(INPUTS * OUTPUTS, 1))), OUTPUTS, INPUTS);
            let weight = std::sync::Arc::new(weight);
            Rc::new(LoraLinear { weight, bias: None, adapter, slot, merged: OnceCell::new() })
        };
        let shared = layer(None, Some(Slot { routing: Rc::clone(&routing), index: 0 }));
        let adapters = |index: usize| -> SharedAdapters {
            let pair = pairs.get(index).map(|(a, b, s)| SharedAdapter::new(Rc::clone(a), Rc::clone(b), *s));
            Rc::from(vec![pair])
        };
        let bits = |y: &Value| elements(y.tensor()).unwrap().iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        for (rows, ranges) in [(11, [0..3, 3..7, 7..11]), (6, [0..1, 1..3, 3..6])] {
            let x = numbers(rows * INPUTS, 3);
            let groups = [(0, 0..3, 0..1), (2, 3..7, 1..3), (1, 7..11, 3..6)];
            let groups =
                groups.map(|(index, tokens, sequences)| Group { adapters: adapters(index), tokens, sequences });
            let input = Value::constant(tensor(x.clone(), (rows, INPUTS)).unwrap());
            let mixed = routing.with(groups.into(), || lora_linear(&Tape::off(), &input, &shared, None).unwrap());
            let mixed = bits(&mixed);
            for (index, range) in [0, 2, 1].into_iter().zip(ranges) {
                let adapter = pairs.get(index).map(|(a, b, scaling)| Adapter {
                    a: Rc::clone(a),
                    b: Rc::clone(b),
                    scaling: *scaling,
                    dropout: 0.0,
                    site: 0,
                });
                let own = tensor(x[range.start * INPUTS..range.end * INPUTS].to_vec(), (range.len(), INPUTS)).unwrap();
                let alone = lora_linear(&Tape::off(), &Value::constant(own), &layer(adapter, None), None).unwrap();
                assert_eq!(bits(&alone), mixed[range.start * OUTPUTS..range.end * OUTPUTS], "{rows} rows, {index}");
            }
        }
    }
}
