//! How much each token weighed: integrated gradients (Sundararajan et al., 2017).
//!
//! On the way from no token in particular, the mean embedding x̄, to the text's own embeddings x, the gradient of a
//! label's logit f is averaged: token i weighs `(xᵢ − x̄) · ∫₀¹ ∂f/∂xᵢ (x̄ + α (x − x̄)) dα`. The weights of all tokens sum to
//! `f(x) − f(x̄)` (completeness), which bounds the error of the sum that stands for the integral.

use anyhow::{Context, Result, ensure};

use super::batch::Batch;
use super::classifier::Classifier;
use crate::data::tokenize::Encoded;
use crate::kernels::buffer::{elements, tensor};
use crate::ops::tape::{Tape, Value};

/// Nodes of a piece of the integral.
const NODES: usize = 8;
/// The most pieces: behind a norm the path bends sharply where an embedding on it is near 0.
const MOST_PIECES: usize = 24;
/// Tokens of a batch of nodes.
const MOST_TOKENS: usize = 4096;
/// The weights' sum may miss `f(x) − f(x̄)` by this share of it, or by `SMALL`.
const TOLERANCE: f64 = 0.02;
const SMALL: f64 = 0.02;

/// What the tokens of a text weigh for one label.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribution {
    /// The label.
    pub label: usize,
    /// One a token; positive ones speak for the label.
    pub weights: Vec<f64>,
    /// f(x)
    pub logit: f64,
    /// f(x̄)
    pub baseline: f64,
}

impl Attribution {
    /// By how much the weights' sum misses `f(x) − f(x̄)`.
    #[must_use]
    pub fn error(&self) -> f64 {
        (self.weights.iter().sum::<f64>() - (self.logit - self.baseline)).abs()
    }

    /// Returns true if the sum misses little.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.error() <= (TOLERANCE * (self.logit - self.baseline).abs()).max(SMALL)
    }
}

/// Explains the outputs of a classifier whose weights no longer change.
pub struct Explainer<'a> {
    classifier: &'a Classifier,
    /// x̄, of one token.
    mean: Vec<f32>,
}

impl<'a> Explainer<'a> {
    /// Takes the mean of the embeddings.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn new(classifier: &'a Classifier) -> Result<Self> {
        Ok(Self { classifier, mean: classifier.words().0.mean()? })
    }

    /// What each token of a text weighs for some labels.
    ///
    /// # Errors
    /// If the text has no token or the model fails.
    pub fn attributions(&self, encoded: &Encoded, labels: &[usize]) -> Result<Vec<Attribution>> {
        let (tokens, windows) = (&*encoded.token_ids, &*encoded.windows);
        ensure!(!tokens.is_empty(), "a text without tokens has nothing that weighs");
        let one = Batch::windowed([(tokens, windows, &[][..])])?;
        let embedded = self.classifier.embed(&Tape::off(), &one)?;
        let text = elements(embedded.tensor())?.to_vec();
        let steps = self.steps(tokens)?;
        let path = Path { classifier: self.classifier, tokens, windows, text: &text, steps: &steps };
        let (end, start) = (path.logits(1.0)?, path.logits(0.0)?);
        labels
            .iter()
            .map(|&label| {
                let ends = [f64::from(start[label]), f64::from(end[label])];
                path.attribution(label, ends)
            })
            .collect()
    }

    /// x − x̄: only what the words bring; positions and types of tokens stay.
    fn steps(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let (words, scale) = self.classifier.words();
        let width = self.mean.len();
        let mut steps = vec![0.0; tokens.len() * width];
        for (step, &token) in steps.chunks_exact_mut(width).zip(tokens) {
            words.read_row(token, step)?;
            step.iter_mut().zip(&self.mean).for_each(|(step, mean)| *step = scale * (*step - mean));
        }
        Ok(steps)
    }
}

/// The way from the mean embedding to a text.
struct Path<'a> {
    classifier: &'a Classifier,
    tokens: &'a [u32],
    windows: &'a [usize],
    /// x
    text: &'a [f32],
    /// x − x̄
    steps: &'a [f32],
}

/// A part of the integral, between two places on the path with their logits.
struct Piece {
    from: (f64, f64),
    to: (f64, f64),
    weights: Vec<f64>,
}

impl Piece {
    fn error(&self) -> f64 {
        (self.weights.iter().sum::<f64>() - (self.to.1 - self.from.1)).abs()
    }
}

