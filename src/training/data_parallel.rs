//! Gradients of a window of micro-batches, summed over a fixed balanced tree.
//!
//! The micro-batches are the leaves; the tree over `n` of them splits at the largest power of two below `n`, and
//! depends on `n` alone. So the sum has the same bits however many ranks compute it, and whichever leaves are whose:
//! each rank computes consecutive leaves, adds what is wholly its own, and sends each such sum to the rank on its
//! left, up to rank 0. MPI's own reductions differ with algorithm and number of ranks.

use std::rc::Rc;

use anyhow::Result;
use candle_core::Tensor;

use super::optimizer::AdamW;
use crate::cluster::{Group, share};
use crate::kernels::buffer::elements;
use crate::ops::tape::Param;

/// A sum over the leaves of a tree, shared among the ranks of a group.
pub struct TreeSum<'a> {
    group: &'a Group,
    params: &'a [Rc<Param>],
    leaves: usize,
}

impl<'a> TreeSum<'a> {
    /// A sum of `leaves` gradients of `params`.
    #[must_use]
    pub fn new(group: &'a Group, params: &'a [Rc<Param>], leaves: usize) -> Self {
        Self { group, params, leaves }
    }

    /// Sets the gradients to the sum, on every rank. `compute` adds a leaf's gradients to the parameters' own; each
    /// rank calls it for its leaves, in their order.
    ///
    /// # Errors
    /// If `compute` fails on this rank: the others wait, and the job must end.
    pub fn run(&self, mut compute: impl FnMut(usize) -> Result<()>) -> Result<()> {
        self.sum(0, self.leaves, &mut compute)?;
        if self.group.size() > 1 {
            let mut sum = if self.group.is_leader() { self.flat()? } else { vec![0.0; self.count()] };
            self.group.broadcast(&mut sum);
            if !self.group.is_leader() {
                self.each(&sum, |param, own| param.set_gradient(own))?;
            }
        }
        Ok(())
    }

    /// Leaves the sum of the leaves from `low` to `high` in the parameters' gradients of the rank that owns `low`.
    fn sum(&self, low: usize, high: usize, compute: &mut impl FnMut(usize) -> Result<()>) -> Result<()> {
        let own = self.group.share(self.leaves);
        if own.end <= low || high <= own.start {
            return Ok(());
        }
        if high - low == 1 {
            self.clear();
            return compute(low);
        }
        let middle = middle(low, high);
        self.sum(low, middle, compute)?;
        let (left, right) = (self.owner(low), self.owner(middle));
        if left == right && self.group.rank() == left {
            let held = self.held()?;
            self.sum(middle, high, compute)?;
            for (param, held) in self.params.iter().zip(held) {
                param.add_tensor_to_gradient(&held)?;
            }
        } else if left != right && self.group.rank() == left {
            let mut sum = vec![0.0; self.count()];
            self.group.receive(&mut sum, right);
            self.each(&sum, |param, own| param.add_to_gradient(own))?;
        } else {
            self.sum(middle, high, compute)?;
            if left != right && self.group.rank() == right {
                self.group.send(&self.flat()?, left);
            }
        }
        Ok(())
    }

    /// The rank that computes a leaf.
    fn owner(&self, leaf: usize) -> usize {
        let ranks = self.group.size();
        (0..ranks).find(|&rank| share(rank, ranks, self.leaves).contains(&leaf)).expect("every leaf is someone's")
    }

    fn clear(&self) {
        self.params.iter().for_each(|param| param.clear_gradient());
    }

    fn count(&self) -> usize {
        self.params.iter().map(|param| param.value().elem_count()).sum()
    }

    /// Copies of the gradients: the next leaf overwrites them.
    fn held(&self) -> Result<Vec<Tensor>> {
        self.params.iter().map(|param| Ok(param.gradient().copy()?)).collect()
    }

    fn flat(&self) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(self.count());
        for param in self.params {
            all.extend_from_slice(&elements(param.gradient())?);
        }
        Ok(all)
    }

    /// Gives each parameter its part of `numbers`.
    fn each(&self, mut numbers: &[f32], f: impl Fn(&Param, &[f32]) -> candle_core::Result<()>) -> Result<()> {
        for param in self.params {
            let (own, rest) = numbers.split_at(param.value().elem_count());
            f(param, own)?;
            numbers = rest;
        }
        Ok(())
    }
}

/// Gives rank 0's parameters to all.
///
/// # Errors
/// If a tensor cannot be read or written.
pub fn share_values(group: &Group, params: &[Rc<Param>]) -> Result<()> {
    if group.size() == 1 {
        return Ok(());
    }
    for param in params {
        let mut numbers = elements(param.value())?.to_vec();
        group.broadcast(&mut numbers);
        param.set_value(&numbers)?;
    }
    Ok(())
}

/// Gives rank 0's moments, and how many steps they have seen, to all.
///
/// # Errors
/// If they cannot be copied to or from a GPU.
pub fn share_moments(group: &Group, optimizer: &mut AdamW) -> Result<()> {
    if group.size() == 1 {
        return Ok(());
    }
    let steps = group.from_leader(|| Ok(optimizer.steps()))?;
    optimizer.set_steps(steps);
    optimizer.restore(|_, moments| {
        for part in moments.parts_mut() {
            let shared = group.broadcast_bytes(part.to_vec());
            part.copy_from_slice(&shared);
        }
        Ok(())
    })
}

/// Where a node's second half begins: after the largest power of two of leaves that is not all of them.
fn middle(low: usize, high: usize) -> usize {
    low + (high - low).next_power_of_two() / 2
}

/// Copies of the gradients that a sum over `leaves` holds at once, beside the parameters' own.
#[must_use]
pub fn sets_held(leaves: usize) -> u32 {
    leaves.next_power_of_two().ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::tensor;

    /// What a sum over the tree is, written down as the definition says.
    fn expected(low: usize, high: usize, leaf: &impl Fn(usize) -> f32) -> f32 {
        if high - low == 1 {
            return leaf(low);
        }
        let half = 1 << (high - low - 1).ilog2();
        expected(low, low + half, leaf) + expected(low + half, high, leaf)
    }

    #[test]
    fn a_window_is_summed_over_the_balanced_tree() {
        let param = Param::new("p", tensor(vec![0.0; 3], 3).unwrap()).unwrap();
        let params = [Rc::clone(&param)];
        for leaves in 1..20 {
            // Of very unequal size, so that another order gives other bits.
            let leaf = |index: usize| 1.1f32.powi((index * 37 % 19) as i32) / 3.0;
            let mut seen = Vec::new();
            TreeSum::new(&Group::alone(), &params, leaves)
                .run(|index| {
                    seen.push(index);
                    Ok(param.add_to_gradient(&[leaf(index), 2.0 * leaf(index), 1.0])?)
                })
                .unwrap();
            assert_eq!(seen, (0..leaves).collect::<Vec<_>>());
            let sum = elements(param.gradient()).unwrap().to_vec();
            let wanted = expected(0, leaves, &leaf);
            assert_eq!(sum, [wanted, 2.0 * wanted, leaves as f32]);
        }
        assert_eq!([1, 2, 3, 4, 5, 8, 9].map(sets_held), [0, 1, 2, 2, 3, 3, 4]);
    }
}
