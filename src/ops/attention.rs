//! Grouped-query attention over unpadded sequences: `softmax(scale · q kᵀ) v`, causal or full.
//!
//! Sequences lie end to end; each is attended on its own, so there is nothing to mask but the
//! future. The forward saves one number a query and head, the log of the sum of its exponentials
//! (Dao, 2023, "FlashAttention-2"); the backward computes the scores again from it.

use std::rc::Rc;
use std::sync::Arc;

use candle_core::Result;

use super::tape::{Tape, Value};
use crate::kernels;
use crate::kernels::attention::Plan;
use crate::kernels::attention::Relative;
pub use crate::kernels::attention::{AttentionKind, Distances, Sequences};
use crate::kernels::constant::Constant;

/// Attends: `q` `(Q, H·d)`, `k` and `v` `(N, K·d)` give `(Q, H·d)`.
///
/// # Errors
/// If the shapes do not fit `kind` and `sequences`.
pub fn attention(tape: &Tape, qkv: [&Value; 3], kind: AttentionKind, sequences: &Rc<Sequences>) -> Result<Value> {
    attend(tape, qkv, kind, None, sequences)
}

/// What the distance from a key to a query adds to their score, where r is the distance's row:
/// `scale · (q · keys[r] + k · queries[r]) + bias[r]` (He et al., 2021, "DeBERTa"; Song et al., 2020, "MPNet").
pub struct ByDistance<'a> {
    /// Rows by distance.
    pub distances: &'a Arc<Distances>,
    /// `(P, H·d)`
    pub keys: Option<&'a Value>,
    /// `(P, H·d)`
    pub queries: Option<&'a Value>,
    /// `(P, H)`
    pub bias: Option<&'a Arc<Constant>>,
}

/// As [`attention`] of all tokens, with scores by distance.
///
/// # Errors
/// If shapes do not fit, or a sequence is longer than the distances reach.
pub fn relative_attention(
    tape: &Tape,
    qkv: [&Value; 3],
    kind: AttentionKind,
    by_distance: &ByDistance<'_>,
    sequences: &Rc<Sequences>,
) -> Result<Value> {
    attend(tape, qkv, kind, Some(by_distance), sequences)
}

