//! The order of examples: the permutation that torch's `randperm` gives for a seed.

use rand_mt::Mt;

/// The order of `0 .. len` in one epoch: MT19937 seeded `seed + epoch`, Fisher–Yates from the
/// front, indices by remainder.
#[must_use]
pub fn epoch_order(len: usize, seed: u32, epoch: usize, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    if shuffle {
        let mut generator = Mt::new(seed.wrapping_add(epoch as u32));
        // The last element has nothing left to change places with.
        for index in 0..len.saturating_sub(1) {
            order.swap(index, index + generator.next_u32() as usize % (len - index));
        }
    }
    order
}

/// Sorts an order by length within groups of fifty batches, longest first, so that the examples of a
/// batch are of a similar length; which batch they meet in stays random.
#[must_use]
pub fn group_by_length(mut order: Vec<usize>, lengths: &[usize], batch_size: usize) -> Vec<usize> {
    const BATCHES: usize = 50;
    for group in order.chunks_mut(BATCHES * batch_size) {
        group.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.randperm(10, generator=torch.Generator().manual_seed(s))`, torch 2.15, by
    /// scripts/make_fixtures.py.
    #[test]
    fn the_order_is_that_of_torch() {
        assert_eq!(epoch_order(10, 1, 0, true), [5, 6, 1, 2, 0, 8, 9, 3, 7, 4]);
        assert_eq!(epoch_order(4, 1, 5, false), [0, 1, 2, 3]);
        assert_ne!(epoch_order(10, 1, 1, true), epoch_order(10, 1, 0, true));
        assert_eq!(epoch_order(10, 0, 1, true), epoch_order(10, 1, 0, true));
    }

    #[test]
    fn groups_hold_the_same_examples_sorted_by_length() {
        let lengths: Vec<usize> = (0..230).map(|index| index * 37 % 101).collect();
        let order = epoch_order(230, 3, 0, true);
        let grouped = group_by_length(order.clone(), &lengths, 2);
        for (before, after) in order.chunks(100).zip(grouped.chunks(100)) {
            assert!(after.is_sorted_by_key(|&index| std::cmp::Reverse(lengths[index])));
            let sorted = |group: &[usize]| {
                let mut group = group.to_vec();
                group.sort_unstable();
                group
            };
            assert_eq!(sorted(before), sorted(after));
        }
    }
}
