//! Philox4x32-10 (Salmon et al., 2011): randomness as a pure function of a counter.
//!
//! A dropout mask is recomputed in the backward instead of stored, a resumed run draws what an
//! uninterrupted one would have drawn, and the CPU and a GPU agree. The key is `(seed, site)`; the
//! counter is `(element / 4, micro-batch, stream)`, so no two uses ever draw the same numbers.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The use of a stream of numbers: the last word of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Dropout masks, one draw an element and micro-batch.
    Dropout = 0,
    /// Initial values of trained parameters (key: the training seed).
    Trainable = 1,
    /// Random base weights (key: `model.init_seed`).
    Base = 2,
    /// Dropout that the base itself has; its sites are numbered on their own.
    BaseDropout = 3,
}

/// A stream of random numbers, addressed by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    step: u32,
    purpose: u32,
}

/// One block: four 32-bit numbers from a 128-bit counter and a 64-bit key.
#[must_use]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let lanes = philox_lanes(counter.map(|word| [u64::from(word)]), key);
    lanes.map(|[word]| word)
}

/// `W` blocks at once, word by word, in a shape that the compiler turns into vector code: the words are the lower halves
/// of 64 bits, where the products take them from, and the upper halves are never cleaned up.
#[inline(always)]
fn philox_lanes<const W: usize>(mut counter: [[u64; W]; 4], mut key: [u32; 2]) -> [[u32; W]; 4] {
    let product = |multiplier: u32, word: u64| u64::from(multiplier) * u64::from(word as u32);
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = counter;
        for lane in 0..W {
            let (p0, p1) = (product(MULTIPLIERS[0], c0[lane]), product(MULTIPLIERS[1], c2[lane]));
            counter[0][lane] = p1 >> 32 ^ c1[lane] ^ u64::from(key[0]);
            counter[1][lane] = p1;
            counter[2][lane] = p0 >> 32 ^ c3[lane] ^ u64::from(key[1]);
            counter[3][lane] = p0;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter.map(|words| words.map(|word| word as u32))
}

impl Stream {
    /// The stream of one `site` (a parameter's position in its ordered list) under `seed`.
    ///
    /// `step` counts micro-batches since the start of training; it is 0 for initial values.
    #[must_use]
    pub fn new(seed: u32, site: u32, step: u32, purpose: Purpose) -> Self {
        Self { key: [seed, site], step, purpose: purpose as u32 }
    }

    /// The key, and the upper half of the counter: seed, site, step, purpose.
    #[must_use]
    pub fn words(&self) -> [u32; 4] {
        [self.key[0], self.key[1], self.step, self.purpose]
    }

    /// The numbers of elements `4 * block .. 4 * block + 4`.
    #[must_use]
    pub fn block(&self, block: u64) -> [u32; 4] {
        philox([block as u32, (block >> 32) as u32, self.step, self.purpose], self.key)
    }

    /// Sixteen blocks from `block` on, word by word: element `4 · (block + i) + w` is `[w][i]`.
    #[inline(always)]
    pub(crate) fn sixteen_blocks(&self, block: u64) -> [[u32; 16]; 4] {
        let mut counter = [[0; 16], [0; 16], [self.step.into(); 16], [self.purpose.into(); 16]];
        for lane in 0..16 {
            let index = block + lane as u64;
            counter[0][lane] = index;
            counter[1][lane] = index >> 32;
        }
        philox_lanes(counter, self.key)
    }

    /// Fills `out` with the numbers of the elements from `first` on.
    #[inline(always)]
    pub fn fill(&self, first: u64, out: &mut [u32]) {
        const W: usize = 16;
        let mut next = first;
        let mut out = out;
        while !out.is_empty() {
            let block = next / 4;
            let skip = (next % 4) as usize;
            let words = self.sixteen_blocks(block);
            let mut flat = [0; 4 * W];
            for lane in 0..W {
                for (word, values) in words.iter().enumerate() {
                    flat[4 * lane + word] = values[lane];
                }
            }
            let count = out.len().min(4 * W - skip);
            let (head, tail) = out.split_at_mut(count);
            head.copy_from_slice(&flat[skip..skip + count]);
            out = tail;
            next += count as u64;
        }
    }

    /// Uniform numbers in `[-bound, bound)` for the elements from `first` on.
    pub fn uniform(&self, first: u64, bound: f32, out: &mut [f32]) {
        let mut bits = [0; 256];
        for (index, chunk) in out.chunks_mut(bits.len()).enumerate() {
            let bits = &mut bits[..chunk.len()];
            self.fill(first + 256 * index as u64, bits);
            for (value, &bits) in chunk.iter_mut().zip(bits.iter()) {
                *value = bound * (2.0 * unit(bits) - 1.0);
            }
        }
    }

    /// Normal numbers of mean 0 and deviation `std` for the elements from `first` on, where
    /// `first` is even (Box and Muller, 1958: elements 2i and 2i + 1 make a pair).
    pub fn normal(&self, first: u64, std: f32, out: &mut [f32]) {
        debug_assert!(first.is_multiple_of(2), "a Box-Muller pair starts at an even element");
        let mut bits = [0; 256];
        for (index, chunk) in out.chunks_mut(bits.len()).enumerate() {
            self.fill(first + 256 * index as u64, &mut bits);
            for (pair, bits) in chunk.chunks_mut(2).zip(bits.as_chunks::<2>().0) {
                // 1 - u lies in (0, 1], so that the logarithm is finite.
                let radius = std * (-2.0 * (1.0 - unit(bits[0])).ln()).sqrt();
                let (sin, cos) = (std::f32::consts::TAU * unit(bits[1])).sin_cos();
                pair[0] = radius * cos;
                if let Some(second) = pair.get_mut(1) {
                    *second = radius * sin;
                }
            }
        }
    }

    /// [`Stream::normal`] from element 0 on, where numbers beyond `most` on either side are drawn again, from
    /// the streams of the next steps.
    pub fn truncated_normal(mut self, std: f32, most: f32, out: &mut [f32]) {
        self.normal(0, std, out);
        let mut again = Vec::new();
        while out.iter().any(|x| x.abs() > most) {
            self.step += 1;
            again.resize(out.len(), 0.0);
            self.normal(0, std, &mut again);
            for (value, &other) in out.iter_mut().zip(&again).filter(|(value, _)| value.abs() > most) {
                *value = other;
            }
        }
    }
}

/// The upper 24 bits as a number in `[0, 1)`.
fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers: `kat_vectors` of Random123 1.14, `philox4x32 10`.
    #[test]
    fn philox_gives_the_published_values() {
        let ones = u32::MAX;
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn filling_from_any_element_gives_the_same_numbers() {
        let stream = Stream::new(7, 3, 5, Purpose::Dropout);
        let mut all = vec![0; 301];
        stream.fill(0, &mut all);
        assert_eq!(all[8..12], stream.block(2));
        for first in [1, 2, 3, 4, 63, 65] {
            let mut part = vec![0; 130];
            stream.fill(first as u64, &mut part);
            assert_eq!(part, all[first..first + 130], "from {first}");
        }
    }

    #[test]
    fn streams_of_another_site_step_or_purpose_differ() {
        let base = Stream::new(1, 2, 3, Purpose::Dropout).block(0);
        for other in [
            Stream::new(2, 2, 3, Purpose::Dropout),
            Stream::new(1, 3, 3, Purpose::Dropout),
            Stream::new(1, 2, 4, Purpose::Dropout),
            Stream::new(1, 2, 3, Purpose::Trainable),
        ] {
            assert_ne!(base, other.block(0));
        }
    }

    #[test]
    fn truncated_normal_numbers_stay_inside_and_have_their_deviation() {
        let mut values = vec![0.0; 100_001];
        Stream::new(1, 0, 0, Purpose::Trainable).truncated_normal(0.02, 0.04, &mut values);
        assert!(values.iter().all(|v| v.abs() <= 0.04));
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
        // 0.8796 is the deviation of a standard normal cut at two.
        assert!((variance.sqrt() - 0.02 * 0.8796).abs() < 3e-4, "{variance}");
    }

    #[test]
    fn normal_numbers_have_the_asked_moments() {
        let mut values = vec![0.0; 100_001];
        Stream::new(1, 0, 0, Purpose::Base).normal(0, 0.02, &mut values);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!((variance.sqrt() - 0.02).abs() < 3e-4, "{variance}");
    }
}
