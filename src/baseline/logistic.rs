//! Logistic regression with an L2 penalty and balanced classes, by Newton's method with conjugate gradients.
//!
//! Minimises `½ |w|² + C · Σᵢ sᵢ · ln(1 + exp(−yᵢ (w·xᵢ + b)))`, as scikit-learn does; b has no penalty, and
//! `sᵢ = n / (2 · rows of the class)`.

use super::tfidf::SparseRow;

/// scikit-learn's C: weaker regularisation than its default of 1 does better on TF-IDF of short texts.
const C: f64 = 10.0;
const NEWTON_STEPS: usize = 50;
const CONJUGATE_STEPS: usize = 50;
/// Ends when the gradient's norm has fallen by this factor.
const TOLERANCE: f64 = 1e-4;

/// The weights of one label.
pub(super) struct Logistic {
    /// One a feature, then b.
    weights: Vec<f64>,
}

struct Problem<'a> {
    rows: &'a [SparseRow],
    /// 1 or −1.
    signs: Vec<f64>,
    /// C · sᵢ
    costs: Vec<f64>,
}

impl Logistic {
    pub(super) fn fit(rows: &[SparseRow], features: usize, targets: &[bool]) -> Self {
        let positives = targets.iter().filter(|&&target| target).count();
        let mut weights = vec![0.0; features + 1];
        if positives == 0 || positives == targets.len() {
            // One class teaches nothing else than itself.
            weights[features] = if positives == 0 { -20.0 } else { 20.0 };
            return Self { weights };
        }
        let of_class = |count: usize| C * targets.len() as f64 / (2.0 * count as f64);
        let (positive, negative) = (of_class(positives), of_class(targets.len() - positives));
        let problem = Problem {
            rows,
            signs: targets.iter().map(|&target| if target { 1.0 } else { -1.0 }).collect(),
            costs: targets.iter().map(|&target| if target { positive } else { negative }).collect(),
        };
        problem.minimise(&mut weights);
        Self { weights }
    }

    pub(super) fn probability(&self, row: &SparseRow) -> f64 {
        sigmoid(score(row, &self.weights))
    }
}

impl Problem<'_> {
    fn minimise(&self, weights: &mut [f64]) {
        let mut scores: Vec<f64> = self.rows.iter().map(|row| score(row, weights)).collect();
        let mut gradient = self.gradient(weights, &scores);
        let target = TOLERANCE * norm(&gradient);
        for _ in 0..NEWTON_STEPS {
            if norm(&gradient) <= target {
                break;
            }
            let direction = self.newton_direction(&scores, &gradient);
            let along: Vec<f64> = self.rows.iter().map(|row| score(row, &direction)).collect();
            let Some(step) = self.line_search(weights, &scores, &direction, &along, &gradient) else { break };
            add(weights, step, &direction);
            add(&mut scores, step, &along);
            gradient = self.gradient(weights, &scores);
        }
    }

    fn loss(&self, penalty: f64, scores: impl Iterator<Item = f64>) -> f64 {
        let terms = scores.zip(&self.signs).zip(&self.costs);
        penalty + terms.map(|((score, sign), cost)| cost * softplus(-sign * score)).sum::<f64>()
    }

    fn gradient(&self, weights: &[f64], scores: &[f64]) -> Vec<f64> {
        let pull = |i: usize| -self.costs[i] * self.signs[i] * sigmoid(-self.signs[i] * scores[i]);
        self.penalised(weights, pull)
    }

    /// `penalty's part of v + Σᵢ factor(i) · xᵢ`
    fn penalised(&self, v: &[f64], factor: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut out = v.to_vec();
        let bias = out.len() - 1;
        out[bias] = 0.0;
        for (index, row) in self.rows.iter().enumerate() {
            let factor = factor(index);
            for &(feature, value) in row {
                out[feature as usize] += factor * value;
            }
            out[bias] += factor;
        }
        out
    }

    /// Solves `H d = −g` roughly, which is all that a step far from the minimum needs.
    fn newton_direction(&self, scores: &[f64], gradient: &[f64]) -> Vec<f64> {
        let curvature: Vec<f64> =
            scores.iter().zip(&self.costs).map(|(&score, cost)| cost * sigmoid(score) * sigmoid(-score)).collect();
        let mut direction = vec![0.0; gradient.len()];
        let mut residual: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut search = residual.clone();
        let mut square = dot(&residual, &residual);
        let enough = square * (0.1f64).min(square.sqrt().sqrt()).powi(2);
        for _ in 0..CONJUGATE_STEPS {
            let product = self.penalised(&search, |index| curvature[index] * score(&self.rows[index], &search));
            let bend = dot(&search, &product);
            if bend <= 0.0 {
                break;
            }
            let step = square / bend;
            add(&mut direction, step, &search);
            add(&mut residual, -step, &product);
            let next = dot(&residual, &residual);
            if next <= enough {
                break;
            }
            let ratio = next / square;
            search.iter_mut().zip(&residual).for_each(|(search, residual)| *search = residual + ratio * *search);
            square = next;
        }
        direction
    }

    /// The first of 1, ½, ¼, … that lowers the loss enough.
    fn line_search(
        &self,
        weights: &[f64],
        scores: &[f64],
        direction: &[f64],
        along: &[f64],
        gradient: &[f64],
    ) -> Option<f64> {
        let bias = weights.len() - 1;
        let (ww, wd, dd) = (
            dot(&weights[..bias], &weights[..bias]),
            dot(&weights[..bias], &direction[..bias]),
            dot(&direction[..bias], &direction[..bias]),
        );
        let loss_at = |step: f64| {
            let penalty = 0.5 * (ww + 2.0 * step * wd + step * step * dd);
            self.loss(penalty, scores.iter().zip(along).map(|(score, along)| score + step * along))
        };
        let (start, slope) = (loss_at(0.0), dot(gradient, direction));
        (0..30).map(|halvings| 0.5f64.powi(halvings)).find(|&step| loss_at(step) <= start + 1e-4 * step * slope)
    }
}

fn score(row: &SparseRow, weights: &[f64]) -> f64 {
    row.iter().map(|&(feature, value)| weights[feature as usize] * value).sum::<f64>() + weights[weights.len() - 1]
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + exp(x)) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `to += scale · from`
fn add(to: &mut [f64], scale: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += scale * from);
}
