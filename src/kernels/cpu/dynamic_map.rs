//! The 8-bit dynamic data type of bitsandbytes (Dettmers et al., 2022, "8-bit Optimizers via
//! Block-wise Quantization"): 256 values over seven decades, each with twice the values of the one
//! below.

/// Values of a map; a code is an index into them.
pub const MAP_SIZE: usize = 256;

/// The values that 8-bit codes stand for, ascending.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicMap([f32; MAP_SIZE]);

impl DynamicMap {
    /// The map over [-1, 1], or over [0, 1] if not `is_signed`.
    #[must_use]
    pub fn new(is_signed: bool) -> Self {
        let mut map = vec![0.0, 1.0];
        for exponent in 0..7 {
            let steps = 1usize << (exponent + usize::from(!is_signed));
            let edge = |index: usize| {
                // Counted from the nearer end and fused, as torch's linspace does: the bits depend on it.
                let step = (1.0f32 - 0.1) / steps as f32;
                if index < steps.div_ceil(2) {
                    step.mul_add(index as f32, 0.1)
                } else {
                    (-step).mul_add((steps - index) as f32, 1.0)
                }
            };
            let scale = 10f64.powi(exponent as i32 - 6) as f32;
            for index in 0..steps {
                let value = (edge(index) + edge(index + 1)) / 2.0 * scale;
                map.push(value);
                if is_signed {
                    map.push(-value);
                }
            }
        }
        map.sort_by(f32::total_cmp);
        Self::from_values(&map).expect("seven decades, zero and one make 256 values")
    }

    /// A map of other values; `None` unless there are 256, finite and ascending.
    #[must_use]
    pub fn from_values(values: &[f32]) -> Option<Self> {
        let values: [f32; MAP_SIZE] = values.try_into().ok()?;
        (values.is_sorted() && values.iter().all(|value| value.is_finite())).then_some(Self(values))
    }

    /// All values.
    #[must_use]
    pub fn values(&self) -> &[f32; MAP_SIZE] {
        &self.0
    }

    /// The value of a code.
    #[must_use]
    #[inline(always)]
    pub fn value(&self, code: u8) -> f32 {
        self.0[usize::from(code)]
    }

    /// The code whose value is nearest to `x`; of two equally near, the lower.
    #[must_use]
    #[inline(always)]
    pub fn nearest(&self, x: f32) -> u8 {
        // The last value that is at most x, or the first: eight halvings without a branch.
        let mut below = 0;
        for half in [128, 64, 32, 16, 8, 4, 2, 1] {
            below += if self.0[below + half] <= x { half } else { 0 };
        }
        let above = (below + 1).min(MAP_SIZE - 1);
        (if x - self.0[below] > self.0[above] - x { above } else { below }) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_code_is_the_one_a_search_of_all_finds() {
        for is_signed in [true, false] {
            let map = DynamicMap::new(is_signed);
            let mut x = -1.2;
            while x < 1.2 {
                let distance = |code: u8| (map.value(code) - x).abs();
                let best = (0..=255).map(distance).fold(f32::INFINITY, f32::min);
                assert_eq!(distance(map.nearest(x)), best, "{x}");
                x += 0.000_37;
            }
            for code in 0..=255 {
                assert_eq!(map.nearest(map.value(code)), code);
            }
        }
    }
}