fn attend(
    tape: &Tape,
    [q, k, v]: [&Value; 3],
    kind: AttentionKind,
    by_distance: Option<&ByDistance<'_>>,
    sequences: &Rc<Sequences>,
) -> Result<Value> {
    let (q_tensor, k_tensor, v_tensor) = (q.tensor(), k.tensor(), v.tensor());
    let relative = by_distance.map(|by_distance| Relative {
        distances: Arc::clone(by_distance.distances),
        keys: by_distance.keys.map(|table| table.tensor().clone()),
        queries: by_distance.queries.map(|table| table.tensor().clone()),
        bias: by_distance.bias.map(Arc::clone),
    });
    let choice = kind.dropout.choice(tape.dropout());
    let plan = Plan::new([q_tensor, k_tensor, v_tensor], kind, relative, sequences, choice)?;
    let (output, log_sums) = kernels::attention(q_tensor, k_tensor, v_tensor, &plan)?;
    let [of_keys, of_queries] = by_distance
        .map_or([None; 2], |by_distance| [by_distance.keys, by_distance.queries])
        .map(|table| table.and_then(Value::gradient));
    let gradients = [q.gradient(), k.gradient(), v.gradient(), of_keys, of_queries];
    if gradients.iter().all(Option::is_none) {
        return Ok(Value::constant(output));
    }
    let qkv = [q, k, v].map(|value| value.tensor().clone());
    let saved = output.clone();
    Ok(tape.record(output, move |g| {
        let wanted = gradients.each_ref().map(Option::is_some);
        let found = kernels::attention_backward(&g, &qkv, &saved, &log_sums, &plan, wanted)?;
        for (gradient, found) in gradients.iter().zip(found) {
            if let (Some(gradient), Some(found)) = (gradient, found) {
                gradient.add(Rc::new(found))?;
            }
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::{elements, tensor};
    use crate::ops::dropout::Dropout;
    use crate::ops::finite_differences::{check, numbers};
    use crate::ops::tape::DropoutKey;

    fn kind(is_causal: bool) -> AttentionKind {
        let dropout = Dropout { p: 0.0, site: 0 };
        let (window, soft_cap) = (None, None);
        AttentionKind { heads: 6, key_value_heads: 2, head_size: 4, is_causal, window, scale: 0.7, soft_cap, dropout }
    }

    /// Rows that several distances share, as logarithmic buckets do.
    fn distances(longest: usize) -> Arc<Distances> {
        Arc::new(Distances::new(longest, 7, |distance| (distance.clamp(-6, 5) + 7) as usize / 2))
    }

    #[test]
    fn relative_attention_passes_finite_differences() {
        let sequences = Rc::new(Sequences::new(vec![0, 5, 6, 9], None));
        let pooled = Rc::new(Sequences::new(vec![0, 5, 6, 9], Some(vec![0, 5, 7].into())));
        let kind = AttentionKind { heads: 2, ..kind(false) };
        let (distances, bias) = (distances(6), Arc::new(Constant::from(numbers(7 * 2, 6))));
        for (sequences, queries) in [(&sequences, 9), (&pooled, 3)] {
            let q = (numbers(queries * 8, 1), (queries, 8));
            let table = |seed| (numbers(7 * 8, seed), (7, 8));
            let inputs = [q, (numbers(9 * 8, 2), (9, 8)), (numbers(9 * 8, 3), (9, 8)), table(4), table(5)];
            check(&inputs, |tape, x| {
                let by_distance =
                    ByDistance { distances: &distances, keys: Some(&x[3]), queries: Some(&x[4]), bias: Some(&bias) };
                relative_attention(tape, [&x[0], &x[1], &x[2]], kind, &by_distance, sequences)
            });
            for table in [3, 4] {
                let inputs = [0, 1, 2, table].map(|at| inputs[at].clone());
                check(&inputs, |tape, x| {
                    let [keys, queries] = [3, 4].map(|at| (at == table).then_some(&x[3]));
                    let by_distance = ByDistance { distances: &distances, keys, queries, bias: None };
                    relative_attention(tape, [&x[0], &x[1], &x[2]], kind, &by_distance, sequences)
                });
            }
        }
    }

    /// Longer than a tile, against the definition.
    #[test]
    fn relative_attention_matches_the_definition_over_many_tiles() {
        let (tokens, offsets) = (83, vec![0, 70, 83]);
        let [q, k, v] = [1, 2, 3].map(|seed| numbers(tokens * 8, seed));
        let [of_q, of_k] = [4, 5].map(|seed| numbers(7 * 8, seed));
        let bias = numbers(7 * 2, 6);
        let value = |data: &[f32], rows: usize| Value::constant(tensor(data.to_vec(), (rows, 8)).unwrap());
        let (qv, kv, vv) = (value(&q, tokens), value(&k, tokens), value(&v, tokens));
        let (distances, held) = (distances(69), Arc::new(Constant::from(bias.clone())));
        let (keys, queries) = (value(&of_q, 7), value(&of_k, 7));
        let by_distance =
            ByDistance { distances: &distances, keys: Some(&keys), queries: Some(&queries), bias: Some(&held) };
        let sequences = Rc::new(Sequences::new(offsets, None));
        let kind = AttentionKind { heads: 2, ..kind(false) };
        let output = relative_attention(&Tape::off(), [&qv, &kv, &vv], kind, &by_distance, &sequences).unwrap();
        let output = elements(output.tensor()).unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        for i in 0..tokens {
            let range = if i < 70 { 0..70 } else { 70..83 };
            for head in 0..2 {
                let at = |data: &'_ [f32], row: usize| data[row * 8 + head * 4..][..4].to_vec();
                let scores: Vec<f64> = range
                    .clone()
                    .map(|j| {
                        let row = ((i as i64 - j as i64).clamp(-6, 5) + 7) as usize / 2;
                        let products = dot(&at(&q, i), &at(&k, j))
                            + dot(&at(&q, i), &at(&of_q, row))
                            + dot(&at(&k, j), &at(&of_k, row));
                        (0.7 * products + f64::from(bias[row * 2 + head])).exp()
                    })
                    .collect();
                let sum: f64 = scores.iter().sum();
                for c in 0..4 {
                    let expected: f64 =
                        range.clone().zip(&scores).map(|(j, p)| p / sum * f64::from(v[j * 8 + head * 4 + c])).sum();
                    assert!((f64::from(output[i * 8 + head * 4 + c]) - expected).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn attention_passes_finite_differences() {
        let sequences = Rc::new(Sequences::new(vec![0, 5, 6, 9], None));
        let pooled = Rc::new(Sequences::new(vec![0, 5, 6, 9], Some(vec![4, 5, 7].into())));
        let later = Rc::new(Sequences::with_past(vec![0, 5, 6, 9], vec![0, 2, 3, 5]));
        let cases =
            [(true, &sequences, 9), (false, &sequences, 9), (true, &pooled, 3), (true, &later, 5), (false, &later, 5)];
        for (is_causal, sequences, queries) in cases {
            let q = (numbers(queries * 24, 1), (queries, 24));
            let inputs = [q, (numbers(9 * 8, 2), (9, 8)), (numbers(9 * 8, 3), (9, 8))];
            for (window, soft_cap) in [(None, None), (Some(3), None), (None, Some(0.8))] {
                let kind = AttentionKind { window, soft_cap, ..kind(is_causal) };
                check(&inputs, |tape, x| attention(tape, [&x[0], &x[1], &x[2]], kind, sequences));
            }
        }
    }

    /// The mask is a function of its key, so the loss under one key is a smooth function of the inputs.
    #[test]
    fn attention_with_dropout_passes_finite_differences() {
        let key = DropoutKey { seed: 4, micro_batch: 9 };
        let sequences = Rc::new(Sequences::new(vec![0, 40, 43], None));
        let kind = AttentionKind { dropout: Dropout { p: 0.4, site: 2 }, ..kind(false) };
        let data = [(numbers(43 * 24, 1), 24), (numbers(43 * 8, 2), 8), (numbers(43 * 8, 3), 8)];
        let run = |data: &[(Vec<f32>, usize)], key: Option<DropoutKey>| {
            let tape = Tape::recording(key);
            let (values, gradients): (Vec<_>, Vec<_>) =
                data.iter().map(|(data, width)| Value::leaf(tensor(data.clone(), (43, *width)).unwrap())).unzip();
            let output = attention(&tape, [&values[0], &values[1], &values[2]], kind, &sequences).unwrap();
            let weights = numbers(43 * 24, 99);
            let loss: f64 = elements(output.tensor())
                .unwrap()
                .iter()
                .zip(&weights)
                .map(|(y, w)| f64::from(*y) * f64::from(*w))
                .sum();
            tape.backward(&output, tensor(weights, (43, 24)).unwrap()).unwrap();
            let gradients: Vec<Vec<f32>> =
                gradients.iter().map(|g| elements(&g.take().unwrap()).unwrap().to_vec()).collect();
            (loss, gradients)
        };
        let (loss, gradients) = run(&data, Some(key));
        assert_ne!(loss, run(&data, None).0);
        for (input, element) in [(0, 5), (0, 700), (1, 3), (1, 250), (2, 17), (2, 330)] {
            let mut moved = data.clone();
            moved[input].0[element] += 4e-3;
            let up = run(&moved, Some(key)).0;
            moved[input].0[element] -= 8e-3;
            let difference = (up - run(&moved, Some(key)).0) / 8e-3;
            let found = f64::from(gradients[input][element]);
            assert!((found - difference).abs() < 2e-3 * (1.0 + difference.abs()), "{found}, expected {difference}");
        }
    }

    /// Longer than a tile, against the definition.
    #[test]
    fn attention_matches_the_definition_over_many_tiles() {
        let (tokens, offsets) = (83, vec![0, 70, 83]);
        let (q, k, v) = (numbers(tokens * 24, 1), numbers(tokens * 8, 2), numbers(tokens * 8, 3));
        let sequences = Rc::new(Sequences::new(offsets.clone(), None));
        let value = |data: &[f32], width| Value::constant(tensor(data.to_vec(), (tokens, width)).unwrap());
        let inputs = [value(&q, 24), value(&k, 8), value(&v, 8)];
        let [qv, kv, vv] = &inputs;
        for (is_causal, window) in
            [(true, None), (true, Some(5)), (true, Some(40)), (false, None), (false, Some(6)), (false, Some(33))]
        {
            let kind = AttentionKind { window, ..kind(is_causal) };
            let output = attention(&Tape::off(), [qv, kv, vv], kind, &sequences).unwrap();
            let output = elements(output.tensor()).unwrap();
            for i in 0..tokens {
                let start = if i < 70 { 0 } else { 70 };
                let last = match (is_causal, window) {
                    (true, _) => i,
                    (false, None) => {
                        if i < 70 {
                            69
                        } else {
                            82
                        }
                    }
                    (false, Some(window)) => (i + window - 1).min(if i < 70 { 69 } else { 82 }),
                };
                let start = window.map_or(start, |window: usize| start.max((i + 1).saturating_sub(window)));
                for head in 0..6 {
                    let scores: Vec<f64> = (start..=last)
                        .map(|j| {
                            let score: f32 =
                                (0..4).map(|c| q[i * 24 + head * 4 + c] * k[j * 8 + head / 3 * 4 + c]).sum();
                            f64::from(0.7 * score).exp()
                        })
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for c in 0..4 {
                        let expected: f64 = (start..=last)
                            .zip(&scores)
                            .map(|(j, p)| p / sum * f64::from(v[j * 8 + head / 3 * 4 + c]))
                            .sum();
                        assert!((f64::from(output[i * 24 + head * 4 + c]) - expected).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