impl Path<'_> {
    /// x̄ + α (x − x̄)
    fn at(&self, alpha: f64) -> impl Iterator<Item = f32> {
        self.text.iter().zip(self.steps).map(move |(x, step)| x - (1.0 - alpha) as f32 * step)
    }

    fn logits(&self, alpha: f64) -> Result<Vec<f32>> {
        let (batch, x) = self.batch(&[alpha])?;
        let logits = self.classifier.logits_of(&Tape::off(), &Value::constant(x), &batch)?;
        Ok(elements(logits.tensor())?.to_vec())
    }

    /// The text once for each α, end to end.
    fn batch(&self, alphas: &[f64]) -> Result<(Batch, candle_core::Tensor)> {
        let batch = Batch::windowed(alphas.iter().map(|_| (self.tokens, self.windows, &[][..])))?;
        let x: Vec<f32> = alphas.iter().flat_map(|&alpha| self.at(alpha)).collect();
        let rows = self.tokens.len() * alphas.len();
        let width = x.len() / rows;
        Ok((batch, self.classifier.device().put(tensor(x, (rows, width))?)?))
    }

    /// The integral for a label whose logits at both ends are known. The change of the logit over each piece is known, too:
    /// the piece whose weights miss most of it is halved until completeness holds.
    fn attribution(&self, label: usize, [baseline, logit]: [f64; 2]) -> Result<Attribution> {
        let mut pieces = vec![self.piece(label, (0.0, baseline), (1.0, logit))?];
        loop {
            let mut weights = vec![0.0; self.tokens.len()];
            for piece in &pieces {
                weights.iter_mut().zip(&piece.weights).for_each(|(sum, weight)| *sum += weight);
            }
            let found = Attribution { label, weights, logit, baseline };
            if found.is_complete() || pieces.len() >= MOST_PIECES {
                return Ok(found);
            }
            let worst = (0..pieces.len()).max_by(|&a, &b| pieces[a].error().total_cmp(&pieces[b].error()));
            let Piece { from, to, .. } = pieces.swap_remove(worst.context("an integral has a piece")?);
            let middle = 0.5 * (from.0 + to.0);
            let middle = (middle, f64::from(self.logits(middle)?[label]));
            pieces.push(self.piece(label, from, middle)?);
            pieces.push(self.piece(label, middle, to)?);
        }
    }

    /// A part of the path between two places, each with its logit.
    fn piece(&self, label: usize, from: (f64, f64), to: (f64, f64)) -> Result<Piece> {
        let length = to.0 - from.0;
        let nodes: Vec<(f64, f64)> =
            gauss_legendre(NODES).into_iter().map(|(t, weight)| (from.0 + length * t, length * weight)).collect();
        Ok(Piece { from, to, weights: self.weights(label, &nodes)? })
    }

    /// The sum over nodes.
    fn weights(&self, label: usize, nodes: &[(f64, f64)]) -> Result<Vec<f64>> {
        let mut weights = vec![0.0; self.tokens.len()];
        for part in nodes.chunks((MOST_TOKENS / self.tokens.len()).max(1)) {
            let alphas: Vec<f64> = part.iter().map(|node| node.0).collect();
            let (batch, x) = self.batch(&alphas)?;
            let (x, gradient) = Value::leaf(x);
            let tape = Tape::recording(None);
            let logits = self.classifier.logits_of(&tape, &x, &batch)?;
            let labels = logits.tensor().dim(1)?;
            let mut of_logits = vec![0.0; part.len() * labels];
            for (row, node) in of_logits.chunks_exact_mut(labels).zip(part) {
                row[label] = node.1 as f32;
            }
            tape.backward(&logits, tensor(of_logits, (part.len(), labels))?)?;
            let Some(gradient) = gradient.take() else { anyhow::bail!("the logits do not depend on the text") };
            let gradient = elements(&gradient)?;
            let width = self.steps.len() / self.tokens.len();
            for (row, gradient) in gradient.chunks_exact(width).enumerate() {
                let token = row % self.tokens.len();
                let step = &self.steps[token * width..][..width];
                weights[token] += gradient.iter().zip(step).map(|(g, s)| f64::from(*g) * f64::from(*s)).sum::<f64>();
            }
        }
        Ok(weights)
    }
}

/// Nodes in (0, 1) and their weights: exact for polynomials of degree 2n − 1.
fn gauss_legendre(n: usize) -> Vec<(f64, f64)> {
    (0..n)
        .map(|index| {
            let mut x = (std::f64::consts::PI * (index as f64 + 0.75) / (n as f64 + 0.5)).cos();
            let mut slope = 1.0;
            // Newton's method on the Legendre polynomial of degree n.
            for _ in 0..50 {
                let (mut low, mut high) = (1.0, x);
                for k in 2..=n {
                    let k = k as f64;
                    (low, high) = (high, ((2.0 * k - 1.0) * x * high - (k - 1.0) * low) / k);
                }
                slope = n as f64 * (x * high - low) / (x * x - 1.0);
                let step = high / slope;
                x -= step;
                if step.abs() < 1e-15 {
                    break;
                }
            }
            (0.5 * (1.0 - x), 1.0 / ((1.0 - x * x) * slope * slope))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_integral_is_exact_for_polynomials() {
        for n in [2, 8, 32] {
            let nodes = gauss_legendre(n);
            let weights: f64 = nodes.iter().map(|node| node.1).sum();
            assert!((weights - 1.0).abs() < 1e-12, "{n}: {weights}");
            let degree = 2 * n as i32 - 1;
            let integral: f64 = nodes.iter().map(|(x, weight)| weight * x.powi(degree)).sum();
            assert!((integral * f64::from(degree + 1) - 1.0).abs() < 1e-9, "{n}: {integral}");
        }
    }
}
